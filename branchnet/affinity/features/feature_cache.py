"""Signatures kept on disk by content, so that a second run computes only what is new.

An entry's name is a hash of the network's weights and code up to the location, the probe's content, the settings and
the version. An entry is written to a temporary next to it and renamed, so concurrent runs lose nothing; it starts
with a checksum, and one that does not fit its content, or holds no array, is computed again.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from branchnet.affinity.features.extraction import Transform
from branchnet.affinity.networks import Member
from branchnet.data.npz_files import NpzError, read_npy
from branchnet.errors import AffinityError
from branchnet.utils.files import atomic_write, remove_orphans
from branchnet.utils.version import __version__

logger = logging.getLogger(__name__)

_FORMAT = 1
_CHECKSUM_BYTES = 32
_PLAIN = (type(None), bool, int, float, str)
_ORPHANED_AFTER = 24 * 3600.0
"""Seconds: other runs may be writing into the folder, but none for so long at one entry."""


@dataclass(frozen=True)
class Cache:
    """The entries of one network.

    Attributes:
        folder: where entries are kept.
        keys: one name per location.
    """

    folder: Path
    keys: tuple[str, ...]

    def read(self, location: int, kept_as: str, shape: tuple[int, ...]) -> npt.NDArray[np.floating] | None:
        """The entry of a location, or None; a damaged one, or one of another shape, is reported.

        Raises:
            AffinityError: the system does not let it be read.
        """
        path = self._path(location, kept_as)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AffinityError(
                f"the cache entry {path} cannot be read: {error.strerror or error}; expected a file that this process "
                "may read: remove it, or pass another cache="
            ) from error
        checksum, data = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        array = _floats(data, shape) if _checksum(data) == checksum else None
        if array is None:
            logger.warning("the cache entry %s is damaged; it is computed again", path)
        return array

    def write(self, location: int, kept_as: str, signature: npt.NDArray[np.floating]) -> None:
        """Keep the signature of a location."""
        buffer = io.BytesIO()
        np.save(buffer, signature, allow_pickle=False)
        with atomic_write(self._path(location, kept_as)) as temporary:
            temporary.write_bytes(_checksum(buffer.getvalue()) + buffer.getvalue())

    def _path(self, location: int, kept_as: str) -> Path:
        return self.folder / f"{self.keys[location]}-{kept_as}.rdm"


def open_cache(folder: Path, member: Member, settings: Sequence[Any], transform: Transform | None) -> Cache:
    """The cache entries of one network under the given settings.

    Raises:
        AffinityError: a `features` function that its code does not tell apart from others.
    """
    remove_orphans(folder, older_than=_ORPHANED_AFTER)
    return Cache(folder, running_keys(member.stages, (*settings, _code_of(transform))))


def running_keys(modules: Iterable[nn.Module], settings: Sequence[Any]) -> tuple[str, ...]:
    """Hashes of weights and code: each depends on the settings and all modules up to its own, and on none after.

    Args:
        modules: what is run, in order.
        settings: what results depend on besides; told apart by their `repr`.

    Returns:
        a hash for each module.
    """
    running = hashlib.blake2b(digest_size=20)
    running.update(repr((_FORMAT, __version__, tuple(settings))).encode())
    keys = []
    for module in modules:
        running.update(_structure(module).encode())
        for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
            running.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            running.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        keys.append(running.hexdigest())
    return tuple(keys)


def _structure(stage: nn.Module) -> str:
    """What a stage computes, as text: its modules by name, and its program where it has one."""
    modules = sorted(
        f"{name} {type(module).__qualname__} {module.extra_repr()}" for name, module in stage.named_modules()
    )
    program = getattr(stage, "_evaluation", None)
    return "\n".join([*modules, getattr(program, "source", ""), str(getattr(stage, "code", ""))])


def _code_of(transform: Transform | None) -> Any:
    return None if transform is None else code_of(transform, "features")


def code_of(function: Any, option: str) -> Any:
    """What tells a user's function apart from others: its code, and defaults that are plain values.

    Args:
        function: the function.
        option: what it was given as, for the message.

    Returns:
        values whose `repr` differs where the code does.

    Raises:
        AffinityError: what has no code, or depends on objects.
    """
    if (
        not isinstance(function, FunctionType)
        or function.__closure__
        or not all(isinstance(value, _PLAIN) for value in _defaults(function))
    ):
        raise AffinityError(
            f"{option} is {function!r}; with a cache, expected a plain function without closure, and with plain values "
            "as defaults, which its code tells apart from others: write one, or drop cache="
        )
    code = function.__code__
    return function.__qualname__, code.co_code.hex(), repr(code.co_consts), code.co_names, repr(_defaults(function))


def _defaults(function: FunctionType) -> list[Any]:
    return [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _floats(content: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.floating] | None:
    try:
        array = read_npy(content)
    except NpzError:
        return None
    return array if np.issubdtype(array.dtype, np.floating) and array.shape == shape else None


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES).digest()
