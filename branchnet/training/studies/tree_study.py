"""Train several trees of the same tasks under equal conditions and compare them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from branchnet.builder import BranchedNetwork, GroupedNetworks, build
from branchnet.clustering import Grouping, SearchResult, Selection, Tree
from branchnet.clustering.trees.sampling import random_tree_of_widths
from branchnet.data.samples import Source, read_samples
from branchnet.errors import TrainingError
from branchnet.stages import StagedNetwork, split_all
from branchnet.stages.interface import Example
from branchnet.training.distillation import distill
from branchnet.training.judging.evaluation import evaluate
from branchnet.training.judging.foreign_metrics import AnyMetric, read_metric
from branchnet.training.resuming.code_hash import code_hash
from branchnet.training.resuming.run_identity import losses_hash, network_hash, samples_hash
from branchnet.training.studies.run_queue import finish_runs
from branchnet.training.studies.study import Study, StudyRun
from branchnet.training.supervised import fit
from branchnet.training.task_losses import Loss
from branchnet.utils.random_state import seeded

Arm = Tree | SearchResult | Selection | Grouping | int
Factory = Callable[[], nn.Module]


def compare(
    arms: Mapping[str, Arm],
    networks: Mapping[str, nn.Module | Factory],
    *,
    train: Source,
    test: Source,
    metrics: Mapping[str, AnyMetric],
    folder: str | os.PathLike[str],
    losses: Mapping[str, Loss] | None = None,
    validation: Source | None = None,
    seeds: int | Sequence[int] = 3,
    steps: int = 1000,
    example: Example | None = None,
    locations: Sequence[str] | int | None = None,
    probe: Any = None,
    progress: bool = True,
    **settings: Any,
) -> Study:
    """Train every arm under every seed for the same number of steps, test it, and collect what came out.

    All arms get equal work: the same steps on the same samples in the same order, the separate networks too. From
    trained networks they start as `build` stitches them together; from factories, with the random weights of the seed.
    The same call goes on where an interrupted one stopped, and several processes that share the folder, on one machine
    or many, do the runs together: start the same script as often as there are processors.

    Args:
        arms: by name what is compared: a tree; a selection of networks (`select_networks`, `group_by_affinity`); or a
            number: so many different random trees with as many nodes in each stage as the first arm's tree.
        networks: by task the trained network, or a function without arguments that makes an untrained one.
        train: samples that all tasks have in common, with labels, as `fit` takes them.
        test: samples with labels, which nothing is chosen by.
        metrics: by task, measured on `test`; the targets are its labels.
        folder: for the runs, one file each.
        losses: by task, for training with labels; None: by distillation from the trained networks.
        validation: samples for choosing learning rate and best state; by default a tenth of `train`.
        seeds: how many, 0, 1 and so on, or which.
        steps: updates of the weights, in every arm.
        example: what the networks take, for splitting them where they are not staged.
        locations: where to split them.
        probe: inputs that stitches are fitted on where trained networks are given; without one, donors' weights alone.
        progress: whether to draw a progress bar on stderr.
        settings: further arguments of `fit` or `distill`, such as `batch_size` and `learning_rate`.

    Returns:
        the study; `print(study.table())`, `study.paired("found", "random")`, `branchnet.plot(study)`.

    Raises:
        TrainingError: arms that are no trees of the tasks, no metrics, factories without losses, a run that fails.
        DataError: the folder holds another study, samples that cannot be read.

    >>> import tempfile, torch, branchnet
    >>> from branchnet.training import r_squared
    >>> tasks, x = ["sum", "first"], torch.rand(64, 4)
    >>> rows = (x, {"sum": x.sum(1, keepdim=True), "first": x[:, :1]})
    >>> def network():
    ...     return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> arms = {"shared": branchnet.Tree.shared(tasks, 1), "separate": branchnet.Tree.separate(tasks, 1)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     study = branchnet.compare(
    ...         arms, dict.fromkeys(tasks, network), train=rows, test=rows, example=x[:2], locations=["1"],
    ...         losses=dict.fromkeys(tasks, torch.nn.functional.mse_loss), metrics=dict.fromkeys(tasks, r_squared()),
    ...         steps=5, learning_rate=1e-2, folder=folder, progress=False,
    ...     )
    >>> len(study.runs), study.reference, sorted(study.paired("shared", "separate").points)
    (6, 'separate', ['first', 'sum'])
    """  # fmt: skip
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    plan = _Plan(
        networks, dict(losses or {}), train, test, validation, dict(metrics), steps, settings, example, locations, probe
    )
    plan.check(numbers)
    trees = _trees_of(arms, tuple(networks), plan.staged(numbers[0]))
    cases = [(arm, k, seed) for seed in numbers for arm, found in trees.items() for k in range(len(found))]
    runs = {
        _run_name(arm, k, seed): (lambda arm=arm, k=k, seed=seed: plan.run(trees[arm][k], arm, k, seed))
        for arm, k, seed in cases
    }
    results = finish_runs(Path(folder), plan.manifest(trees, numbers), runs, progress=progress)
    read = {task: read_metric(metric) for task, metric in metrics.items()}
    return Study(
        tuple(networks),
        {task: metric.name for task, metric in read.items()},
        {task: not metric.larger_is_better for task, metric in read.items()},
        {arm: len(found) for arm, found in trees.items()},
        numbers,
        next((arm for arm, found in trees.items() if _is_separate(found[0])), next(iter(trees))),
        tuple(_as_run(found) for found in results.values()),
    )


@dataclass
class _Plan:
    """What every run has in common."""

    networks: Mapping[str, nn.Module | Factory]
    losses: dict[str, Loss]
    train: Source
    test: Source
    validation: Source | None
    metrics: dict[str, AnyMetric]
    steps: int
    settings: dict[str, Any]
    example: Example | None
    locations: Sequence[str] | int | None
    probe: Any
    _staged: tuple[int, dict[str, StagedNetwork]] | None = None

    @property
    def trained(self) -> bool:
        """Whether the networks are trained ones."""
        return all(isinstance(network, nn.Module) for network in self.networks.values())

    def check(self, seeds: Sequence[int]) -> None:
        """Refuse early what every run would fail at."""
        if not seeds or len(set(seeds)) < len(seeds):
            raise TrainingError(f"seeds are {list(seeds)}; expected one or more different ones")
        if set(self.metrics) != set(self.networks):
            raise TrainingError(
                f"metrics of {sorted(self.metrics)} and networks of {sorted(self.networks)}; expected the same tasks"
            )
        if not self.trained and any(isinstance(network, nn.Module) for network in self.networks.values()):
            raise TrainingError("some networks are trained ones and others factories; expected all of one kind")
        if not self.losses and not self.trained:
            raise TrainingError("factories make untrained networks, which teach nothing; expected losses=")
        if missing := [task for task in self.networks if self.losses and task not in self.losses]:
            raise TrainingError(f"tasks without a loss: {missing}; expected one for each task, or losses=None")

    def staged(self, seed: int) -> dict[str, StagedNetwork]:
        """The networks, split; untrained ones with the weights of the seed."""
        if self._staged is not None and (self.trained or self._staged[0] == seed):
            return self._staged[1]
        with seeded(seed):
            made = {
                task: network if isinstance(network, nn.Module) else network()
                for task, network in self.networks.items()
            }
        staged = {task: network for task, network in made.items() if isinstance(network, StagedNetwork)}
        if len(staged) < len(made):
            if self.example is None:
                raise TrainingError("the networks are not split; expected example=, or the result of split_all")
            staged = split_all(made, self.example, locations=self.locations)
        self._staged = (seed, staged)
        return staged

    def built(self, tree: Tree | Selection | Grouping, seed: int) -> BranchedNetwork | GroupedNetworks:
        """The network of a tree before training."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*features of another network than they were trained on.*")
            staged, probe = self.staged(seed), self.probe if self.trained else None
            return build(tree, staged, init="donor" if probe is None else "stitch", probe=probe, seed=seed)

    def run(self, tree: Tree | Selection | Grouping, arm: str, number: int, seed: int) -> dict[str, Any]:
        """Train one network and test it."""
        network = self.built(tree, seed)
        shown: dict[str, Any] = {"steps": self.steps, "seed": seed, "progress": False} | self.settings
        start = time.process_time()
        try:
            if self.losses:
                fit(network, self.train, self.losses, validation=self.validation, **shown)
            else:
                teachers = {task: net for task, net in self.networks.items() if isinstance(net, nn.Module)}
                distill(network, teachers, self.train, validation=self.validation, **shown)
        except TrainingError as error:
            raise TrainingError(f"{arm}, tree {number}, seed {seed}: {error}") from error
        seconds = time.process_time() - start
        return {
            "arm": arm,
            "number": number,
            "seed": seed,
            "tree": _text_of(tree),
            "widths": _widths_of(network),
            "metrics": evaluate(network, self.test, None, self.metrics),
            "steps": self.steps,
            "seconds": seconds,
        }

    def manifest(self, trees: Mapping[str, Sequence[Tree | Selection | Grouping]], seeds: Sequence[int]) -> Any:
        """What processes that share a folder must agree on."""
        given = {
            task: network_hash(network) if isinstance(network, nn.Module) else code_hash(network)
            for task, network in self.networks.items()
        }
        arms = {arm: [_text_of(tree) for tree in found] for arm, found in trees.items()}
        data = {"train": self.train, "test": self.test, "validation": self.validation, "probe": self.probe}
        return {
            "tasks": list(self.networks),
            "networks": given,
            "arms": {arm: hashlib.sha256("".join(found).encode()).hexdigest() for arm, found in arms.items()},
            "locations": list(next(iter(self.staged(seeds[0]).values())).locations),
            "losses": losses_hash(self.losses) if self.losses else "distillation",
            "metrics": {task: read_metric(metric).name for task, metric in self.metrics.items()},
            "samples": {
                name: samples_hash(read_samples(source, labels=name != "probe"))
                for name, source in data.items()
                if source is not None
            },
            "seeds": list(seeds),
            "steps": self.steps,
            "settings": {name: _setting(value) for name, value in sorted(self.settings.items())},
        }


def _setting(value: Any) -> str:
    """An argument of `fit` or `distill`, the same in every process: objects by their code."""
    plain = value is None or isinstance(value, str | int | float | Mapping)
    return str(value) if plain else code_hash(value)


def _trees_of(
    arms: Mapping[str, Arm], tasks: tuple[str, ...], staged: Mapping[str, StagedNetwork]
) -> dict[str, list[Tree | Selection | Grouping]]:
    """The trees of each arm, checked."""
    if not arms:
        raise TrainingError("there is nothing to compare; expected one arm or more")
    found: dict[str, list[Tree | Selection | Grouping]] = {}
    for name, arm in arms.items():
        if isinstance(arm, bool) or not isinstance(arm, Tree | SearchResult | Selection | Grouping | int):
            raise TrainingError(f"arm {name!r} is {arm!r}; expected a tree, a selection of networks or a number")
        one = arm.tree if isinstance(arm, SearchResult) else arm
        if isinstance(one, Tree) and (
            set(one.tasks) != set(tasks) or one.depth != len(next(iter(staged.values())).stages)
        ):
            raise TrainingError(
                f"arm {name!r} is a tree of {list(one.tasks)} with {one.depth} stages; expected one of {list(tasks)} "
                f"with {len(next(iter(staged.values())).stages)}"
            )
        if not isinstance(one, int):
            found[name] = [one]
            continue
        first = next((trees[0] for trees in found.values()), None)
        if not isinstance(first, Tree):
            raise TrainingError(f"arm {name!r} is a number of random trees; expected a tree before it, for their size")
        found[name] = list(_random_trees(first, one, name))
    return found


def _random_trees(like: Tree, count: int, name: str) -> list[Tree]:
    """Different trees of the widths of another, itself left out."""
    source, drawn = random.Random(0), dict[Tree, None]()
    for _ in range(1000 * max(count, 1)):
        tree = random_tree_of_widths(like.tasks, like.widths, source, like.depths)
        if tree != like:
            drawn[tree] = None
        if len(drawn) >= count:
            return list(drawn)
    raise TrainingError(
        f"arm {name!r}: {len(drawn)} other trees of widths {like.widths} were found; expected a number of at most that"
    )


def _is_separate(tree: Tree | Selection | Grouping) -> bool:
    return isinstance(tree, Tree) and set(tree.widths) == {len(tree.tasks)}


def _text_of(tree: Tree | Selection | Grouping) -> str:
    if isinstance(tree, Tree):
        return json.dumps(tree.partitions)
    return json.dumps([one.partitions for one in tree.trees(1)])


def _widths_of(network: BranchedNetwork | GroupedNetworks) -> list[int]:
    trees = [network.tree] if isinstance(network, BranchedNetwork) else [one.tree for one in network.branched_networks]
    return [sum(widths) for widths in zip(*(tree.widths for tree in trees), strict=True)]


def _run_name(arm: str, number: int, seed: int) -> str:
    """A file's name, whatever the arm's name holds."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in arm)[:40]
    return f"{plain}-{hashlib.sha256(arm.encode()).hexdigest()[:6]}-{number}-seed{seed}"


def _as_run(found: Mapping[str, Any]) -> StudyRun:
    return StudyRun(
        found["arm"], found["number"], found["seed"], found["tree"], tuple(found["widths"]), found["metrics"],
        found["steps"], found["seconds"],
    )  # fmt: skip
