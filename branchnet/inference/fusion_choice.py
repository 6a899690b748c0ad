"""Which stages are faster fused, found by measuring each of them both ways, compiled, on the device they run on."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.call_inputs import Input
from branchnet.inference.fusion import FusedNodes, groups_of
from branchnet.inference.inference_transforms import as_prepared
from branchnet.inference.latency import compare_latency, ratio_interval
from branchnet.inference.torch_compile import autocasting, compiled_apart, device_of, first_line, map_input
from branchnet.stages import call

GAIN = 1.03
"""How many times as fast a fused stage must be to be chosen: less is within the noise of a measurement."""


def faster_fused(
    branched: BranchedNetwork,
    example: Input,
    *,
    mode: str | None = None,
    autocast: torch.dtype | None = None,
    cast: torch.dtype | None = None,
    channels_last: bool = False,
    repeats: int = 20,
) -> tuple[int, ...]:
    """Find the stages whose equal nodes run at least 1.03 times as fast fused as one after another.

    Args:
        branched: a prepared network in evaluation mode.
        example: inputs of the size to expect.
        mode, autocast, cast, channels_last: how the network will be compiled.
        repeats: calls of each kind that are timed.

    Returns:
        numbers of stages.
    """
    device = device_of(branched)
    x = map_input(functools.partial(as_prepared, cast=cast, channels_last=channels_last), example)
    chosen = []
    sources: list[Any] = [x]
    with torch.no_grad(), autocasting(device, autocast):
        for stage, parents in enumerate(branched.tree.parents):
            nodes: list[nn.Module] = list(branched.nodes[stage])  # type: ignore[call-overload]
            inputs = [sources[parent] if stage else x for parent in parents]
            groups = [group for group in groups_of(nodes) if len(group) > 1]
            if groups and all(_gains([nodes[k] for k in g], [inputs[k] for k in g], mode, repeats) for g in groups):
                chosen.append(stage)
            sources = [call(node, source) for node, source in zip(nodes, inputs, strict=True)]
    return tuple(chosen)


def _gains(nodes: Sequence[nn.Module], inputs: Sequence[Any], mode: str | None, repeats: int) -> bool:
    try:
        fused = FusedNodes(nodes)
        siblings = all(source is inputs[0] for source in inputs)
        one_by_one = compiled_apart(each_alone, mode=mode, dynamic=False, module_guards=False)
        together = compiled_apart(all_fused, mode=mode, dynamic=False, module_guards=False)
        ways: dict[str, Callable[..., Any]] = {
            "apart": lambda *_: one_by_one(nodes, inputs),
            "fused": lambda *_: together(fused, inputs[:1] if siblings else inputs),
        }
        devices = next(iter(nodes[0].parameters()), torch.empty(0))
        times = compare_latency(ways, devices, repeats=repeats)
    except Exception as error:  # vmap has no rule for every operator, and its errors have no class of their own
        reason = f"{type(error).__name__}: {first_line(error)}"
        warnings.warn(f"nodes of {nodes[0]} cannot be fused and stay apart ({reason})", stacklevel=3)
        return False
    return ratio_interval(times["apart"], times["fused"])[0] > GAIN


def each_alone(nodes: Sequence[nn.Module], inputs: Sequence[Any]) -> list[Any]:
    """Return what each node returns for its input."""
    return [call(node, source) for node, source in zip(nodes, inputs, strict=True)]


def all_fused(fused: FusedNodes, inputs: Sequence[Any]) -> Any:
    """Return what fused nodes return for one input of all, or for one input of each."""
    if len(inputs) == 1:
        return fused(inputs[0])
    return fused.on_stacked(
        tuple(
            torch.stack(list(values)) if isinstance(values[0], Tensor) else values[0]
            for values in zip(*inputs, strict=True)
        )
    )
