"""Latencies of whole networks in turns, eager and compiled; where torch.compile does not work, eager alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from branchnet.builder import BranchedNetwork, SeparateNetworks
from branchnet.errors import DataError
from branchnet.inference import CompiledNetwork, Latency, compare_latency, compile, compiler_problem
from branchnet.inference.torch_compile import device_of, first_line
from branchnet.pipeline.workspace import load_json

REPEATS = 30
Networks = Mapping[str, BranchedNetwork | SeparateNetworks]
Seconds = dict[str, dict[str, list[float]]]
"""Seconds of each call, by how the network is run and by its name."""


def time_networks(
    networks: Networks, example: Any, console: Console, *, compiled: bool, repeats: int = REPEATS
) -> Seconds:
    """Seconds for one input, all in turns: every network eager; the separate and the branched compiled, too.

    The separate networks are compiled one by one.

    Args:
        networks: networks by name; `separate` and `branched` are those that are compiled.
        example: one input, or a batch.
        console: where messages go.
        compiled: whether to compile at all.
        repeats: calls of each.

    Returns:
        The seconds of each call; eager figures only where torch.compile does not work, which the console says.
    """
    runs: dict[str, dict[str, Callable[..., Any]]] = {"eager": dict(networks)}
    if compiled and (compiled_runs := _compiled_runs(networks, example, console)):
        runs["compiled"] = compiled_runs
    bound = {
        f"{how} {name}": partial(_call_with, function, example)
        for how, functions in runs.items()
        for name, function in functions.items()
    }
    latencies: dict[str, Latency] = compare_latency(bound, example, repeats=repeats)
    return {
        how: {name: list(latencies[f"{how} {name}"].samples) for name in functions} for how, functions in runs.items()
    }


def load_seconds(path: Path) -> Seconds:
    """Read what `time_networks` returned, from a JSON file.

    Args:
        path: the file.

    Raises:
        DataError: it holds something else.
    """
    seconds: Any = load_json(path)
    tables = [seconds, *seconds.values()] if isinstance(seconds, dict) else [None]
    if all(isinstance(table, dict) for table in tables):
        rows = [row for table in seconds.values() for row in table.values()]
        if all(isinstance(row, list) and row and all(type(s) is float for s in row) for row in rows):
            return cast(Seconds, seconds)
    raise DataError(f"{path} holds other values than seconds by network; expected those of a run")


def _compiled_runs(networks: Networks, example: Any, console: Console) -> dict[str, Callable[..., Any]]:
    if problem := compiler_problem(device_of(next(iter(networks.values())))):
        console.print(f"torch.compile does not work here ({problem}); everything runs eager", style="yellow")
        return {}
    try:
        with console.status("compile"):
            return {name: _compiled(networks[name], example) for name in ("separate", "branched") if name in networks}
    except Exception as error:  # torch raises many kinds for what it cannot compile; eager figures remain
        message = f"torch.compile refuses these networks ({type(error).__name__}: {first_line(error)})"
        console.print(f"{message}; there are eager figures only", style="yellow", markup=False)
        return {}


def _call_with(function: Callable[..., Any], example: Any, *args: Any, **kwargs: Any) -> Any:
    return function(example)  # a branched network takes a tuple or dict as one argument


def _compiled(network: BranchedNetwork | SeparateNetworks, example: Any) -> Callable[..., Any]:
    if isinstance(network, BranchedNetwork):
        return compile(network, example, dynamic=False)
    one_by_one = CompiledNetwork(network, dynamic=False)

    def run(x: Any) -> dict[str, Any]:
        return {task: one_by_one(x, [task])[task] for task in network.tasks}

    run(example)
    return run
