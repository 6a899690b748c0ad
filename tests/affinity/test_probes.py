"""The same inputs for every network, and networks left as they came."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import branchnet
from branchnet.affinity import cka, rsa, stitch_affinity
from branchnet.errors import AffinityError, DataError
from tests.affinity.toys import Block, Staged, images, small_cnn


def pair() -> dict[str, Staged]:
    return {"a": small_cnn(0), "b": small_cnn(1)}


def test_shuffling_loader_is_refused() -> None:
    loader = DataLoader(TensorDataset(images(20)), batch_size=5, shuffle=True)
    with pytest.raises(DataError, match="a DataLoader that shuffles"):
        rsa(pair(), loader)


def test_other_data_for_a_later_network_is_refused() -> None:
    class Drifting:
        readings = 0

        def __iter__(self):
            self.readings += 1
            yield images(6)
            yield images(6, seed=self.readings // 3)

    with pytest.raises(DataError, match="batch 1, as read for task 'b'"):
        rsa(pair(), Drifting())


@pytest.mark.parametrize("length", [1, 3])
def test_loader_of_changing_length_is_refused(length: int) -> None:
    class Changing:
        readings = 0

        def __iter__(self):
            self.readings += 1
            return iter([images(6, seed=s) for s in range(2 if self.readings == 1 else length)])

    with pytest.raises(DataError, match="the probe changed"):
        rsa(pair(), Changing())


def test_generator_is_refused() -> None:
    with pytest.raises(DataError, match="can be read once only"):
        rsa(pair(), (images(5) for _ in range(2)))


def test_sources_of_the_same_inputs_agree() -> None:
    probe = images(20)
    sources = [
        probe,
        probe.numpy(),
        (probe,),
        {"x": probe},
        [probe[:13], probe[13:]],
        DataLoader(TensorDataset(probe), batch_size=6),
    ]
    results = [rsa(pair(), source) for source in sources]
    for result in results[1:]:
        np.testing.assert_allclose(result.values, results[0].values, atol=1e-12)
        assert result.probe_hash == results[0].probe_hash
    assert rsa(pair(), images(20, seed=1)).probe_hash != results[0].probe_hash


def test_in_place_network_does_not_change_the_probe() -> None:
    networks = {name: Staged(Block(nn.ReLU(inplace=True))) for name in "ab"}
    probe = images(8)
    before = probe.clone()
    rsa(networks, probe)
    assert torch.equal(probe, before)


def test_in_place_stage_does_not_change_an_earlier_location() -> None:
    def network(inplace: bool) -> Staged:
        return Staged(small_cnn(0).stages[0], Block(nn.Sequential(nn.Threshold(0.5, 0.0, inplace=inplace))))

    values = [rsa({"a": network(inplace), "b": small_cnn_pair()}, images(12)).values for inplace in (True, False)]
    np.testing.assert_array_equal(values[0], values[1])


def small_cnn_pair() -> Staged:
    return Staged(*small_cnn(1).stages[:2])


class Restless(nn.Module):
    """Counts its calls in a buffer, draws random numbers, and fails at a given call."""

    def __init__(self, fails_at: int) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.fails_at = fails_at

    def forward(self, x: Tensor) -> tuple[Tensor]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("as asked")
        return (x * self.weight + 1e-3 * torch.rand_like(x),)


@pytest.mark.parametrize("fails_at", [2, 1000])
def test_networks_are_left_as_they_were(fails_at: int) -> None:
    networks = {"a": small_cnn(0), "b": Staged(*small_cnn(1).stages[:2], Restless(fails_at))}
    networks["a"].stages[1].eval()
    networks["a"].stages[0].inner[0].weight.requires_grad_(False)
    hook = networks["a"].stages[0].register_forward_hook(lambda *_: None)
    before = {name: snapshot(network) for name, network in networks.items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    if fails_at < 10:
        with pytest.raises(RuntimeError, match="as asked"):
            rsa(networks, images(12), batch_size=4)
    else:
        rsa(networks, images(12), batch_size=4)
    assert torch.equal(torch.rand(3), expected)
    assert torch.is_grad_enabled()
    for name, network in networks.items():
        assert snapshot(network) == before[name]
    hook.remove()


def snapshot(network: nn.Module) -> dict[str, object]:
    """Everything that could show a trace, as comparable values."""
    return {
        "state": {key: value.tolist() for key, value in network.state_dict().items()},
        "places": [tensor.data_ptr() for tensor in [*network.parameters(), *network.buffers()]],
        "modes": [module.training for module in network.modules()],
        "hooks": [list(module._forward_hooks) for module in network.modules()],
        "gradients": [(p.requires_grad, p.grad is None) for p in network.parameters()],
    }


def test_features_that_change_their_size_are_refused() -> None:
    networks = {name: Staged(Block(nn.ReLU())) for name in "ab"}
    with pytest.raises(AffinityError, match=r"task 'a' at 'layer0'.*same shape"):
        rsa(networks, [torch.randn(4, 3, 8, 8), torch.randn(4, 3, 6, 6)])


def test_location_without_features_is_named() -> None:
    class Shape(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (torch.ones(7),)

    with pytest.raises(AffinityError, match="task 'a' at 'layer0': no floating-point tensor"):
        rsa({"a": Staged(Shape())}, images(4))


def test_mixing_staged_and_plain_networks_is_refused() -> None:
    with pytest.raises(AffinityError, match="task 'b' is not split"):
        rsa({"a": small_cnn(0), "b": nn.Identity()}, images(4))


def test_networks_of_different_depth_are_refused() -> None:
    with pytest.raises(AffinityError, match="task 'b' has 2 stages, task 'a' 3"):
        rsa({"a": small_cnn(0), "b": small_cnn_pair()}, images(4))


def test_copies_are_independent() -> None:
    """Two tasks that are one network object give ones and no trouble."""
    network = small_cnn(0)
    values = rsa({"a": network, "b": network, "c": copy.deepcopy(network)}, images(9)).values
    np.testing.assert_allclose(values, 1.0, atol=1e-12)


class Files(Dataset[Tensor]):
    """Images as `ImageFolder` gives them, one of which is damaged."""

    paths = tuple(Path(f"photos/{number}.png") for number in range(12))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        return images(12)[number].float() if number != 7 else torch.full((3, 8, 8), math.nan)


@pytest.mark.parametrize("measure", [rsa, cka, stitch_affinity])
def test_the_sample_that_holds_nan_is_named_with_its_file(measure: Callable[..., object]) -> None:
    networks = {name: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)) for name in "ab"}
    staged = branchnet.split_all(networks, images(2).float(), locations=["1"])
    with pytest.raises(AffinityError, match=r"sample 7 \(photos/7\.png\) holds NaN or infinite values: "):
        measure(staged, Files())
    with pytest.raises(AffinityError, match=r"sample 1 \(photos/7\.png\)"):
        measure(staged, Subset(Files(), [3, 7, 1, 5]))


def test_inputs_of_another_form_are_named_next_to_those_expected() -> None:
    networks = {name: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)) for name in "ab"}
    staged = branchnet.split_all(networks, images(2).float(), locations=["1"])
    for given, form in (
        (images(6).float()[:, :1], "(2, 1, 8, 8) float32"),
        (images(6).float().movedim(1, -1), "(2, 8, 8, 3) float32"),
        (images(6), "(2, 3, 8, 8) float64"),
    ):
        for measure in (rsa, stitch_affinity):
            with pytest.raises(AffinityError) as caught:
                measure(staged, given)
            assert f"inputs of shape {form}; expected (2, 3, 8, 8) float32, with any batch size" in str(caught.value)


@pytest.mark.parametrize("size", [2.0, "4", 0, True])
def test_a_batch_size_is_a_whole_number(size: object) -> None:
    with pytest.raises(AffinityError, match=f"batch_size={size!r}; expected a whole number of 1 or more"):
        rsa(pair(), images(9), batch_size=size)
