"""`branchnet run`: the whole way on a user's own networks and images, as a config file says."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal

from branchnet.cli.options import AsJson, Config, Device, DryRun, Flag, Quiet


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

    CONFIG names Python factories, which are imported and called: run only configs that you trust.
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
    from branchnet.cli.printing import print_plan, print_run
    from branchnet.errors import BudgetError
    from branchnet.pipeline import run as run_networks
    from branchnet.pipeline.config.config_sources import make_networks, read_images
    from branchnet.pipeline.plans.run_plan import plan_run
    from branchnet.pipeline.problem import make_problem
    from branchnet.pipeline.workspace import checked_folder

    folder = checked_folder(out or config.with_name(f"{config.stem}-branched"))
    settings = changed(read_config(config), measure=measure, steps=steps, seed=seed)
    if settings.budget is None:
        raise BudgetError("the config names no budget (expected a line such as `budget: 60% params`)")
    networks = make_networks(settings, config.parent, device=checked_device(device))
    images = read_images(settings, config.parent)
    if dry_run:
        problem = make_problem(networks, images, settings.budget, settings, kinds=settings.kinds, resumable=False)
        print_plan(plan_run(problem), [folder], as_json=as_json)
        return
    options: dict[str, Any] = {
        "--out": folder,
        "--measure": measure,
        "--steps": steps,
        "--seed": seed,
        "--device": device,
    }
    given = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    result = run_networks(
        networks,
        images,
        settings.budget,
        folder=folder,
        kinds=settings.kinds,
        command=shlex.join(["branchnet", "run", str(config), *given]),
        quiet=quiet,
        **settings.options(),
    )
    print_run(result, as_json=as_json)
