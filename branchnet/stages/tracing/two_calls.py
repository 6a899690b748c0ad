"""What a network does in two calls under one seed: outputs, gradients, buffers, random states."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.stages.tracing.trial import random_states, seed_random_states
from branchnet.utils.installed_torch.torch_internals import tree_leaves, tree_map

SEED = 20_217


@dataclass(frozen=True)
class TwoCalls:
    """What a network did.

    Attributes:
        outputs: of the first call and of the second.
        gradients: of the first call, by names of parameters; empty in evaluation mode, or where autograd refuses.
        buffers: as they are afterwards, by name.
        random_states: as they are afterwards.
        drew: whether random numbers were drawn.
    """

    outputs: tuple[Any, Any]
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    random_states: bytes
    drew: bool


def call_twice(
    network: nn.Module, forward: Callable[[], Any], key: Callable[[str], str] = str, seed: int = SEED
) -> TwoCalls:
    """Call a network twice in the mode that it is in, with gradients in training mode, of frozen parameters, too.

    Args:
        network: a structure that may be written to.
        forward: calls it.
        key: makes the names by which parameters and buffers are compared.
        seed: of all random numbers.
    """
    training = network.training
    parameters = {key(name): p for name, p in network.named_parameters(remove_duplicate=False)}
    leaves = [p for p in parameters.values() if p.is_leaf and (p.is_floating_point() or p.is_complex())]
    frozen = [p for p in leaves if not p.requires_grad]
    seed_random_states(seed, leaves)
    before = random_states(leaves)
    try:
        with torch.set_grad_enabled(training):
            for parameter in frozen if training else ():
                parameter.requires_grad_(True)
            first = forward()
            gradients = _gradients(first, parameters) if training else {}
            first = tree_map(_detached, first)
            second = tree_map(_detached, forward())
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    buffers = {key(name): b.detach().clone() for name, b in network.named_buffers(remove_duplicate=False)}
    after = random_states(leaves)
    return TwoCalls((first, second), gradients, buffers, after, after != before)


def _gradients(outputs: Any, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor | None]:
    """Gradients of a random linear function of the outputs; None of it where autograd refuses the network."""
    results = [leaf for leaf in _leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    inputs = {name: p for name, p in parameters.items() if p.requires_grad}
    if not results or not inputs:
        return dict.fromkeys(inputs)
    generator = torch.Generator().manual_seed(SEED)
    weights = [torch.randn(r.shape, generator=generator).to(r.device, r.dtype) for r in results]
    try:
        found = torch.autograd.grad(results, [*inputs.values()], weights, allow_unused=True)
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            return {}
        raise
    dense = [gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient for gradient in found]
    return dict(zip(inputs, dense, strict=True))


def _leaves(outputs: Any) -> list[Any]:
    leaves: list[Any] = []
    for leaf in tree_leaves(outputs):
        if is_dataclass(leaf):
            leaves += [inner for field in fields(leaf) for inner in _leaves(getattr(leaf, field.name))]
        else:
            leaves.append(leaf)
    return leaves


def _detached(leaf: Any) -> Any:
    """A copy that a later call does not change."""
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    if is_dataclass(leaf) and not isinstance(leaf, type):
        found = copy.copy(leaf)
        for field in fields(leaf):
            object.__setattr__(found, field.name, tree_map(_detached, getattr(leaf, field.name)))
        return found
    return leaf
