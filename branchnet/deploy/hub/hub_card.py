"""The model card of a folder for the Hub: metadata that the Hub reads, and what a reader wants to know."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.grouped_networks import GroupedNetworks
from branchnet.builder.stitch_costs import stitch_costs
from branchnet.deploy.hub.licences import licence_conflicts, licence_identifier
from branchnet.deploy.hub.source_models import HUB_ID, SourceModel, source_models, source_section
from branchnet.deploy.model_card import cost_table, stitch_table, table_cell, tree_section
from branchnet.errors import SpecError
from branchnet.utils.visible_text import visible


@dataclass(frozen=True)
class CardFields:
    """What a model card says that the network does not know itself.

    Attributes:
        title: the card's title; by default the name of the folder.
        license: identifier of the branched network's licence, e.g. `"apache-2.0"`; by default that of all source
            models where they have the same one, else none is stated.
        sources: by task the model that its network was: a `SourceModel`, a folder with a card, or an id on the Hub.
        metrics: `metrics.json` of a run, or its content.
        network: which of the networks in it this one is.
        dataset: what it was measured on.

    Raises:
        SpecError: a licence that is no identifier.

    >>> branchnet.deploy.CardFields(license="MIT", sources={"depth": "timm/resnet18.a1_in1k"}).license
    'mit'
    """

    title: str | None = None
    license: str | None = None
    sources: Mapping[str, SourceModel | str | os.PathLike[str]] = field(default_factory=dict)
    metrics: str | os.PathLike[str] | Mapping[str, Any] | None = None
    network: str = "branched"
    dataset: str = "held-out samples"

    def __post_init__(self) -> None:
        if self.license is not None:
            object.__setattr__(self, "license", licence_identifier(self.license))


def hub_card(network: BranchedNetwork | GroupedNetworks, fields: CardFields, name: str) -> tuple[str, list[str]]:
    """Write the card as Markdown.

    Args:
        network: what is published.
        fields: what else the card says.
        name: the title where the fields give none.

    Returns:
        the card, and the conflicts of licences that it warns of.

    Raises:
        SpecError: sources of unknown tasks, a source's card that cannot be read, or metrics of another form.
    """
    sources = source_models(network.tasks, fields.sources)
    licences = {task: source.license for task, source in sources.items()}
    shared = set(licences.values())
    license = fields.license or (shared.pop() if len(shared) == 1 else None)
    conflicts = licence_conflicts(licences, license) if fields.sources else []
    title = visible(fields.title or name)
    metrics = _metrics(fields)
    data: dict[str, Any] = {"library_name": "branchnet", "tags": ["branchnet", "multi-task-learning"]}
    if license is not None:
        data["license"] = license
    if models := _hub_ids(sources):
        data |= {"base_model": models, "base_model_relation": "merge"}
    if metrics:
        data["model-index"] = [{"name": title, "results": _results(metrics, fields.dataset)}]
    networks = network.branched_networks if isinstance(network, GroupedNetworks) else (network,)
    lines = [
        "---",
        yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {title}",
        "",
        f"A branched network of {len(network.tasks)} tasks ({', '.join(map(visible, network.tasks))}), by branchnet.",
        "",
        *(line for one in networks for line in _description(one)),
        *_measured(metrics, fields.dataset),
        *source_section(sources, conflicts),
        *_loading(alone=all(None not in one.constructors.values() for one in networks)),
        f"Made with torch {torch.__version__}.",
        "",
    ]
    return "\n".join(lines), conflicts


def _hub_ids(sources: Mapping[str, SourceModel]) -> list[str]:
    """The ids on the Hub, each once."""
    return list(dict.fromkeys(s.model for s in sources.values() if s.model is not None and HUB_ID.fullmatch(s.model)))


def _description(network: BranchedNetwork) -> list[str]:
    stitches = stitch_costs(network, network.interface.random())
    return [*tree_section(network, stitches), "", "## Cost", "", *cost_table(network), "", *stitch_table(stitches)]


def _metrics(fields: CardFields) -> dict[str, tuple[str, float]]:
    """By task the name and the value of its metric."""
    content: Any = fields.metrics
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        try:
            content = json.loads(Path(content).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SpecError(f"{content}: the metrics cannot be read: {error}") from error
    try:
        names, values = content["metrics"], content["networks"][fields.network]["metrics"]
        found = {task: (str(names[task]), float(value)) for task, value in values.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpecError(
            f"the metrics have no networks.{fields.network}.metrics with a number for each task, and no names under "
            f"`metrics` ({type(error).__name__}: {error}); expected the metrics.json of a run"
        ) from error
    return {task: (name, value) for task, (name, value) in found.items() if math.isfinite(value)}


def _results(metrics: Mapping[str, tuple[str, float]], dataset: str) -> list[dict[str, Any]]:
    return [
        {
            "task": {"type": "other", "name": task},
            "dataset": {"type": "other", "name": dataset},
            "metrics": [{"type": name, "name": name, "value": value}],
        }
        for task, (name, value) in metrics.items()
    ]


def _measured(metrics: Mapping[str, tuple[str, float]], dataset: str) -> list[str]:
    if not metrics:
        return []
    rows = [f"| {table_cell(task)} | {table_cell(name)} | {value:.4g} |" for task, (name, value) in metrics.items()]
    return [f"## Measured on {visible(dataset)}", "", "| task | metric | value |", "|---|---|---|", *rows, ""]


def _loading(*, alone: bool) -> list[str]:
    needed = [] if alone else ["# networks: the single-task networks by task; only their structure counts"]
    call = '"FOLDER_OR_ID"' if alone else '"FOLDER_OR_ID", networks'
    code = ["import branchnet", "", *needed, f"branched = branchnet.deploy.from_pretrained({call})"]
    return ["## Loading", "", "```python", *code, "```", ""]
