"""One training after another: networks of some tasks, what they lose on held-out samples, and their test.

All take the same steps; the state that is kept is the one with the least losses on held-out samples.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tree_problems.deciding import EVERY, known_only
from tree_problems.problem import Rows, TreeProblem

import branchnet
from branchnet import Affinity, BranchedNetwork, StagedNetwork, Tree
from branchnet.affinity import probing_cost
from branchnet.builder.stitch_costs import stitch_costs
from branchnet.inference.inference_transforms import prepare
from branchnet.training.studies.tree_tables import labels_text
from branchnet.utils.random_state import seeded

HELD_OUT = 0.2
"""Share of the training samples, the last ones, that procedures choose by and no network is trained on."""
EARLY = 0.2
"""Share of a training after which ESA reads the losses."""
RDM_INPUTS = 500
"""As the authors of BMTN have it."""
PROBE = 1000
"""Inputs that stitches are fitted on."""
Start = Literal["random", "donor", "stitch"]
Result = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """What one training makes: a tree of some of the tasks, or a narrow network of one.

    Attributes:
        tree: of its tasks; all share the first stage.
        start: random weights, or those of the single-task networks, as they are or stitched.
        narrow: half as wide, which only single-task networks are.
    """

    tree: Tree
    start: Start = "random"
    narrow: bool = False

    @property
    def name(self) -> str:
        """As files are called: its tasks and nodes."""
        tasks = "+".join(self.tree.tasks)
        return f"{'narrow' if self.narrow else self.start} {tasks} {labels_text(self.tree)}".replace(" ", "_")


def components(tree: Tree, start: Start = "random") -> list[Network]:
    """The networks that a tree falls into: what shares no first stage trains apart."""
    found = []
    for cluster in tree.partitions[0]:
        stages = [[one for one in stage if set(one) <= set(cluster)] for stage in tree.partitions]
        tasks = [task for task in tree.tasks if task in cluster]
        found.append(Network(Tree(tasks, stages), start if len(cluster) > 1 else "random"))
    return found


@dataclass(frozen=True)
class Setting:
    """A problem whose training samples are divided, under one seed.

    Attributes:
        problem: with the samples that networks are trained on.
        validation: those that are chosen by.
        seed: of weights and order.
        folder: where single-task networks are kept.
    """

    problem: TreeProblem
    validation: Rows
    seed: int
    folder: Path

    @classmethod
    def divided(cls, problem: TreeProblem, seed: int, folder: Path) -> Setting:
        """Set samples aside."""
        x, labels = problem.train
        kept = round((1 - HELD_OUT) * len(x))
        train = (x[:kept], {task: label[:kept] for task, label in labels.items()})
        held_out = (x[kept:], {task: label[kept:] for task, label in labels.items()})
        return cls(replace(problem, train=train), held_out, seed, folder)

    @cached_property
    def staged(self) -> dict[str, StagedNetwork]:
        """Untrained networks with the weights of the seed."""
        with seeded(self.seed):
            made = {task: factory() for task, factory in self.problem.factories.items()}
        return branchnet.split_all(made, self.problem.train[0][:2], locations=self.problem.locations)

    @property
    def stage_costs(self) -> list[float]:
        """Of one node of each stage in units of the whole trunk (multiply-adds); heads, which all have, not counted."""
        flops = [stage.flops for stage in next(iter(self.staged.values())).costs]
        return [number / sum(flops) for number in flops]

    def size(self, tree: Tree) -> float:
        """Inference cost of a tree in trunks."""
        return sum(width * cost for width, cost in zip(tree.widths, self.stage_costs, strict=True))

    def donors(self) -> dict[str, StagedNetwork]:
        """The single-task networks, trained."""
        found = copy.deepcopy(self.staged)
        for task, network in found.items():
            network.load_state_dict(torch.load(self.file(task), weights_only=True))
            network.eval()
        return found

    def file(self, task: str) -> Path:
        """Where a single-task network is kept."""
        return self.folder / f"{task}-seed{self.seed}.pt"


def train_network(setting: Setting, network: Network) -> Result:
    """Train one network from its start, and test it."""
    made = _built(setting, network)
    result = _trained(setting, made)
    size = _narrow_size(setting) if network.narrow else setting.size(network.tree)
    tasks = network.tree.tasks
    if len(tasks) == 1 and not network.narrow:
        setting.folder.mkdir(parents=True, exist_ok=True)
        state = dict(zip(setting.staged[tasks[0]].state_dict(), made.state_dict().values(), strict=True))
        torch.save(state, setting.file(tasks[0]))
    return result | {"size": size, "work": size, "stitches": _stitch_size(setting, made)}


def train_longer(setting: Setting, task: str) -> Result:
    """Train a single-task network for as many steps again: as much work as a tree that starts from donors."""
    made = branchnet.build(Tree.shared([task], len(setting.problem.locations)), {task: setting.donors()[task]})
    return _trained(setting, made) | {"size": 1.0, "work": 1.0, "stitches": 0.0}


def measure_rsa(setting: Setting) -> Result:
    """Similarities of the single-task networks at every location."""
    donors = setting.donors()
    inputs = setting.problem.train[0]
    found = branchnet.rsa(donors, inputs[_with_features(donors, inputs)][:RDM_INPUTS], bootstrap=0)
    return {"values": found.values.tolist(), "work": 0.0}


def _with_features(donors: Mapping[str, StagedNetwork], inputs: Tensor) -> Tensor:
    """Which inputs have features that vary everywhere; all units of a layer may be 0, and nothing correlates then."""
    varying = torch.ones(len(inputs), dtype=torch.bool)
    with torch.no_grad():
        for network in donors.values():
            features = (inputs,)
            for stage in network.stages:
                features = stage(*features)
                varying &= features[0].flatten(1).std(1) > 0
    return varying


def measure_tag(setting: Setting) -> Result:
    """Affinities at every tenth step of one joint training."""
    problem = setting.problem
    tree = Tree.shared(problem.tasks, len(problem.locations))
    shared = branchnet.build(tree, setting.staged, init="donor", seed=setting.seed).train()
    draws = torch.Generator().manual_seed(setting.seed)
    x, labels = problem.train
    rows = [torch.randint(len(x), (problem.batch_size,), generator=draws) for _ in range(problem.steps)]
    found = branchnet.gradient_affinity(
        shared,
        [(x[one], {task: label[one] for task, label in labels.items()}) for one in rows],
        {task: known_only(loss) for task, loss in problem.losses.items()},
        per_stage=False,
        optimizer=torch.optim.AdamW(shared.parameters(), lr=problem.learning_rate),
        every=EVERY,
        bootstrap=0,
        seed=setting.seed,
    )
    probing = probing_cost(len(problem.tasks), len(problem.locations), per_stage=False, control=True)
    # A step is a forward pass and a backward pass of twice its work.
    work = 1 + (2 * probing.backwards + probing.trunk_forwards) / 3 / EVERY
    return {"values": found.values.tolist(), "work": work}


def affinity_of(setting: Setting, result: Result, measure: str) -> Affinity:
    """What `measure_rsa` or `measure_tag` found; one value for the trunk is that of each stage."""
    locations = tuple(setting.problem.locations)
    values = torch.tensor(result["values"], dtype=torch.float64).expand(len(locations), -1, -1).numpy().copy()
    return Affinity(setting.problem.tasks, locations, values, measure, directed=measure != "RSA")


def _built(setting: Setting, network: Network) -> BranchedNetwork:
    tasks = network.tree.tasks
    if network.start == "random":
        own = {task: _narrow(setting, task) if network.narrow else setting.staged[task] for task in tasks}
        return branchnet.build(network.tree, own, init="donor", seed=setting.seed)
    donors = setting.donors()
    probe = setting.problem.train[0][:PROBE] if network.start == "stitch" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*features of another network than they were trained on.*")
        return branchnet.build(
            network.tree, {task: donors[task] for task in tasks}, init=network.start, probe=probe, seed=setting.seed
        )


def _narrow(setting: Setting, task: str) -> StagedNetwork:
    """A chain of linear layers, each but the last half as wide."""
    with seeded(setting.seed):
        layers = list(setting.problem.factories[task]())
        if other := [layer for layer in layers if not isinstance(layer, nn.Linear | nn.ReLU)]:
            raise TypeError(f"a network with {type(other[0]).__name__} cannot be made narrow; expected linear layers")
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        widths = [linear[0].in_features, *(layer.out_features // 2 for layer in linear[:-1]), linear[-1].out_features]
        made = iter([nn.Linear(*pair) for pair in pairwise(widths)])
        chain = nn.Sequential(*(next(made) if isinstance(layer, nn.Linear) else layer for layer in layers))
    return branchnet.split_all({task: chain}, setting.problem.train[0][:2], locations=setting.problem.locations)[task]


def _narrow_size(setting: Setting) -> float:
    """Multiply-adds of a narrow network's trunk in units of the whole one."""
    layers = [layer for layer in next(iter(setting.problem.factories.values()))() if isinstance(layer, nn.Linear)][:-1]
    whole = [layer.in_features * layer.out_features for layer in layers]
    narrow = [whole[0] / 2, *(number / 4 for number in whole[1:])]
    return sum(narrow) / sum(whole)


def _stitch_size(setting: Setting, network: BranchedNetwork) -> float:
    """What stitches add to the inference cost where the layers next to them do not take them in."""
    if not network.stitches:
        return 0.0
    example = setting.problem.train[0][:2]
    flops = sum(stage.flops for stage in next(iter(setting.staged.values())).costs) / len(example)
    left = stitch_costs(prepare(network.eval(), example=example), example[:1])
    return sum(stitch.flops for stitch in left if not stitch.folded) / flops


def _trained(setting: Setting, network: BranchedNetwork) -> Result:
    """Train on the labels of the network's tasks, and measure on held-out and test samples."""
    problem, tasks = setting.problem, network.tree.tasks
    early = round(EARLY * problem.steps)
    history = branchnet.fit(
        network,
        _of_tasks(problem.train, tasks),
        {task: problem.losses[task] for task in tasks},
        validation=_of_tasks(setting.validation, tasks),
        every=early // 2,
        steps=problem.steps,
        batch_size=problem.batch_size,
        learning_rate=problem.learning_rate,
        keep="best",
        clip=None,
        seed=setting.seed,
        progress=False,
    )
    losses = {one.step: dict(one.losses) for one in history.measurements}
    metrics = {task: problem.metrics[task] for task in tasks}
    return {
        "losses": losses[history.kept_step],
        "early": losses[early],
        "validation": branchnet.evaluate(network, _of_tasks(setting.validation, tasks), None, metrics),
        "test": branchnet.evaluate(network, _of_tasks(problem.test, tasks), None, metrics),
        "seconds": history.seconds,
    }


def _of_tasks(rows: Rows, tasks: tuple[str, ...]) -> Rows:
    return rows[0], {task: rows[1][task] for task in tasks}
