"""`branchnet affinity`: how alike the networks are at every location."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Config, Device, DryRun, Dtype, Quiet, Seed

if TYPE_CHECKING:
    from branchnet import Affinity
    from branchnet.reporting.tables import Table

Measure = Literal["rsa", "cka", "svcca", "pwcca", "procrustes"]
Split = Annotated[Path, Parameter(help="Architecture whose locations count, as `branchnet split` writes it.")]


def affinity(
    config: Config,
    split: Split,
    *,
    measure: Measure = "rsa",
    probe: int | None = None,
    batch_size: int | None = None,
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

    Affinities by gradients need labels and losses: `branchnet.gradient_affinity` in Python.

    Example: `branchnet affinity run.yaml split.yaml --measure rsa --out affinity.npz`

    Parameters
    ----------
    measure
        How two networks are compared.
    probe
        How many images they are compared on; by default as the config says.
    batch_size
        Images run at once; by default as the config says.
    bootstrap
        Resamplings of the images, from which intervals come; 0 for none.
    out
        The affinities, .npz.
    """
    import branchnet
    from branchnet.cli.given import changed, placed, read_source, read_spec
    from branchnet.cli.plans import Plan, plan_comparison
    from branchnet.cli.printing import print_json, print_tables, say
    from branchnet.cli.problems import divide, probe_of
    from branchnet.errors import DataError, SpecError
    from branchnet.progress import silence
    from branchnet.training.inputs import count_samples

    if out.suffix != ".npz":
        raise DataError(f"--out {out}: an affinity file ends in .npz")
    spec = read_spec(split)
    given = read_source(config, device=device, dtype=dtype)
    if given.config is None or given.images is None:
        raise SpecError(f"{config} holds no images (a config as `branchnet run` takes it would be right)")
    if list(given.networks) != list(spec.tasks):
        raise SpecError(f"{split}: tasks are {', '.join(spec.tasks)}, those of {config} {', '.join(given.networks)}")
    settings = changed(given.config, probe=probe, batch_size=batch_size)
    inputs = placed(probe_of(divide(given.images, settings)[0], settings), device, dtype)
    if dry_run:
        cut_bytes = [cost.cut_bytes for cost in spec.stage_costs] if spec.stage_costs else [0] * len(spec.locations)
        plan = plan_comparison(
            Plan("affinity"),
            given.networks,
            given.example,
            count=count_samples(inputs),
            batch_size=settings.batch_size,
            cut_bytes=cut_bytes,
        )
        plan.show(as_json=as_json, writes=[out])
        return
    staged = branchnet.split_all(given.networks, given.example, locations=list(spec.locations))
    compare = getattr(branchnet, measure)
    with silence() if quiet else nullcontext():
        found = compare(staged, inputs, batch_size=settings.batch_size, bootstrap=bootstrap, seed=seed)
    found.save(out)
    print_json(found.rows()) if as_json else print_tables([_summary(found)])
    say(f"wrote {out}", quiet=quiet)


def _summary(found: Affinity) -> Table:
    """One row for each location: the mean over pairs, and the pairs that are most and least alike."""
    from branchnet.reporting.tables import Column, Table

    number = "{:.3f}".format
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
        rows.append((location, mean, low["affinity"], _pair(low), high["affinity"], _pair(high)))
    return Table(f"Affinity of pairs of tasks ({found.measure})", columns, tuple(rows))


def _pair(row: dict[str, object]) -> str:
    return f"{row['task_i']}, {row['task_j']}"
