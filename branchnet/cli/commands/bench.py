"""`branchnet bench`: how fast a branched network is, compared with its single-task networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from branchnet.cli.options import AsJson, Device, DryRun, Dtype, Flag, OptionalConfig, Quiet, Seed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from branchnet.builder import BranchedNetwork, GroupedNetworks
    from branchnet.inference import LatencyTable
    from branchnet.pipeline.network_timing import Seconds
    from branchnet.pipeline.plans.dry_run import Plan
    from branchnet.reporting.tables import Table

Network = Annotated[Path, Parameter(help="What `branchnet build` or `branchnet distill` wrote, or an architecture.")]


@Parameter(name="*")
@dataclass(frozen=True)
class BenchOptions:
    """The options of `branchnet bench`.

    Attributes:
        repeats: Calls timed of each.
        batch_size: Inputs in a call.
        compiled: Also time everything compiled, where torch.compile works.
        stages: Time stages and heads instead of whole networks.
        out: Write the measurements there, JSON; latencies in seconds.
    """

    config: OptionalConfig = None
    repeats: int = 30
    batch_size: int = 1
    compiled: bool = True
    stages: Flag = False
    out: Path | None = None
    seed: Seed = 0
    device: Device = None
    dtype: Dtype = None
    as_json: AsJson = False
    quiet: Quiet = False
    dry_run: DryRun = False


def bench(branched: Network, *, options: BenchOptions = BenchOptions()) -> None:
    """Time the network in BRANCHED and its single-task networks in turns, on random inputs, eager and compiled.

    With --stages every stage is timed alone, at every number of copies: what `branchnet search` needs for a budget in
    milliseconds.

    Example: `branchnet bench distilled --batch-size 8 --repeats 50 --out bench.json`
    """
    from branchnet.builder import SeparateNetworks
    from branchnet.cli.loading import placed, placed_networks
    from branchnet.cli.printing import print_json, print_plan, print_tables, print_text, say
    from branchnet.cli.saved_networks import built_or_saved, separate_networks
    from branchnet.errors import DataError
    from branchnet.pipeline.network_timing import time_networks
    from branchnet.pipeline.plans.dry_run import batch_of

    repeats, batch_size, device, dtype = options.repeats, options.batch_size, options.device, options.dtype
    if repeats < 1 or batch_size < 1:
        raise DataError(f"--repeats {repeats}, --batch-size {batch_size}: expected at least 1")
    network = built_or_saved(branched, options.config, device=device, dtype=dtype)
    alone = placed_networks(separate_networks(network, options.config), device, dtype)
    networks: dict[str, Any] = {"separate": SeparateNetworks(alone).eval()} if alone else {}
    networks["branched"] = network
    example = placed(batch_of(network.interface.random(seed=options.seed), batch_size), device, dtype)
    if options.dry_run:
        writes = [] if options.out is None else [options.out]
        print_plan(_plan(networks, example, options), writes, as_json=options.as_json)
        return
    if not alone:
        say("no single-task networks to compare with: pass --config", quiet=options.quiet)
    if options.stages:
        table = stage_table(network, alone, example, options)
        _write(table.to_dict(), options)
        print_json(table.to_dict()) if options.as_json else print_text(table)
        return
    console = Console(stderr=True, quiet=options.quiet)
    found = time_networks(networks, example, console, compiled=options.compiled, repeats=repeats)
    record = _record(found, options)
    _write(record, options)
    print_json(record) if options.as_json else print_tables([_table(found, batch_size)])


def _plan(networks: Mapping[str, Any], example: Any, options: BenchOptions) -> Plan:
    from branchnet.pipeline.plans.dry_run import Plan, forward_seconds, memory_of

    plan = Plan("bench")
    for name, each in networks.items():
        seconds = forward_seconds(each, example) * (options.repeats + 3)
        plan = plan.step(f"time {name}, eager", seconds=seconds, memory=memory_of({name: each}))
    return plan.step("compile and time") if options.compiled else plan


def _write(measured: Any, options: BenchOptions) -> None:
    from branchnet.cli.printing import say
    from branchnet.pipeline.workspace import save_json

    if options.out is not None:
        save_json(measured, options.out)
        say(f"wrote {options.out}", quiet=options.quiet)


def stage_table(
    branched: BranchedNetwork | GroupedNetworks,
    networks: Mapping[str, nn.Module],
    example: Any,
    options: BenchOptions,
) -> LatencyTable:
    """Latency of every stage at every number of copies, and of every head.

    Raises:
        DataError: no single-task networks.
    """
    from branchnet.builder.network.grouped_networks import as_one_network
    from branchnet.errors import DataError
    from branchnet.inference import compiler_problem, latency_table
    from branchnet.inference.torch_compile import device_of
    from branchnet.stages import split_all

    if not networks:
        raise DataError("--stages times the stages of the single-task networks: pass --config")
    one = as_one_network(branched)
    staged = split_all(networks, example, locations=list(one.locations), depth="auto" if one.tree.depths else "common")
    works = options.compiled and not compiler_problem(device_of(next(iter(networks.values()))))
    return latency_table(staged, example, compiled=works, repeats=options.repeats, progress=not options.quiet)


def _record(found: Seconds, options: BenchOptions) -> dict[str, Any]:
    import torch

    return {
        "batch_size": options.batch_size,
        "device": options.device or "cpu",
        "dtype": options.dtype or "float32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": found,
    }


def _table(found: Seconds, batch_size: int) -> Table:
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
