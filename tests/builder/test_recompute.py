"""Recomputed stages against the same network without, and against `torch.utils.checkpoint` itself."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.builder.network.recompute import recomputed

TASKS = ("a", "b")


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def images(count: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(seed))


def plain_and_recomputed() -> tuple[BranchedNetwork, BranchedNetwork]:
    cut = branchnet.split_all({t: network(i) for i, t in enumerate(TASKS)}, images(), locations=["2", "4"])
    plain = branchnet.build(Tree.shared(TASKS, 2), cut, init="donor").train()
    saving = copy.deepcopy(plain)
    saving.recompute("2", "4")
    return plain, saving


def test_every_task_takes_its_own_gradient_of_one_pass() -> None:
    """As PCGrad, GradNorm and CAGrad do."""
    plain, saving = plain_and_recomputed()
    gradients = []
    for net in (plain, saving):
        outputs = net(images())
        parameters = list(net.nodes.parameters())
        gradients.append(
            [torch.autograd.grad(outputs[t].square().sum(), parameters, retain_graph=True) for t in (*TASKS, "a")]
        )
    for one, other in zip(*gradients, strict=True):
        assert all(map(torch.equal, one, other))
    assert all(map(torch.equal, plain.buffers(), saving.buffers()))


class Counting(nn.Module):
    """Its output depends on buffers that every pass in training writes: in place, and by assignment."""

    calls: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        return torch.tanh(self.linear(x - self.mean) * self.calls)


def normalised() -> nn.Module:
    return spectral_norm(nn.Linear(6, 6))


def run(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [Counting, normalised])
@pytest.mark.parametrize("passes", [1, 3])
def test_the_second_run_starts_from_the_buffers_of_the_first(make: Callable[[], nn.Module], passes: int) -> None:
    plain = make().train()
    saving = copy.deepcopy(plain)
    for _ in range(passes):
        losses = [run(plain, images()).square().sum(), recomputed(saving, images(), run).square().sum()]
    owned = {id(buffer) for buffer in saving.buffers()}
    for loss in losses:
        loss.backward(retain_graph=True)
        loss.backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=0)
    assert all(map(torch.equal, plain.buffers(), saving.buffers()))
    assert {id(buffer) for buffer in saving.buffers()} == owned


def test_gradients_of_two_passes_do_not_mix() -> None:
    """Each pass is computed again from the buffers that it had, though the next pass has changed them."""
    plain = Counting().train()
    saving = copy.deepcopy(plain)
    expected = [torch.autograd.grad(run(plain, images(seed=seed)).sum(), list(plain.parameters())) for seed in (0, 1)]
    losses = [recomputed(saving, images(seed=seed), run).sum() for seed in (0, 1)]
    found = [torch.autograd.grad(loss, list(saving.parameters())) for loss in losses]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)


def test_second_derivatives_are_those_of_torchs_checkpoint() -> None:
    module, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), images().requires_grad_()
    found = []
    for output in (recomputed(module, x, run), checkpoint(run, module, x, use_reentrant=False), run(module, x)):
        (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), list(module.parameters())))
    for one in found[:2]:
        torch.testing.assert_close(one, found[2])


def test_an_error_in_a_run_leaves_the_buffers_alone() -> None:
    class Fails(Counting):
        broken = False

        def forward(self, x: Tensor) -> Tensor:
            if self.broken:
                self.calls += 1
                raise RuntimeError("out of memory, say")
            return super().forward(x)

    module = Fails().train()
    output = recomputed(module, images(), run)
    buffers, content = list(module.buffers()), [buffer.clone() for buffer in module.buffers()]
    module.broken = True
    with pytest.raises(RuntimeError, match="out of memory"):
        output.sum().backward()
    assert all(one is other for one, other in zip(module.buffers(), buffers, strict=True))
    assert all(map(torch.equal, buffers, content))
