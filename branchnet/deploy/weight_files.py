"""Weights in files: written as safetensors, atomically; read from these or from files of `torch.save`.

They are checked against the module before a single value is copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from branchnet.deploy.torch_files import SUFFIXES, read_torch_file
from branchnet.errors import CheckpointError
from branchnet.utils.files import atomic_write
from branchnet.utils.tensor_digest import checksum, described


def save_weights(module: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write the parameters and buffers of `module`; a tensor that has several names is written under the first.

    Args:
        module: any module.
        path: the file to write, atomically.
        metadata: texts by name to keep in the file's header.

    Raises:
        CheckpointError: the file cannot be written, as on a full disk; one that was there before is as it was.
    """
    kept = stored_tensors(module)
    try:
        with atomic_write(path) as temporary:
            save_file(kept, temporary, metadata=None if metadata is None else dict(metadata))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{Path(path)} cannot be written: {error}") from error


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that `save_weights` writes, on the CPU."""
    state = module.state_dict()
    aliases = _aliases(state)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if aliases[name] == name}


def file_checksum(path: str | os.PathLike[str]) -> str:
    """Return the checksum of the tensors in a safetensors file, of which one at a time is in memory.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file is missing, truncated or of another format.
    """
    with _reading(path), safe_open(path, framework="pt") as file:
        return checksum((name, file.get_tensor(name)) for name in sorted(file.keys()))


def load_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copy the tensors of `path` into `module`, all or none; half precision is widened where needed.

    Args:
        module: the module, changed in place.
        path: a safetensors file; or one of `torch.save`, .pt or .pth, which is read with `weights_only=True`: tensors
            in a section `state_dict`, `model_state_dict`, `model` or `ema` are found, and prefixes of wrappers
            (`module.`, `_orig_mod.`, `model.`) removed from their names, which one log message says.

    Raises:
        CheckpointError: the file is missing or damaged, or a key, a shape or a type is not what the module expects;
            every difference is named. A .pt or .pth file with other objects than tensors and plain values.

    >>> import tempfile
    >>> network, folder = nn.Linear(2, 1), tempfile.mkdtemp()
    >>> torch.save({"state_dict": network.state_dict()}, f"{folder}/trained.pth")
    >>> branchnet.deploy.load_weights(nn.Linear(2, 1), f"{folder}/trained.pth")
    """
    state = module.state_dict(keep_vars=True)
    torch_file = Path(path).suffix.lower() in SUFFIXES
    stored = read_torch_file(path, state) if torch_file else read_weights(path)
    aliases = _aliases(state)
    found = {aliases[name] for name in stored if name in aliases}
    problems = [f"{name}: not in the file" for name in state if aliases[name] == name and name not in found]
    for name, tensor in stored.items():
        if name not in state:
            problems.append(f"{name}: unknown tensor; expected those of the network")
        elif tensor.shape != state[name].shape or not _fits_into(tensor.dtype, state[name].dtype):
            problems.append(f"{name}: expected {described(state[name])}, found {described(tensor)}")
    if problems:
        raise CheckpointError(f"{Path(path)} does not fit the network:\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, tensor in stored.items():
            state[name].copy_(tensor)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file onto the CPU.

    Args:
        path: the file.

    Returns:
        tensors by name.

    Raises:
        CheckpointError: the file is missing, truncated or of another format.
    """
    with _reading(path):
        return load_file(path)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the texts that `save_weights` was given; empty where there were none.

    Args:
        path: a safetensors file.

    Raises:
        CheckpointError: the file is missing, truncated or of another format.
    """
    with _reading(path), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{Path(path)} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{Path(path)} is not a complete safetensors file: {error}") from error


def _aliases(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Map every name to the first name of the same tensor.

    The same tensor is the same memory read in the same way: a slice, or a transpose, is a tensor of its own. Empty
    tensors all lie at address 0 and are never tied.
    """
    first: dict[tuple[object, ...], str] = {}
    return {
        name: first.setdefault(
            (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            if tensor.numel()
            else (name,),
            name,
        )
        for name, tensor in state.items()
    }


def _fits_into(found: torch.dtype, expected: torch.dtype) -> bool:
    widened = found.is_floating_point and torch.promote_types(found, expected) == expected
    return found == expected or widened
