"""What a branched network is called with, compared with what its networks were split with."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor
from torch.utils._pytree import tree_leaves

from branchnet.data.call_forms import Inputs
from branchnet.errors import BuildError

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
        raise BuildError(f"{given} inputs were given; expected {count}: {_described(interface)}")


def unlike(x: Input, interface: Interface) -> str:
    """Say how the inputs differ from the example in type or beyond the first dimension; empty if they don't."""
    # The first dimension is left out: networks take any batch size.
    tensors = [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]
    given = [(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in tensors]
    known = [(spec.shape, spec.dtype) for spec in interface.tensors]
    if [(len(shape), shape[1:], dtype) for shape, dtype in given] == [(len(s), s[1:], d) for s, d in known]:
        return ""
    text = ", ".join(f"{shape} {dtype}" for shape, dtype in given)
    return f"inputs of shape {text}; expected {_described(interface)}, with any batch size"


def _described(interface: Interface) -> str:
    return ", ".join(f"{spec.shape} {spec.dtype}" for spec in interface.tensors)
