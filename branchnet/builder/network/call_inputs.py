"""What a branched network is called with, compared with what its networks were split with."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from branchnet.data.call_forms import INPUT_NAMES, Inputs
from branchnet.errors import BuildError
from branchnet.stages.interface import unlike as unlike

if TYPE_CHECKING:
    from branchnet.stages import Interface

Input: TypeAlias = Inputs
"""One batch, as a branched network is called with it."""


def one_input(
    given: tuple[Any, ...], tasks: Sequence[str] | None, named: Mapping[str, Any], interface: Interface | None
) -> tuple[Input, Sequence[str] | None]:
    """What a call gives, as one input and the tasks: `(x, tasks)`, `(ids, mask, tasks=...)`, or `(**batch)`.

    Args:
        given: positional arguments: one input, that and the tasks, or the tensors one by one.
        tasks: the tasks, where they are given by name.
        named: the other arguments by name.
        interface: the form of the inputs that the single-task networks were split with; None where it is unknown.

    Returns:
        The input, as `forward` documents it, and the tasks.

    Raises:
        BuildError: no input, inputs by position as well as by name, or several by position to networks that take names.
    """
    if len(given) == 2 and tasks is None:
        first, second = given
        if not isinstance(second, Tensor):
            given, tasks = (first,), second
    if given and named:
        raise BuildError(f"inputs were given by position and by name, {list(named)}; expected one of the two")
    if named:
        return _of_names(named, interface), tasks
    if not given:
        raise BuildError(f"no input was given{f'; expected {interface.described}' if interface else ''}")
    names = interface.names if interface else ()
    if len(given) == 1:
        return ({names[0]: given[0]} if len(names) == 1 and isinstance(given[0], Tensor) else given[0]), tasks
    if names:
        call = ", ".join(f"{name}=..." for name in names)
        raise BuildError(f"{len(given)} inputs were given without names; expected network({call}) or one mapping")
    return given, tasks


def _of_names(named: Mapping[str, Any], interface: Interface | None) -> Input:
    """Inputs by name; the one of networks of one tensor may have any of the usual names."""
    if list(named) == ["x"] and not (interface and "x" in interface.names):
        return named["x"]  # type: ignore[no-any-return]
    if interface and interface.form == "tensor" and len(named) == 1 and next(iter(named)) in INPUT_NAMES:
        return next(iter(named.values()))  # type: ignore[no-any-return]
    return dict(named)


def check_input(x: Input, interface: Interface) -> None:
    """Refuse inputs of another form: a wrong number of tensors, or other names.

    Args:
        x: what the network is called with.
        interface: the form of the inputs that its single-task networks were split with.

    Raises:
        BuildError: inputs of another form; the message names what was expected and what was given.
    """
    count = len(interface.tensors)
    if isinstance(x, Mapping):
        if set(x) != set(interface.names):
            known = list(interface.names) or [f"{count} without names"]
            near = {n: m[0] for n in x if n not in known and (m := difflib.get_close_matches(str(n), known, n=1))}
            hint = "".join(f"; did you mean {right!r} instead of {wrong!r}?" for wrong, right in near.items())
            raise BuildError(f"the inputs have the names {list(x)}; expected {known}{hint}")
    elif isinstance(x, list):
        raise BuildError("the inputs are a list; expected a tensor, a tuple of tensors or a dict of them")
    elif (given := len(x) if isinstance(x, tuple) else 1) != count:
        raise BuildError(f"{given} inputs were given; expected {count}: {interface.described}")
