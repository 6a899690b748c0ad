"""What counts as equal when networks are compared, whose weights nodes get, and what stages cost."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import branchnet
from branchnet import Tree
from branchnet.errors import BuildError, SplitError
from tests.silent_errors.toys import WIDTH, FourLayers, X, made, shared

pytestmark = pytest.mark.slow


class PowerMean(nn.Module):
    """Generalised-mean pooling, whose exponent is called `p`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=1e-6).pow(self.p).mean(-1).pow(1 / self.p)


class Pooled(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv1d(3, 8, 3), PowerMean(p)
        self.middle, self.out = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.middle(self.pool(F.relu(self.conv(x))))))


def test_an_exponent_called_p_is_a_difference() -> None:
    x = torch.randn(4, 3, 12, generator=torch.Generator().manual_seed(0))
    cubic = made(lambda: Pooled(3.0)).eval()
    plain = Pooled(1.0).eval()
    plain.load_state_dict(cubic.state_dict())
    branched = shared({"cubic": cubic, "plain": plain}, x).eval()
    found = branched(x)
    assert torch.equal(found["cubic"], cubic(x)) and torch.equal(found["plain"], plain(x))
    assert not torch.allclose(cubic(x), plain(x))


def test_torchvisions_and_timms_resnet18_are_one_structure() -> None:
    torchvision, timm = pytest.importorskip("torchvision"), pytest.importorskip("timm")
    one, other = torchvision.models.resnet18(num_classes=3).eval(), timm.create_model("resnet18", num_classes=3).eval()
    other.load_state_dict(one.state_dict())
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one(x), other(x))
    staged = branchnet.split_all({"a": one, "b": other}, x[:1])
    assert sum(staged["a"].costs.params) > 0.99 * sum(p.numel() for p in one.parameters())
    affinity = branchnet.rsa(staged, x, bootstrap=0)
    found = branchnet.search(affinity, staged, "60% params", objective="mean-pair")
    assert found.tree is not None and set(found.tree.widths) == {1}
    branched = shared({"a": one, "b": other}, x[:1]).eval()
    for output in branched(x).values():
        torch.testing.assert_close(output, one(x))


def test_scripted_networks_are_refused_with_the_way_out() -> None:
    scripted = torch.jit.script(made(FourLayers))
    with pytest.raises(SplitError, match=r"scripted or traced by torch\.jit.* expected the nn\.Module"):
        branchnet.split_all({"a": scripted, "b": scripted}, X)


def test_identical_networks_share_everything_under_every_objective() -> None:
    network = made(
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
            nn.Linear(WIDTH, 3),
        )
    ).eval()
    staged = branchnet.split_all({task: copy.deepcopy(network) for task in "abc"}, X)
    probe = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(2))
    affinity = branchnet.rsa(staged, probe, bootstrap=0)
    exact = branchnet.Affinity(affinity.tasks, affinity.locations, np.ones_like(affinity.values))
    for given in (affinity, exact):
        for objective in ("mean-pair", "mean-max", "medoid", "sum-pair"):
            for budget in ("100% params", "300% params"):
                found = branchnet.search(given, staged, budget, objective=objective)
                assert found.tree is not None and set(found.tree.widths) == {1}, (objective, budget)


REPARAMETRISED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("kind", REPARAMETRISED)
def test_random_weights_are_no_donors_or_are_named(kind: str) -> None:
    networks = {task: made(FourLayers, seed) for seed, task in enumerate("ab")}
    for network in networks.values():
        REPARAMETRISED[kind](network.get_submodule("l2"))
    donors = shared(networks, X)
    try:
        other = shared(networks, X, init="random", seed=1)
    except BuildError as error:
        assert "l2.parametrizations.weight" in str(error) or "l2.weight_orig" in str(error)
        return
    kept = dict(donors.nodes.named_parameters())
    assert not [name for name, value in other.nodes.named_parameters() if torch.equal(value, kept[name])]


class Recurrent(nn.Module):
    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embedding, self.recurrent = nn.Embedding(20, 16), layer(16, 64, batch_first=True)
        self.middle, self.out = nn.Linear(64, 32), nn.Linear(32, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h, _ = self.recurrent(self.embedding(tokens))
        return self.out(F.relu(self.middle(h[:, -1])))


@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_recurrent_layers_cost_what_their_gates_multiply(layer: type[nn.LSTM] | type[nn.GRU], gates: int) -> None:
    tokens = torch.randint(0, 20, (1, 50), generator=torch.Generator().manual_seed(0))
    networks = {task: made(lambda: Recurrent(layer), seed).eval() for seed, task in enumerate("abc")}
    staged = branchnet.split_all(networks, tokens)
    costs = staged["a"].costs
    recurrent, middle, head = 50 * gates * 64 * (16 + 64), 64 * 32, 32 * 3
    assert costs.flops is not None
    assert dict(zip(staged["a"].locations, costs.flops, strict=True)) == {
        "embedding": 0,
        "recurrent": recurrent,
        "middle": middle,
    }
    tree = Tree(list("abc"), [[["a", "b", "c"]], [["a", "b", "c"]], [["a", "b"], ["c"]]])
    report = branchnet.report(branchnet.build(tree, staged, init="donor"), tokens, networks=networks)
    share = 100 * (recurrent + 2 * middle + 3 * head) / (3 * (recurrent + middle + head))
    assert f"{share:.1f} % of 3 separate networks" in str(report)
