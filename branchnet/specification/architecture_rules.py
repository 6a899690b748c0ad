"""Rules of a specification that concern several values: each gives the places and the texts of what breaks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from branchnet.specification.nested_tree import tree_problems
from branchnet.specification.sections import InputSection
from branchnet.specification.stitch_sections import stitch_problems
from branchnet.utils.document_keys import Keys
from branchnet.utils.visible_text import invisible

if TYPE_CHECKING:
    from branchnet.specification.architecture import Architecture


def architecture_problems(spec: Architecture, version: int) -> list[tuple[Keys, str]]:
    """List everything that is wrong with a specification whose single values are right.

    Args:
        spec: the specification.
        version: of the format that is written now.
    """
    problems: list[tuple[Keys, str]] = []
    if spec.schema_version < 1:
        problems.append((("schema_version",), f"unknown version {spec.schema_version}; expected {version}"))
    names = name_problems("tasks", spec.tasks) + name_problems("locations", spec.locations)
    problems += names
    if not names:
        found = tree_problems(spec.roots, spec.tasks, spec.locations, stitched=bool(spec.stitches))
        # Which nodes there are is known of a tree without problems only.
        problems += inside("tree", found) + inside(
            "stitches", [] if found else stitch_problems(spec.stitches, spec.tree)
        )
    problems += [(("networks", task), "unknown key: not a task") for task in spec.networks if task not in spec.tasks]
    for task, network in spec.networks.items():
        problems += [(("networks", task, *keys), text) for keys, text in network.problems()]
    problems += inside("costs", spec.costs.problems(spec.tasks, spec.locations) if spec.costs else [])
    problems += inside("search", spec.search.problems() if spec.search else [])
    return problems + input_problems(spec.input)


def name_problems(section: str, names: Sequence[str]) -> list[tuple[Keys, str]]:
    """List names in a section that are empty, occur more than once, or hold characters that nobody sees."""
    empty = [((section, i), "is empty") for i, name in enumerate(names) if not name]
    twice = [((section, i), f"{name!r} occurs twice") for i, name in enumerate(names) if name in names[:i]]
    hidden = [
        ((section, i), f"{name!r} holds {', '.join(found)}, which nobody sees (remove it)")
        for i, name in enumerate(names)
        if (found := invisible(name))
    ]
    return [*empty, *twice, *hidden]


def input_problems(section: InputSection | Sequence[InputSection] | None) -> list[tuple[Keys, str]]:
    """List what is wrong with the inputs: each tensor's own problems, and names of some tensors but not of others."""
    if section is None:
        return []
    if isinstance(section, InputSection):
        named = [(("input", "name"), "one tensor alone has no name (write a list of one)")] if section.name else []
        return [*named, *inside("input", section.problems())]
    names = [tensor.name for tensor in section]
    problems = [(("input", i, *keys), text) for i, tensor in enumerate(section) for keys, text in tensor.problems()]
    if len({name is None for name in names}) == 2:
        return [*problems, (("input",), "names some of its tensors (name all or none)")]
    return problems + name_problems("input", [name for name in names if name is not None])


def inside(section: str, problems: Sequence[tuple[Keys, str]]) -> list[tuple[Keys, str]]:
    """Return problems of a section with their places counted from the top of the file."""
    return [((section, *keys), text) for keys, text in problems]
