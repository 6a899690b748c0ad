"""What `fit` and `distill` do by default and as asked: rates, held-out samples, precision, followers, losses."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.errors import CheckpointError, DataError, TrainingError
from branchnet.training import Event, accuracy, explained_variance
from branchnet.training.constant_answer import best_constant
from branchnet.training.matching.output_losses import output_loss
from branchnet.training.optimization.choosing.held_out_judge import Judge
from branchnet.training.optimization.choosing.learning_rates import RATES, largest_safe_rate
from branchnet.training.optimization.schedules import cosine

X = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
TASKS = ("a", "b")
QUICK: dict[str, Any] = {"steps": 30, "batch_size": 16, "progress": False}


def single(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def trained_networks() -> dict[str, nn.Module]:
    return {task: single(number) for number, task in enumerate(TASKS)}


NETWORKS = trained_networks()
STAGED = branchnet.split_all(NETWORKS, X[:2], locations=["1", "3"])


def branched(init: Any = "donor") -> BranchedNetwork:
    tree = Tree(TASKS, [[TASKS], [("a",), ("b",)]])
    return branchnet.build(tree, STAGED, init=init, probe=X[:60] if init == "stitch" else None).eval()


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


# Rates


@settings(max_examples=40, deadline=None)
@given(losses=st.lists(st.lists(st.floats(0, 3), min_size=2, max_size=2), min_size=5, max_size=5))
def test_the_rate_is_the_largest_one_from_the_middle_before_a_task_gets_worse(losses: list[list[float]]) -> None:
    """Losses after each rate are given; the network stays as it was."""
    network, before, current = nn.Linear(2, 2), {"a": 1.0, "b": 1.5}, [-1]
    kept = state(network)

    def train(rate: float) -> None:
        current[0] = RATES.index(rate)
        nn.init.constant_(network.weight, rate)

    def judge() -> tuple[dict[str, float], dict[str, float]]:
        return (before if current[0] < 0 else dict(zip("ab", losses[current[0]], strict=True))), {}

    known = Judge(("a", "b"), judge, tolerance=lambda task, loss: 0.01)
    found = largest_safe_rate([network], train, judge, known)

    def harmful(row: list[float]) -> float:
        return sum(one + 2 * max(0, one - before[task] - 0.01) for task, one in zip("ab", row, strict=True))

    fine = [all(one <= before[task] + 0.01 for task, one in zip("ab", row, strict=True)) for row in losses]
    expected = min(RATES, key=lambda r: harmful(losses[RATES.index(r)]))
    for start in (2, 1, 0):  # 1e-4 first, then smaller ones; from a harmless 1e-4 on larger ones
        if fine[start]:
            rise = [*fine[start:], False].index(False) if start == 2 else 1
            expected = RATES[start + rise - 1]
            break
    assert found == expected
    assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())


def test_by_default_no_task_of_a_stitched_network_ends_worse_than_it_began() -> None:
    net = branched("stitch")
    history = branchnet.distill(net, NETWORKS, X, **QUICK)
    assert history.learning_rate in RATES and history.judged_on == "held-out samples"
    assert not history.worse and sum(history.after.values()) <= sum(history.before.values())


def test_the_rate_that_was_found_is_kept_with_the_checkpoint(tmp_path: Path) -> None:
    def train(checkpoint: Path | None, stop: int | None) -> tuple[nn.Module, Any]:
        net = single(5)
        stopping = [lambda event: event.step == stop and os.kill(os.getpid(), signal.SIGINT)] if stop else []
        return net, branchnet.fit(net, (X, X[:, :3]), nn.MSELoss(), checkpoint=checkpoint, callbacks=stopping, **QUICK)

    whole, expected = train(None, None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", 11)
    resumed, history = train(tmp_path / "run", None)
    assert history.resumed_at in (11, 12) and history.learning_rate == expected.learning_rate
    assert history.losses == expected.losses and history.measurements == expected.measurements
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))


def test_rates_are_tried_by_short_runs_with_the_schedule() -> None:
    asked: list[tuple[int, int]] = []

    def schedule(step: int, steps: int) -> float:
        asked.append((step, steps))
        return cosine(step, steps)

    history = branchnet.fit(
        single(5), (X, X[:, :3]), nn.MSELoss(), steps=20, learning_rate="auto", schedule=schedule, progress=False,
        batch_size=8,
    )  # fmt: skip
    tries, rest = divmod(len(asked) - 20, 5)
    assert rest == 0 and tries in range(2, 6) and history.learning_rate in RATES
    assert asked == [(step, 5) for step in range(5)] * tries + [(step, 20) for step in range(20)]


@pytest.mark.parametrize(("constant", "expected"), [(10.0, 1e-4), (1.0, 1e-3)])
def test_where_every_rate_harms_a_network_that_works_the_rate_is_small(constant: float, expected: float) -> None:
    network, rates = nn.Linear(2, 2), [0.0]

    def judge() -> tuple[dict[str, float], dict[str, float]]:
        return {"a": 1.0 if not rates[-1] else 2.0 - 100 * rates[-1]}, {}

    known = Judge(("a",), judge, scale=lambda task, loss: constant)
    assert largest_safe_rate([network], rates.append, judge, known) == expected


# Held-out samples


def test_a_tenth_is_set_aside_and_never_trained_on() -> None:
    seen: list[Tensor] = []

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        if torch.is_grad_enabled() and output.requires_grad and len(output) == 16:
            seen.append(labels[:, 0])
        return F.mse_loss(output, labels)

    numbers = torch.arange(80.0)[:, None].expand(80, 3) / 80
    branchnet.fit(single(0), (X, numbers), loss, learning_rate=1e-3, **QUICK)
    trained = (torch.cat(seen) * 80).round().unique()
    assert len(trained) == 72 and not set(trained.tolist()) & {0.0, 79.0}


def test_the_result_is_the_best_measured_one_and_metrics_are_of_held_out_samples() -> None:
    net = single(0)
    labels = X[:, :3]
    history = branchnet.fit(
        net, (X[:60], labels[:60]), nn.MSELoss(), validation=(X[60:], labels[60:]), every=5, learning_rate=1e-2,
        metrics={"loss": explained_variance()}, **QUICK,
    )  # fmt: skip
    assert [one.step for one in history.measurements] == [0, 5, 10, 15, 20, 25, 30]
    assert history.after["loss"] == min(one.losses["loss"] for one in history.measurements)
    with torch.no_grad():
        found = net(X[60:])
    assert history.after["loss"] == pytest.approx(float(F.mse_loss(found, labels[60:])), rel=1e-5)
    best = next(one for one in history.measurements if one.step == history.kept_step)
    left, whole = (found - labels[60:]).square().sum(), (labels[60:] - labels[60:].mean(0)).square().sum()
    assert best.metrics["loss"] == pytest.approx(100 * (1 - float(left / whole)), rel=1e-4)


def test_patience_ends_training_where_it_does_not_help() -> None:
    history = branchnet.fit(single(0), (X, X[:, :3]), nn.MSELoss(), learning_rate=30.0, every=2, patience=3, **QUICK)
    assert history.kept_step == 0 and len(history.losses["loss"]) == 6


def test_tasks_that_end_worse_are_named() -> None:
    history = branchnet.distill(branched(), NETWORKS, X, learning_rate=1.0, keep="last", validation=X[:20], **QUICK)
    assert set(history.worse) == set(TASKS)
    assert all(
        reason == "worse than before training and worse than a constant answer" for reason in history.worse.values()
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_best_constant_is_the_mean_for_squares_and_the_frequencies_for_classes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, classes = torch.randn(40, 3, generator=generator), torch.randint(4, (40,), generator=generator)
    squares = best_constant([(F.mse_loss, torch.zeros(40, 3), values, 40)])
    assert squares == pytest.approx(float((values - values.mean(0)).square().mean()), rel=1e-4)
    entropy = best_constant([(F.cross_entropy, torch.zeros(40, 4), classes, 40)])
    shares = torch.bincount(classes).double() / 40
    assert entropy == pytest.approx(float(-(shares * shares.clamp_min(1e-30).log()).sum()), abs=2e-3)
    assert best_constant([(lambda output, labels: (output > 0).float().mean(), torch.zeros(4, 3), None, 4)]) is None


# Followers


def test_callbacks_are_told_and_may_end_training_and_loggers_get_every_number(tmp_path: Path) -> None:
    events: list[Event] = []
    logged: dict[int, dict[str, float]] = {}

    class Logger:
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            assert step is not None
            logged.setdefault(step, {}).update(metrics)

    def follow(event: Event) -> bool:
        events.append(event)
        return event.kind == "step" and event.step == 7

    history = branchnet.fit(
        single(0),
        (X, X[:, :3]),
        nn.MSELoss(),
        every=5,
        learning_rate=1e-2,
        callbacks=[follow],
        logger=Logger(),
        **QUICK,
    )
    assert [event.kind for event in events].count("step") == 7 and events[-1].kind == "end"
    assert [event.step for event in events if event.kind == "validation"] == [0, 5, 7]
    assert [logged[step]["train/loss/loss"] for step in range(1, 8)] == list(history.losses["loss"])
    assert logged[5]["held-out/loss/loss"] == history.measurements[1].losses["loss"]
    history.to_csv(tmp_path / "history.csv")
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(8))
    assert float(rows[7]["loss loss"]) == history.losses["loss"][6]
    assert float(rows[7]["held-out loss loss"]) == history.measurements[-1].losses["loss"]
    with pytest.raises(TrainingError, match="a logger is a object; expected"):
        branchnet.fit(single(0), (X, X[:, :3]), nn.MSELoss(), logger=object(), **QUICK)  # type: ignore[arg-type]


# Optimiser, schedule, precision


def test_another_optimiser_and_schedule_are_those_of_a_plain_loop() -> None:
    found, expected = single(1), single(1).train()
    labels = X[:, :3]

    def momentum(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=0.9)

    branchnet.fit(
        found, (X, labels), nn.MSELoss(), steps=5, batch_size=80, learning_rate=0.1, optimizer=momentum,
        schedule=lambda step, steps: 1 / (1 + step), keep="last", clip=0.05, progress=False,
    )  # fmt: skip
    optimizer = torch.optim.SGD(expected.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        optimizer.zero_grad()
        F.mse_loss(expected(X), labels).backward()
        nn.utils.clip_grad_norm_(expected.parameters(), 0.05)
        optimizer.step()
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 2.5}, "steps=2.5; expected a whole number"),
        ({"steps": "10"}, "steps='10'; expected a whole number"),
        ({"patience": 0}, "patience=0; expected a whole number"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"clip": -1.0}, "clip=-1.0; expected a positive norm"),
        ({"keep": "first"}, "keep='first'; expected 'best' or 'last'"),
        ({"precision": "16"}, "precision='16'; expected one of 32, bf16, fp16"),
        ({"precision": "fp16"}, "precision='fp16' and the network is on cpu"),
        ({"schedule": "linear"}, "schedule='linear'; expected one of cosine, constant"),
        ({"optimizer": "adam"}, "optimizer is a str; expected a function"),
        ({"metrics": {"other": accuracy()}}, "metrics name 'other'"),
    ],
)
def test_settings_that_make_no_training_are_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        branchnet.fit(single(0), (X, X[:, :3]), nn.MSELoss(), **(QUICK | setting))
    assert message in str(caught.value)


@pytest.mark.parametrize("loss", [nn.MSELoss(reduction="none"), lambda output, labels: 1.0])
def test_a_loss_that_is_no_scalar_is_refused(loss: Any) -> None:
    with pytest.raises(TrainingError, match=r"the loss of 'loss' gave .*; expected a scalar tensor"):
        branchnet.fit(single(0), (X, X[:, :3]), loss, **QUICK)


def test_bfloat16_trains_as_float32_does_and_keeps_the_weights() -> None:
    pytest.importorskip("lightning.fabric")
    after = []
    for precision in ("32", "bf16"):
        net = single(0)
        history = branchnet.fit(
            net,
            (X, X[:, :3]),
            nn.MSELoss(),
            precision=precision,
            learning_rate=3e-2,
            **(QUICK | {"steps": 150}),  # type: ignore[arg-type]
        )
        assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
        after.append(history.after["loss"])
    assert after[1] == pytest.approx(after[0], rel=0.25) and after[0] < 0.5 * history.before["loss"]


def test_without_fabric_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning.fabric", None)
    with pytest.raises(TrainingError, match=r"needs Lightning Fabric: pip install 'branchnet\[train\]'"):
        branchnet.fit(single(0), (X, X[:, :3]), nn.MSELoss(), precision="bf16", **QUICK)


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_plain_one_does() -> None:
    found = []
    for compiled in (False, True):
        net = branched()
        settings = {"learning_rate": 1e-1, "keep": "last", "optimizer": torch.optim.SGD, **QUICK, "steps": 4}
        branchnet.distill(net, NETWORKS, X, compile=compiled, **settings)
        labels = dict.fromkeys(TASKS, X[:, :3])
        branchnet.fit(net, (X, labels), dict.fromkeys(TASKS, F.mse_loss), compile=compiled, **settings)
        found.append(state(net))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-5)


# What is matched


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([1.0, 2.0, 5.0]), dense=st.booleans())
def test_losses_of_outputs_are_their_formulas_in_units_of_a_constant(
    seed: int, temperature: float, dense: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (12, 4, 3, 2) if dense else (12, 4)
    own, other = (2 * torch.randn(shape, generator=generator) for _ in range(2))
    rows = own.movedim(1, -1).reshape(-1, 4).double()
    kl = F.kl_div(
        (other / temperature).log_softmax(1), (own / temperature).log_softmax(1), reduction="none", log_target=True
    )
    constant = temperature * (rows / temperature).softmax(1).mean(0).log()
    best = F.kl_div(
        (constant / temperature).log_softmax(0).expand_as(rows), (rows / temperature).log_softmax(1),
        reduction="none", log_target=True,
    ).sum(1).mean()  # fmt: skip
    classes = output_loss("classification", [own], temperature)
    assert float(classes(other, own)) == pytest.approx(float(kl.sum(1).mean() / best), rel=1e-4)
    assert float(classes(own + 7.0, own)) == pytest.approx(0, abs=1e-5)  # logits are centred by the softmax
    squares = output_loss("regression", [own])
    spread = (rows - rows.mean(0)).square().mean()
    assert float(squares(other, own)) == pytest.approx(float((own - other).square().mean() / spread), rel=1e-4)
    directions = output_loss("direction", [own])
    angles = 1 - F.cosine_similarity(own, other, dim=1).mean()
    mean = F.normalize(rows.mean(0), dim=0)
    from_mean = 1 - F.cosine_similarity(rows, mean[None], dim=1).mean()
    assert float(directions(other, own)) == pytest.approx(float(angles / from_mean), rel=1e-4)
    for loss in (classes, squares, directions):
        assert float(loss.constant(own)) == pytest.approx(1, rel=1e-4)


def test_matching_features_alone_brings_shared_features_to_the_own_networks_up_to_a_linear_map() -> None:
    def explained(net: BranchedNetwork) -> float:
        with torch.no_grad():
            shared, own = net.nodes[0][0](X)[0], STAGED["b"].stages[0](X)[0]  # type: ignore[index,operator]
        design = torch.cat([shared, torch.ones(len(X), 1)], 1)
        left = own - design @ torch.linalg.lstsq(design, own).solution
        return 1 - float(left.square().sum() / (own - own.mean(0)).square().sum())

    net = branched()
    before = explained(net)
    branchnet.distill(
        net, STAGED, X, match="features", learning_rate=1e-2, keep="last", **(QUICK | {"steps": 300, "batch_size": 80})
    )
    assert explained(net) > before + 0.3 * (1 - before)
    with pytest.raises(TrainingError, match="not divided into stages"):
        branchnet.distill(branched(), NETWORKS, X, match="features", **QUICK)
    with pytest.raises(TrainingError, match="match='hints'; expected one of outputs, features, both"):
        branchnet.distill(branched(), STAGED, X, match="hints", **QUICK)  # type: ignore[arg-type]


def test_outputs_of_length_1_are_matched_as_directions() -> None:
    class Unit(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(x[:, :3] + 0.3, dim=1)

    networks = {"normals": nn.Sequential(nn.Linear(X.shape[1], 3), Unit()), "numbers": nn.Linear(X.shape[1], 3)}
    teachers = branchnet.Teachers(networks, X, progress=False)
    assert {task: loss.kind for task, loss in teachers.losses.items()} == {
        "normals": "direction",
        "numbers": "regression",
    }
    given = branchnet.Teachers(networks, X, progress=False, kinds={"normals": "regression"})
    assert given.losses["normals"].kind == "regression"


# Interruption


KILLED = """
import sys, torch, branchnet
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.2), nn.Tanh(), nn.Linear(12, 3))
x = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
slow = lambda event: __import__("time").sleep(0.02)
history = branchnet.fit(net, (x, x[:, :3]), nn.MSELoss(), steps=60, batch_size=8, accumulate=2, every=7, progress=False,
                        checkpoint=sys.argv[1], checkpoint_every=1, callbacks=[slow] if sys.argv[2] == "slow" else [])
torch.save([history.losses, [one.losses for one in history.measurements], net.state_dict()], sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 0.7, 1.1])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, seconds: float) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(KILLED))

    def command(name: str, speed: str) -> list[str]:
        return [sys.executable, str(script), str(tmp_path / f"{name}.run"), speed, str(tmp_path / name)]

    subprocess.run(command("whole", "fast"), check=True)
    running = subprocess.Popen(command("killed", "slow"))
    while not (tmp_path / "killed.run").exists():
        time.sleep(0.02)
    time.sleep(seconds)
    running.kill()
    running.wait()
    assert not (tmp_path / "killed").exists()
    subprocess.run(command("killed", "fast"), check=True)
    (losses, held_out, weights), (others, judged, found) = (
        torch.load(tmp_path / name, weights_only=False) for name in ("whole", "killed")
    )
    assert losses == others and held_out == judged
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights.items())
    assert not math.isnan(losses["loss"][-1])


def follow(step: int) -> Any:
    return [lambda event: event.kind == "step" and event.step == step]


def test_a_run_that_was_ended_stays_ended_and_other_settings_are_another_run(tmp_path: Path) -> None:
    def train(**others: Any) -> Any:
        given = {"learning_rate": 1e-2, "checkpoint": tmp_path / "run", "checkpoint_every": 1, "callbacks": follow(5)}
        return branchnet.fit(single(0), (X, X[:, :3]), nn.MSELoss(), **(QUICK | given | others))

    first = train()
    assert len(first.losses["loss"]) == 5 and [one.step for one in first.measurements] == [0, 5]
    again = train(callbacks=())
    assert again.losses == first.losses and again.measurements == first.measurements
    for others, name in (
        ({"optimizer": torch.optim.SGD}, "settings"),
        ({"schedule": lambda step, steps: 0.5}, "settings"),
        ({"validation": (X[:9], X[:9, :3])}, "validation"),
    ):
        with pytest.raises(CheckpointError, match=f"run with other .*{name}"):
            train(**others)


def test_another_optimiser_keeps_its_own_weight_decay() -> None:
    made: list[torch.optim.Optimizer] = []

    def decaying(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(groups, weight_decay=0.5))
        return made[-1]

    branchnet.fit(single(0), (X, X[:, :3]), nn.MSELoss(), optimizer=decaying, learning_rate=1e-3, keep="last", **QUICK)
    assert [group["weight_decay"] for group in made[0].param_groups] == [0.5]


def test_the_best_state_weighs_tasks_in_units_of_constant_answers() -> None:
    """In millimetres one task's loss is a million times the other's."""
    labels = {"a": 1000 * X[:, :3], "b": X[:, 3:]}
    history = branchnet.fit(
        branched(), (X, labels), dict.fromkeys(TASKS, F.mse_loss), learning_rate=0.3, every=2, **QUICK
    )
    values = {
        one.step: sum(
            (loss + 2 * max(0, loss - 1.01 * history.before[task])) / history.constant[task]
            for task, loss in one.losses.items()
        )
        for one in history.measurements
    }
    assert history.kept_step == min(values, key=lambda step: values[step])


def test_learned_uncertainties_are_judged_as_they_were() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_variance = nn.Parameter(torch.zeros(()))

        def forward(self, output: Tensor, labels: Tensor) -> Tensor:
            return (-self.log_variance).exp() * F.mse_loss(output, labels) + self.log_variance

    net, loss = single(0), Learned()
    settings = QUICK | {"steps": 60, "every": 20}
    history = branchnet.fit(net, (X, X[:, :3]), loss, validation=(X, X[:, :3]), learning_rate=1e-2, **settings)
    with torch.no_grad():
        assert history.after["loss"] == pytest.approx(float(F.mse_loss(net(X), X[:, :3])), rel=1e-5)
    assert abs(float(loss.log_variance.detach())) > 1e-3


def test_labels_of_one_task_never_train_another() -> None:
    rows = [(x, {"b": x[:3]}) for x in X]
    with pytest.raises(DataError, match=r"lack labels of \['a'\]"):
        branchnet.fit(branched(), rows, {"a": F.mse_loss}, teachers={"b": NETWORKS["b"]}, **QUICK)
    loader = torch.utils.data.DataLoader([(x, {"a": x[:3], "c": x[:3]}) for x in X], 8)
    with pytest.raises(TrainingError, match=r"no sample of 30 steps had a label of \['loss'\]"):
        branchnet.fit(single(0), loader, nn.MSELoss(), learning_rate=1e-3, keep="last", **QUICK)


def test_frozen_nodes_keep_their_statistics_where_norms_are_trained() -> None:
    def normed(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()

    networks = {task: normed(k) for k, task in enumerate(TASKS)}
    net = branchnet.build(Tree.shared(TASKS, 1), networks, example=X[:2], locations=["2"], init="donor")
    net.freeze("nodes.0.0")
    before = {name: tensor for name, tensor in state(net).items() if name.startswith("nodes.0.0")}
    branchnet.distill(net, networks, X, scope="norms", keep="last", **QUICK)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())


def test_nan_is_worse_and_patience_needs_something_to_judge_by() -> None:
    history = branchnet.training.History({}, 0.0, before={"a": 1.0}, after={"a": math.nan}, constant={"a": 1.0})
    assert history.worse == {"a": "worse than before training and worse than a constant answer"}
    with pytest.raises(TrainingError, match="patience needs held-out samples"):
        branchnet.fit(single(0), (X, X[:, :3]), nn.MSELoss(), keep="last", patience=1, learning_rate=1e-3, **QUICK)


def test_a_history_says_in_words_which_rate_was_taken_and_which_state_is_kept() -> None:
    net = branched("stitch")
    history = branchnet.distill(net, NETWORKS, X, **{**QUICK, "learning_rate": 1e-4})
    assert history.in_words() == f"peak learning rate 0.0001, the state after {history.kept_step} of 30 steps"
    last = branchnet.distill(
        net, NETWORKS, X, **{**QUICK, "learning_rate": lambda node: 1e-4 * (node.stage + 1), "keep": "last"}
    )
    assert last.in_words() == "learning rates by node"
