"""Latency measured fairly: warmed up, synchronised, interleaved, given as median and spread.

A latency is the wall-clock time of one call, in seconds, the accelerator's work included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from branchnet.data.samples import Source, as_example
from branchnet.errors import BranchnetError
from branchnet.stages.interface import Example, call_arguments, flat_example


@dataclass(frozen=True)
class Latency:
    """Times of repeated calls.

    Attributes:
        samples: seconds of each call, in the order of measurement.
    """

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median, in seconds."""
        return float(np.median(self.samples))

    @property
    def low(self) -> float:
        """10th percentile, in seconds."""
        return float(np.quantile(self.samples, 0.1))

    @property
    def high(self) -> float:
        """90th percentile, in seconds."""
        return float(np.quantile(self.samples, 0.9))


def measure_latency(function: Callable[..., Any], example: Source, *, repeats: int = 30, warmup: int = 3) -> Latency:
    """Latency of `function` on `example` (a tensor, or a tuple or dict of them), without gradients.

    Args:
        function: a network, compiled or not, or any callable.
        example: what it is called with; the tensors' device decides what is synchronised. Of a DataLoader it is the
            first batch, of a data set the first sample, without labels.
        repeats: calls measured.
        warmup: calls before them, which are not (compilation, caches, clocks).

    Returns:
        the times of the calls, in seconds.

    Raises:
        BranchnetError: fewer than one repeat, or a negative warm-up.
    """
    return compare_latency({"": function}, example, repeats=repeats, warmup=warmup)[""]


def compare_latency(
    functions: Mapping[str, Callable[..., Any]], example: Source, *, repeats: int = 30, warmup: int = 3
) -> dict[str, Latency]:
    """Latency of each function on the same example, measured in turns.

    Every round calls each function once, and starts with another one, so that a machine that slows down or speeds up
    meanwhile does so for all of them. The samples of one round belong together: `ratio_interval` pairs them.

    Args:
        functions: networks or other callables by name.
        example: what each is called with.
        repeats: rounds that are measured.
        warmup: calls of each before them.

    Returns:
        latencies by name, each with one sample for each round.

    Raises:
        BranchnetError: as `measure_latency`.
    """
    if repeats < 1 or warmup < 0:
        raise BranchnetError(f"repeats={repeats}, warmup={warmup}; expected repeats >= 1 and warmup >= 0")
    example = as_example(example)
    names = list(functions)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with torch.no_grad():
        for name in names:
            for _ in range(warmup):
                _timed(functions[name], example)
        for turn in range(repeats):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                samples[name].append(_timed(functions[name], example))
    return {name: Latency(tuple(times)) for name, times in samples.items()}


def ratio_interval(
    baseline: Latency, other: Latency, *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Return how many times as fast as the baseline another function is, with a bootstrap interval.

    The two times of one round lie close together, so a machine that is slower for some rounds is so for both, and
    rounds that were disturbed in between count no more than others. The interval is the percentile bootstrap (Efron
    and Tibshirani 1993, chapter 13) over rounds, with 2,000 resamples.

    Args:
        baseline: of the same `compare_latency` as `other`.
        other: what is compared with it.
        confidence: of the interval.
        seed: of the resampling.

    Returns:
        the median over the rounds of the ratio, and the lower and upper end of its interval.

    Raises:
        BranchnetError: numbers of samples that differ.
    """
    before, after = np.asarray(baseline.samples), np.asarray(other.samples)
    if before.shape != after.shape:
        raise BranchnetError(
            f"{len(before)} and {len(after)} samples cannot be paired; expected latencies of one compare_latency(...)"
        )
    ratios = before / after
    rounds = np.random.default_rng(seed).integers(len(ratios), size=(2000, len(ratios)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.median(ratios[rounds], axis=1), [tail, 1 - tail])
    return float(np.median(ratios)), float(low), float(high)


def seconds_of(run: Callable[[], object], devices: Iterable[torch.device]) -> float:
    """Time one call, and wait for the devices that it uses.

    Args:
        run: what is timed.
        devices: where it computes.

    Returns:
        Seconds.
    """
    used = [device for device in devices if device.type != "cpu"]
    _synchronise(used)  # kernels run asynchronously: without it, the time of issuing them would be measured
    start = time.perf_counter()
    run()
    _synchronise(used)
    return time.perf_counter() - start


def _timed(function: Callable[..., Any], example: Example) -> float:
    whole = getattr(function, "takes_inputs_as_one", False)  # networks of several tasks
    args, kwargs = ((example,), {}) if whole else call_arguments(example)
    return seconds_of(lambda: function(*args, **kwargs), {tensor.device for tensor in flat_example(example)})


def _synchronise(devices: Iterable[torch.device]) -> None:
    for device in devices:
        torch.accelerator.synchronize(device)
