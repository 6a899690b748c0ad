"""`branchnet affinity`: how similar the networks are at every location."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Config, Device, DryRun, Dtype, Quiet, Seed

if TYPE_CHECKING:
    from branchnet.affinity import Affinity
    from branchnet.cli.loading import Source
    from branchnet.data.samples import Samples
    from branchnet.pipeline.config.run_config import RunConfig
    from branchnet.pipeline.plans.dry_run import Plan
    from branchnet.reporting.tables import Table
    from branchnet.specification import Architecture
    from branchnet.stages import StagedNetwork

Measure = Literal["rsa", "cka", "svcca", "pwcca", "procrustes", "stitch", "lookahead", "first-order", "gradient-cosine"]
GRADIENTS = ("lookahead", "first-order", "gradient-cosine")
Split = Annotated[
    Path, Parameter(help="Architecture whose locations count, as `branchnet split` writes it; or a saved network.")
]


@Parameter(name="*")
@dataclass(frozen=True)
class AffinityOptions:
    """The options of `branchnet affinity`.

    Attributes:
        measure: How two tasks are compared.
        probe: How many images they are compared on; by default as the config says.
        batch_size: Images run at once; by default as the config says.
        steps: Batches that the shared network is trained on before its gradients are taken; by default as the config
            says.
        every: Probe every so many steps of that training instead of after it, as TAG does (the paper: 10).
        labelled: With --measure stitch, judge the networks that name a `loss` by that and the `labels` of the config.
        cache: Folder in which comparisons are kept, so that only new networks are run the next time.
        bootstrap: Resamplings of the images (of the batches, for gradients), from which intervals come; 0 for none.
        out: The affinities, .npz.
    """

    measure: Measure = "rsa"
    probe: int | None = None
    batch_size: int | None = None
    steps: int | None = None
    every: int | None = None
    labelled: bool = False
    cache: Path | None = None
    bootstrap: int = 100
    out: Path = Path("affinity.npz")
    seed: Seed = 0
    device: Device = None
    dtype: Dtype = None
    as_json: AsJson = False
    quiet: Quiet = False
    dry_run: DryRun = False


def affinity(config: Config, split: Split, *, options: AffinityOptions = AffinityOptions()) -> None:
    """Compare the networks of CONFIG at the locations of SPLIT on the same images; print which are similar.

    rsa, cka, svcca, pwcca and procrustes compare what the networks see. stitch measures what each network's rest does
    on another's features after an affine map; outputs are compared with its own as each network's `kind` says, or
    --labelled with the labels that CONFIG names. lookahead (TAG),
    first-order and gradient-cosine ask what a training step for one task does to the losses of the others: CONFIG then
    names `labels` and each network's `loss`, and a network that shares all stages is trained on them first, or probed
    --every so many steps of its training; if SPLIT is a saved network, that one is probed as it is.

    Example: `branchnet affinity branchnet-demo/run.yaml split.yaml --out affinity.npz`
    """
    from branchnet.cli.printing import print_json, print_plan, print_tables, say
    from branchnet.utils.progress import silence

    _check_options(options)
    request = _request(config, split, options)
    work = _Gradients(request) if options.measure in GRADIENTS else _Features(request)
    with silence() if options.quiet else nullcontext():
        if options.dry_run:
            print_plan(work.plan(), [options.out], as_json=options.as_json)
            return
        found = work.measure()
    found.save(options.out)
    print_json(found.rows()) if options.as_json else print_tables([_summary(found)])
    say(f"wrote {options.out}", quiet=options.quiet)


def _check_options(options: AffinityOptions) -> None:
    """Raise DataError where options do not go together."""
    from branchnet.errors import DataError

    by_gradients = options.measure in GRADIENTS
    if options.out.suffix != ".npz":
        raise DataError(f"--out {options.out}: an affinity file ends in .npz")
    if by_gradients and options.dtype is not None:
        raise DataError(f"--dtype {options.dtype}: gradients are taken in the type that the networks have")
    if not by_gradients and options.every is not None:
        raise DataError(f"--every {options.every}: only the gradient measures, {', '.join(GRADIENTS)}, train a network")
    if options.every is not None and options.every < 1:
        raise DataError(f"--every {options.every}: expected 1 or more steps")
    if by_gradients and options.cache is not None:
        raise DataError(f"--cache {options.cache}: gradients are not kept; comparisons of features and stitches are")
    if options.labelled and options.measure != "stitch":
        raise DataError(f"--labelled: {options.measure} does not choose between outputs and labels, only stitch does")
    if not by_gradients and options.steps is not None:
        raise DataError(f"--steps {options.steps}: only the gradient measures, {', '.join(GRADIENTS)}, train a network")


@dataclass(frozen=True)
class _Request:
    """What is compared: networks and images, the settings, the locations; and what the files are called."""

    given: Source
    images: Samples
    settings: RunConfig
    spec: Architecture
    config: Path
    split: Path
    options: AffinityOptions


def _request(config: Path, split: Path, options: AffinityOptions) -> _Request:
    from branchnet.cli.loading import changed, not_a_config, read_source, read_spec
    from branchnet.errors import SpecError

    spec = read_spec(split)
    given = read_source(config, device=options.device, dtype=options.dtype)
    if given.config is None or given.images is None:
        raise not_a_config(config)
    if set(given.networks) != set(spec.tasks):
        raise SpecError(f"{split}: tasks are {', '.join(spec.tasks)}, those of {config} {', '.join(given.networks)}")
    settings = changed(given.config, probe=options.probe, batch_size=options.batch_size, steps=options.steps)
    networks = {task: given.networks[task] for task in spec.tasks}
    return _Request(replace(given, networks=networks), given.images, settings, spec, config, split, options)


class _Features:
    """Comparing features on the probe."""

    def __init__(self, request: _Request) -> None:
        from branchnet.cli.loading import placed
        from branchnet.pipeline.problem import divide, probe_of

        self.request = request
        probe = probe_of(divide(request.images, request.settings)[0], request.settings)
        self.inputs = placed(probe, request.options.device, request.options.dtype)

    def plan(self) -> Plan:
        """Running the networks, and comparing them."""
        from branchnet.data.samples import count_samples
        from branchnet.pipeline.plans.dry_run import Plan, batch_of, forward_seconds, plan_comparison
        from branchnet.pipeline.plans.run_plan import plan_stitching_losses

        given, spec = self.request.given, self.request.spec
        if self.request.options.measure == "stitch":
            size = min(self.request.settings.batch_size, count_samples(self.inputs))
            batch = batch_of(given.example, size)
            seconds = sum(forward_seconds(network, batch) for network in given.networks.values()) / size
            return plan_stitching_losses(Plan("affinity"), self._staged(), seconds)
        cut_bytes = [cost.cut_bytes for cost in spec.stage_costs] if spec.stage_costs else [0] * len(spec.locations)
        return plan_comparison(
            Plan("affinity"),
            given.networks,
            given.example,
            count=count_samples(self.inputs),
            batch_size=self.request.settings.batch_size,
            cut_bytes=cut_bytes,
        )

    def measure(self) -> Affinity:
        """The affinities."""
        from branchnet.affinity import cka, procrustes, pwcca, rsa, stitch_affinity, svcca

        settings, options = self.request.settings, self.request.options
        measures: dict[str, Any] = {
            "rsa": rsa,
            "cka": cka,
            "svcca": svcca,
            "pwcca": pwcca,
            "procrustes": procrustes,
            "stitch": partial(stitch_affinity, kinds=settings.kinds, **self._judged_by()),
        }
        how = {name: getattr(options, name) for name in ("bootstrap", "seed", "cache")}
        found: Affinity = measures[options.measure](self._staged(), self.inputs, batch_size=settings.batch_size, **how)
        return found

    def _judged_by(self) -> dict[str, Any]:
        """The losses and the probe's labels, where stitches are judged by them."""
        from branchnet.data.collation import gather
        from branchnet.data.samples import count_samples
        from branchnet.pipeline.config.config_labels import labels_and_losses

        request = self.request
        if not request.options.labelled:
            return {}
        data = labels_and_losses(request.settings, request.config, request.images)
        return {"losses": data.losses, "labels": gather(data.labels, slice(0, count_samples(self.inputs)))}

    def _staged(self) -> dict[str, StagedNetwork]:
        from branchnet.stages import split_all

        given = self.request.given
        spec = self.request.spec
        early = bool(spec.tree.depths)
        locations = list(spec.locations)
        return split_all(given.networks, given.example, locations=locations, depth="auto" if early else "common")


class _Gradients:
    """Taking gradients on a saved network, or on a shared one that is trained here."""

    def __init__(self, request: _Request) -> None:
        from branchnet.cli.saved_networks import read_branched
        from branchnet.errors import DataError
        from branchnet.pipeline.config.config_labels import labelled
        from branchnet.pipeline.gradient_steps import shared_network

        given, settings = request.given, request.settings
        self.request = request
        self.data = labelled(settings, request.config, request.images)
        self.saved = request.split.is_dir()
        if self.saved and request.options.every is not None:
            raise DataError(f"--every: {request.split} is a saved network, probed as it is; expected an architecture")
        if self.saved:
            self.network = read_branched(request.split, request.config, device=request.options.device)
        else:
            self.network = shared_network(request.spec, given.networks, given.example, settings.donor)

    def plan(self) -> Plan:
        """Training, where there is any, and probing."""
        from branchnet.pipeline.gradient_steps import plan_gradients

        settings, measure = self.request.settings, self.request.options.measure
        every = self.request.options.every
        return plan_gradients(self.network, self.data, settings, measure=measure, train=not self.saved, every=every)

    def measure(self) -> Affinity:
        """The affinities."""
        from branchnet.pipeline.gradient_steps import measure_gradients, measure_in_training, train_shared

        settings, options = self.request.settings, self.request.options
        how: dict[str, Any] = {"measure": options.measure, "bootstrap": options.bootstrap, "seed": options.seed}
        if options.every is not None:
            return measure_in_training(self.network, self.data, settings, every=options.every, **how)
        if not self.saved:
            train_shared(self.network, self.data, settings)
        return measure_gradients(self.network, self.data, settings, **how)


def _summary(found: Affinity) -> Table:
    """One row for each location: the mean over pairs, and the pairs that are most and least similar."""
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
