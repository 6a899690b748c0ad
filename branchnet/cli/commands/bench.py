"""`branchnet bench`: how fast a branched network is beside its single-task networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Device, DryRun, Dtype, Flag, OptionalConfig, Quiet, Seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from branchnet.inference import LatencyTable
    from branchnet.reporting.tables import Table

Network = Annotated[Path, Parameter(help="What `branchnet build` or `branchnet distill` wrote, or an architecture.")]


def bench(
    branched: Network,
    *,
    config: OptionalConfig = None,
    repeats: int = 30,
    batch_size: int = 1,
    compiled: bool = True,
    stages: Flag = False,
    out: Path | None = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Time the network in BRANCHED and its single-task networks in turns, on random inputs, eager and compiled.

    With --stages every stage is timed alone, at every number of copies: what `branchnet search` needs for a budget in
    milliseconds.

    Example: `branchnet bench distilled --batch-size 8 --repeats 50 --out bench.json`

    Parameters
    ----------
    repeats
        Calls timed of each.
    batch_size
        Inputs in a call.
    compiled
        Also time everything compiled, where torch.compile works.
    stages
        Time stages and heads instead of whole networks.
    out
        Write the measurements there, JSON; latencies in seconds.
    """
    from branchnet.builder import SeparateNetworks
    from branchnet.cli.loading import built_or_saved, placed, placed_networks, separate_networks
    from branchnet.cli.printing import print_json, print_tables, print_text, say
    from branchnet.errors import DataError
    from branchnet.pipeline.dry_run import Plan, batch_of, forward_seconds, memory_of
    from branchnet.pipeline.steps import measure
    from branchnet.pipeline.workspace import Workspace, save_json

    if repeats < 1 or batch_size < 1:
        raise DataError(f"--repeats {repeats}, --batch-size {batch_size}: both have to be at least 1")
    network = built_or_saved(branched, config, device=device, dtype=dtype)
    alone = placed_networks(separate_networks(network, config), device, dtype)
    networks: dict[str, Any] = {"separate": SeparateNetworks(alone).eval()} if alone else {}
    networks["branched"] = network
    example = placed(batch_of(network.interface.random(seed=seed), batch_size), device, dtype)
    if dry_run:
        plan = Plan("bench")
        for name, each in networks.items():
            seconds = forward_seconds(each, example) * (repeats + 3)
            plan = plan.step(f"time {name}, eager", seconds=seconds, memory=memory_of({name: each}))
        plan = plan.step("compile and time") if compiled else plan
        plan.show(as_json=as_json, writes=[] if out is None else [out])
        return
    if not alone:
        say("no single-task networks to compare with: pass --config", quiet=quiet)
    if stages:
        table = stage_table(network.locations, alone, example, compiled=compiled, repeats=repeats, quiet=quiet)
        if out is not None:
            save_json(table.to_dict(), out)
            say(f"wrote {out}", quiet=quiet)
        print_json(table.to_dict()) if as_json else print_text(table)
        return
    found = measure(networks, example, Workspace(".", quiet=quiet), compiled=compiled, repeats=repeats)
    record = _record(found, batch_size, str(device or "cpu"), str(dtype or "float32"))
    if out is not None:
        save_json(record, out)
        say(f"wrote {out}", quiet=quiet)
    print_json(record) if as_json else print_tables([_table(found, batch_size)])


def stage_table(
    locations: Sequence[str],
    networks: Mapping[str, nn.Module],
    example: Any,
    *,
    compiled: bool,
    repeats: int,
    quiet: bool,
) -> LatencyTable:
    """Latency of every stage at every number of copies, and of every head.

    Raises:
        DataError: no single-task networks.
    """
    import branchnet
    from branchnet.errors import DataError
    from branchnet.inference import compiler_problem
    from branchnet.inference.torch_compile import device_of

    if not networks:
        raise DataError("--stages times the stages of the single-task networks: pass --config")
    staged = branchnet.split_all(networks, example, locations=list(locations))
    works = compiled and not compiler_problem(device_of(next(iter(networks.values()))))
    return branchnet.latency_table(staged, example, compiled=works, repeats=repeats, progress=not quiet)


def _record(found: dict[str, dict[str, list[float]]], batch_size: int, device: str, dtype: str) -> dict[str, Any]:
    import torch

    return {
        "batch_size": batch_size,
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": found,
    }


def _table(found: dict[str, dict[str, list[float]]], batch_size: int) -> Table:
    from branchnet.inference import Latency, ratio_interval
    from branchnet.reporting.tables import Column, Table
    from branchnet.reporting.units import milliseconds

    rows = []
    for way, runs in found.items():
        latencies = {name: Latency(tuple(samples)) for name, samples in runs.items()}
        baseline = latencies.get("separate")
        for name, latency in latencies.items():
            row: list[Any] = [f"{name}, {way}", latency.median, latency.low, latency.high]
            times = None if baseline is None or name == "separate" else ratio_interval(baseline, latency)
            row.append("" if times is None else f"{times[0]:.2f} (95%: {times[1]:.2f} to {times[2]:.2f})")
            rows.append(tuple(row))
    columns = (
        Column("network"),
        Column("median", milliseconds, "s"),
        Column("10%", milliseconds, "s"),
        Column("90%", milliseconds, "s"),
        Column("times as fast as separate"),
    )
    return Table(f"Latency of one call, batch of {batch_size}", columns, tuple(rows))
