"""The optimisation loop: schedule and order in closed form, resuming equals running through, failures are named."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import branchnet
from branchnet.errors import CheckpointError, TrainingError
from branchnet.training import History
from branchnet.training.optimization.batch_order import sample_indices
from branchnet.training.optimization.groups import Group
from branchnet.training.optimization.loop import optimize as optimize_objective
from branchnet.training.optimization.objective import Objective
from branchnet.training.optimization.run_settings import Settings
from branchnet.training.optimization.schedules import cosine as schedule

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
Y = X @ torch.randn(5, 2, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2))


def optimize(
    net: nn.Module,
    losses: Callable[[Tensor], Mapping[str, Tensor]],
    groups: list[Group],
    *,
    samples: int,
    **settings: Any,
) -> History:
    """Train on random samples by their numbers."""
    made = Settings(**settings)
    draw = partial(sample_indices, samples=samples, batch_size=made.batch_size, seed=made.seed)
    return optimize_objective(net, Objective(losses), groups, made, draws=lambda: draw, samples=samples)


def run(net: nn.Module, *, interrupt_at: int | None = None, checkpoint: Path | None = None, steps: int = 12) -> History:
    calls = 0

    def losses(index: Tensor) -> Mapping[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == interrupt_at:
            signal.raise_signal(signal.SIGINT)
        error = (net(X[index]) - Y[index]).square()
        return {"first": error[:, 0].mean(), "second": error[:, 1].mean()}

    return optimize(
        net.train(),
        losses,
        [Group(list(net.parameters()), 1e-2)],
        samples=24,
        steps=steps,
        batch_size=8,
        seed=3,
        description="test",
        progress=False,
        checkpoint=checkpoint,
    )


def test_an_interrupted_run_ends_exactly_like_one_that_ran_through(tmp_path: Path) -> None:
    whole, halved, file = network(), network(), tmp_path / "run.pt"
    expected = run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(halved, interrupt_at=5, checkpoint=file)
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]
    fresh = network()
    resumed = run(fresh, checkpoint=file)
    assert resumed.resumed_at == 5
    assert resumed.losses == expected.losses
    for one, other in zip(whole.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other)
    assert run(network(), checkpoint=file).losses == expected.losses


def test_every_step_is_adam_with_decay_and_clipped_gradients() -> None:
    """The recursion of Loshchilov and Hutter (2019, Algorithm 2) written out, gradients at most 5 long together."""
    steps, rates = 12, (1e-2, 3e-3)
    found, expected = (torch.full((3,), 2.0, dtype=torch.float64).requires_grad_() for _ in range(2))
    other, expected_other = (torch.ones(2, dtype=torch.float64).requires_grad_() for _ in range(2))
    pull = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def loss(a: Tensor, b: Tensor, step: int) -> Tensor:
        return (0.01 if step % 3 else 1000.0) * ((a - pull).square().sum() + (b.sum() - step) ** 2)

    module = nn.ParameterList([found, other])
    count = itertools.count()
    optimize(
        module, lambda index: {"a": loss(module[0], module[1], next(count))},
        [Group([module[0]], rates[0]), Group([module[1]], rates[1])],
        samples=4, steps=steps, batch_size=2, seed=0, description="test", progress=False,
    )  # fmt: skip
    pairs = [(expected, rates[0]), (expected_other, rates[1])]
    mean, square = ([torch.zeros_like(p) for p, _ in pairs] for _ in range(2))
    longest = 0.0
    for step in range(steps):
        share = 1.0 if step == 0 else 0.5 * (1 + math.cos(math.pi * (step - 1) / (steps - 1)))
        gradients = torch.autograd.grad(loss(expected, expected_other, step), [expected, expected_other])
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        longest = max(longest, length)
        for i, ((parameter, rate), gradient) in enumerate(zip(pairs, gradients, strict=True)):
            clipped = gradient * min(1.0, 5.0 / length)
            mean[i] = 0.9 * mean[i] + 0.1 * clipped
            square[i] = 0.999 * square[i] + 0.001 * clipped**2
            ratio = (mean[i] / (1 - 0.9 ** (step + 1))) / ((square[i] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            with torch.no_grad():
                parameter.mul_(1 - share * rate * 1e-4).sub_(share * rate * ratio)
    assert longest > 500
    torch.testing.assert_close(module[0].data, expected.data, rtol=1e-6, atol=0)
    torch.testing.assert_close(module[1].data, expected_other.data, rtol=1e-6, atol=0)


def test_interruption_restores_the_signal_handler() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(network(), interrupt_at=2)
    assert signal.getsignal(signal.SIGINT) is before


def test_global_random_state_is_untouched() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(network())
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        run(network(), interrupt_at=3, checkpoint=file)
    with pytest.raises(CheckpointError, match="of a run of 12 steps; expected at most steps=11"):
        run(network(), checkpoint=file, steps=11)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(network(), checkpoint=file)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [({}, [3, 6, 9, 10]), ({"checkpoint_seconds": 50}, [5, 10]), ({"checkpoint_seconds": 0}, [*range(1, 11)])],
)
def test_checkpoints_are_written_every_thirty_seconds_or_as_asked(
    interval: dict[str, Any],
    expected: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each step takes 12 seconds: after 36 and 72 and 108, and not in between; and at the end."""
    clock = itertools.count(step=12.0)
    now, file = [next(clock)], tmp_path / "run.pt"
    monkeypatch.setattr("branchnet.training.optimization.loop.time.monotonic", lambda: now[0])
    written: list[int] = []
    monkeypatch.setattr(
        "branchnet.training.resuming.checkpoint.write_nested", lambda content, _: written.append(content["step"])
    )
    net = network()

    def losses(index: Tensor) -> Mapping[str, Tensor]:
        now[0] = next(clock)
        return {"a": net(X[index]).square().mean()}

    optimize(
        net, losses, [Group(list(net.parameters()), 1e-2)], samples=24, steps=10, batch_size=8, seed=0,
        description="test", progress=False, checkpoint=file, **interval,
    )  # fmt: skip
    assert written == expected


def test_a_diverging_loss_names_task_and_step() -> None:
    net = network()

    def losses(index: Tensor) -> dict[str, Tensor]:
        fine = net(X[index]).square().mean()
        return {"fine": fine, "broken": fine * math.inf}

    with pytest.raises(TrainingError, match="'broken' became inf at step 0"):
        optimize(
            net, losses, [Group(list(net.parameters()), 1e-2)], samples=24, steps=2, batch_size=8, seed=0,
            description="test", progress=False,
        )  # fmt: skip


def test_no_steps_are_refused() -> None:
    with pytest.raises(TrainingError, match="steps=0; expected a whole number of 1 or more"):
        run(network(), steps=0)


@given(samples=st.integers(1, 50), batch_size=st.integers(1, 60), seed=st.integers(0, 2**40))
def test_an_epoch_visits_every_sample_at_most_once_in_full_batches(samples: int, batch_size: int, seed: int) -> None:
    full = min(batch_size, samples)
    pieces = [sample_indices(step, samples, batch_size, seed) for step in range(samples // full)]
    seen = torch.cat(pieces)
    assert all(len(piece) == full for piece in pieces)
    assert len(seen.unique()) == len(seen) == samples // full * full


def test_a_seed_may_be_any_number_of_64_bits() -> None:
    assert sorted(sample_indices(0, 6, 6, 2**64 - 1).tolist()) == list(range(6))


@given(steps=st.integers(1, 1000))
def test_the_schedule_warms_up_then_falls_to_zero(steps: int) -> None:
    rates = [schedule(step, steps) for step in range(steps)]
    peak = max(1, round(0.05 * steps)) - 1
    assert rates[peak] == pytest.approx(1)
    assert all(a < b for a, b in itertools.pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in itertools.pairwise(rates[peak:]))
    assert min(rates) >= 0


def test_nothing_left_to_train_is_refused() -> None:
    with pytest.raises(TrainingError, match="all parameters are frozen"):
        optimize(
            network(), lambda index: {}, [Group([], 1.0)], samples=4, steps=1, batch_size=2, seed=0, description="test"
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_that_become_nan_are_told_of_autocast(dtype: torch.dtype) -> None:
    """The first gradient of 0 divides 0 by 0 in float16: the optimiser's epsilon of 1e-8 is 0 there."""
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype)
    nn.init.constant_(net[0].bias, -100.0)  # type: ignore[arg-type]
    huge = 1.0 if dtype == torch.float16 else math.inf

    def losses(index: Tensor) -> dict[str, Tensor]:
        return {"a": huge * (net(X[index].to(dtype)) - Y[index].to(dtype)).square().mean()}

    for steps in (1, 3):
        with pytest.raises(TrainingError, match=f"weights are {str(dtype)[6:]}, .*torch.autocast"):
            optimize(
                net, losses, [Group(list(net.parameters()), 1e-2)], samples=24, steps=steps, batch_size=8, seed=0,
                description="test", progress=False,
            )  # fmt: skip


def test_weights_that_the_last_step_breaks_are_found() -> None:
    """The gradient of a square root at 0 is infinite, its value is not."""
    net = nn.Linear(5, 2)

    def losses(index: Tensor) -> dict[str, Tensor]:
        return {"a": (net(X[index]) * 0).square().sum().sqrt()}

    with pytest.raises(TrainingError, match="weights became NaN or infinite by step 0; lower the learning rate"):
        optimize(
            net, losses, [Group(list(net.parameters()), 1e-2)], samples=24, steps=1, batch_size=8, seed=0,
            description="test", progress=False,
        )  # fmt: skip


def test_training_under_autocast_is_like_training_in_float32() -> None:
    losses = []
    for enabled in (False, True):
        net = network()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            history = branchnet.fit(
                net, (X, Y), nn.functional.mse_loss, steps=100, batch_size=8, learning_rate=2e-2, seed=1, progress=False
            )
        losses.append(sum(history.losses["loss"][-10:]) / 10)
        assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.1) and losses[0] < 0.5 * history.losses["loss"][0]


@pytest.mark.parametrize("steps", [2.0, "10", None, True, -1])
def test_steps_are_a_whole_number(steps: Any) -> None:
    for name, least in (("steps", " of 1 or more"), ("batch_size", " of 1 or more"), ("seed", "")):
        if name == "seed" and steps == -1:
            continue
        with pytest.raises(TrainingError, match=f"{name}={steps!r}; expected a whole number{least}"):
            branchnet.fit(network(), (X, Y), nn.MSELoss(), progress=False, **{name: steps})


@pytest.mark.parametrize("rate", ["1e-3", -0.1, math.nan])
def test_a_learning_rate_is_a_number(rate: Any) -> None:
    with pytest.raises(TrainingError, match=f"learning rate is {rate!r}; expected a finite number of 0 or more"):
        branchnet.fit(network(), (X, Y), nn.MSELoss(), learning_rate=rate, progress=False)


def test_a_loss_is_a_function_of_outputs_and_labels() -> None:
    with pytest.raises(TrainingError, match="the loss of 'loss' is 'mse'; expected a function of"):
        branchnet.fit(network(), (X, Y), "mse", progress=False)
    with pytest.raises(TrainingError, match=r"is the class MSELoss; expected MSELoss\(\)"):
        branchnet.fit(network(), (X, Y), nn.MSELoss, progress=False)


def test_the_sample_that_makes_a_loss_nan_is_named() -> None:
    damaged = X.clone()
    damaged[13, 2] = math.nan
    with pytest.raises(TrainingError, match="the loss became nan at step 0; sample 13 holds NaN or infinite values"):
        branchnet.fit(
            network(),
            (damaged, Y),
            nn.MSELoss(),
            steps=3,
            batch_size=24,
            learning_rate=1e-3,
            keep="last",
            progress=False,
        )
    with pytest.raises(TrainingError, match="before training; sample 13 holds NaN or infinite values"):
        branchnet.fit(network(), (damaged, Y), nn.MSELoss(), steps=3, batch_size=24, progress=False)
