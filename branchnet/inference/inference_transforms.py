"""A copy of a branched network made ready for fast inference.

Stitches and BatchNorm are folded into the layers next to them, weights are cast and laid out.
"""

from __future__ import annotations

import copy
import typing
from collections import Counter
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.call_inputs import Input
from branchnet.builder.network.grouped_networks import GroupedNetworks, as_one_network
from branchnet.builder.stitch_costs import stitch_shapes
from branchnet.errors import BuildError
from branchnet.inference.torch_compile import map_input
from branchnet.stages import Stage
from branchnet.stitching.folding import fold_into_result, fold_into_stage
from branchnet.stitching.stitch import StitchedStage, unstitched

Fold: typing.TypeAlias = Literal["exact"] | None
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def prepare(
    branched: BranchedNetwork | GroupedNetworks,
    *,
    fold: Fold = "exact",
    fold_batchnorm: bool = False,
    cast: torch.dtype | None = None,
    channels_last: bool = False,
    example: Input | None = None,
) -> BranchedNetwork:
    """Return a copy of `branched` for inference, or `branched` itself where there is nothing to do.

    Args:
        branched: the network; it is not changed. Of `GroupedNetworks` what serves is taken, without auxiliary tasks.
        fold: `"exact"` takes stitches into the layers next to them where that changes outputs by rounding alone: into a
            convolution or linear layer that alone reads the mapped tensor, or into the last layer of the node before,
            where no other node reads its result. Elsewhere, and in training mode, they stay, and with None all do.
        fold_batchnorm: multiply every BatchNorm layer that follows a convolution of the same node into its weights.
            In float32 no output moves by more than 1e-4 of the largest one. A BatchNorm that is first in its node, or
            that a network computes without a layer of its own, stays.
        cast: the floating-point type of all weights.
        channels_last: lay the weights of convolutions out with the channels last, the order in which cuDNN on tensor
            cores and oneDNN on CPUs compute: otherwise they may convert at every call.
        example: inputs of the network, which show the shapes of mapped tensors; by default random ones.

    Returns:
        the prepared network.

    Raises:
        BuildError: a network in training mode, which folding would break, or a type that is not floating.
    """
    branched = as_one_network(branched)
    if cast is not None and not cast.is_floating_point:
        raise BuildError(f"cast={cast}; expected a floating-point type, e.g. torch.bfloat16")
    if fold not in ("exact", None):
        raise BuildError(f"fold={fold!r}; expected 'exact' or None")
    folds = fold == "exact" and bool(branched.stitches) and not branched.training
    if not (folds or fold_batchnorm or cast is not None or channels_last):
        return branched
    if branched.training and fold_batchnorm:
        raise BuildError(
            "the network is in training mode; expected evaluation mode to fold BatchNorm; call branched.eval() first"
        )
    prepared = copy.deepcopy(branched)
    if fold_batchnorm:
        for member in prepared.members():
            _fold(unstitched(member.module))
    if folds:
        _fold_stitches(prepared, example, cast)
    if cast is not None:
        prepared.to(cast)
    if channels_last:
        prepared.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return prepared


def _fold_stitches(branched: BranchedNetwork, example: Input | None, precision: torch.dtype | None) -> None:
    shapes = stitch_shapes(branched, _random_inputs(branched) if example is None else example)
    children = Counter(branched.parent_of(node) for node in branched.members())
    for (parent, child), stitch in branched.stitches.items():
        fold_into_stage(typing.cast("StitchedStage", branched.member(child).module), shapes[parent, child], precision)
        if not stitch.folded and children[parent] == 1:
            before = branched.member(parent)
            made = fold_into_result(stitch, unstitched(before.module), shapes[parent, child])
            if isinstance(before.module, StitchedStage):
                before.module.stage = made
            else:
                branched.replace(before, made)


def _random_inputs(branched: BranchedNetwork) -> Input:
    """Random inputs where the weights are, and of their type: the network may have been cast since it was built."""
    like = next((tensor for tensor in branched.parameters() if tensor.is_floating_point()), torch.empty(0))

    def placed(tensor: Tensor) -> Tensor:
        return tensor.to(like) if tensor.is_floating_point() else tensor.to(like.device)

    return map_input(placed, branched.interface.random())


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
