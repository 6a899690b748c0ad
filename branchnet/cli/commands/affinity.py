"""`branchnet affinity`: how alike the networks are at every location."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Config, Device, DryRun, Dtype, Quiet, Seed

if TYPE_CHECKING:
    from branchnet.affinity import Affinity
    from branchnet.cli.loading import Source
    from branchnet.pipeline.run_config import RunConfig
    from branchnet.reporting.tables import Table
    from branchnet.specification import Architecture

Measure = Literal["rsa", "cka", "svcca", "pwcca", "procrustes", "lookahead", "first-order", "gradient-cosine"]
GRADIENTS = ("lookahead", "first-order", "gradient-cosine")
Split = Annotated[
    Path, Parameter(help="Architecture whose locations count, as `branchnet split` writes it; or a saved network.")
]


def affinity(
    config: Config,
    split: Split,
    *,
    measure: Measure = "rsa",
    probe: int | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    bootstrap: int = 100,
    out: Path = Path("affinity.npz"),
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Compare the networks of CONFIG at the locations of SPLIT on the same images; print who is alike.

    rsa, cka, svcca, pwcca and procrustes compare what the networks see. lookahead (TAG), first-order and
    gradient-cosine ask what a training step for one task does to the losses of the others: CONFIG then names `labels`
    and each network's `loss`, and a network that shares all stages is trained on them first; if SPLIT is a saved
    network, that one is probed as it is.

    Example: `branchnet affinity branchnet-demo/run.yaml split.yaml --out affinity.npz`

    Parameters
    ----------
    measure
        How two tasks are compared.
    probe
        How many images they are compared on; by default as the config says.
    batch_size
        Images run at once; by default as the config says.
    steps
        Batches that the shared network is trained on before its gradients are taken; by default as the config says.
    bootstrap
        Resamplings of the images (of the batches, for gradients), from which intervals come; 0 for none.
    out
        The affinities, .npz.
    """
    from branchnet.cli.loading import changed, read_source, read_spec
    from branchnet.cli.printing import print_json, print_tables, say
    from branchnet.errors import DataError, SpecError
    from branchnet.utils.progress import silence

    if out.suffix != ".npz":
        raise DataError(f"--out {out}: an affinity file ends in .npz")
    spec = read_spec(split)
    given = read_source(config, device=device, dtype=dtype)
    if given.config is None or given.images is None:
        raise SpecError(f"{config} holds no images (a config as `branchnet run` takes it would be right)")
    if set(given.networks) != set(spec.tasks):
        raise SpecError(f"{split}: tasks are {', '.join(spec.tasks)}, those of {config} {', '.join(given.networks)}")
    if measure in GRADIENTS and dtype is not None:
        raise DataError(f"--dtype {dtype}: gradients are taken in the type that the networks have")
    if measure not in GRADIENTS and steps is not None:
        raise DataError(f"--steps {steps}: only the gradient measures, {', '.join(GRADIENTS)}, train a network")
    settings = changed(given.config, probe=probe, batch_size=batch_size, steps=steps)
    given = replace(given, networks={task: given.networks[task] for task in spec.tasks})
    request = _Request(given, settings, spec, config, split, measure, bootstrap, seed)
    work = _gradients if measure in GRADIENTS else _features
    with silence() if quiet else nullcontext():
        found = work(request, device, dtype, out if dry_run else None, as_json=as_json)
    if found is None:
        return
    found.save(out)
    print_json(found.rows()) if as_json else print_tables([_summary(found)])
    say(f"wrote {out}", quiet=quiet)


@dataclass(frozen=True)
class _Request:
    """What is compared: networks and images, the settings, the locations; and what the files are called."""

    given: Source
    settings: RunConfig
    spec: Architecture
    config: Path
    split: Path
    measure: str
    bootstrap: int
    seed: int


def _features(
    request: _Request, device: str | None, dtype: str | None, planned: Path | None, *, as_json: bool
) -> Affinity | None:
    """Compare features on the probe; or show the plan for the file `planned`."""
    import branchnet
    from branchnet.cli.loading import placed
    from branchnet.data.samples import count_samples
    from branchnet.pipeline.dry_run import Plan, plan_comparison
    from branchnet.pipeline.problem import divide, probe_of

    given, settings, spec = request.given, request.settings, request.spec
    assert given.images is not None
    inputs = placed(probe_of(divide(given.images, settings)[0], settings), device, dtype)
    if planned is not None:
        cut_bytes = [cost.cut_bytes for cost in spec.stage_costs] if spec.stage_costs else [0] * len(spec.locations)
        plan = plan_comparison(
            Plan("affinity"),
            given.networks,
            given.example,
            count=count_samples(inputs),
            batch_size=settings.batch_size,
            cut_bytes=cut_bytes,
        )
        plan.show(as_json=as_json, writes=[planned])
        return None
    staged = branchnet.split_all(given.networks, given.example, locations=list(spec.locations))
    options = {"batch_size": settings.batch_size, "bootstrap": request.bootstrap, "seed": request.seed}
    found: Affinity = getattr(branchnet, request.measure)(staged, inputs, **options)
    return found


def _gradients(
    request: _Request, device: str | None, dtype: str | None, planned: Path | None, *, as_json: bool
) -> Affinity | None:
    """Take gradients on a saved network, or on a shared one that is trained here; or show the plan."""
    from branchnet.cli.loading import read_branched
    from branchnet.pipeline.gradient_steps import (
        labelled,
        measure_gradients,
        plan_gradients,
        shared_network,
        train_shared,
    )

    given, settings = request.given, request.settings
    assert given.images is not None
    data = labelled(settings, request.config, given.images)
    saved = request.split.is_dir()
    if saved:
        network = read_branched(request.split, request.config, device=device)
    else:
        network = shared_network(request.spec, given.networks, given.example, settings.donor)
    if planned is not None:
        plan = plan_gradients(network, data, settings, measure=request.measure, train=not saved)
        plan.show(as_json=as_json, writes=[planned])
        return None
    if not saved:
        train_shared(network, data, settings)
    return measure_gradients(
        network, data, settings, measure=request.measure, bootstrap=request.bootstrap, seed=request.seed
    )


def _summary(found: Affinity) -> Table:
    """One row for each location: the mean over pairs, and the pairs that are most and least alike."""
    from branchnet.reporting.tables import Column, Table

    number = "{:.3g}".format if found.directed else "{:.3f}".format  # the effects of a step are small numbers
    columns = (
        Column("location"),
        Column("mean", number),
        Column("lowest", number),
        Column("of"),
        Column("highest", number),
        Column("of"),
    )
    rows = []
    for location in found.locations:
        pairs = [row for row in found.rows() if row["location"] == location]
        low, high = (best(pairs, key=lambda row: row["affinity"]) for best in (min, max))
        mean = sum(row["affinity"] for row in pairs) / len(pairs)
        arrow = " \N{RIGHTWARDS ARROW} " if found.directed else ", "
        rows.append((location, mean, low["affinity"], _pair(low, arrow), high["affinity"], _pair(high, arrow)))
    return Table(f"Affinity of pairs of tasks ({found.measure})", columns, tuple(rows))


def _pair(row: dict[str, object], between: str) -> str:
    return f"{row['task_i']}{between}{row['task_j']}"
