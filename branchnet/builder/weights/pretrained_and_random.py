"""Nodes that start from weights of no donor: from a given state, or from the random numbers of an initialisation."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from branchnet.builder.network.branched_network import BranchedNetwork, Node
from branchnet.builder.weights.operator_permutations import tensors_of
from branchnet.errors import BuildError
from branchnet.stages.staged import without_prefix


def load_pretrained(branched: BranchedNetwork, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Copy a state into the nodes: either the branched network's own, or that of one network of its backbone.

    With a single network's state every node takes its stage's tensors, and the heads keep their donors' weights (tasks
    differ in them); tensors of the state that no stage has, as those of its head, are left out.

    Returns:
        per node in words where its weights come from.

    Raises:
        BuildError: a tensor of a node that the state lacks, or that has another shape there; the state of a branched
            network with other nodes. Nothing is copied then.
    """
    own = branched.state_dict(keep_vars=True)
    whole = any(key in own for key in state)
    members = [node for node in branched.members() if whole or node.id.startswith("nodes.")]
    wanted = {
        node.id: {name: t for name, t in tensors_of(node.module).items() if _stored(node.module, name)}
        for node in members
    }
    names = {name for tensors in wanted.values() for name in tensors}
    cleaned = dict(state) if whole else without_prefix(state, names)
    problems = {key: "there is no such tensor in this tree" for key in cleaned if whole and key not in own}
    keyed = [
        (f"{node}.{name}" if whole else name, t) for node, tensors in wanted.items() for name, t in tensors.items()
    ]
    found = {id(tensor) for key, tensor in keyed if key in cleaned}
    for key, tensor in keyed:
        if key not in cleaned:
            if id(tensor) not in found:  # a tied tensor may stand under any of its names
                near = difflib.get_close_matches(key, cleaned, n=1)
                problems[key] = "not in the state" + (f" (near: {near[0]!r})" if near else "")
        elif cleaned[key].shape != tensor.shape:
            problems[key] = f"expected {tuple(tensor.shape)}, found {tuple(cleaned[key].shape)}"
    if problems:
        lines = [f"{key}: {problem}" for key, problem in list(problems.items())[:20]]
        raise BuildError(f"the state does not fit the nodes ({len(problems)} tensors):\n  " + "\n  ".join(lines))
    with torch.no_grad():
        for key, tensor in keyed:
            if key in cleaned:
                tensor.copy_(cleaned[key])
    return dict.fromkeys(wanted, "the given state")


def randomise(branched: BranchedNetwork, seed: int) -> dict[str, str]:
    """Give every node and head fresh random weights: those of its donor's named constructor, else its layers' own.

    Without a constructor every layer's `reset_parameters` is called. Nodes draw from one sequence that starts at
    `seed`; the global random state is left as it was.

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


def _stored(module: nn.Module, name: str) -> bool:
    """Whether a tensor belongs to the module's state: buffers that are made anew each time do not."""
    holder, _, last = name.rpartition(".")
    return last not in module.get_submodule(holder)._non_persistent_buffers_set


def _copy(node: Node, fresh: Mapping[str, Tensor]) -> None:
    tensors = {name: tensor for name, tensor in tensors_of(node.module).items() if _stored(node.module, name)}
    if missing := [name for name in tensors if name not in fresh]:
        raise BuildError(f"{node.id}: the constructor of {node.donor!r} makes a network without {missing[:5]}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(fresh[name])


def _reset(node: str, module: nn.Module) -> None:
    reached: set[int] = set()
    for layer in reversed(list(module.modules())):  # a layer may reset its children once more
        reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
        if callable(reset):
            reset()
            reached |= {id(parameter) for parameter in layer.parameters()}
    if missed := [name for name, parameter in module.named_parameters() if id(parameter) not in reached]:
        raise BuildError(
            f"{node}: no layer can reset {missed[:5]}; make the networks by branchnet.create, whose constructor starts "
            "them, or pass freshly made networks with init='donor'"
        )
