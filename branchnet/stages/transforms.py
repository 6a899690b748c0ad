"""The preprocessing that `split_all` puts before a network's first stage: as given, whether there is one, in words."""

from __future__ import annotations

import functools
import re
from enum import Enum
from typing import Any

from torch import Tensor, nn

from branchnet.errors import SplitError
from branchnet.stages.tracing.fx_tracer import PREPROCESSING
from branchnet.utils.tensor_digest import checksum

_SHOWN = (type(None), bool, int, float, str)


def as_module(transform: Any, task: str) -> nn.Module:
    """The module that a transform is, or that torchvision's weights stand for.

    Args:
        transform: a module; a member of a weights enum of torchvision, or its `transforms`, which makes the module.
        task: the task, for the message.

    Returns:
        the module.

    Raises:
        SplitError: anything else.
    """
    if isinstance(transform, nn.Module):
        return transform
    make = getattr(transform, "transforms", None) if isinstance(transform, Enum) else transform
    made = make() if isinstance(make, functools.partial) else None
    if isinstance(made, nn.Module):
        return made
    raise SplitError(
        f"the transform of {task!r} is a {type(transform).__name__}; expected an nn.Module, or weights of torchvision "
        "such as ResNet18_Weights.DEFAULT (of several steps make one module: nn.Sequential(...))"
    )


def holds_transform(stage: nn.Module) -> bool:
    """Whether a first stage is of networks some of which were given a transform; of the others it is the identity."""
    return PREPROCESSING in stage._modules


def described_transform(stage: nn.Module) -> str:
    """Say what a first stage does to its input, in words that are equal for equal transforms.

    That is the transform's own text, the settings of modules that do not tell theirs, and the checksum of tensors that
    are not in the state dict; those that are, are saved and loaded as weights.

    Args:
        stage: the first stage of a network, or a node that copies it.

    Returns:
        the description; empty where the input is taken as it is.
    """
    transform = stage._modules.get(PREPROCESSING)
    if transform is None or isinstance(transform, nn.Identity):
        return ""
    silent = {name: _settings(part) for name, part in transform.named_modules() if not part.extra_repr()}
    told = {name: settings for name, settings in silent.items() if settings}
    tensors = checksum(_unsaved_tensors(transform))[:16] if _unsaved_tensors(transform) else ""
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(transform))
    return " ".join(filter(None, [text, str(told) if told else "", tensors and f"with tensors {tensors}"]))


def _unsaved_tensors(transform: nn.Module) -> list[tuple[str, Tensor]]:
    saved = transform.state_dict()
    buffers = {name: buffer for name, buffer in transform.named_buffers() if name not in saved}
    attributes = {
        f"{name}.{key}": value
        for name, part in transform.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, Tensor)
    }
    return [(name, tensor.detach().cpu().contiguous()) for name, tensor in sorted({**buffers, **attributes}.items())]


def _settings(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and _plain(value)
    }


def _plain(value: Any) -> bool:
    return isinstance(value, _SHOWN) or (isinstance(value, list | tuple) and all(map(_plain, value)))
