"""Per-task transforms are kept by saving and distilling, or what lost them is refused; against the plain networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, StagedNetwork, Tree
from branchnet.deploy.saving import RECORD
from branchnet.deploy.weight_files import read_metadata
from branchnet.errors import CheckpointError, TrainingError
from branchnet.stages.transforms import described_transform
from branchnet.training import Teachers

X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TASKS = ("a", "b")


class Shift(nn.Module):
    """Its settings are attributes, as those of a user's own module are."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x - self.by


class Scale(nn.Module):
    """Its setting is a tensor, which the weights' file holds or not."""

    factor: Tensor

    def __init__(self, factor: float, *, persistent: bool = False) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


KINDS: dict[str, Callable[[float], nn.Module]] = {
    "attribute": Shift,
    "tensor": Scale,
    "layer": lambda value: nn.Hardtanh(-value, value),
    "several": lambda value: nn.Sequential(Shift(value), Scale(value)),
}


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
        )


NETWORKS = {task: network(seed).eval() for seed, task in enumerate(TASKS)}


def staged(transforms: Mapping[str, nn.Module] | None) -> dict[str, StagedNetwork]:
    return branchnet.split_all(NETWORKS, X[:2], locations=["1", "3"], transforms=transforms)


def separate(networks: Mapping[str, nn.Module]) -> BranchedNetwork:
    return branchnet.build(Tree.separate(TASKS, 2), networks)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_with_the_same_transforms_and_no_others(kind: str, tmp_path: Path) -> None:
    transforms = {"a": KINDS[kind](0.4), "b": KINDS[kind](0.7)}
    branchnet.save(separate(staged(transforms)), tmp_path)
    loaded = branchnet.load(tmp_path, staged({task: KINDS[kind](value) for task, value in (("a", 0.4), ("b", 0.7))}))
    with torch.no_grad():
        outputs = loaded(X)
        for task, net in NETWORKS.items():
            assert torch.equal(outputs[task], net(transforms[task](X)))
    with pytest.raises(
        CheckpointError, match=r"(?s)transforms: nodes\.0\.0 was saved with .*, and has none now; expected"
    ):
        branchnet.load(tmp_path, NETWORKS)
    with pytest.raises(CheckpointError, match=r"(?s)transforms: nodes\.0\.1 was saved"):
        branchnet.load(tmp_path, staged({"a": KINDS[kind](0.4), "b": KINDS[kind](0.6)}))


def test_tensors_of_a_transform_that_the_file_holds_are_loaded_as_weights_are(tmp_path: Path) -> None:
    branchnet.save(separate(staged({"a": Scale(0.4, persistent=True)})), tmp_path)
    loaded = branchnet.load(tmp_path, staged({"a": Scale(1.0, persistent=True)}))
    with torch.no_grad():
        assert torch.equal(loaded(X)["a"], NETWORKS["a"](0.4 * X))
    with pytest.raises(CheckpointError):
        branchnet.load(tmp_path, NETWORKS)


def test_saved_without_and_loaded_with_transforms_is_refused(tmp_path: Path) -> None:
    branchnet.save(separate(staged(None)), tmp_path)
    branchnet.load(tmp_path, NETWORKS)
    with pytest.raises(CheckpointError, match=r"nodes\.0\.1 was saved with none, and has Shift"):
        branchnet.load(tmp_path, staged({"b": Shift(0.5)}))


def test_a_folder_that_does_not_tell_its_transforms_is_loaded_as_before(tmp_path: Path) -> None:
    branchnet.save(separate(staged({"a": Shift(0.5)})), tmp_path)
    weights = tmp_path / "weights.safetensors"
    record = read_metadata(weights)[RECORD]
    assert '"transforms":{"nodes.0.0":"Shift()' in record
    save_file(load(weights.read_bytes()), weights, metadata={RECORD: record.split(',"transforms"')[0] + "}"})
    branchnet.load(tmp_path, NETWORKS)


def test_transforms_have_one_description_exactly_where_they_are_the_same() -> None:
    texts = {
        described_transform(staged({"a": make(value)})["a"].stages[0])
        for make in KINDS.values()
        for value in (0.4, 0.7)
    }
    again = {
        described_transform(staged({"a": make(value)})["a"].stages[0])
        for make in KINDS.values()
        for value in (0.4, 0.7)
    }
    assert texts == again and len(texts) == 8
    assert described_transform(staged({"a": Shift(1.0)})["b"].stages[0]) == ""
    assert described_transform(staged(None)["a"].stages[0]) == ""


def test_distilling_takes_networks_with_their_transforms() -> None:
    """Separate networks are exact copies of their teachers: nothing is to be learned."""
    networks = staged({"a": Shift(0.4), "b": Scale(3.0)})
    net = separate(networks)
    # Run on the same batches, since some processors round in another order in larger ones.
    teachers = Teachers(networks, X, recorded_bytes=0, progress=False)
    history = branchnet.distill(net, teachers, X, steps=2, batch_size=6, learning_rate=0.0, progress=False)
    assert all(losses == (0.0, 0.0) for losses in history.losses.values())


@pytest.mark.parametrize(
    "networks",
    [NETWORKS, staged(None), Teachers(NETWORKS, X, progress=False), staged({"a": Shift(0.4)}) | {"b": NETWORKS["b"]}],
)
def test_networks_that_lost_their_transforms_are_refused(networks: Mapping[str, nn.Module] | Teachers) -> None:
    net = separate(staged({"a": Shift(0.4)}))
    with pytest.raises(
        TrainingError, match=r"split with transforms \(Shift\(\).*\['a', 'b'\]|\['b'\] are given without"
    ):
        branchnet.distill(net, networks, X, steps=1, progress=False)
