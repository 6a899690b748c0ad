"""`branchnet run`: the whole way on a user's own networks and images, as a config file says."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from branchnet.cli.options import AsJson, Config, Device, DryRun, Flag, Quiet

if TYPE_CHECKING:
    from torch import nn

    from branchnet.pipeline.config.run_config import RunConfig
    from branchnet.pipeline.plans.dry_run import Plan


def run(
    config: Config,
    *,
    out: Path | None = None,
    measure: Literal["auto", "rsa"] | None = None,
    steps: int | None = None,
    compare: Flag = False,
    seed: int | None = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Find, build, distil and measure the branched network that CONFIG asks for.

    CONFIG names Python factories, which are imported and called: run only configs that you trust. With `supervised:
    true` it names samples with labels instead of images: networks of constructors without weights are trained first
    (those of factories are taken as they are), the branched network is trained on labels, too, and all are measured by
    those of `test`.
    Run again, it goes on from what is finished.

    Example: `branchnet run branchnet-demo/run.yaml --out result`

    Parameters
    ----------
    config
        YAML file: networks, images, budget. `branchnet schema --config` says which fields there are.
    out
        Folder for the results; by default next to the config and named after it.
    measure
        Which affinities propose trees, instead of the config's: `auto` for RSA and the stitching losses, of which the
        tree is taken that works best before any training; `rsa` for RSA alone, as published.
    steps
        Batches of distillation of each whole network, instead of the config's; 0 ends after stitching.
    compare
        Train the baselines, too: the fully shared network and random trees of about the chosen one's size.
    seed
        Instead of the config's.
    """
    from branchnet.cli.loading import changed, checked_device, read_config
    from branchnet.cli.printing import print_plan, print_run, say
    from branchnet.errors import BudgetError
    from branchnet.pipeline.config.config_run import default_folder, run_configured
    from branchnet.pipeline.config.config_sources import make_networks
    from branchnet.pipeline.config.preprocessing import enlarged, preprocessing
    from branchnet.pipeline.workspace import checked_folder

    folder = checked_folder(out or default_folder(config))
    settings = changed(read_config(config), measure=measure, steps=steps, compare=compare or None, seed=seed)
    if settings.budget is None:
        raise BudgetError("the config names no budget; expected a line such as `budget: 60% params`")
    networks = make_networks(settings, config.parent, device=checked_device(device))
    done = preprocessing(settings, networks)
    notes = tuple(note for note in (done.note, enlarged(settings, config.parent, done)) if note)
    if dry_run:
        plan = _plan(settings, config, networks)
        print_plan(replace(plan, notes=(*plan.notes, *notes)), [folder], as_json=as_json)
        return
    for note in notes:
        say(note, quiet=quiet)
    options: dict[str, Any] = {
        "--out": folder,
        "--measure": measure,
        "--steps": steps,
        "--seed": seed,
        "--device": device,
    }
    words = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    command = shlex.join(["branchnet", "run", str(config), *words, *(["--compare"] if compare else [])])
    result = run_configured(settings, config.parent, networks, folder=folder, command=command, quiet=quiet)
    print_run(result, as_json=as_json)


def _plan(settings: RunConfig, config: Path, networks: dict[str, nn.Module]) -> Plan:
    from branchnet.pipeline.config.config_sources import read_images
    from branchnet.pipeline.labelled_run.labelled_pipeline import plan_labelled
    from branchnet.pipeline.plans.run_plan import plan_run
    from branchnet.pipeline.problem import make_problem

    if settings.supervised:
        return plan_labelled(settings, config.parent, networks)
    images = read_images(settings, config.parent, networks)
    budget = str(settings.budget)
    return plan_run(make_problem(networks, images, budget, settings, kinds=settings.kinds, resumable=False))
