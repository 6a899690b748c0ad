"""`branchnet run`: the whole way on a user's own networks and images, as a config file says."""

from __future__ import annotations

import shlex
from pathlib import Path


def run(config: Path, *, out: Path | None = None) -> None:
    """Find, build, distil and measure the branched network that CONFIG asks for.

    CONFIG names Python factories, which are imported and called: run only configs that you trust.
    Run again, it goes on from what is finished.

    Example: `branchnet run tools/example/run.yaml --out result`

    Parameters
    ----------
    config
        YAML file: networks, images, budget. The fields are described in branchnet.cli.config.
    out
        Folder for the results; by default beside the config and named after it.
    """
    from branchnet.cli.config import RunConfig
    from branchnet.cli.outputs import finish
    from branchnet.cli.problems import problem_from_config
    from branchnet.cli.study import find_trees, judge, train_networks
    from branchnet.cli.workspace import Workspace
    from branchnet.spec.validation import validate

    workspace = Workspace(out or config.with_name(f"{config.stem}-branched"))
    problem = problem_from_config(validate(RunConfig, config), config.parent)
    trees = find_trees(problem, workspace)
    networks = train_networks(problem, trees, workspace)
    results = judge(problem, trees, networks, workspace)
    command = shlex.join(["branchnet", "run", str(config), "--out", str(workspace.directory)])
    finish(problem, trees, networks["branched"], results, workspace, command=command)
