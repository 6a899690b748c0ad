"""A copy of a branched network made ready for fast inference: BatchNorm folded away, weights cast and laid out."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.errors import BuildError
from branchnet.stages import Stage
from branchnet.stitching.stitch import unstitched

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def prepare(
    branched: BranchedNetwork,
    *,
    fold_batchnorm: bool = False,
    cast: torch.dtype | None = None,
    channels_last: bool = False,
) -> BranchedNetwork:
    """Return a copy of `branched` for inference, or `branched` itself where nothing is asked for.

    Args:
        branched: the network; it is not changed.
        fold_batchnorm: multiply every BatchNorm layer that follows a convolution of the same node into its weights.
            In float32 no output moves by more than 1e-4 of the largest one. A BatchNorm that is first in its node, or
            that a network computes without a layer of its own, stays.
        cast: the floating-point type of all weights.
        channels_last: lay the weights of convolutions out with the channels last, the order in which cuDNN on tensor
            cores and oneDNN on CPUs compute: otherwise they may convert at every call.

    Returns:
        the prepared network.

    Raises:
        BuildError: a network in training mode, which folding would break, or a type that is not floating.
    """
    if cast is not None and not cast.is_floating_point:
        raise BuildError(f"cast={cast}; expected a floating-point type, e.g. torch.bfloat16")
    if not (fold_batchnorm or cast is not None or channels_last):
        return branched
    if branched.training and fold_batchnorm:
        raise BuildError(
            "the network is in training mode; expected evaluation mode to fold BatchNorm; call branched.eval() first"
        )
    prepared = copy.deepcopy(branched)
    if fold_batchnorm:
        for member in prepared.members():
            _fold(unstitched(member.module))
    if cast is not None:
        prepared.to(cast)
    if channels_last:
        prepared.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return prepared


def _fold(stage: nn.Module) -> None:
    """Give each convolution that only one BatchNorm reads the product of both, and leave an identity behind."""
    graph = stage.graph if isinstance(stage, Stage) else None
    if graph is None:
        return
    # Folding changes the convolution's weights and replaces the norm for everyone: so neither may be called twice, nor
    # read in any other way, and the convolution's result may go to the norm alone.
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    read_apart = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and len(node.args) == 1 else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        convolution, norm = (stage.get_submodule(str(n.target)) for n in (source, node))
        once = calls[str(source.target)] == calls[str(node.target)] == 1
        once = once and read_apart.isdisjoint((str(source.target), str(node.target)))
        if type(convolution) in _CONVOLUTIONS and type(norm) in _NORMS and norm.running_mean is not None and once:
            _replace(stage, str(source.target), fuse_conv_bn_eval(convolution, norm))  # type: ignore[type-var,arg-type]
            _replace(stage, str(node.target), nn.Identity())


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    root.get_submodule(parent).add_module(name, module.eval())


def as_prepared(value: Any, *, cast: torch.dtype | None, channels_last: bool) -> Any:
    """Return an input as a prepared network takes it: floats in its type, four-dimensional tensors channels last.

    Args:
        value: a tensor; other values are returned as they are.
        cast: see `prepare`.
        channels_last: see `prepare`.
    """
    if not isinstance(value, Tensor):
        return value
    if cast is not None and value.is_floating_point():
        value = value.to(cast)
    if channels_last and value.dim() == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    return value
