"""Which published models the single-task networks were, and under which licences: as given, or as their cards say."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from branchnet.deploy.hub.licences import licence_identifier
from branchnet.deploy.model_card import table_cell
from branchnet.errors import SpecError
from branchnet.utils.visible_text import visible

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
"""OWNER/NAME."""
LONGEST_METADATA = 1_000_000
"""Characters of a card's metadata that are read; cards come from anyone."""


@dataclass(frozen=True)
class SourceModel:
    """Where a single-task network came from.

    Attributes:
        model: its id on the Hub (`OWNER/NAME`), or a name; None for a network of one's own.
        license: identifier of its licence, e.g. `"apache-2.0"`; None where it is unknown.

    Raises:
        SpecError: a licence that is no identifier.

    >>> branchnet.deploy.SourceModel("timm/resnet18.a1_in1k", "Apache-2.0")
    SourceModel(model='timm/resnet18.a1_in1k', license='apache-2.0')
    """

    model: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        if self.license is not None:
            object.__setattr__(self, "license", licence_identifier(self.license))


def source_models(
    tasks: Sequence[str], given: Mapping[str, SourceModel | str | os.PathLike[str]]
) -> dict[str, SourceModel]:
    """What each task's network was, see `source_model`.

    Args:
        tasks: all tasks of a branched network.
        given: what is known of some of them.

    Returns:
        by task the model, an unknown one where nothing is given.

    Raises:
        SpecError: unknown tasks, or as `source_model`.
    """
    if strangers := set(given) - set(tasks):
        raise SpecError(f"sources names unknown tasks: {sorted(strangers)}; expected some of {list(tasks)}")
    return {task: source_model(given.get(task, SourceModel())) for task in tasks}


def source_section(sources: Mapping[str, SourceModel], conflicts: Sequence[str]) -> list[str]:
    """The section of a model card on source models and their licences, with a warning for each conflict."""
    rows = [
        f"| {table_cell(task)} | {table_cell(source.model or 'own')} | {source.license or 'not stated'} |"
        for task, source in sources.items()
    ]
    warned = [f"- **Warning**: {visible(conflict)}." for conflict in conflicts]
    head = ["## Source models and licences", "", "| task | model | licence |", "|---|---|---|"]
    return [*head, *rows, "", *([*warned, ""] if warned else [])]


def source_model(given: SourceModel | str | os.PathLike[str]) -> SourceModel:
    """Read what is known of a model on this machine; nothing is downloaded.

    Args:
        given: a source model; a folder with a model card (README.md); or an id on the Hub, whose card counts where the
            Hub's local cache has it.

    Returns:
        The model, with the licence that its card states.

    Raises:
        SpecError: a card whose front matter cannot be read, or a licence that is no identifier.
    """
    if isinstance(given, SourceModel):
        return given
    folder = Path(given)
    if folder.is_dir():
        return SourceModel(folder.name, _licence_of(folder / "README.md"))
    name = os.fspath(given)
    cached = _cached_card(name) if HUB_ID.fullmatch(name) else None
    return SourceModel(name, None if cached is None else _licence_of(cached))


def front_matter(card: Path) -> dict[str, Any]:
    """The metadata at the beginning of a model card.

    Args:
        card: the file.

    Returns:
        The metadata; empty where there is no such file or no metadata in it.

    Raises:
        SpecError: metadata that is not a YAML mapping.
    """
    import yaml  # where a card is read, and not where a network is exported

    try:
        text = _metadata(card.read_text(encoding="utf-8")) if card.exists() else None
        data = yaml.safe_load(text) if text is not None else {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"{card}: the metadata of the card is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise SpecError(f"{card}: the metadata of the card is a {type(data).__name__}; expected a mapping")
    return data


def _metadata(card: str) -> str | None:
    """What stands between the first two lines of `---`; None where the card does not begin with one."""
    lines = card[:LONGEST_METADATA].splitlines()
    if not lines or lines[0].rstrip() != "---":
        return None
    for number, line in enumerate(lines[1:], start=1):
        if line.rstrip() == "---":
            return "\n".join(lines[1:number])
    return None


def _licence_of(card: Path) -> str | None:
    data = front_matter(card)
    stated = data.get("license")
    if stated == "other" and isinstance(data.get("license_name"), str):
        stated = data["license_name"]
    return stated if isinstance(stated, str) else None


def _cached_card(name: str) -> Path | None:
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "README.md")
    return Path(found) if isinstance(found, str) else None
