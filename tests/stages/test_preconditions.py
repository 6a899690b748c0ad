"""Networks that cannot be split, and the remedy that each message names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from branchnet.errors import SplitError
from branchnet.stages import split, split_all
from branchnet.stages.identical_stages import identical_prefixes
from branchnet.stages.tracing.preconditions import check_supported
from tests.stages.checks import assert_evaluates_alike, assert_trains_alike

ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def made_inside() -> nn.Module:
    with torch.inference_mode():
        return layers()


def on_meta(*indices: int) -> nn.Module:
    network = layers()
    for index in indices:
        network[index].to("meta")
    return network


def by_torch_jit(make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return make(layers())


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(layers(), {nn.Linear})


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "made in inference mode": (made_inside, r"made inside torch\.inference_mode.*0\.weight.*outside"),
    "partly on meta": (lambda: on_meta(2), r"partly on the meta device \(2\.weight\).*assign=True"),
    "on meta": (lambda: on_meta(0, 2, 4), r"example\.to\('meta'\)"),
    "scripted": (lambda: by_torch_jit(torch.jit.script), r"Sequential was scripted.*load_state_dict"),
    "traced": (lambda: by_torch_jit(lambda network: torch.jit.trace(network, ROWS)), r"traced by torch\.jit"),
    "quantised": (quantised, r"quantised layers \(0, .*floating point"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_message_says_what_it_is_and_what_to_do(case: str) -> None:
    make, message = CASES[case]
    with pytest.raises(SplitError) as error:
        split(make(), ROWS)
    assert re.search(message, str(error.value))
    assert "expected" in str(error.value)


def test_inference_mode_is_refused_and_no_grad_is_not() -> None:
    network = layers()
    with torch.inference_mode(), pytest.raises(SplitError, match=r"inside torch\.inference_mode.*torch\.no_grad"):
        split(network, ROWS)
    with torch.no_grad():
        staged = split(network, ROWS)
    assert_trains_alike(network, staged, ROWS)


class Noisy(nn.Module):
    def __init__(self, noise: str) -> None:
        super().__init__()
        self.first, self.last, self.noise = nn.Linear(8, 8), nn.Linear(8, 8), noise

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.noise == "dropout":
            x = nn.functional.dropout(x)
        elif self.noise == "like":
            x = x + torch.randn_like(x)
        elif self.noise == "constant":
            x = x + torch.randn(8)
        elif self.noise == "numpy":
            x = x * float(np.random.rand())  # noqa: NPY002
        elif self.noise == "without effect":
            x = x + torch.zeros(8).uniform_().fill_(1.0)
        return self.last(x)


@pytest.mark.parametrize("noise", ["dropout", "like", "constant", "numpy"])
def test_random_evaluation_is_called_random(noise: str) -> None:
    with pytest.raises(SplitError, match="random in evaluation mode") as error:
        split(Noisy(noise), ROWS)
    assert "decide" not in str(error.value)


def test_random_numbers_without_effect_are_fine() -> None:
    network = Noisy("without effect")
    assert_evaluates_alike(network, split(network, ROWS), ROWS)


def test_a_scripted_layer_is_kept_whole() -> None:
    network = layers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network[2] = torch.jit.script(network[2])
    assert_evaluates_alike(network, split(network, ROWS), ROWS)


def foreign(module: str, name: str = "Linear4bit") -> nn.Module:
    """A network with a layer of a class that another package defines."""
    network = layers()
    network[2] = type(name, (nn.Linear,), {"__module__": module})(8, 8)
    return network


@pytest.mark.parametrize("module", ["bitsandbytes.nn.modules", "gptqmodel.nn_modules.qlinear", "optimum.quanto.nn"])
def test_layers_quantised_by_other_packages(module: str) -> None:
    with pytest.raises(SplitError, match=r"quantised layers \(2\).*expected the network in floating point"):
        split(foreign(module), ROWS)


def test_adapters_that_are_not_merged() -> None:
    with pytest.raises(SplitError, match=r"adapters of peft that are not merged \(2\).*merge_and_unload\(\)"):
        split(foreign("peft.tuners.lora.layer", "Linear"), ROWS)


def test_adapters_of_peft_itself() -> None:
    """Merged, networks that differ in one adapted layer share what lies before it at no cost."""
    peft = pytest.importorskip("peft")
    base = layers().state_dict()

    def adapted(layer: str) -> nn.Module:
        network = layers()
        network.load_state_dict(base)
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(network, peft.LoraConfig(target_modules=[layer], r=2, init_lora_weights=False))
        return wrapped.eval()

    with pytest.raises(SplitError, match=r"network = network\.merge_and_unload\(\)"):
        split(adapted("2"), ROWS)
    merged = {name: adapted(name).merge_and_unload().eval() for name in ("2", "4")}
    staged = split_all(merged, ROWS, locations=["1", "3"])
    assert all(torch.equal(staged[name](ROWS), merged[name](ROWS)) for name in merged)
    assert not torch.equal(merged["2"](ROWS), merged["4"](ROWS))
    assert identical_prefixes(staged) == ((("2", "4"),), (("2",), ("4",)))


def test_networks_on_apple_s_mps() -> None:
    network = layers()
    weight = SimpleNamespace(is_meta=False, device=torch.device("mps", 0), data=ROWS)
    network.named_parameters = lambda *_, **__: iter([("0.weight", weight)])  # type: ignore[method-assign, assignment]
    with pytest.raises(SplitError, match=r"Sequential lies on mps:0: Apple's MPS has no float64.*\.to\('mps'\)"):
        check_supported(network, ROWS)
