"""Networks with state, randomness and decisions by size, as whole branched networks: each network is the judge."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.errors import SplitError, TrainingError
from tests.stages.test_sizes import CASES
from tests.stages.test_state import ROWS, Centres

pytestmark = pytest.mark.slow


def separate(networks: dict[str, nn.Module], example: Tensor) -> BranchedNetwork:
    staged = branchnet.split_all(networks, example)
    return branchnet.build(Tree.separate(list(networks), len(next(iter(staged.values())).stages)), staged)


@pytest.mark.parametrize(("make", "example", "others"), CASES)
def test_a_branched_network_gives_its_networks_values_at_every_size_or_refuses_it(
    make: Callable[[], nn.Module], example: Tensor, others: list[Tensor]
) -> None:
    networks = {task: make().eval() for task in ("a", "b")}
    branched = separate(networks, example).eval()
    for other in others:
        try:
            found = branched(other)
        except SplitError as error:
            assert str(tuple(other.shape)) in str(error)
            continue
        for task, network in networks.items():
            torch.testing.assert_close(found[task], network(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["copy", "operators", "assigned"])
def test_buffers_are_updated_in_training_saved_and_loaded(form: str, tmp_path: Path) -> None:
    networks: dict[str, nn.Module] = {task: Centres(form) for task in ("a", "b")}
    branched = separate(copy.deepcopy(networks), ROWS).train()
    for seed in range(3):
        rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))
        found = branched(rows)
        for task, network in networks.items():
            assert torch.equal(found[task], network.train()(rows))
    branchnet.save(branched, tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "weights.safetensors")
    for number, network in enumerate(networks.values()):  # a separate tree: the nodes of task i are number i
        for name, buffer in network.named_buffers():
            own = [
                key
                for key in stored
                if re.fullmatch(rf"nodes\.\d\.{number}\.(.*\.)?{name}|heads\.{number}\.(.*\.)?{name}", key)
            ]
            assert own and all(torch.equal(stored[key], buffer) for key in own)
    loaded = branchnet.load(tmp_path / "saved", networks={task: Centres(form) for task in networks})
    for each in (branched.eval(), loaded.eval()):
        for task, network in networks.items():
            assert torch.equal(each(ROWS)[task], network.eval()(ROWS))


class Recurrent(nn.Module):
    """Goes on at the next call with the hidden state that the last one left."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True)
        self.middle, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.hidden: tuple[Tensor, ...] | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        found, hidden = self.layer(self.embed(tokens), self.hidden)
        self.hidden = tuple(value.detach() for value in hidden)
        return self.last(torch.relu(self.middle(found.mean(1))))


def test_a_hidden_state_in_an_attribute_is_refused() -> None:
    with pytest.raises(SplitError, match="second call"):
        branchnet.split(Recurrent().eval(), torch.randint(0, 20, (4, 5)))


class Scaled(nn.Module):
    """Scales by a number that is drawn into a new tensor in training."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2, self.l3 = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.l1(x))
        if self.training:
            x = x * torch.empty(1).uniform_(0.5, 1.5)
        return self.l3(torch.relu(self.l2(x)))


def test_training_a_network_that_can_only_be_evaluated_says_why() -> None:
    networks: dict[str, nn.Module] = {task: Scaled() for task in ("a", "b")}
    branched = separate(networks, ROWS)
    labels, losses = dict.fromkeys(networks, ROWS), dict.fromkeys(networks, F.mse_loss)
    with pytest.raises((SplitError, TrainingError), match="random numbers that its stages do not draw"):
        branchnet.fit(branched, (ROWS, labels), losses, steps=1, batch_size=5, progress=False)
