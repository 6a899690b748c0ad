"""From a specification to a branched network: make or take the networks, cut them, check them, build, stitch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from branchnet.builder import BranchedNetwork, Node, build
from branchnet.data.arguments import check_by_task
from branchnet.errors import BuildError, SpecError
from branchnet.specification.sections import InputSection
from branchnet.specification.stitch_sections import StitchSection
from branchnet.stages import Interface, StagedNetwork, split_all
from branchnet.stitching import AffineMap, Stitch, StitchedStage

if TYPE_CHECKING:
    from branchnet.specification.architecture import Architecture


def build_architecture(architecture: Architecture, networks: Mapping[str, nn.Module], example: Any) -> BranchedNetwork:
    """Build what `Architecture.build` describes; arguments and errors are listed there."""
    made = make_all(architecture, networks)
    staged = {task: network for task, network in made.items() if isinstance(network, StagedNetwork)}
    if len(staged) < len(made):
        if staged:
            raise SpecError(
                f"the networks of {list(staged)} are staged, the others plain; expected all of them staged, or none"
            )
        interface = interface_of(architecture) if example is None else Interface.of(example)
        staged = split_all(
            made,
            interface.random() if example is None else example,
            locations=architecture.locations,
            depth="auto" if architecture.tree.depths else "common",
        )
    _check_stages(architecture, staged)
    branched = build(architecture.tree, staged, init="donor", donors=architecture.donors)
    _insert_stitches(branched, architecture.stitches, staged)
    if architecture.input is not None:
        branched.interface = interface_of(architecture)
    return branched


def interface_of(architecture: Architecture) -> Interface:
    """Return the interface that the specification's `input` describes.

    Args:
        architecture: the specification.

    Raises:
        SpecError: it describes none.
    """
    section = architecture.input
    if section is None:
        raise SpecError("the specification has no `input`; expected one, or inputs as example=")
    tensors: Sequence[InputSection] = (section,) if isinstance(section, InputSection) else section
    names = [tensor.name for tensor in tensors if tensor.name is not None]
    form = "tensor" if isinstance(section, InputSection) else "dict" if names else "tuple"
    plain = [tensor.model_dump(exclude={"name"}) for tensor in tensors]
    return Interface.from_dict({"form": form, "tensors": plain, "names": names})


def make_all(architecture: Architecture, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the networks that are passed, and make those of the other tasks.

    Args:
        architecture: the specification.
        networks: networks by task.

    Returns:
        a network for every task.

    Raises:
        SpecError: a network that must be passed, or one of a task that is not in the file.
    """
    check_by_task(networks, SpecError)
    unknown = [task for task in networks if task not in architecture.tasks]
    if unknown:
        raise SpecError(f"networks are passed for unknown tasks {unknown}; expected some of {list(architecture.tasks)}")
    made: dict[str, nn.Module] = {}
    missing = []
    for task, constructor in architecture.constructors.items():
        if task in networks:
            made[task] = networks[task]
        elif constructor is not None:
            with torch.random.fork_rng(devices=[]):  # initial weights draw random numbers
                made[task] = constructor.create()
        else:
            missing.append(task)
    if missing:
        names = ", ".join(map(repr, missing))
        example = f"networks={{{missing[0]!r}: network, ...}}"
        raise SpecError(f"{names} have no named constructor; expected their networks; pass {example}")
    return made


def _check_stages(architecture: Architecture, staged: Mapping[str, StagedNetwork]) -> None:
    """Compare the stages with the specification's: their number, and their parameters where they are recorded.

    A later version of a package may make another network under the same name; then the weights would not fit either.
    """
    depth = len(architecture.locations)
    problems = [
        f"{task}: {len(network.stages)} stages, expected {depth}, one for each location"
        for task, network in staged.items()
        if len(network.stages) != depth
    ]
    if not problems and architecture.stage_costs is not None:
        head_costs = architecture.head_costs
        for task, network in staged.items():
            pairs = [*zip(network.costs, architecture.stage_costs, strict=True)]
            pairs += [(network.head_cost, head_costs[task])] if task in head_costs else []
            problems += [
                f"{task}: {cost.name} has {cost.params} parameters, expected {recorded.params}"
                for cost, recorded in pairs
                if cost.params != recorded.params
            ]
    if problems:
        raise BuildError("the networks are not those that the specification describes:\n  " + "\n  ".join(problems))


def _insert_stitches(
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
