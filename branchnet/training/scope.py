"""Which part of a branched network is trained: all of it, stitching layers, heads, first private stages, or norms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, get_args

from torch import nn

from branchnet.builder import BranchedNetwork
from branchnet.errors import TrainingError
from branchnet.stitching.stitch import unstitched
from branchnet.utils.installed_torch.torch_internals import BatchNormBase, InstanceNormBase

Scope: TypeAlias = Literal["all", "stitches", "heads", "first-private-stage", "norms"]

DEFAULT_RATES: dict[Scope, float | Literal["auto"]] = {
    "all": "auto",
    "stitches": 1e-3,
    "heads": 1e-3,
    "first-private-stage": "auto",
    "norms": 1e-3,
}
"""Peak rates: whole trained networks forget within some twenty steps at 1e-3, maps fitted in closed form do not."""

_NORMS = (
    BatchNormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    InstanceNormBase,
    nn.RMSNorm,
)


@contextmanager
def training_scope(branched: BranchedNetwork, scope: Scope) -> Iterator[None]:
    """Put the trained modules into training mode and let them alone have gradients, meanwhile.

    Args:
        branched: the network; it is left in eval mode.
        scope: what is trained; heads and private stages without the stitches before them. Outside of it everything is
            in eval mode, so that no statistics change.

    Yields:
        Nothing.

    Raises:
        TrainingError: an unknown scope, or a network without stitches that can be trained.
    """
    if scope not in get_args(Scope):
        raise TrainingError(f"scope is {scope!r}; expected one of {', '.join(get_args(Scope))}")
    chosen = _modules(branched, scope)
    inside = {id(parameter) for module in chosen for parameter in module.parameters()}
    others = [p for p in branched.parameters() if p.requires_grad and id(p) not in inside]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        if scope == "all":
            branched.train()
        else:
            branched.eval()
            for module in chosen:
                module.train()
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
        branched.eval()


@contextmanager
def resting(branched: BranchedNetwork, tasks: Iterable[str]) -> Iterator[None]:
    """Freeze all that some tasks depend on, meanwhile.

    Args:
        branched: the network.
        tasks: the tasks; with none, nothing is done.

    Yields:
        Nothing.
    """
    frozen, trained = branched.frozen, [(p, p.requires_grad) for p in branched.parameters()]
    try:
        branched.freeze(*tasks)
        yield
    finally:
        branched.frozen = frozen
        for parameter, flag in trained:
            parameter.requires_grad_(flag)


def _modules(branched: BranchedNetwork, scope: Scope) -> list[nn.Module]:
    if scope == "all":
        return [branched]
    if scope == "heads":
        heads = [node for node in branched.members() if node.is_head and node.id not in branched.frozen]
        return [unstitched(node.module) for node in heads]
    if scope == "first-private-stage":
        return _first_private(branched)
    if scope == "norms":
        norms: list[nn.Module] = [
            module
            for node in branched.members()
            if node.id not in branched.frozen
            for module in node.module.modules()
            if isinstance(module, _NORMS)
        ]
        if not norms:
            raise TrainingError("the network has no normalisation layers; expected some for scope='norms'")
        return norms
    stitches = list(branched.stitches.values())
    kept: list[nn.Module] = [stitch for stitch in stitches if not stitch.folded]
    if not kept:
        reason = f"all {len(stitches)} stitching layers of the network are folded into the weights next to them"
        raise TrainingError(
            f"{reason if stitches else 'the network has no stitching layers'}; expected one built with init='stitch' "
            "and a probe on which donors change, not prepared for inference"
        )
    return kept


def _first_private(branched: BranchedNetwork) -> list[nn.Module]:
    """Of each task the first node, or the head, that it alone uses, after a node that it shares."""
    found: dict[str, nn.Module] = {}
    shared = {task for node in branched.members() if len(node.tasks) > 1 for task in node.tasks}
    for node in branched.members():
        if len(node.tasks) == 1 and node.tasks[0] in shared and node.id not in branched.frozen:
            found.setdefault(node.tasks[0], unstitched(node.module))
    if not found:
        raise TrainingError("no task shares a node; expected a network that does for scope='first-private-stage'")
    return list(found.values())
