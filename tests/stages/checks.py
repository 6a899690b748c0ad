"""Each property of a staged network once; test files pair them with networks."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure

from branchnet.stages import StagedNetwork, call


def run(network: nn.Module, example: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return call(network, example)


def assert_same(wanted: Any, found: Any, tolerance: float = 0.0) -> None:
    assert tree_structure(wanted) == tree_structure(found)
    for a, b in zip(tree_leaves(wanted), tree_leaves(found), strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance, equal_nan=True)
        else:
            assert a == b


def compose(staged: StagedNetwork, example: Any) -> Any:
    """The stages by hand, each run twice on the same cut, which it must leave as it is."""
    inputs = tuple(example.values()) if isinstance(example, dict) else example
    cut: tuple[Any, ...] = inputs if isinstance(inputs, tuple) else (inputs,)
    for piece in [*staged.stages, staged.head]:
        before = [value.clone() if isinstance(value, Tensor) else value for value in cut]
        first = piece(*cut)
        assert_same(tuple(before), tuple(cut))
        second = piece(*cut)
        assert_same(first, second)
        cut = first
    return cut


def assert_evaluates_alike(network: nn.Module, staged: StagedNetwork, example: Any, tolerance: float = 0.0) -> None:
    network, staged = copy.deepcopy(network).eval(), copy.deepcopy(staged).eval()
    with torch.no_grad():
        wanted = call(network, copy.deepcopy(example))
        assert_same(wanted, call(staged, example), tolerance)
        assert_same(wanted, compose(staged, example), tolerance)


def assert_trains_alike(network: nn.Module, staged: StagedNetwork, example: Any, tolerance: float = 0.0) -> None:
    """Same outputs under the same random state, same gradients, same buffers afterwards.

    Gradients are not compared where autograd refuses the unsplit network for its in-place operations.
    """
    network, staged = copy.deepcopy(network).train(), copy.deepcopy(staged).train()
    wanted, found = run(network, copy.deepcopy(example)), run(staged, copy.deepcopy(example))
    assert_same(wanted, found, tolerance)
    try:
        loss(wanted).backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
        return
    loss(found).backward()
    gradients = {name: p.grad for name, p in network.named_parameters(remove_duplicate=False)}
    own = {name.split(".", 2 if name.startswith("stages.") else 1)[-1]: p.grad for name, p in named(staged)}
    assert set(gradients) == set(own)
    for name, gradient in gradients.items():
        assert (gradient is None) == (own[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(own[name], gradient, rtol=tolerance, atol=tolerance)
    assert_same(
        dict(sorted(network.state_dict().items())), dict(sorted(staged.original_state_dict().items())), tolerance
    )


def loss(result: Any) -> Tensor:
    leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.requires_grad]
    return torch.stack([leaf.square().mean() for leaf in leaves]).sum()


def named(staged: StagedNetwork) -> list[tuple[str, nn.Parameter]]:
    return list(staged.named_parameters(remove_duplicate=False))


def assert_same_keys(network: nn.Module, staged: StagedNetwork) -> None:
    assert set(staged.original_state_dict()) == set(network.state_dict())


def everything(network: nn.Module) -> Any:
    tensors = {name: (id(t), t.detach().clone(), t.grad) for name, t in network.state_dict(keep_vars=True).items()}
    modules = {
        name: (
            module.training,
            {key: value for key, value in vars(module).items() if isinstance(value, int | bool | str)},
            [id(value) for value in vars(module).values()],
            [list(vars(module)[hooks]) for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")],
        )
        for name, module in network.named_modules()
    }
    state = np.random.get_state()  # noqa: NPY002
    return tensors, modules, random.getstate(), (state[0], state[1].tolist(), state[2]), torch.get_rng_state()


def assert_untouched(before: Any, after: Any) -> None:
    assert before[0].keys() == after[0].keys()
    for name, (identity, value, gradient) in before[0].items():
        assert (identity, gradient) == (after[0][name][0], after[0][name][2]), name
        assert torch.equal(value, after[0][name][1]), name
    assert before[1] == after[1]
    assert before[2:4] == after[2:4]
    assert torch.equal(before[4], after[4])
