"""The order in memory in which networks are given images: channels last, where they can be run so.

Convolutions on CPUs take about a half to nine tenths of the time so. Networks that call `view` on what one returns
cannot be run so. Which ones these are, a copy that is run shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from branchnet.data.collation import channels_last, leaves, map_tensors, moved, placed
from branchnet.stages.interface import call
from branchnet.stages.tracing.trial import random_states_kept, tensors_of
from branchnet.utils.installed_torch.torch_internals import TorchDispatchMode, pytree

Run: TypeAlias = Callable[[Any, Any], Any]
"""From a network and its inputs to the outputs."""

_TRIED = 2
"""Samples of a trial: BatchNorm in training mode needs two, and memory orders of one sample say nothing of others."""


def run_tasks(network: Any, inputs: Any, tasks: Sequence[str] | None = None) -> Any:
    """Run some tasks of a branched network, all by default."""
    return network(inputs, tasks=tasks)


class InputOrder:
    """Copies of batches for one network, images channels last where it can be run on them so.

    That is tried once for each form of the batches, in training and in evaluation mode, with and without gradients: on
    two samples, by a copy of the network as it is then. Batches without images that this would change are not tried.

    Args:
        network: that will be run on the batches; it is left as it is.
        run: how it is run.
    """

    def __init__(self, network: nn.Module, run: Run = call) -> None:
        self.network, self.run = network, run
        self._taken: dict[Any, bool] = {}

    def placed(self, inputs: Any, device: torch.device) -> Any:
        """Copy a batch for the network to be run on in its present mode.

        Args:
            inputs: of the batch.
            device: where the network is.

        Returns:
            a copy on `device`.
        """
        there = placed(inputs, device)
        if not _changed_by_order(there):
            return there
        forms = tuple((min(len(leaf), _TRIED), leaf.shape[1:], leaf.dtype) for leaf in leaves(there) if leaf.dim())
        key = self.network.training, torch.is_grad_enabled(), forms
        if key not in self._taken:
            self._taken[key] = takes_channels_last(self.network, first_samples(there), self.run)
        return channels_last(there) if self._taken[key] else there


def first_samples(inputs: Any) -> Any:
    """The first samples of a batch, as many as a trial needs; tensors of another length than its first one stay.

    Args:
        inputs: tensors, or tuples and mappings of them.
    """
    size = next(len(leaf) for leaf in leaves(inputs) if leaf.dim())
    return map_tensors(lambda leaf: leaf[:_TRIED] if leaf.dim() and len(leaf) == size else leaf, inputs)


def takes_channels_last(network: nn.Module, inputs: Any, run: Run = call, device: torch.device | None = None) -> bool:
    """Whether a network can be run on images channels last, backward as well where gradients are enabled.

    Args:
        network: any module. A copy is run, with tensors of its own and in the same modes; random states are restored.
        inputs: some samples.
        run: how it is run.
        device: where it will be run; by default where it is.

    Returns:
        False also where the copy cannot be run at all: what is wrong is raised and explained where the network is run.
    """
    tensors = tensors_of(network)
    try:
        with random_states_kept(tensors.values()):
            tried = copy.deepcopy(network, {number: _copied(tensor) for number, tensor in tensors.items()})
            tried = tried if device is None else tried.to(device)
            given = channels_last(map_tensors(torch.clone, inputs if device is None else moved(inputs, device)))
            with _BrokenBackward() as broken:  # type: ignore[no-untyped-call]
                outputs = run(tried, given)
            if broken.found:
                return False
            _run_backward(outputs, tried)
    except Exception:  # whatever it is: it comes again where the network is run in the usual order
        return False
    return True


class _BrokenBackward(TorchDispatchMode):
    """Looks for convolutions whose backward pass writes past its memory in torch 2.13 and 2.14 on CPUs with AVX-512.

    Those of 2 to 7 channels channels last with kernels of 1 x 1 and larger strides: "double free or corruption", or
    other numbers without a word.
    """

    found = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.convolution.default and torch.is_grad_enabled():
            images, weight, _, stride = args[:4]
            self.found |= bool(
                images.device.type == "cpu"
                and images.dim() == 4
                and 1 < images.shape[1] < 8
                and set(weight.shape[2:]) == {1}
                and max(stride) > 1
            )
        return function(*args, **(kwargs or {}))


def _changed_by_order(inputs: Any) -> bool:
    return any(leaf.dim() == 4 and not leaf.is_contiguous(memory_format=torch.channels_last) for leaf in leaves(inputs))


def _copied(tensor: Tensor) -> Tensor:
    """A tensor of its own, without the hooks of the other one, in which gradients and forward passes may write."""
    value = tensor.detach().clone()
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def _run_backward(outputs: Any, network: nn.Module) -> None:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    found = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if trained and found:
        torch.autograd.grad(found, trained, [torch.ones_like(leaf) for leaf in found], allow_unused=True)
