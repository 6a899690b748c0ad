"""`branchnet demo`: the whole way on procedural scenes, from seven single-task networks to one branched network."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Device, DryRun, Quiet, Seed

Quick = Annotated[
    bool,
    Parameter(negative=(), help="Train much less and compile nothing: to see that everything works, not how well."),
]


def demo(
    *,
    out: Path = Path("branchnet-demo"),
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Train seven networks on procedural scenes; find the best tree; build, distil and measure it.

    Takes about four minutes on two CPU cores; --quick about one, with much less training. Run again, it goes on from
    what is finished. It also leaves `run.yaml`, a config of these networks to try the other verbs on.

    Example: `branchnet demo`

    Parameters
    ----------
    out
        Folder for the results.
    """
    from branchnet.cli.loading import checked_device
    from branchnet.cli.printing import print_plan, print_run, say
    from branchnet.pipeline import run_demo
    from branchnet.pipeline.demo.scene_run import plan_demo
    from branchnet.pipeline.workspace import checked_folder

    checked_folder(out)
    if dry_run:
        print_plan(plan_demo(quick=quick), [out], as_json=as_json)
        return
    words = ["--out", str(out), "--seed", str(seed), *(["--quick"] if quick else [])]
    command = shlex.join(["branchnet", "demo", *words, *([] if device is None else ["--device", device])])
    result = run_demo(out, quick=quick, seed=seed, device=checked_device(device), command=command, quiet=quiet)
    print_run(result, as_json=as_json)
    if quick:
        say("--quick trains the networks hardly at all: their figures say nothing", quiet=quiet)
