"""Real data sets with four tasks and small networks of three stages, on which every tree can be trained.

One module for each gives its samples, losses, metrics and networks; nothing is measured here.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tree_problems.problem import TreeProblem

PROBLEMS = ("tox21", "ett", "overlay36", "motor35", "camvid")


def load(name: str, data: Path) -> TreeProblem:
    """Read a problem from below `data`."""
    if name not in PROBLEMS:
        raise ValueError(f"unknown problem: {name!r} (expected one of {', '.join(PROBLEMS)})")
    return import_module(f"tree_problems.{name}").load(data)
