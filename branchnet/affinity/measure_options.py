"""The options that every measure on probe inputs takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import torch

from branchnet.affinity.features.extraction import Transform
from branchnet.errors import AffinityError

Tensors = Literal["mean", "concatenate"]


class ProbeArguments(TypedDict, total=False):
    """Keyword arguments that every measure on probe inputs takes; `Options` explains them."""

    locations: int | Sequence[str] | None
    batch_size: int
    device: str | torch.device | None
    features: Transform | None
    tensors: Tensors
    bootstrap: int
    seed: int
    memory_limit: int | None
    cache: str | os.PathLike[str] | None


@dataclass(frozen=True)
class Options:
    """How features are read and what is made of them.

    Attributes:
        locations: where plain networks are cut, as `branchnet.split_all` takes it.
        batch_size: inputs run at once; loaders, and other iterables of batches, bring their own.
        device: where the networks run; by default each runs where it is. They are put back afterwards.
        features: applied to every tensor that counts, (B, ...) -> (B, ...), e.g. to choose the class token; by default
            all features count, flattened.
        tensors: with several tensors at a location, `"mean"` gives each the same weight, `"concatenate"` each feature.
        bootstrap: number of resamplings that standard errors come from; 0 for none. Each takes time as K * K.
        seed: of the resampling.
        memory_limit: bytes that kept features may take, by default half of what is free. Below what float32 needs,
            tensors of at least 4,096 features are kept as bfloat16, which changes affinities by less than 0.001, and
            then features are read in several passes, which changes nothing.
        cache: folder in which the comparisons of inputs are kept by content, so that only new networks are run.

    Raises:
        AffinityError: an option outside its range.
    """

    locations: int | Sequence[str] | None = None
    batch_size: int = 32
    device: str | torch.device | None = None
    features: Transform | None = None
    tensors: Tensors = "mean"
    bootstrap: int = 100
    seed: int = 0
    memory_limit: int | None = None
    cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.tensors not in get_args(Tensors):
            raise AffinityError(f"tensors is {self.tensors!r}; expected one of {get_args(Tensors)}")
        if self.bootstrap < 0 or self.bootstrap == 1:
            raise AffinityError(f"bootstrap is {self.bootstrap}; expected 0 (none) or at least 2")
        if self.memory_limit is not None and self.memory_limit < 1:
            raise AffinityError(f"memory_limit is {self.memory_limit}; expected a positive number of bytes")

    @property
    def place(self) -> torch.device | None:
        """The device, if one was given."""
        return None if self.device is None else torch.empty(0, device=self.device).device
