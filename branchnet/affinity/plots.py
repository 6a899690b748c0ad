"""Pictures of an affinity: a heat map per location, and how the affinity of each pair changes with depth."""

from __future__ import annotations

from matplotlib.figure import Figure

from .tensor import Affinity


def plot_heatmaps(affinity: Affinity) -> Figure:
    """A heat map for every location."""
    raise NotImplementedError


def plot_depth(affinity: Affinity) -> Figure:
    """Affinity against depth, one line per pair."""
    raise NotImplementedError
