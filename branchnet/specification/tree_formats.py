"""Trees in the file formats of other projects, and as JSON: reading and writing.

- TreeMTL (zhanglijun95/TreeMTL, `main/layout.py`): for each block the groups of task numbers, `[[{0, 1}, {2}], ...]`.
- BMTAS (brdav/bmtas, `src/models.py`): JSON with `config`, for each layer the number of the block that each task takes.
- AutoBRANE (VirtuosoResearch/Multitask-algorithmic-reasoning, `tree_configs/*.txt`): a line `layer: task task ...` for
  each group; layers before the first that is named are shared by all.
- JSON of our own: `{"tasks": [...], "partitions": [...]}`.

A tree is also written as DOT text, by `tree.to_dot()`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from branchnet.clustering.trees.tree import Tree
from branchnet.errors import SpecError, TreeError


def tree_from_treemtl(text: str, tasks: Sequence[str]) -> Tree:
    """Read a TreeMTL layout.

    Args:
        text: such as `[[{0, 1}, {2}]]`: for each block its groups of task numbers.
        tasks: `tasks[i]` is the name of task i.

    Returns:
        a tree of one stage for each block.

    Raises:
        SpecError: text of another form, or groups that form no tree over the tasks.
    """
    layout = _parse_json(text.replace("{", "[").replace("}", "]"), "a TreeMTL layout")
    _require(_is_nested(layout, 3), "a TreeMTL layout is a list of blocks, each a list of groups of task numbers")
    return _tree(tasks, [[[_name(number, tasks) for number in group] for group in block] for block in layout])


def tree_to_treemtl(tree: Tree) -> str:
    """Write a TreeMTL layout; task numbers are places in `tree.tasks`."""
    numbers = {task: str(number) for number, task in enumerate(tree.tasks)}
    blocks = [
        ", ".join("{" + ", ".join(numbers[task] for task in cluster) + "}" for cluster in clusters)
        for clusters in tree.partitions
    ]
    return "[" + ", ".join(f"[{block}]" for block in blocks) + "]"


def tree_from_bmtas(text: str, tasks: Sequence[str]) -> Tree:
    """Read a BMTAS branch configuration.

    Two tasks share a layer if they take the same block there and at every layer before.

    Args:
        text: JSON, with one row of block numbers for each layer.
        tasks: column i is task `tasks[i]`.

    Returns:
        a tree of one stage for each row.

    Raises:
        SpecError: text of another form, or rows that are not as long as `tasks`.
    """
    content = _parse_json(text, "a BMTAS configuration")
    rows: Any = content.get("config") if isinstance(content, dict) else content
    _require(_is_nested(rows, 2) and bool(rows), "a BMTAS configuration has rows of block numbers under `config`")
    _require(all(len(row) == len(tasks) for row in rows), f"every row needs {len(tasks)} numbers, one for each task")
    labels = []
    paths: list[tuple[Any, ...]] = [()] * len(tasks)
    for row in rows:
        paths = [(*path, block) for path, block in zip(paths, row, strict=True)]
        labels.append([paths.index(path) for path in paths])
    return Tree.from_labels(tasks, labels)


def tree_to_bmtas(tree: Tree) -> str:
    """Write a BMTAS branch configuration; columns are in the order of `tree.tasks`."""
    rows = ",\n".join(f"  {list(row)}" for row in tree.labels())
    return f'{{"config": [\n{rows}\n]}}\n'


def tree_from_autobrane(text: str) -> Tree:
    """Read an AutoBRANE tree file; tasks are ordered as they first appear, layers count from 1.

    Args:
        text: lines `layer: task task ...`, one for each group.

    Returns:
        a tree of one stage for each layer.

    Raises:
        SpecError: a line of another form, layers that are left out, or groups that form no tree.
    """
    layers: dict[int, list[list[str]]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = re.fullmatch(r"\s*([0-9]{1,4})\s*:\s*(\S.*)", line)
        if match is not None:
            layers.setdefault(int(match[1]), []).append(match[2].split())
        elif line.strip():
            raise SpecError(f"line {number}: {line!r} cannot be read; expected `layer: task task ...`")
    _require(bool(layers), "the file names no layer")
    first, last = min(layers), max(layers)
    missing = [layer for layer in range(first, last + 1) if layer not in layers]
    _require(first >= 1 and not missing, f"layers count from 1 without gaps; these are missing: {missing}")
    tasks = list(dict.fromkeys(task for group in layers[first] for task in group))
    return _tree(tasks, [[tasks]] * (first - 1) + [layers[layer] for layer in range(first, last + 1)])


def tree_to_autobrane(tree: Tree) -> str:
    """Write an AutoBRANE tree file.

    Args:
        tree: the tree.

    Raises:
        SpecError: a task whose name has spaces, which the format cannot hold.
    """
    spaced = [task for task in tree.tasks if task.split() != [task]]
    _require(not spaced, f"the names of tasks {spaced} have spaces; expected none, which separate names in this format")
    lines = [
        f"{layer}: {' '.join(cluster)}"
        for layer, clusters in enumerate(tree.partitions, start=1)
        for cluster in clusters
    ]
    return "\n".join(lines) + "\n"


def tree_from_json(text: str) -> Tree:
    """Read `{"tasks": [...], "partitions": [...]}`, and `"depths": {...}` where tasks leave the trunk early.

    Args:
        text: JSON.

    Raises:
        SpecError: text of another form, or partitions that form no tree.
    """
    content = _parse_json(text, "a tree")
    known = isinstance(content, dict) and set(content) - {"depths"} == {"tasks", "partitions"}
    _require(known, "a tree has `tasks`, `partitions`, and `depths` where tasks leave the trunk early")
    _require(isinstance(content.get("depths", {}), dict), "`depths` are numbers of stages by task")
    _require(_is_nested(content["tasks"], 1) and _is_nested(content["partitions"], 3), "partitions are lists of groups")
    return _tree(content["tasks"], content["partitions"], content.get("depths"))


def tree_to_json(tree: Tree) -> str:
    """Write `{"tasks": [...], "partitions": [...]}`, and `"depths": {...}` where tasks leave the trunk early."""
    early = {"depths": dict(tree.depths)} if tree.depths else {}
    return json.dumps({"tasks": tree.tasks, "partitions": tree.partitions, **early}, ensure_ascii=False) + "\n"


def _parse_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{what} cannot be read: {error}") from error


def _is_nested(value: Any, depth: int) -> bool:
    """Whether `value` is `depth` levels of lists around text or whole numbers."""
    if depth == 0:
        return isinstance(value, str | int) and not isinstance(value, bool)
    return isinstance(value, list) and all(_is_nested(item, depth - 1) for item in value)


def _name(number: int | str, tasks: Sequence[str]) -> str:
    if not isinstance(number, int) or number not in range(len(tasks)):
        raise SpecError(f"unknown task number {number!r}; expected 0 to {len(tasks) - 1}")
    return tasks[number]


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise SpecError(problem)


def _tree(
    tasks: Sequence[str], partitions: Sequence[Sequence[Sequence[str]]], depths: Mapping[str, int] | None = None
) -> Tree:
    try:
        return Tree(tasks, partitions, depths)
    except TreeError as error:
        raise SpecError(str(error)) from error
