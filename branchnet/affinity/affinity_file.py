"""The file of an affinity: its arrays, and a description in JSON. A file may come from anyone; all of it is checked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from branchnet.affinity.reliability import Reliability
from branchnet.data.npz_files import SMALL, NpzError, NpzReader, open_npz
from branchnet.errors import AffinityError
from branchnet.utils.files import atomic_write

FORMAT = 1
MAX_DESCRIPTION_BYTES = 2**24

_KINDS: dict[str, tuple[type, ...]] = {
    "tasks": (list,),
    "locations": (list,),
    "measure": (str,),
    "probe_hash": (str, type(None)),
    "directed": (bool,),
    "reliability": (dict, type(None)),
}
# NumPy before 2.2 stored the argument allow_pickle of savez_compressed as an array, which files of 0.1.0 may hold.
_IGNORED = {"allow_pickle"}


def write_affinity_file(
    path: str | os.PathLike[str], arrays: dict[str, npt.NDArray[np.float64]], description: dict[str, Any]
) -> None:
    """Write a file that holds no pickled object, atomically.

    Args:
        path: the file.
        arrays: the arrays by name.
        description: everything else, as JSON values.
    """
    text = json.dumps({"format": FORMAT, **description}).encode()
    held: dict[str, npt.NDArray[Any]] = {**arrays, "description": np.frombuffer(text, dtype=np.uint8)}
    # What is large is not compressed: measured numbers gain little, and no reader has to fear what it expands to.
    write = np.savez_compressed if sum(array.nbytes for array in held.values()) <= SMALL else np.savez
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        write(file, **held)  # type: ignore[arg-type]


def read_affinity_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `write_affinity_file` wrote: the fields of an `Affinity`, by name.

    Args:
        path: the file.

    Raises:
        AffinityError: no such file, not an affinity file, a damaged one, or one written by a later version.
    """
    try:
        with open_npz(path) as file:
            description = _read_description(file)
            found = description.pop("format", None)
            if type(found) is not int or found != FORMAT:
                raise AffinityError(f"{Path(path)} was written in format {found}; expected {FORMAT}")
            _check_description(description)
            arrays = _read_arrays(file, len(description["locations"]), len(description["tasks"]))
        _check_weights(description)
        _check_depths(description)
        return {**description, **arrays, "reliability": _reliability(description)}
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise AffinityError(f"{Path(path)} {reason}; expected a file of Affinity.save") from error
    except NpzError as error:
        raise AffinityError(
            f"{Path(path)} is not an affinity file, or it is damaged: {error}; expected a file of Affinity.save"
        ) from error


def _read_description(file: NpzReader) -> dict[str, Any]:
    header = file.headers.get("description")
    if header is None:
        raise NpzError("no description in it")
    if header.dtype != np.uint8 or header.nbytes > MAX_DESCRIPTION_BYTES:
        raise NpzError(f"a description of {header.nbytes:,} bytes; expected at most {MAX_DESCRIPTION_BYTES:,}")
    try:
        description = json.loads(file.read("description").tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise NpzError(f"its description is no JSON: {error}") from error
    if not isinstance(description, dict):
        raise NpzError("its description is no mapping")
    return description


def _check_description(description: dict[str, Any]) -> None:
    if description.keys() - {"task_weights", "depths"} != _KINDS.keys():
        raise NpzError(f"its description has the keys {sorted(description)}; expected {sorted(_KINDS)}")
    for key, kinds in _KINDS.items():
        if not isinstance(description[key], kinds):
            raise NpzError(f"{key} is of type {type(description[key]).__name__}; expected {kinds[0].__name__}")


def _read_arrays(file: NpzReader, depth: int, tasks: int) -> dict[str, npt.NDArray[np.float64]]:
    """The arrays, of which no data are unpacked before all headers fit the names."""
    shape = (depth, tasks, tasks)
    names = file.headers.keys() - {"description"} - _IGNORED
    if "values" not in names or not names <= {"values", "standard_errors", "samples"}:
        raise NpzError(f"it holds the arrays {sorted(names)}; expected values, standard_errors and samples")
    for name in names:
        header = file.headers[name]
        found = header.shape[1:] if name == "samples" else header.shape
        if header.dtype != np.float64 or found != shape:
            raise NpzError(f"{name} is {header.shape} {header.dtype}; expected {shape} float64, as its names say")
    return {name: file.read(name) for name in sorted(names)}


def _reliability(description: dict[str, Any]) -> Reliability | None:
    content = description["reliability"]
    if content is None:
        return None
    if content.keys() != {"ceiling", "seed_correlation"}:
        raise NpzError("its reliability is of another form")
    try:
        found = Reliability.from_dict(content)
        depth, tasks = len(description["locations"]), len(description["tasks"])
        _check_numbers(found.ceiling, (depth, tasks))
        if found.seed_correlation is not None:
            _check_numbers(found.seed_correlation, (depth,))
    except (ValueError, TypeError, OverflowError) as error:
        raise NpzError(f"its reliability is of another form: {error}") from error
    return found


def _check_weights(description: dict[str, Any]) -> None:
    weights = description.get("task_weights")
    if weights is not None and not (
        isinstance(weights, dict)
        and weights.keys() == set(description["tasks"])
        and all(type(weight) in (int, float) and 0 <= weight < float("inf") for weight in weights.values())
    ):
        raise NpzError("its task_weights are no numbers by task")


def _check_depths(description: dict[str, Any]) -> None:
    depths, most = description.get("depths", {}), len(description["locations"])
    if not (
        isinstance(depths, dict)
        and depths.keys() <= set(description["tasks"])
        and all(type(depth) is int and 0 < depth <= most for depth in depths.values())
    ):
        raise NpzError("its depths are no numbers of stages by task")


def _check_numbers(array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype.kind not in "fi":
        raise ValueError(f"{array.shape} {array.dtype}; expected numbers, {shape}")
