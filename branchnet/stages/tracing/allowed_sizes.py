"""The sizes of inputs for which an exported graph is the network's: what export assumed, checked at every call."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from branchnet.errors import SplitError
from branchnet.utils.installed_torch.torch_internals import PythonPrinter


@dataclass(frozen=True)
class AllowedSizes:
    """What holds of the sizes of a graph's inputs.

    Attributes:
        names: what each input is called in messages.
        lengths: for each input and dimension its only length, or the symbol of a free one, or None where anything goes.
        conditions: Python expressions over the symbols that the network's code has decided as true.
        not_one: the symbols that may not be 1, which export never looks at.
        one_together: the symbols that may be 1 all the same where all of these are, as the batch of several inputs.
    """

    names: tuple[str, ...]
    lengths: tuple[tuple[int | str | None, ...], ...]
    conditions: tuple[str, ...] = ()
    not_one: frozenset[str] = frozenset()
    one_together: frozenset[str] = frozenset()

    def symbols(self) -> frozenset[str]:
        """The free lengths."""
        return frozenset(length for lengths in self.lengths for length in lengths if isinstance(length, str))

    def check(self, inputs: Sequence[Any]) -> None:
        """Refuse other sizes.

        Raises:
            SplitError: names the input, its size and what was expected.
        """
        values: dict[str, int] = {}
        where: dict[str, str] = {}
        ones: dict[str, tuple[str, Tensor, int]] = {}
        for name, lengths, value in zip(self.names, self.lengths, inputs, strict=False):
            if not isinstance(value, Tensor) or value.dim() != len(lengths):
                continue  # the graph's own operators say what is wrong
            for dim, (length, size) in enumerate(zip(lengths, value.shape, strict=True)):
                if isinstance(length, int) and length != size:
                    self._refuse(name, value, f"{length} in dimension {dim}, the example's")
                if isinstance(length, str):
                    if length in self.not_one and size == 1:
                        ones.setdefault(length, (name, value, dim))
                    if values.setdefault(length, size) != size:
                        self._refuse(name, value, f"{values[length]} in dimension {dim}, as {where[length]} has")
                    where.setdefault(length, name)
        together = all(values.get(symbol) == 1 for symbol in self.one_together)
        for symbol, (name, value, dim) in ones.items():
            if not (together and symbol in self.one_together):
                also = ", or 1 in all inputs" if symbol in self.one_together else ""
                self._refuse(name, value, f"more than 1 in dimension {dim}{also}")
        for condition in self.conditions:
            # What was decided of lengths from 2 says nothing of 1, which was tried.
            involved = {symbol: size for symbol, size in values.items() if symbol in condition}
            if 1 not in involved.values() and not _holds(condition, values):
                first = next(iter(involved), None)
                name = where.get(first or "", self.names[0])
                self._refuse(name, inputs[self.names.index(name)], f"lengths with {self._readable(condition)}")

    def _readable(self, condition: str) -> str:
        for name, lengths in zip(self.names, self.lengths, strict=True):
            for dim, length in enumerate(lengths):
                if isinstance(length, str):
                    condition = condition.replace(length, f"{name}.shape[{dim}]")
        return condition

    def _refuse(self, name: str, value: Tensor, expected: str) -> None:
        raise SplitError(
            f"{name} has the shape {tuple(value.shape)}; expected {expected}: the network's code decides by sizes, and "
            "its stages keep what it decided; split the network with an example of this size"
        )


def allowed_sizes(program: ExportedProgram, example: Sequence[Tensor], skip_first: bool) -> AllowedSizes:
    """What an export has assumed of the sizes of its inputs.

    Args:
        program: what torch.export has returned.
        example: the tensors that it was exported with.
        skip_first: leave the first input out, which a transform has changed before.
    """
    by_name = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = [by_name[str(name)].meta["val"] for name in program.graph_signature.user_inputs if str(name) in by_name]
    names = tuple(f"input {k}" if k else "the input" for k in range(len(values)))
    lengths = tuple(
        tuple(None if skip_first and k == 0 else _length(size) for size in value.shape)
        if isinstance(value, Tensor)
        else ()
        for k, value in enumerate(values)
    )
    sizes = AllowedSizes(names, lengths)
    found = dict[str, int]()
    for symbols, tensor in zip(lengths, example, strict=False):
        found |= {s: size for s, size in zip(symbols, tensor.shape, strict=False) if isinstance(s, str)}
    environment = next((v.fake_mode.shape_env for v in values if hasattr(v, "fake_mode")), None)
    guards = [guard.expr for guard in environment.guards] if environment is not None else []
    known = [g for g in guards if {str(s) for s in g.free_symbols} <= sizes.symbols()]
    conditions = dict.fromkeys(PythonPrinter().doprint(guard) for guard in known)
    for expression in _involved(values):
        conditions[f"{_derived(expression)} == {PythonPrinter().doprint(expression)}"] = None
    return AllowedSizes(names, lengths, tuple(c for c in conditions if _holds(c, found)))


def _involved(values: Sequence[Any]) -> list[Any]:
    """The lengths of inputs that are functions of other lengths."""
    sizes: list[Any] = [size for value in values if isinstance(value, Tensor) for size in value.shape]
    expressions = [size.node.expr for size in sizes if isinstance(size, torch.SymInt)]
    return [expression for expression in expressions if not (expression.is_number or expression.is_Symbol)]


def _length(size: Any) -> int | str | None:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression.is_number:
        return int(expression)
    return str(expression) if expression.is_Symbol else _derived(expression)


def _derived(expression: Any) -> str:
    """A name for a length that is a function of others."""
    return f"derived_{zlib.crc32(str(expression).encode()):08x}"


def _holds(condition: str, values: dict[str, int]) -> bool:
    """Whether a condition is true; one that cannot be computed from these lengths is."""
    with suppress(Exception):
        return bool(eval(condition, {"math": math, "torch": torch}, dict(values)))  # torch's own text, not a user's
    return True
