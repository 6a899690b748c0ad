"""How tests reach the modules of the zoo, which lie beside the scripts and are no part of the package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = str(Path(__file__).resolve().parents[3] / "benchmarks")


def zoo(name: str = "") -> Any:
    """A module of `zoo_entries`, or without a name the package."""
    if BENCHMARKS not in sys.path:
        sys.path.append(BENCHMARKS)
    return importlib.import_module(f"zoo_entries.{name}" if name else "zoo_entries")
