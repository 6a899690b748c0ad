"""Tensors that a network makes or holds besides its parameters and buffers, kept and compared by what they say."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from branchnet.utils.tensor_digest import checksum, described

_PREFIX = "_constant_"


def content(value: Tensor) -> str:
    """Digest of form and values; of the form alone where a tensor has no values, by identity where it has no bytes."""
    if value.is_meta:
        return described(value)
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_quantized:
        return f"{described(value)} {id(value)}"
    plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return checksum([("", plain)])


def constant_name(value: Tensor) -> str:
    """The name under which a root holds a constant: equal values have equal names in every network and mode."""
    return _PREFIX + "".join(c for c in content(value) if c.isalnum())[:16]


def is_state(root: nn.Module, path: str) -> bool:
    """Whether a path names a parameter or a buffer, whose values belong to the state, or a module."""
    holder, _, name = path.rpartition(".")
    module = root.get_submodule(holder)
    return name in module._parameters or name in module._buffers or name in module._modules
