"""Gradient affinities against a published-style oracle, brute-force steps and what they promise to leave alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from branchnet import Tree, build, split_all
from branchnet.affinity import gradient_affinity, probing_cost
from branchnet.errors import AffinityError
from tests.affinity.toys import Block

ORACLE = json.loads((Path(__file__).parents[1] / "facts" / "tag_affinity_micro_oracle.json").read_text())
TASKS = ("t0", "t1", "t2")


class Tanh(nn.Module):
    """tanh(x W)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight)


def table(rows: int, columns: int, formula) -> Tensor:
    return torch.tensor([[formula(i, j) for j in range(columns)] for i in range(rows)], dtype=torch.float64)


def oracle_problem():
    """Inputs, model, heads, targets and losses as the oracle's own `setup` line describes them."""
    x = table(8, 4, lambda i, j: ((7 * i + 3 * j) % 11 - 5) / 5)
    y = table(8, 3, lambda i, t: ((5 * i + 2 * t + 1) % 7 - 3) / 3)
    model = Tanh(table(4, 3, lambda i, j: ((3 * i + 5 * j) % 9 - 4) / 8))
    v = table(3, 3, lambda i, t: ((4 * i + 7 * t + 2) % 10 - 4.5) / 6)
    heads = {task: lambda hidden, t=t: hidden @ v[:, t] for t, task in enumerate(TASKS)}
    targets = {task: y[:, t] for t, task in enumerate(TASKS)}
    losses = {task: lambda output, target: ((output - target) ** 2).mean() for task in TASKS}
    return x, model, heads, targets, losses


@pytest.mark.parametrize("rate", ["0.1", "0.01", "0.001"])
@pytest.mark.parametrize(
    ("method", "key"), [("lookahead", "Z_from_i_onto_j"), ("first-order", "first_order_lr_gi_dot_gj_over_Lj")]
)
def test_oracle(rate: str, method: str, key: str) -> None:
    x, model, heads, targets, losses = oracle_problem()
    found = gradient_affinity(
        model, [(x, targets)], losses, heads=heads, method=method, learning_rate=float(rate), per_stage=False
    )
    np.testing.assert_allclose(found.values[0], ORACLE["results"][rate][key], atol=1e-9, rtol=0)
    assert found.directed


def test_inputs_and_targets_are_moved_to_the_trunk() -> None:
    """The device "meta" computes no values, so the first loss says where it is and ends the measurement."""

    def where(output: Tensor, target: Tensor) -> Tensor:
        raise LookupError(output.device.type, target.device.type)

    trunk, heads = nn.Linear(4, 3, device="meta"), {task: nn.Linear(3, 1, device="meta") for task in TASKS}
    loader = DataLoader(TensorDataset(torch.rand(8, 4), torch.rand(8, 1)), 4, collate_fn=by_task)
    with pytest.raises(LookupError) as found:
        gradient_affinity(trunk, loader, dict.fromkeys(TASKS, where), heads=heads, learning_rate=0.1)
    assert found.value.args == ("meta", "meta")


def by_task(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    x, y = zip(*pairs, strict=True)
    return torch.stack(x), dict.fromkeys(TASKS, torch.stack(y))


@pytest.mark.parametrize("control", [False, True])
def test_oracle_momentum(control: bool) -> None:
    x, model, heads, targets, losses = oracle_problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    optimizer.state[model.weight]["momentum_buffer"] = torch.tensor(ORACLE["grads"], dtype=torch.float64).sum(0)
    found = gradient_affinity(model, [(x, targets)], losses, heads=heads, optimizer=optimizer, control=control)
    expected = ORACLE["results"]["momentum_keras_lr0.01_mu0.9"]
    difference = np.array(expected["control_no_gradient_onto_j"]) if control else 0.0
    np.testing.assert_allclose(found.values[0], np.array(expected["Z_from_i_onto_j"]) - difference, atol=1e-9, rtol=0)


class Trunk(nn.Module):
    """Three stages with BatchNorm and dropout, as a staged network."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stages = nn.ModuleList(
                [
                    Block(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh())),
                    Block(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Tanh())),
                    Block(nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True))),
                ]
            )
            self.outputs = nn.ModuleList([nn.Linear(6, 1) for _ in TASKS])
        self.locations = ("one", "two", "three")
        self.double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        cut = (x,)
        for stage in self.stages:
            cut = stage(*cut)
        return {task: head(*cut) for task, head in zip(TASKS, self.outputs, strict=True)}

    @property
    def heads(self) -> dict[str, nn.Module]:
        return dict(zip(TASKS, self.outputs, strict=True))


def batches(count: int = 3, seed: int = 0) -> list[tuple[Tensor, dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [(draw(16, 5), {task: draw(16, 1) for task in TASKS}) for _ in range(count)]


LOSSES = dict.fromkeys(TASKS, nn.functional.mse_loss)


def losses_of(model: Trunk, x: Tensor, targets: dict[str, Tensor]) -> list[Tensor]:
    outputs = model(x)
    return [LOSSES[task](outputs[task], targets[task]) for task in TASKS]


def brute_force(model: Trunk, stages: list[int], x: Tensor, targets: dict[str, Tensor], make_optimizer) -> np.ndarray:
    """Copy the whole model for every task, step the given stages, and evaluate."""
    result = np.zeros((3, 3))
    for i in range(3):
        trial = copy.deepcopy(model)
        base = [float(loss.detach()) for loss in losses_of(trial, x, targets)]
        losses_of(trial, x, targets)[i].backward()
        kept = {p for d in stages for p in trial.stages[d].parameters()}
        before = {p: p.detach().clone() for p in trial.stages.parameters()}
        make_optimizer(trial).step()
        with torch.no_grad():
            for p, value in before.items():
                if p not in kept:
                    p.copy_(value)
            after = [float(loss) for loss in losses_of(trial, x, targets)]
        result[i] = 1 - np.array(after) / np.array(base)
    return result


@pytest.mark.parametrize("per_stage", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_equals_copies_of_the_model(per_stage: bool, name: str) -> None:
    model = Trunk().eval()
    kinds = {
        "sgd": lambda m: torch.optim.SGD(m.stages.parameters(), lr=0.05),
        "adam": lambda m: torch.optim.Adam(m.stages.parameters(), lr=0.05),
    }
    x, targets = batches()[0]
    choice = {"learning_rate": 0.05} if name == "sgd" else {"optimizer": kinds[name](model)}
    found = gradient_affinity(model, [(x, targets)], LOSSES, heads=model.heads, per_stage=per_stage, **choice)
    groups = [[0], [1], [2]] if per_stage else [[0, 1, 2]]
    expected = [brute_force(model, stages, x, targets, kinds[name]) for stages in groups]
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    assert found.locations == (("one", "two", "three") if per_stage else ("trunk",))


def test_first_order_is_the_limit_of_small_steps() -> None:
    model = Trunk().train()
    exact, linear = (
        gradient_affinity(model, batches(), LOSSES, heads=model.heads, method=method, learning_rate=1e-6).values
        for method in ("lookahead", "first-order")
    )
    np.testing.assert_allclose(exact, linear, rtol=1e-3, atol=1e-10)


def test_cosine_by_autograd() -> None:
    model = Trunk().eval()
    x, targets = batches()[0]
    found = gradient_affinity(model, [(x, targets)], LOSSES, heads=model.heads, method="cosine")
    for d, stage in enumerate(model.stages):
        parameters = list(stage.parameters())
        flat = [
            torch.cat([g.flatten() for g in torch.autograd.grad(losses_of(model, x, targets)[i], parameters)])
            for i in range(3)
        ]
        expected = [[float(nn.functional.cosine_similarity(a, b, dim=0)) for b in flat] for a in flat]
        np.testing.assert_allclose(found.values[d], expected, atol=1e-10)
    assert not found.directed


def test_same_dropout_in_every_evaluation() -> None:
    """A vanishing step changes nothing, although dropout and batch statistics are on."""
    model = Trunk().train()
    found = gradient_affinity(model, batches(), LOSSES, heads=model.heads, learning_rate=1e-13)
    np.testing.assert_allclose(found.values, 0.0, atol=1e-11)


@pytest.mark.parametrize("method", ["lookahead", "first-order"])
def test_nothing_is_touched(method: str) -> None:
    model = Trunk().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sum(losses_of(model, *batches()[0])).backward()
    optimizer.step()
    torch.manual_seed(1)
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]])
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    gradient_affinity(model, batches(), LOSSES, heads=model.heads, optimizer=optimizer, method=method)
    after = [model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]]
    assert str(after) == str(before)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes


def test_mean_and_standard_error_over_batches() -> None:
    model, data = Trunk().eval(), batches(4)
    single = [gradient_affinity(model, [one], LOSSES, heads=model.heads, learning_rate=0.1).values for one in data]
    found = gradient_affinity(model, data, LOSSES, heads=model.heads, learning_rate=0.1, bootstrap=300)
    np.testing.assert_allclose(found.values, np.mean(single, axis=0), atol=1e-12)
    np.testing.assert_allclose(found.standard_errors, np.std(single, axis=0, ddof=1) / 2, atol=1e-12)
    assert found.replicates().shape == (300, 3, 3, 3)
    assert 0.6 < (found.replicates().std(axis=0) / found.standard_errors).mean() < 1.1


def test_missing_labels_are_left_out() -> None:
    model, data = Trunk().eval(), batches(3)
    data[0][1]["t2"] = None
    del data[1][1]["t0"]
    found = gradient_affinity(model, data, LOSSES, heads=model.heads, learning_rate=0.1)
    whole = [gradient_affinity(model, [one], LOSSES, heads=model.heads, learning_rate=0.1).values for one in batches(3)]
    np.testing.assert_allclose(found.values[:, 0, 1], (whole[0] + whole[2])[:, 0, 1] / 2, atol=1e-12)
    np.testing.assert_allclose(found.values[:, 1, 2], (whole[1] + whole[2])[:, 1, 2] / 2, atol=1e-12)
    with pytest.raises(AffinityError, match="no batch has targets of both 't0' and 't2'"):
        gradient_affinity(model, data[:2], LOSSES, heads=model.heads, learning_rate=0.1)


def test_branched_network_affects_only_shared_nodes() -> None:
    trunk = Trunk().eval()

    class Tree:
        partitions = ((("t0", "t1", "t2"),), (("t0", "t2"), ("t1",)), (("t0",), ("t2",), ("t1",)))
        depths: ClassVar[dict[str, int]] = {}

    branched = nn.Module()
    branched.tree, branched.tasks, branched.locations = Tree(), TASKS, trunk.locations
    copies = [
        [copy.deepcopy(stage) for _ in groups] for stage, groups in zip(trunk.stages, Tree.partitions, strict=True)
    ]
    branched.nodes = nn.ModuleList(nn.ModuleList(nodes) for nodes in copies)
    branched.heads = trunk.outputs
    for method in ("lookahead", "first-order", "cosine"):
        rate = None if method == "cosine" else 0.05
        found = gradient_affinity(branched, batches(1), LOSSES, method=method, learning_rate=rate).values
        shared = gradient_affinity(
            trunk, batches(1), LOSSES, heads=trunk.heads, method=method, learning_rate=rate
        ).values
        np.testing.assert_allclose(found[0], shared[0], atol=1e-12)
        np.testing.assert_allclose(found[1, 0, 2], shared[1, 0, 2], atol=1e-12)
        assert found[1, 0, 1] == found[1, 1, 2] == found[2, 0, 2] == 0


@pytest.mark.parametrize("control", [False, True])
def test_costs_are_what_was_announced(control: bool) -> None:
    """Counted on a trunk of three stages in eval mode, by hooks that see every forward and backward pass."""
    counts = {"stage": 0, "head": 0, "backward": 0}
    model = Trunk().eval()

    def count(kind: str):
        def hook(*_: object) -> None:
            counts[kind] += 1

        return hook

    for stage in model.stages:
        stage.register_forward_hook(count("stage"))
    for head in model.outputs:
        head.register_forward_hook(count("head"))
    model.stages[0].inner[0].register_full_backward_hook(count("backward"))
    for per_stage in (False, True):
        counts.update(stage=0, head=0, backward=0)
        step = {"optimizer": torch.optim.SGD(model.parameters(), 0.1)} if control else {"learning_rate": 0.1}
        gradient_affinity(model, batches(1), LOSSES, heads=model.heads, per_stage=per_stage, **step)
        cost = probing_cost(3, 3, per_stage=per_stage, control=control)
        assert counts == {
            "stage": 3 + round(3 * cost.trunk_forwards),
            "head": cost.head_forwards,
            "backward": cost.backwards,
        }


def test_under_autocast() -> None:
    model = Trunk().float().eval()
    data = [(x.float(), {task: y.float() for task, y in targets.items()}) for x, targets in batches(4)]
    common = {"heads": model.heads, "learning_rate": 0.5, "per_stage": False}
    full = gradient_affinity(model, data, LOSSES, **common).values
    low = gradient_affinity(model, data, LOSSES, autocast=torch.bfloat16, **common).values
    assert 0 < np.abs(low - full).max() < 0.05


def test_training_between_probes() -> None:
    model, seen = Trunk().train(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_step(x: Tensor, targets: dict[str, Tensor]) -> None:
        optimizer.zero_grad()
        sum(losses_of(model, x, targets)).backward()
        optimizer.step()
        seen.append(len(x))

    data = batches(1) * 5
    moved = gradient_affinity(model, data, LOSSES, heads=model.heads, learning_rate=0.1, train_step=train_step)
    assert seen == [16] * 5
    assert moved.standard_errors.max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": None}, "heads="),
        ({"learning_rate": None}, "learning_rate is None"),
        ({"method": "guess"}, "method is 'guess'"),
        ({"losses": {"t0": nn.functional.mse_loss}}, r"losses lacks \['t1', 't2'\]"),
        ({"losses": {task: lambda output, _: output.sum() * float("nan") for task in TASKS}}, "finite scalar"),
        ({"losses": {task: lambda output, _: -output.square().sum() for task in TASKS}}, "expected a positive number"),
        ({"batches": []}, "batches is empty"),
    ],
)
def test_refusals(change: dict, message: str) -> None:
    model = Trunk().eval()
    arguments = {"batches": batches(1), "losses": LOSSES, "heads": model.heads, "learning_rate": 0.1} | change
    with pytest.raises(AffinityError, match=message):
        gradient_affinity(model, **arguments)


class HoldsTwice(nn.Module):
    """The first layer lies at two places of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.layers = nn.ModuleList([self.first, nn.Linear(3, 3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](torch.tanh(self.first(x)))


def test_a_module_at_two_places_is_probed_once_and_kept() -> None:
    twice = HoldsTwice().double()
    once = nn.Sequential(twice.first, nn.Tanh(), twice.layers[1])
    kept = {name: (id(p), p.detach().clone()) for name, p in twice.named_parameters()}
    heads = {"sum": lambda hidden: hidden.sum(1), "first": lambda hidden: hidden[:, 0]}
    losses = {task: lambda output, target: ((output - target) ** 2).mean() for task in heads}
    x = torch.randn(6, 4, dtype=torch.float64)
    batches = [(x, {"sum": x[:, 0], "first": x[:, 1]})]
    found = [
        gradient_affinity(model, batches, losses, heads=heads, learning_rate=0.1, bootstrap=0)
        for model in (twice, copy.deepcopy(once))
    ]
    np.testing.assert_allclose(found[0].values, found[1].values, atol=1e-12)
    for name, parameter in twice.named_parameters():
        assert id(parameter) == kept[name][0]
        assert torch.equal(parameter, kept[name][1])


class Reversing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -gradients[0]


class Reversed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2, self.l3 = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.l3(torch.tanh(self.l2(Reversing.apply(torch.tanh(self.l1(x))))))


def test_a_network_whose_gradients_would_be_others_is_refused_in_either_mode() -> None:
    x = torch.randn(6, 4)
    staged = split_all({"a": Reversed().eval(), "b": Reversed().eval()}, x, locations=["l1", "l2"])
    branched = build(Tree.shared(["a", "b"], 2), staged, init="donor").eval()
    batches = [(x, {"a": x, "b": x})]
    losses = dict.fromkeys("ab", nn.functional.mse_loss)
    with pytest.raises(AffinityError, match=r"can only be evaluated.*functions of autograd.*expected"):
        gradient_affinity(branched, batches, losses, learning_rate=0.1)
    with pytest.raises(AffinityError, match="can only be evaluated"):
        gradient_affinity(staged["a"], batches, losses, heads={t: s.head for t, s in staged.items()}, learning_rate=0.1)
