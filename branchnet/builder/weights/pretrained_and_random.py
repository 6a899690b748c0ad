"""Nodes that start from weights of no donor: from a given state, or from the random numbers of an initialisation."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.module_structure import tensors_of
from branchnet.builder.network.node import Node
from branchnet.errors import BuildError
from branchnet.stages.staged import without_prefix

GIVEN = "the given state"
NAMED_PROBLEMS = 20
"""A message names this many tensors at most: the wrong backbone would name them all."""


def load_pretrained(branched: BranchedNetwork, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Copy a state into the nodes: either the branched network's own, or that of one network of its backbone.

    With a single network's state every node takes its stage's tensors, and the heads keep their donors' weights (tasks
    differ in them); tensors of the state that no stage has, as those of its head, are left out.

    Args:
        branched: the network, changed in place.
        state: tensors by name. It is a branched network's where one of its names is one of this network's.

    Returns:
        per node in words where its weights come from.

    Raises:
        BuildError: a tensor of a node that the state lacks, or that has another shape there; the state of a branched
            network with other nodes. Nothing is copied then.
    """
    own = branched.state_dict()
    if any(key in own for key in state):
        return _load_branched_state(branched, state)
    return _load_backbone_state(branched, state)


def _load_branched_state(branched: BranchedNetwork, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Copy the state of a branched network of this tree; every tensor must be used."""
    members = list(branched.members())
    targets = [(f"{node.id}.{name}", tensor) for node in members for name, tensor in _state_of(node.module).items()]
    own = branched.state_dict()
    foreign = {key: "unknown tensor; expected those of this tree" for key in state if key not in own}
    _copy_state(targets, state, foreign)
    return {node.id: GIVEN for node in members}


def _load_backbone_state(branched: BranchedNetwork, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Copy the state of one single network into every node; heads keep theirs, as tasks differ in them."""
    nodes = [node for node in branched.members() if not node.is_head]
    targets = [(name, tensor) for node in nodes for name, tensor in _state_of(node.module).items()]
    _copy_state(targets, without_prefix(state, {name for name, _ in targets}), {})
    return {node.id: GIVEN for node in nodes}


def _copy_state(
    targets: Sequence[tuple[str, Tensor]], state: Mapping[str, Tensor], problems: Mapping[str, str]
) -> None:
    """Copy `state[key]` into each target, all or none.

    Raises:
        BuildError: `problems`, tensors that are missing, or other shapes; the first 20 are named.
    """
    problems = dict(problems)
    found = {id(tensor) for key, tensor in targets if key in state}
    for key, tensor in targets:
        if key not in state:
            if id(tensor) not in found:  # a tied tensor may stand under any of its names
                near = difflib.get_close_matches(key, state, n=1)
                problems[key] = "not in the state" + (f" (near: {near[0]!r})" if near else "")
        elif state[key].shape != tensor.shape:
            problems[key] = f"expected {tuple(tensor.shape)}, found {tuple(state[key].shape)}"
    if problems:
        lines = [f"{key}: {problem}" for key, problem in list(problems.items())[:NAMED_PROBLEMS]]
        raise BuildError(f"the state does not fit the nodes ({len(problems)} tensors):\n  " + "\n  ".join(lines))
    with torch.no_grad():
        for key, tensor in targets:
            if key in state:
                tensor.copy_(state[key])


def randomise(branched: BranchedNetwork, seed: int) -> dict[str, str]:
    """Give every node and head fresh random weights: those of its donor's named constructor, else its layers' own.

    Without a constructor every layer's `reset_parameters` is called. Nodes draw from one sequence that starts at
    `seed`; the global random state is left as it was.

    Args:
        branched: the network, changed in place.
        seed: of the random numbers.

    Returns:
        per node in words where its weights come from.

    Raises:
        BuildError: parameters that no layer can reset in a network without a constructor, or that a constructor's
            network lacks; they are named.
    """
    notes = {}
    made: dict[tuple[str, tuple[str, ...]], dict[str, Tensor]] = {}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)):
        torch.manual_seed(seed)
        for node in branched.members():
            constructor = branched.constructors[node.donor]
            if constructor is not None:
                if (node.donor, node.tasks) not in made:
                    made[node.donor, node.tasks] = tensors_of(constructor.create())
                _copy(node, made[node.donor, node.tasks])
                notes[node.id] = f"random, as {constructor.name} starts"
            else:
                _reset(node.id, node.module)
                notes[node.id] = "random, as its layers start"
    return notes


def _state_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state, a tied one under each of its names; buffers that are not stored are left out."""

    def stored(name: str) -> bool:
        holder, _, last = name.rpartition(".")
        return last not in module.get_submodule(holder)._non_persistent_buffers_set

    return {name: tensor for name, tensor in tensors_of(module).items() if stored(name)}


def _copy(node: Node, fresh: Mapping[str, Tensor]) -> None:
    tensors = _state_of(node.module)
    if missing := [name for name in tensors if name not in fresh]:
        raise BuildError(
            f"{node.id}: the constructor of {node.donor!r} makes a network without {missing[:5]}; expected one with "
            "every tensor of the node; pass freshly made networks with init='donor' instead"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(fresh[name])


def _reset(node: str, module: nn.Module) -> None:
    """Call each layer's own reset; NaN before shows which parameters none reached, as those of parametrisations."""
    named = module.named_parameters()
    parameters = {name: one for name, one in named if one.is_floating_point() or one.is_complex()}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(torch.nan)
    # From the innermost out, as a layer's own reset may set its children's weights to something of its own choice.
    for layer in reversed(list(module.modules())):
        reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
        if callable(reset):
            reset()
    if missed := [name for name, parameter in parameters.items() if bool(parameter.isnan().any())]:
        raise BuildError(
            f"{node}: no layer can reset {missed[:5]}; make the networks by branchnet.create, whose constructor starts "
            "them, or pass freshly made networks with init='donor'"
        )
