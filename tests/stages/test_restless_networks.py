"""Random networks that keep state, draw numbers and decide by sizes: equal to the network in both modes, or refused."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from branchnet.errors import SplitError
from branchnet.stages import StagedNetwork, split
from tests.stages.checks import assert_same, assert_untouched, everything, loss, named
from tests.stages.restless_networks import RestlessNetwork, restless_networks
from tests.stages.toys import CHANNELS

QUICK = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
SIZES = st.tuples(st.integers(1, 4), st.integers(4, 9), st.integers(4, 9))


def images(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch + 10 * height + 100 * width)
    return torch.randn(batch, CHANNELS, height, width, generator=generator)


EXAMPLE = images(3, 6, 5)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All three generators at a seed, and as before afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
        yield
    random.setstate(states[0]), np.random.set_state(states[1])  # noqa: NPY002


def evaluated(network: nn.Module, inputs: Sequence[Tensor]) -> tuple[list[Any], dict[str, Tensor]]:
    """Outputs of the calls, None where a size is refused, and the state afterwards."""
    network = copy.deepcopy(network).eval()
    outputs = []
    with torch.no_grad():
        for x in inputs:
            before = copy.deepcopy(network)
            try:
                outputs.append(network(x.clone()))
            except SplitError as error:
                assert str(tuple(x.shape)) in str(error) and "expected" in str(error)
                outputs.append(None)
                network = before
    return outputs, state(network)


def state(network: nn.Module) -> dict[str, Tensor]:
    own = network.original_state_dict() if isinstance(network, StagedNetwork) else network.state_dict()
    return dict(sorted(own.items()))


def assert_evaluates_as(network: nn.Module, staged: StagedNetwork, other: Tensor, tolerance: float) -> None:
    inputs = [EXAMPLE, EXAMPLE, other, other]
    found, own = evaluated(staged, inputs)
    assert found[0] is not None
    allowed = [x for x, output in zip(inputs, found, strict=True) if output is not None]
    wanted, expected = evaluated(network, allowed)
    assert_same(wanted, [output for output in found if output is not None], tolerance)
    assert_same(expected, own, tolerance)


def trained(network: nn.Module, seed: int) -> tuple[list[Any], dict[str, Any], dict[str, Tensor]]:
    """Outputs of two calls, gradients of the first (None where autograd refuses the network), the state afterwards."""
    network = copy.deepcopy(network).train()
    with seeded(seed):
        first = network(EXAMPLE.clone())
        refused = False
        try:
            loss(first).backward()
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            refused = True
        second = network(EXAMPLE.clone())
    parameters = (
        named(network) if isinstance(network, StagedNetwork) else network.named_parameters(remove_duplicate=False)
    )
    prefix = isinstance(network, StagedNetwork)
    gradients = {}
    for name, parameter in () if refused else parameters:
        own = name.split(".", 2 if name.startswith("stages.") else 1)[-1] if prefix else name
        gradients[own] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    outputs = [[leaf.detach() for leaf in tree_leaves(output)] for output in (first, second)]
    return outputs, dict(sorted(gradients.items())), state(network)


def assert_trains_as(network: nn.Module, staged: StagedNetwork, tolerance: float) -> None:
    for seed in (0, 1):
        outputs, gradients, buffers = trained(network, seed)
        found, own, held = trained(staged, seed)
        assert_same(outputs, found, tolerance)
        assert_same(buffers, held, tolerance)
        if gradients:
            assert gradients.keys() == own.keys()
            largest = max(float(gradient.abs().max()) for gradient in gradients.values())
            for name, gradient in gradients.items():
                torch.testing.assert_close(own[name], gradient, rtol=100 * tolerance, atol=100 * tolerance * largest)


def check(steps: Any, size: tuple[int, int, int], count: int | None) -> None:
    torch.manual_seed(0)
    network = RestlessNetwork(steps)
    before = everything(network)
    reasons = network.reasons()
    try:
        staged = split(network, EXAMPLE, locations=count)
    except SplitError as error:
        assert reasons and re.search(reasons, str(error)), error
        return
    finally:
        assert_untouched(before, everything(network))
    tolerance = 0.0 if staged.traced_by == "fx" else 1e-5
    assert_evaluates_as(network, staged, images(*size), tolerance)
    if staged.trainable:
        assert_trains_as(network, staged, tolerance)
    else:
        assert reasons and re.search(reasons, str(staged.eval_only)), staged.eval_only


@QUICK
@given(restless_networks(), SIZES)
def test_a_restless_network_is_itself_or_says_why_not(steps: Any, size: tuple[int, int, int]) -> None:
    check(steps, size, None)


@pytest.mark.slow
@settings(QUICK, max_examples=500)
@given(restless_networks(), SIZES)
def test_five_hundred_restless_networks(steps: Any, size: tuple[int, int, int]) -> None:
    check(steps, size, None)
