"""Stitches of a specification put into a network that was built from it; their weights are loaded afterwards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from branchnet.builder import BranchedNetwork, Node
from branchnet.errors import BuildError
from branchnet.specification.stitch_sections import StitchSection
from branchnet.stages import StagedNetwork
from branchnet.stitching import AffineMap, Stitch, StitchedStage


def insert_stitches(
    branched: BranchedNetwork, stitches: Mapping[str, StitchSection], staged: Mapping[str, StagedNetwork]
) -> None:
    """Put stitches that leave features as they are, as far as their rank allows, in front of nodes and heads.

    Args:
        branched: the network, changed in place.
        stitches: by the id of the node or head.
        staged: the donors by task.

    Raises:
        BuildError: maps of tensors or channels that the donors do not have at that location.
    """
    problems = []
    for name, section in stitches.items():
        child = branched.member(name)
        parent = branched.member(branched.parent_of(child))
        problems += [f"stitches.{name}: {text}" for text in _misfits(section, parent, child, staged)]
        if not problems:
            branched.replace(child, StitchedStage(_made(section, branched, child), child.module))
    if problems:
        raise BuildError("the stitches do not fit the networks:\n  " + "\n  ".join(problems))


def _misfits(section: StitchSection, parent: Node, child: Node, staged: Mapping[str, StagedNetwork]) -> list[str]:
    ends = [staged[node.donor].cuts[parent.stage] for node in (parent, child)]
    problems = []
    for each in section.maps:
        for cut, channels, verb in zip(ends, each.channels, ("arrive", "are expected"), strict=True):
            shape = cut[each.tensor].shape if each.tensor < len(cut) else ()
            if each.tensor >= len(cut):
                problems.append(f"tensor {each.tensor} is not in the cut; expected one of {len(cut)} tensors")
            elif each.dimension not in (1, len(shape) - 1):
                problems.append(f"dimension {each.dimension} of a tensor of the shape {shape}; expected 1 or the last")
            elif shape[each.dimension] != channels:
                problems.append(f"{channels} channels {verb} in tensor {each.tensor}; expected {shape[each.dimension]}")
    return list(dict.fromkeys(problems))


def _made(section: StitchSection, branched: BranchedNetwork, child: Node) -> Stitch:
    tensors = (*child.module.parameters(), *branched.parameters())
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    maps = {each.tensor: AffineMap(*each.channels, each.dimension, each.rank) for each in section.maps}
    for affine in maps.values():
        for weight in affine.weights:
            nn.init.eye_(weight)
    r2 = float("nan") if section.r2 is None else section.r2
    stitch = Stitch(section.source, section.target, maps, method=section.method or "", r2=r2)
    return stitch.to(like.device, like.dtype).train(child.module.training)
