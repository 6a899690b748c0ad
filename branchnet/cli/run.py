"""`branchnet run`: the whole way on a user's own networks and images, as a config file says."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from branchnet.cli.config import RunConfig


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


def make_networks(config: RunConfig, folder: Path) -> dict[str, nn.Module]:
    """Call the factories and load the weights.

    Raises:
        SpecError: a factory that is missing or returns no network.
        CheckpointError: weights that are missing, damaged or do not fit.
    """
    from torch import nn

    from branchnet.builder import load_weights
    from branchnet.cli.config import call_factory
    from branchnet.errors import SpecError

    networks = {}
    for task, wanted in config.networks.items():
        network = call_factory(wanted.factory, folder)
        if not isinstance(network, nn.Module):
            raise SpecError(f"factory {wanted.factory!r} of {task!r} returned {type(network).__name__}, not a network")
        if wanted.weights is not None:
            load_weights(network, folder / wanted.weights)
        networks[task] = network.eval()
    return networks
