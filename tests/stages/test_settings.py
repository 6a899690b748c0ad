"""Only settings that cannot change the function are ignored; each case is judged by the networks' own outputs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import Tree
from branchnet.stages import split_all
from branchnet.stages.graph.settings import is_dropping

SIGNAL = torch.rand(4, 8, 12, generator=torch.Generator().manual_seed(0))


class Pooling(nn.Module):
    """Generalised mean pooling (Radenovic et al., 2018, eq. 3), whose exponent lies where `where` says."""

    def __init__(self, where: str, power: float) -> None:
        super().__init__()
        self.where = where
        if where == "attribute":
            self.p = power
        elif where == "private":
            self._p = power
        elif where == "momentum":
            self.momentum = power
        elif where == "drop_rate":
            self.drop_rate = power
        elif where == "dict":
            self.options = {"pooling": {"p": power}}
        elif where == "partial":
            self.power = functools.partial(torch.pow, exponent=power)
        elif where == "closure":
            self.power = lambda x: x.pow(power)
        elif where == "object":
            self.options = SimpleNamespace(p=power)
        elif where == "tensor":
            self.exponent = torch.tensor(power)
        elif where == "hook":
            self.register_forward_hook(lambda module, args, output: output.pow(power))

    def forward(self, x: Tensor) -> Tensor:
        power: Any = 1.0
        for name in ("p", "_p", "momentum", "drop_rate", "exponent"):
            power = getattr(self, name, power)
        options = getattr(self, "options", None)
        if options is not None:
            power = options["pooling"]["p"] if isinstance(options, dict) else options.p
        x = x.clamp(min=1e-6)
        return (self.power(x) if hasattr(self, "power") else x.pow(power)).mean(-1)


WHERE = [
    *("attribute", "private", "momentum", "drop_rate", "dict", "partial", "closure", "object", "tensor", "hook"),
]


def network(pooling: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(8, 8, 3), nn.ReLU(), pooling, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2)
    ).eval()


def fully_shared(networks: dict[str, nn.Module], example: Tensor = SIGNAL) -> tuple[Any, Any]:
    staged = split_all(networks, example)
    tree = Tree(list(networks), [[list(networks)]] * len(staged["a"].stages))
    return staged["a"], branchnet.build(tree, staged, init="donor").eval()


@pytest.mark.parametrize("where", WHERE)
def test_a_setting_that_decides_the_result_is_never_shared(where: str) -> None:
    networks = {"a": network(Pooling(where, 3.0)), "b": network(Pooling(where, 1.0))}
    assert not torch.allclose(networks["a"](SIGNAL), networks["b"](SIGNAL))
    staged, branched = fully_shared(networks)
    for task, single in networks.items():
        assert torch.equal(branched(SIGNAL)[task], single(SIGNAL))
    assert staged.locations[-1] in {"0", "1"}


@pytest.mark.parametrize("where", WHERE)
def test_equal_settings_are_shared(where: str) -> None:
    first = network(Pooling(where, 3.0))
    staged, _ = fully_shared({"a": first, "b": copy.deepcopy(first)})
    assert staged.locations[-1] in {"4", "5"}


def drop_path(rate: float) -> nn.Module:
    from timm.layers import DropPath

    return DropPath(rate)


def stochastic_depth(rate: float) -> nn.Module:
    from torchvision.ops import StochasticDepth

    return StochasticDepth(rate, "row")


def drop_block(rate: float) -> nn.Module:
    from timm.layers import DropBlock2d

    return nn.Sequential(nn.Unflatten(1, (8, 1, 1)), DropBlock2d(rate), nn.Flatten())


def copied_drop_path(rate: float) -> nn.Module:
    return pytest.importorskip("transformers.models.swin.modeling_swin").SwinDropPath(rate)  # type: ignore[no-any-return]


def marked(rate: float) -> nn.Module:
    layer = nn.Tanh()
    layer._is_hf_initialized = rate > 0.2  # type: ignore[assignment]
    return layer


class Last(nn.Module):
    """A recurrent layer, whose parameters also stand in lists and weak references of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.unsqueeze(1))[0].squeeze(1)


IGNORED: dict[str, Callable[[float], nn.Module]] = {
    "dropout": lambda rate: nn.Dropout(rate),
    "channel dropout": lambda rate: nn.Dropout1d(rate),
    "momentum": lambda rate: nn.BatchNorm1d(8, momentum=rate),
    "in place": lambda rate: nn.ReLU(inplace=rate > 0.2),
    "drop path": drop_path,
    "stochastic depth": stochastic_depth,
    "drop block": drop_block,
    "a copy of drop path": copied_drop_path,
    "initialised by transformers": marked,
    "parameters in another form": lambda rate: Last(),
}


@pytest.mark.parametrize("kind", IGNORED)
def test_settings_of_training_alone_are_shared(kind: str) -> None:
    def make(rate: float) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), IGNORED[kind](rate), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()

    rows = torch.randn(4, 8)
    networks = {"a": make(0.1), "b": make(0.3)}
    assert torch.equal(networks["a"](rows), networks["b"](rows))
    staged, branched = fully_shared(networks, rows)
    assert staged.locations[-1] in {"2", "3"}
    for task in networks:
        assert torch.equal(branched(rows)[task], networks[task](rows))


class Configured(nn.Module):
    """Holds a configuration of transformers, as all its modules do."""

    def __init__(self, **said: Any) -> None:
        super().__init__()
        self.config = pytest.importorskip("transformers").ViTConfig(**said)
        self.width = self.config.hidden_size

    def forward(self, x: Tensor) -> Tensor:
        rate = self.config.hidden_dropout_prob if self.training else 0.0
        return (nn.functional.dropout(x, rate, self.training) * self.config.initializer_range).mean(-1)


@pytest.mark.parametrize(
    "said", [{"num_labels": 5}, {"hidden_dropout_prob": 0.4}, {"architectures": ["A"]}, {"image_size": 32}]
)
def test_what_a_configuration_says_of_labels_training_and_others_is_shared(said: dict[str, Any]) -> None:
    staged, branched = fully_shared({"a": network(Configured()), "b": network(Configured(**said))})
    assert staged.locations[-1] in {"4", "5"}
    assert torch.equal(branched(SIGNAL)["b"], network(Configured(**said))(SIGNAL))


@pytest.mark.parametrize("said", [{"initializer_range": 3.0}, {"hidden_size": 12}])
def test_what_a_module_reads_of_its_configuration_counts(said: dict[str, Any]) -> None:
    networks = {"a": network(Configured()), "b": network(Configured(**said))}
    staged, branched = fully_shared(networks)
    assert staged.locations[-1] in {"0", "1"}
    for task, single in networks.items():
        assert torch.equal(branched(SIGNAL)[task], single(SIGNAL))


def test_library_layers_that_drop_return_their_argument_in_evaluation() -> None:
    """What the names in the list of such layers stand for, in the libraries that are installed."""
    import timm.layers.drop
    import torchvision.ops

    made = [timm.layers.drop.DropPath(0.5), timm.layers.drop.DropBlock2d(0.5)]
    made += [torchvision.ops.StochasticDepth(0.5, "row"), torchvision.ops.DropBlock2d(0.5, 3)]
    made += [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5)]
    images = torch.rand(2, 3, 8, 8)
    assert all(torch.equal(layer.eval()(images), images) and is_dropping(type(layer)) for layer in made)
    volumes = torch.rand(2, 3, 8, 8, 8)
    for layer in (torchvision.ops.DropBlock3d(0.5, 3), nn.Dropout3d(0.5)):
        assert torch.equal(layer.eval()(volumes), volumes) and is_dropping(type(layer))
    assert not is_dropping(timm.layers.PatchDropout) and not is_dropping(nn.Identity)


@pytest.mark.parametrize("name", ["swin.modeling_swin.SwinDropPath", "sew_d.modeling_sew_d.StableDropout"])
def test_layers_of_transformers_that_drop_return_their_argument_in_evaluation(name: str) -> None:
    module, layer_type = name.rsplit(".", 1)
    layer = getattr(pytest.importorskip(f"transformers.models.{module}"), layer_type)(0.5)
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(layer.eval()(images), images) and is_dropping(type(layer))


def test_a_dropout_of_ones_own_counts() -> None:
    class Scaled(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            return x * (1 - self.p)

    networks = {"a": network(nn.Sequential(Pooling("attribute", 1.0), Scaled(0.1))), "b": None}
    networks["b"] = network(nn.Sequential(Pooling("attribute", 1.0), Scaled(0.5)))
    _, branched = fully_shared(networks)  # type: ignore[arg-type]
    for task, single in networks.items():
        assert torch.equal(branched(SIGNAL)[task], single(SIGNAL))  # type: ignore[misc]


class Skips(nn.Module):
    """Its head reads what stands before the activation, or does not."""

    def __init__(self, inplace: bool, skip: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act = nn.Linear(8, 8), nn.ReLU(inplace)
        self.second, self.third, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        before = self.first(x)
        x = self.third(self.second(self.act(before)))
        return self.last(x + before if self.skip else x)


def test_activations_in_place_are_shared_where_nobody_reads_what_they_overwrite() -> None:
    rows = torch.randn(4, 8)
    networks: dict[str, nn.Module] = {"a": Skips(True, False).eval(), "b": Skips(False, False).eval()}
    staged, branched = fully_shared(networks, rows)
    assert staged.locations[-1] == "third"
    networks["c"] = Skips(False, True).eval()
    staged, branched = fully_shared(networks, rows)
    for task in networks:
        assert torch.equal(branched(rows)[task], networks[task](rows))
