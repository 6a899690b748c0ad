"""What is timed for a latency table: stages at every width, heads and stitches, each with what arrives there."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from branchnet.builder.network.module_structure import structure
from branchnet.inference.fusion import FusedNodes, groups_of
from branchnet.inference.fusion_choice import all_fused
from branchnet.inference.latency import Latency, compare_latency, measure_latency
from branchnet.inference.torch_compile import first_line
from branchnet.stages import StagedNetwork, call, flat_example
from branchnet.stages.staged import deepest
from branchnet.stitching.largest_costs import largest_stitches
from branchnet.utils.progress import progress_bar

_SAMPLE_SECONDS = 0.002
"""A sample on an accelerator lasts so long at least: waiting for it takes some microseconds, below 1% of that."""


def stage_runs(
    staged: Mapping[str, StagedNetwork],
    x: Any,
    widths: Sequence[int],
    place: torch.device,
    prepare: Callable[[Callable[..., Any]], Callable[..., Any]],
    fused: bool,
) -> dict[Any, Callable[[], Any]]:
    """Make what runs each stage at each width, each head, and a stitch at each location.

    Modules of one structure share what was prepared once.

    Args:
        staged: the networks.
        x: what they take, on the device.
        widths: the numbers of copies.
        place: the device.
        prepare: compiles a function, or leaves it as it is.
        fused: whether copies are run as one batched computation, too.

    Returns:
        functions without arguments by `("apart" or "fused", stage, width)`, `("head", task)`, `("stitch", location)`.
    """
    first = deepest(staged)
    runs: dict[Any, Callable[[], Any]] = {}
    dtype = next((p.dtype for p in first.parameters() if p.is_floating_point()), torch.float32)
    stitches = largest_stitches(first, dtype)
    cut: Any = x
    cuts: list[Any] = []
    for number, original in enumerate(first.stages):
        stage = copy.deepcopy(original).eval().to(place)
        copies = [stage, *(copy.deepcopy(stage) for _ in range(widths[-1] - 1))]
        one = prepare(_run)
        fusible = fused and len(copies) > 1 and _can_be_fused(copies[:2], cut)
        for width in widths:
            runs["apart", number, width] = _one_by_one(one, copies[:width], cut)
            if fusible and width > 1:
                runs["fused", number, width] = _together(prepare(_run_fused), FusedNodes(copies[:width]), cut)
        cut = call(stage, cut)
        cuts.append(cut)
        if stitches[number].maps:
            runs["stitch", number] = _one_by_one(prepare(_run), [stitches[number].eval().to(place)], cut)
    prepared: dict[Any, Callable[..., Any]] = {}
    for task, network in staged.items():
        head = copy.deepcopy(network.head).eval().to(place)
        form = structure(head)
        if form not in prepared:
            prepared[form] = prepare(_run)
        runs["head", task] = _one_by_one(prepared[form], [head], cuts[network.depth - 1])
    return runs


def _can_be_fused(modules: Sequence[nn.Module], cut: Any) -> bool:
    if len(groups_of(modules)) > 1:
        return False
    try:
        all_fused(FusedNodes(modules), [cut])
    except Exception as error:  # vmap has no rule for every operator, and its errors have no class of their own
        warnings.warn(f"{modules[0]} cannot be fused ({type(error).__name__}: {first_line(error)})", stacklevel=3)
        return False
    return True


def _run(module: nn.Module, cut: Any) -> Any:
    return call(module, cut)


def _run_fused(nodes: FusedNodes, cut: Any) -> Any:
    return all_fused(nodes, [cut])


def _one_by_one(run: Callable[..., Any], modules: Sequence[nn.Module], cut: Any) -> Callable[[], None]:
    def run_all() -> None:
        for module in modules:  # results are let go: CUDA graphs are recorded again for those that somebody still holds
            run(module, cut)

    return run_all


def _together(run: Callable[..., Any], nodes: FusedNodes, cut: Any) -> Callable[[], Any]:
    return lambda: run(nodes, cut)


def measure_runs(
    runs: Mapping[Any, Callable[[], Any]], x: Any, repeats: int, progress: bool, compiled: bool
) -> dict[Any, Latency]:
    """Measure every run in turns. An accelerator gets several calls in a row, so that waiting for it does not count.

    Args:
        runs: functions without arguments, by any keys.
        x: what says on which device they run.
        repeats: calls of each.
        progress: whether to draw a progress bar.
        compiled: whether they are compiled first.

    Returns:
        the latencies by key.
    """

    def repeated(run: Callable[[], Any], count: int) -> Callable[..., None]:
        def run_all(*_: Any, **__: Any) -> None:
            for _number in range(count):
                run()

        return run_all

    calls = dict.fromkeys(runs, 1)
    with progress_bar("compile and warm up" if compiled else "warm up", len(runs), shown=progress) as advance:
        for key, run in runs.items():
            run()
            if any(tensor.device.type != "cpu" for tensor in flat_example(x)):
                once = measure_latency(repeated(run, 1), x, repeats=3, warmup=2).median
                calls[key] = max(1, math.ceil(_SAMPLE_SECONDS / once))
            advance()

    functions = {str(key): repeated(run, calls[key]) for key, run in runs.items()}
    times = compare_latency(functions, x, repeats=repeats, warmup=1)
    return {key: Latency(tuple(s / calls[key] for s in times[str(key)].samples)) for key in runs}
