"""Networks that torch.fx and torch.export refuse, followed as chains of their modules."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from branchnet import SplitError
from branchnet.stages import split, split_all
from tests.stages.checks import assert_evaluates_alike, assert_same_keys, assert_trains_alike


class Layer(nn.Module):
    """A layer that takes a mask by keyword and returns a tuple, as transformers do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(0.2)

    def forward(self, x: Tensor, mask: Tensor, scale: float = 1.0) -> tuple[Tensor, None]:
        attended = self.attention(x, x, x, key_padding_mask=mask)[0]
        return self.norm(x + scale * self.dropout(attended)), None


class Encoder(nn.Module):
    """Positions come from numpy, which neither way of tracing can enter."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.offset = nn.Parameter(torch.randn(width))
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.count = nn.BatchNorm1d(width)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        positions = torch.from_numpy(np.cumsum(mask.detach().numpy(), axis=1)).float()[..., None]
        embedded = self.embed(input_ids)
        x = embedded + torch.sin(positions) * self.offset
        for layer in self.layers:
            x = layer(x, mask=~mask.bool(), scale=0.5)[0]
        return self.count((x + embedded).transpose(1, 2)).transpose(1, 2)


class Tagger(nn.Module):
    def __init__(self, classes: int, layers: int = 4) -> None:
        super().__init__()
        self.encoder = Encoder(8, layers)
        self.head = nn.Linear(8, classes)

    def forward(self, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.encoder(input_ids, mask))}


def text(batch: int = 2) -> dict[str, Tensor]:
    mask = torch.ones(batch, 5, dtype=torch.long)
    mask[0, 3:] = 0
    return {"input_ids": torch.randint(0, 20, (batch, 5)), "mask": mask}


def test_layers_are_the_places_to_cut():
    staged = split(Tagger(3), text(), locations=["encoder.layers.0", "encoder.layers.2"])
    assert staged.traced_by == "chain"
    assert_same_keys(Tagger(3), staged)
    own = {name: sum(p.numel() for p in part.parameters()) for name, part in Tagger(3).named_children()}
    layer = sum(p.numel() for p in Layer(8).parameters())
    assert staged.costs.params == (20 * 8 + 8 + layer, 2 * layer)
    offset_read_again = 8
    assert staged.head_cost.params == own["encoder"] + own["head"] - sum(staged.costs.params) + offset_read_again


def test_outputs_gradients_and_buffers_stay():
    network = Tagger(3)
    staged = split(network, text(), locations=["encoder.layers.0", "encoder.layers.2"])
    assert staged.trainable
    for batch in (2, 7):
        assert_evaluates_alike(network, staged, text(batch))
        assert_trains_alike(network, staged, text(batch))


def test_splitting_leaves_buffers_and_random_state_alone():
    network = Tagger(3).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    wanted = torch.rand(4)
    example = text()
    torch.manual_seed(3)
    split(network, example)
    assert torch.equal(torch.rand(4), wanted)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training


def test_networks_share_the_layers_of_their_chains():
    own = {"names": Tagger(3).eval(), "verbs": Tagger(5).eval()}
    staged = split_all(own, text(), locations=2)
    assert staged["names"].traced_by == staged["verbs"].traced_by == "chain"
    assert staged["names"].costs == staged["verbs"].costs
    own["verbs"].encoder.load_state_dict(own["names"].encoder.state_dict())
    example = text()
    cut = (example["input_ids"], example["mask"])
    with torch.no_grad():
        for stage in staged["names"].stages:
            cut = stage(*cut)
        for task, network in own.items():
            assert torch.equal(staged[task].head(*cut)["logits"], network(**example)["logits"])


def test_other_dtypes_and_devices_follow_the_parameters():
    network = Tagger(3).eval()
    staged = split(network, text())
    example = text(3)
    staged.double()
    with torch.no_grad():
        torch.testing.assert_close(staged(**example), network.double()(**example), rtol=0, atol=0)


class Collects(nn.Module):
    """Its result needs what every layer returned, not only the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        seen = [torch.from_numpy(x.detach().numpy())]
        for layer in self.layers:
            seen.append(layer(seen[-1]))
        return torch.stack(seen).sum(0)


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(torch.from_numpy(x.detach().numpy()))


@pytest.mark.parametrize(
    ("network", "reason"),
    [(Collects(), "changes its outputs"), (Parallel(), "no two modules of which one takes what the other returns")],
)
def test_what_is_no_chain_is_refused(network: nn.Module, reason: str):
    with pytest.raises(SplitError, match=reason):
        split(network, torch.randn(2, 4))


class MaskedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.attention(x, x, x, attn_mask=mask)[0]


class LocalAndGlobal(nn.Module):
    """Every second layer sees neighbours only, which for short inputs are all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(MaskedLayer() for _ in range(4))

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.from_numpy(np.cumsum(np.ones_like(ids.detach().numpy()), axis=1))[0]
        distance = (places[:, None] - places).abs()
        masks = [distance < 0, distance >= 6]
        x = self.embed(ids)
        for number, layer in enumerate(self.layers):
            x = layer(x, masks[number % 2])
        return x


def test_masks_of_two_kinds_are_not_taken_for_one_where_they_are_equal_by_chance():
    with pytest.raises(SplitError, match="no two modules"):
        split(LocalAndGlobal(), torch.randint(0, 20, (2, 5)), locations=2)


class SizedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        samples = x.reshape(batch, -1, 8)
        return (samples - samples.mean(1, keepdim=True) + self.linear(samples)).reshape(-1, 8)


class Sized(nn.Module):
    """Its layers get the batch size as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(SizedLayer() for _ in range(4))

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.from_numpy(np.cumsum(np.ones_like(ids.detach().numpy()), axis=1)).float()
        x = (self.embed(ids) + places[..., None]).flatten(0, 1)
        for layer in self.layers:
            x = layer(x, ids.shape[0])
        return x.reshape(ids.shape[0], -1, 8)


def test_numbers_among_the_arguments_may_not_change_with_the_input():
    network = Sized().eval()
    staged = split(network, torch.randint(0, 20, (2, 5)), locations=2).eval()
    assert staged.traced_by == "chain"
    ids = torch.randint(0, 20, (2, 5))
    assert torch.equal(staged(ids), network(ids))
    with pytest.raises(SplitError, match=r"\[4\]; expected \[2\]"):
        staged(torch.randint(0, 20, (4, 5)))


def test_a_chain_can_be_pickled():
    staged = split(Tagger(3).eval(), text(), locations=["encoder.layers.0", "encoder.layers.2"])
    found = pickle.loads(pickle.dumps(staged))
    assert found.traced_by == "chain"
    with torch.no_grad():
        inputs = text(4)
        assert torch.equal(found(**inputs)["logits"], staged(**inputs)["logits"])
