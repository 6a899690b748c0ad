"""What a network takes: the shapes and types of its example inputs, and how a network is called with them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from branchnet.data.call_forms import LABEL_NAMES, CallForm, Inputs
from branchnet.errors import BranchnetError, SplitError
from branchnet.utils.installed_torch.torch_internals import tree_leaves

Example: TypeAlias = Inputs
"""One batch that a network is split, timed or exported with."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of one tensor.

    Attributes:
        shape: its shape, the batch dimension included.
        dtype: its type, such as `float32`.
        low: the smallest value that the example held; None for floats.
        high: the largest value that the example held; None for floats.
    """

    shape: tuple[int, ...]
    dtype: str
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True)
class Interface:
    """Shapes and types of a network's example inputs: one tensor, a tuple of tensors, or a mapping from names to them.

    Attributes:
        tensors: one entry per input.
        form: `"tensor"` for `network(x)`, `"tuple"` for `network(*x)`, `"dict"` for `network(**x)`.
        names: the keyword names where the form is `"dict"`, else empty.

    >>> interface = branchnet.Interface.of(torch.zeros(2, 3, 32, 32))
    >>> interface.form, interface.batch, interface.tensors[0].dtype
    ('tensor', 2, 'float32')
    >>> interface.random(batch=5).shape
    torch.Size([5, 3, 32, 32])
    """

    tensors: tuple[TensorSpec, ...]
    form: str = "tensor"
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, example: Example) -> Interface:
        """Read the interface off an example.

        Args:
            example: what a network takes: a tensor, a tuple of tensors, or a mapping from keyword names to tensors.

        Returns:
            Shapes, types and the range of integers of the example's tensors.

        Raises:
            SplitError: the example has none of these forms.
        """
        specs = tuple(_spec_of(tensor) for tensor in flat_example(example))
        if isinstance(example, Mapping):
            return cls(specs, "dict", tuple(example))
        return cls(specs, "tensor" if isinstance(example, Tensor) else "tuple")

    @property
    def batch(self) -> int | None:
        """The example's batch size: the first dimension of its first tensor that has one."""
        return next((spec.shape[0] for spec in self.tensors if spec.shape), None)

    @property
    def described(self) -> str:
        """Shapes and types in words, such as `(2, 3, 32, 32) float32`."""
        return ", ".join(f"{spec.shape} {spec.dtype}" for spec in self.tensors)

    def random(self, batch: int | None = None, seed: int = 0) -> Example:
        """Make an example: normal floats; integers and booleans between the smallest and largest that were seen.

        Args:
            batch: batch size, in place of the example's wherever a tensor's first dimension is that; None keeps it.
            seed: seed of the values.

        Returns:
            Tensors in the form of the example that the interface was read off, on the CPU.
        """
        generator = torch.Generator().manual_seed(seed)
        tensors = tuple(_random(spec, self._shape(spec, batch), generator) for spec in self.tensors)
        if self.form == "dict":
            return dict(zip(self.names, tensors, strict=True))
        return tensors[0] if self.form == "tensor" else tensors

    def to_dict(self) -> dict[str, Any]:
        """Write the interface for a file.

        Returns:
            Plain lists, numbers and strings.
        """
        tensors = [
            {"shape": list(spec.shape), "dtype": spec.dtype}
            | ({} if spec.low is None else {"low": spec.low, "high": spec.high})
            for spec in self.tensors
        ]
        return {"form": self.form, "tensors": tensors} | ({"names": list(self.names)} if self.names else {})

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Interface:
        """Read back what `to_dict` wrote.

        Args:
            plain: the mapping that `to_dict` returned.

        Returns:
            An equal interface.

        Raises:
            KeyError: the mapping lacks a field.
        """
        specs = tuple(
            TensorSpec(tuple(entry["shape"]), entry["dtype"], entry.get("low"), entry.get("high"))
            for entry in plain["tensors"]
        )
        return cls(specs, plain["form"], tuple(plain.get("names", ())))

    def _shape(self, spec: TensorSpec, batch: int | None) -> tuple[int, ...]:
        if batch is None or not spec.shape or spec.shape[0] != self.batch:
            return spec.shape
        return (batch, *spec.shape[1:])


def flat_example(example: Example) -> tuple[Tensor, ...]:
    """List an example's tensors.

    Args:
        example: a tensor, a non-empty tuple of tensors, or a non-empty mapping from keyword names to tensors.

    Returns:
        The tensors in order.

    Raises:
        SplitError: the example has none of these forms.
    """
    if isinstance(example, Tensor):
        return (example,)
    tensors = tuple(example.values()) if isinstance(example, Mapping) else example
    if not isinstance(tensors, tuple | list) or not tensors or not all(isinstance(t, Tensor) for t in tensors):
        raise SplitError(
            f"the example is {_describe(example)}; expected a tensor, or a non-empty tuple or dict of tensors"
        )
    return tuple(tensors)


def call_arguments(example: Example) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Unpack an example.

    Args:
        example: as for `flat_example`.

    Returns:
        Positional and keyword arguments with which a network takes it.

    Raises:
        SplitError: the example is of another form.
    """
    tensors = flat_example(example)
    if isinstance(example, Mapping):
        return (), dict(zip(example, tensors, strict=True))
    return tensors, {}


def call(network: nn.Module, example: Example) -> Any:
    """Run a network on an example: `network(x)`, `network(*x)` or `network(**x)`.

    Args:
        network: any module.
        example: a tensor, a tuple of tensors, or a mapping from keyword names to tensors.

    Returns:
        What the network returns.
    """
    if isinstance(example, Mapping):
        return network(**example)
    return network(*example) if isinstance(example, tuple) else network(example)


def unlike(x: Any, interface: Interface) -> str:
    """Say how inputs differ from the example in type or beyond the first dimension.

    Args:
        x: what a network is called with.
        interface: of the example that it was split with.

    Returns:
        what was given and what was expected; empty if they do not differ.
    """
    # The first dimension is left out: networks take any batch size.
    tensors = [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]
    given = [(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in tensors]
    known = [(spec.shape, spec.dtype) for spec in interface.tensors]
    if [(len(shape), shape[1:], dtype) for shape, dtype in given] == [(len(s), s[1:], d) for s, d in known]:
        return ""
    return f"inputs of shape {_forms(x)}; expected {interface.described}, with any batch size"


def _forms(x: Any) -> str:
    tensors = [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]
    return ", ".join(f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors)


@contextmanager
def explaining(x: Any, interface: Interface | None, error: type[BranchnetError], what: str) -> Iterator[None]:
    """Translate an error of running a network that the form of its inputs explains.

    Running out of memory, and errors on inputs of the expected form, are the caller's to see as they are.

    Args:
        x: what the network is called with.
        interface: of the example that it was split with; where None, every such error is translated.
        error: what is raised instead.
        what: cannot be run, such as `the network of 'depth'`.

    Yields:
        Nothing.

    Raises:
        BranchnetError: of type `error`, with what was given and what was expected.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError) as cause:
        found = f"inputs of shape {_forms(x)}" if interface is None else unlike(x, interface)
        if isinstance(cause, torch.OutOfMemoryError) or not found:
            raise
        raise error(f"{what} cannot be run on {found}: {cause}") from cause


def call_form(network: nn.Module) -> CallForm:
    """What is known of a network's inputs: those that it was split with, or the parameters of its `forward`."""
    interface = getattr(network, "interface", None)
    if isinstance(interface, Interface):
        return _form_of_interface(interface, _floating_type(network))
    if getattr(network, "takes_inputs_as_one", False):  # its forward passes tuples and mappings on
        inner = getattr(network, "networks", None)
        return call_form(inner[0]) if isinstance(inner, nn.ModuleList) else CallForm(floating=_floating_type(network))
    return _form_of_signature(network)


def _form_of_interface(interface: Interface, floating: torch.dtype | None) -> CallForm:
    first = interface.tensors[0]
    return CallForm(
        positional=None if interface.form == "dict" else len(interface.tensors),
        most=None if interface.form == "dict" else len(interface.tensors),
        names=interface.names,
        complete=interface.form == "dict",
        dims=len(first.shape),
        takes_bytes=any(spec.dtype == "uint8" for spec in interface.tensors),
        floating=floating,
    )


def _form_of_signature(network: nn.Module) -> CallForm:
    floating = _floating_type(network)
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):  # scripted modules have none
        return CallForm(floating=floating)
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in LABEL_NAMES]
    if not named or any(p.kind is p.VAR_POSITIONAL for p in named):
        return CallForm(floating=floating)
    needed = [p for p in named if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    names = tuple(p.name for p in named if p.kind is not p.POSITIONAL_ONLY)
    most = sum(p.kind is not p.KEYWORD_ONLY for p in named)
    return CallForm(max(1, len(needed)), max(1, most), names, floating=floating)


def _floating_type(network: nn.Module) -> torch.dtype | None:
    return next((tensor.dtype for tensor in network.parameters() if tensor.is_floating_point()), None)


def _spec_of(tensor: Tensor) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    countable = not (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() and not tensor.is_meta
    if not countable:
        return TensorSpec(tuple(tensor.shape), dtype)
    return TensorSpec(tuple(tensor.shape), dtype, int(tensor.min()), int(tensor.max()))


def _random(spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)
    # Integers are token numbers or class indices: a value outside the seen range may lie outside an embedding.
    low, high = spec.low or 0, 1 if spec.high is None else spec.high
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


def _describe(example: object) -> str:
    if isinstance(example, Mapping):
        return f"a mapping of {sorted({type(value).__name__ for value in example.values()})}"
    if isinstance(example, tuple | list):
        return f"a {type(example).__name__} of {sorted({type(value).__name__ for value in example})}"
    return f"a {type(example).__name__}"
