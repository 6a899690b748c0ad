"""What a weights file says next to its tensors: checksum, frozen nodes, recomputed stages, initial weights, transforms.

The record is JSON in the metadata of the safetensors file, so it is written and replaced together with the weights. A
file may come from anyone: unknown keys, other types, and nodes that the network does not have are refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from branchnet.builder.building import Init
from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.weights.initialisation import Initialisation, NodeStart
from branchnet.errors import CheckpointError
from branchnet.stages.transforms import described_transform

Match = dict[str, Annotated[float, Field(allow_inf_nan=False)]]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Start(_Section):
    id: str
    location: str
    tasks: tuple[str, ...]
    source: str
    rsa: Match
    cka: Match


class _Initialisation(_Section):
    init: Init
    nodes: tuple[_Start, ...]


class Record(_Section):
    """What is kept of a branched network's state next to its tensors.

    Attributes:
        version: of this form.
        frozen: ids of the frozen nodes and heads.
        recomputed: locations whose stages are recomputed.
        initialisation: how the initial weights were made; None where that is not known.
        sha256: the checksum of the file's tensors, see `branchnet.utils.tensor_digest.checksum`; None in older files.
        transforms: what each node of the first stage does to its input before, in words; None in older files.
    """

    version: Literal[1] = 1
    frozen: tuple[str, ...]
    recomputed: tuple[str, ...]
    initialisation: _Initialisation | None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    transforms: dict[str, str] | None = None


def write_record(branched: BranchedNetwork, *, sha256: str | None = None) -> str:
    """Return the record of a network, and of the checksum of its tensors, as JSON.

    Args:
        branched: the network.
        sha256: the checksum of its tensors, see `branchnet.utils.tensor_digest.checksum`.
    """
    report = branched.initialisation
    starts = [
        {
            "id": start.id,
            "location": start.location,
            "tasks": start.tasks,
            "source": start.source,
            "rsa": dict(start.rsa),
            "cka": dict(start.cka),
        }
        for start in (report.nodes if report else ())
    ]
    return Record.model_validate(
        {
            "frozen": tuple(node.id for node in branched.members() if node.id in branched.frozen),
            "recomputed": tuple(branched.locations[stage] for stage in sorted(branched.recomputed)),
            "initialisation": {"init": report.init, "nodes": tuple(starts)} if report else None,
            "sha256": sha256,
            "transforms": _transforms(branched),
        }
    ).model_dump_json()


def read_record(text: str, branched: BranchedNetwork) -> Record:
    """Read a record and compare it with the network that it is meant for.

    Args:
        text: what `write_record` returned; untrusted.
        branched: the network.

    Returns:
        the record.

    Raises:
        CheckpointError: text that is not a record of this form, or of another network; up to 20 problems are named.
    """
    try:
        record = Record.model_validate_json(text)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'record'}: {e['msg']}" for e in error.errors()[:20]]
        raise CheckpointError(
            "the weights' metadata are not a valid record of a network:\n  " + "\n  ".join(problems)
        ) from error
    if problems := _misfits(record, branched):
        raise CheckpointError("the weights' metadata are of another network:\n  " + "\n  ".join(problems[:20]))
    return record


def joined_records(records: Sequence[str]) -> str:
    """Put the records of grouped networks into one text.

    Args:
        records: what `write_record` returned for each network.
    """
    return json.dumps(list(records))


def separate_records(text: str, count: int) -> list[str]:
    """Take the records of grouped networks apart.

    Args:
        text: what `joined_records` returned; untrusted.
        count: the number of networks.

    Raises:
        CheckpointError: text that is not a list of so many records.
    """
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the weights' metadata are not valid records of networks: {error}") from error
    if not isinstance(records, list) or len(records) != count or not all(isinstance(one, str) for one in records):
        raise CheckpointError(f"the weights' metadata are not records of networks; expected a list of {count} texts")
    return records


def restore(record: Record, branched: BranchedNetwork) -> None:
    """Freeze nodes, recompute stages and give the network its report, as the record says.

    Args:
        record: of this network, see `read_record`.
        branched: the network, changed in place.
    """
    branched.freeze(*record.frozen)
    branched.recompute(*record.recomputed)
    if (report := record.initialisation) is not None:
        branched.initialisation = Initialisation(report.init, tuple(NodeStart(**dict(node)) for node in report.nodes))


def _misfits(record: Record, branched: BranchedNetwork) -> list[str]:
    members = list(branched.members())
    ids = {node.id for node in members}
    problems = [f"frozen: unknown node {name!r}" for name in record.frozen if name not in ids]
    problems += [f"recomputed: unknown location {n!r}" for n in record.recomputed if n not in branched.locations]
    problems += _other_transforms(record, branched)
    if record.initialisation is None:
        return problems
    starts = record.initialisation.nodes
    if [(start.id, start.tasks) for start in starts] != [(node.id, node.tasks) for node in members]:
        problems.append("initialisation: its nodes and their tasks are not those of the network")
    for start in starts:
        if unknown := [task for task in (*start.rsa, *start.cka) if task not in start.tasks]:
            problems.append(f"initialisation: {start.id} does not serve {unknown[0]!r}")
    return problems


def _transforms(branched: BranchedNetwork) -> dict[str, str]:
    """The transform of each node of the first stage that has one."""
    firsts = {node.id: described_transform(node.module) for node in branched.members() if node.stage == 0}
    return {name: text for name, text in firsts.items() if text}


def _other_transforms(record: Record, branched: BranchedNetwork) -> list[str]:
    if record.transforms is None:
        return []
    saved, found = record.transforms, _transforms(branched)
    return [
        f"transforms: {name} was saved with {saved.get(name, 'none')}, and has {found.get(name, 'none')} now; expected "
        "networks=branchnet.split_all(..., transforms=...) with those that were saved"
        for name in {**saved, **found}
        if saved.get(name) != found.get(name)
    ]
