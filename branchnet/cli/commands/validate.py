"""`branchnet validate`: whether YAML files say what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Flag, Quiet

File = Annotated[
    Path,
    Parameter(help="Architectures, configs of a run, descriptions of labelled data, or folders of saved networks."),
]


def validate(*files: File, build: Flag = False, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Read YAML files strictly; name every problem of each as file:line:column. Nothing of them is run.

    Example: `branchnet validate architecture.yaml branchnet-demo/run.yaml`

    Parameters
    ----------
    build
        Also make the networks of architectures, and compare them with what the files say.
    """
    from branchnet.cli.printing import print_json, print_text
    from branchnet.errors import SpecError

    if not files:
        raise SpecError("no file was given (e.g. `branchnet validate architecture.yaml`)")
    checked = [(path, *_check(path, build=build)) for path in files]
    if as_json:
        print_json([{"file": str(path), "valid": not found, "problems": found} for path, _, found in checked])
    elif not quiet:
        print_text(*(f"{path}: {description}" for path, description, found in checked if not found))
    wrong = [problem for *_, found in checked for problem in found]
    if wrong:
        raise SpecError(wrong)


def _check(path: Path, *, build: bool) -> tuple[str, list[str]]:
    """What a file is, or its problems."""
    from branchnet.errors import BranchnetError, SpecError

    try:
        return _described(path, build=build), []
    except BranchnetError as error:
        return "", list(error.problems) if isinstance(error, SpecError) else _problems(path, error)


def _problems(path: Path, error: Exception) -> list[str]:
    """What an error says, a line each, with the file in front where it does not stand there."""
    return [line if line.startswith(str(path)) else f"{path}: {line}" for line in str(error).splitlines()]


def _described(path: Path, *, build: bool) -> str:
    from branchnet.cli.loading import (
        is_label_description,
        is_specification,
        read_config,
        read_sharing,
        read_specification,
    )
    from branchnet.data.labelled.described_table import checked_table
    from branchnet.specification import GroupedArchitecture, SharingArchitecture

    if path.is_dir() or is_specification(path):
        spec = read_sharing(path) or read_specification(path)
        if build:
            spec.build()
        built = ", and builds" if build else ""
        if isinstance(spec, SharingArchitecture):
            tasks, stages = len(spec.architecture.tasks), len(spec.sharing)
            return f"an architecture of {tasks} tasks, computed one at a time, and {stages} stages is valid{built}"
        if isinstance(spec, GroupedArchitecture):
            return f"an architecture of {len(spec.groups)} networks for {len(spec.tasks)} tasks is valid{built}"
        return f"an architecture of {len(spec.tasks)} tasks and {len(spec.locations)} stages is valid{built}"
    if is_label_description(path):
        counts, labels = checked_table(path)
        said = ", ".join(f"{count} {split or 'samples'}" for split, count in counts.items())
        known = ", ".join(f"{task} {count}" for task, count in labels.items())
        return f"a description of samples with labels is valid: {said}" + (f"; with a label: {known}" if known else "")
    config = read_config(path)
    return f"a config of {len(config.networks)} networks is valid"
