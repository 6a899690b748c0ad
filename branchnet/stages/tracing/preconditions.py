"""Networks and surroundings in which nothing can be split, each with what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.errors import SplitError
from branchnet.stages.interface import Example, flat_example
from branchnet.stages.tracing.trial import trial
from branchnet.stages.tracing.two_calls import SEED, TwoCalls
from branchnet.utils.installed_torch.devices import MPS_REMEDY, WITHOUT_FLOAT64

_QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.nn.quantized",
    "bitsandbytes.",
    "gptqmodel.",
    "auto_gptq.",
    "awq.",
    "optimum.quanto.",
)
"""Where classes of quantised layers are defined; torchao's layers are torch's own, with tensors of its classes."""


def check_supported(network: nn.Module, example: Example) -> None:
    """Refuse what no way of tracing can take.

    Raises:
        SplitError: says what it is, and what to pass instead.
    """
    _check_inference_mode(network)
    name = getattr(network, "original_name", type(network).__name__)  # torch.jit has classes of its own
    if isinstance(network, torch.jit.ScriptModule):
        raise SplitError(
            f"{name} was scripted or traced by torch.jit, which leaves no module code to trace; expected the nn.Module "
            "that it was made from (load its weights with load_state_dict)"
        )
    if quantised := _quantised(network):
        raise SplitError(
            f"{name} has quantised layers ({', '.join(quantised[:3])}), whose weights are no tensors that stages could "
            "hold; expected the network in floating point: build the branched network first and quantise that"
        )
    _check_adapters(network, name)
    _check_devices(network, example)


def _quantised(network: nn.Module) -> list[str]:
    """Names of the layers whose weights are quantised."""
    return [
        key or "itself"
        for key, module in network.named_modules()
        if type(module).__module__.startswith(_QUANTISED)
        or any(type(weight.data).__module__.startswith("torchao.") for weight in module.parameters(recurse=False))
    ]


def _check_adapters(network: nn.Module, name: str) -> None:
    """Adapters of peft keep a layer's weights in several modules, so that equal layers do not look equal."""
    adapted = [key or name for key, module in network.named_modules() if type(module).__module__.startswith("peft.")]
    if adapted:
        raise SplitError(
            f"{name} has adapters of peft that are not merged ({', '.join(adapted[:3])}); expected the network with "
            "merged weights: network = network.merge_and_unload(); layers that no adapter changed are then found to be "
            "identical in all networks, and shared at no cost"
        )


def _check_inference_mode(network: nn.Module) -> None:
    if torch.is_inference_mode_enabled():
        raise SplitError(
            "networks cannot be split inside torch.inference_mode(); expected the call outside of it, or inside "
            "torch.no_grad()"
        )
    made_inside = [key for key, value in network.state_dict(keep_vars=True).items() if _is_inference(value)]
    if made_inside:
        raise SplitError(
            f"{type(network).__name__} has tensors that were made inside torch.inference_mode() ({made_inside[0]}); "
            "expected a network that was made outside of it (load the weights of this one into that)"
        )


def _is_inference(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_inference()


def _check_devices(network: nn.Module, example: Example) -> None:
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    if without := [key for key, tensor in tensors.items() if tensor.device.type in WITHOUT_FLOAT64]:
        raise SplitError(f"{type(network).__name__} lies on {tensors[without[0]].device}: {MPS_REMEDY}")
    on_meta = [key for key, tensor in tensors.items() if tensor.is_meta]
    if not on_meta:
        return
    name, other = type(network).__name__, [key for key in tensors if key not in on_meta]
    if other:
        raise SplitError(
            f"{name} lies partly on the meta device ({on_meta[0]}) and partly not ({other[0]}); expected weights for "
            "all of it, or none: load them with load_state_dict(..., assign=True), or use network.to('meta')"
        )
    if any(not tensor.is_meta for tensor in flat_example(example)):
        raise SplitError(
            f"{name} lies on the meta device and the example does not; expected both there, example.to('meta'), or a "
            "network with weights: network.to_empty(device='cpu') and load_state_dict"
        )


def check_not_random(
    root: nn.Module, run: Callable[[nn.Module, int], TwoCalls], apart: Callable[[Any, Any], float]
) -> TwoCalls:
    """Refuse a network whose outputs depend on random numbers in evaluation mode.

    Args:
        root: a borrowed structure.
        run: calls it twice in evaluation mode, under a seed.
        apart: how much two outputs differ.

    Returns:
        what it did.

    Raises:
        SplitError: two seeds give two results.
    """
    runs = []
    for seed in (SEED, SEED + 1):
        with trial(root) as copy:
            runs.append(run(copy, seed))
        if not runs[0].drew:
            return runs[0]
    if apart(runs[0].outputs[0], runs[1].outputs[0]) != 0.0:
        raise SplitError(
            f"{type(root).__name__} is random in evaluation mode: two seeds give different outputs; expected none of "
            "its randomness there, such as F.dropout(x, p, training=self.training) or noise under `if self.training`"
        )
    return runs[0]
