"""Weights in files of `torch.save` (.pt, .pth), read without running what a file holds.

Training loops write them in many forms: the tensors lie in a section of the file, and their names begin with those of
wrappers around the network.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from branchnet.errors import CheckpointError

SUFFIXES = (".pt", ".pth")
SECTIONS = ("state_dict", "model_state_dict", "model", "ema")
"""Where the tensors may lie in a file; the first that is there is taken."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel and AveragedModel, torch.compile, and Lightning put before the names of a network's tensors."""
_COUNTER = "n_averaged"
"""The extra buffer in the state dict of `torch.optim.swa_utils.AveragedModel`."""

logger = logging.getLogger(__name__)


def read_torch_file(path: str | os.PathLike[str], expected: Collection[str] = ()) -> dict[str, Tensor]:
    """Read the tensors of a file of `torch.save`, on the CPU, by their names in the network.

    Sections (`state_dict`, `model_state_dict`, `model`, `ema`) are opened, and prefixes that all names have (`module.`,
    `_orig_mod.`, `model.`) are removed, unless the network's own names have them; one log message says so.

    Args:
        path: the file. It is read with `weights_only=True`: nothing that it holds is run.
        expected: the names of the network's tensors.

    Returns:
        tensors by name.

    Raises:
        CheckpointError: a file that is missing, damaged, holds other objects than tensors and plain values (they are
            named), or no tensors by name.
    """
    file = Path(path)
    content = _loaded(file)
    tensors, opened = _opened(content, file)
    names, removed = _without_prefixes(tensors, set(expected))
    if opened or removed:
        steps = [f"section {', '.join(map(repr, opened))} taken"] if opened else []
        steps += [f"{', '.join(map(repr, removed))} removed from the names"] if removed else []
        left = _other_sections(content, opened)
        steps += [f"not read: {', '.join(map(repr, left))}"] if left else []
        logger.warning("%s: %s", file, "; ".join(steps))
    return names


def _loaded(file: Path) -> Any:
    if not file.exists():
        raise CheckpointError(f"{file} does not exist")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and its unpickler raise many kinds for damaged and for hostile files
        found = _refused_objects(file, str(error))
        if found:
            raise CheckpointError(
                f"{file} holds Python objects that loading would run: {', '.join(found)}; expected tensors and plain "
                "values alone, as torch.save(network.state_dict(), file) writes them"
            ) from error
        reason = type(error).__name__  # its text advises to load without protection
        raise CheckpointError(
            f"{file} cannot be read as weights ({reason}); expected a file that "
            "torch.save(network.state_dict(), file) wrote"
        ) from error


def _refused_objects(file: Path, reason: str) -> list[str]:
    """The classes and functions that the file names and that are no plain values, as far as they are known."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # it reads no damaged file, and not the format before torch 1.6
        found = []
    return sorted({*found, *re.findall(r"GLOBAL ([\w.]+)", reason)})


def _opened(content: Any, file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by name, and the sections that they lie in."""
    opened: list[str] = []
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        section = next((name for name in SECTIONS if isinstance(content.get(name), Mapping)), None)
        if section is None:
            break
        opened.append(section)
        content = content[section]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        keys = f" with {', '.join(map(str, list(content)[:8]))}" if isinstance(content, Mapping) else ""
        raise CheckpointError(
            f"{file} holds a {type(content).__name__}{keys}; expected tensors by name, or one of the sections "
            f"{', '.join(SECTIONS)}"
        )
    if wrong := [name for name, value in content.items() if not isinstance(value, Tensor) or not isinstance(name, str)]:
        kind = type(content[wrong[0]]).__name__
        raise CheckpointError(f"{file}: {wrong[0]!r} is a {kind} among tensors; expected tensors by name alone")
    return {name: value.detach() for name, value in content.items()}, opened


def _without_prefixes(tensors: dict[str, Tensor], expected: set[str]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by the names that the network knows, and what was removed."""
    removed: list[str] = []
    if not any("_orig_mod." in name for name in expected) and any("_orig_mod." in name for name in tensors):
        tensors = {name.replace("_orig_mod.", ""): value for name, value in tensors.items()}
        removed.append("_orig_mod.")
    while not expected.intersection(tensors):
        named = {name: value for name, value in tensors.items() if name != _COUNTER}
        prefix = next((one for one in PREFIXES if named and all(name.startswith(one) for name in named)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): value for name, value in named.items()}
        removed.append(prefix)
    return tensors, removed


def _other_sections(content: Any, opened: list[str]) -> list[str]:
    """Sections next to the one that was taken, which may hold other weights."""
    return [name for name in SECTIONS if opened and name in content and name != opened[0]]
