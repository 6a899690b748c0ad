"""What a branched network is called with, compared with what its networks were split with."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from branchnet.data.call_forms import Inputs
from branchnet.errors import BuildError
from branchnet.stages.interface import unlike as unlike

if TYPE_CHECKING:
    from branchnet.stages import Interface

Input: TypeAlias = Inputs
"""One batch, as a branched network is called with it."""


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
