"""The plan of a verb, which `--dry-run` prints: its steps, with the memory and the time that each will take.

Times are extrapolated from one call of each network on this machine, made now; nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.builder import BranchedNetwork, SeparateNetworks
from branchnet.inference.latency import seconds_of
from branchnet.stages import call
from branchnet.utils.installed_torch.torch_internals import pytree
from branchnet.utils.modes import evaluation_mode

_OPTIMIZER_COPIES = 4  # weights, gradients, and the two moments of AdamW


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    Attributes:
        name: what is done.
        seconds: how long it takes, about; None where nothing is known.
        memory: bytes that it holds at once, about; None where nothing is known.
    """

    name: str
    seconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Plan:
    """The steps of a verb.

    Attributes:
        verb: the verb.
        steps: the steps.
        notes: what one should know before.
    """

    verb: str
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()

    def step(self, name: str, *, seconds: float | None = None, memory: int | None = None) -> Plan:
        """The plan with one more step."""
        return replace(self, steps=(*self.steps, Step(name, seconds, memory)))

    @property
    def seconds(self) -> float:
        """Sum of the times that are known."""
        return math.fsum(step.seconds for step in self.steps if step.seconds is not None)

    @property
    def memory(self) -> int:
        """Largest of the memories that are known."""
        return max((step.memory for step in self.steps if step.memory is not None), default=0)


def memory_of(networks: Mapping[str, nn.Module]) -> int:
    """Bytes of all parameters and buffers, each counted once."""
    tensors = {id(t): t for net in networks.values() for t in (*net.parameters(), *net.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def batch_of(example: Any, size: int) -> Any:
    """The one input of `example` repeated `size` times."""
    return pytree.tree_map_only(Tensor, lambda t: t[:1].expand(size, *t.shape[1:]).contiguous(), example)


def forward_seconds(network: nn.Module, batch: Any) -> float:
    """Seconds of one forward pass without gradients, after one to warm up.

    Args:
        network: the network.
        batch: what it is called with.

    Returns:
        Seconds.
    """
    with torch.no_grad(), evaluation_mode(network):
        _run(network, batch)
        return seconds_of(lambda: _run(network, batch), [_device_of(network)])


def step_seconds(networks: Sequence[nn.Module], batch: Any) -> float:
    """Seconds of one forward and backward pass of all networks.

    Args:
        networks: the networks; they are left in eval mode, and all their parameters trainable.
        batch: what each is called with.

    Returns:
        Seconds.
    """

    def run() -> None:
        for network in networks:
            outputs = pytree.tree_leaves(_run(network, batch))
            floats = [leaf for leaf in outputs if isinstance(leaf, Tensor) and leaf.requires_grad]
            torch.stack([leaf.float().square().mean() for leaf in floats]).sum().backward()

    for network in networks:
        network.eval().requires_grad_(True)
    run()
    seconds = seconds_of(run, [_device_of(networks[0])])
    for network in networks:
        network.zero_grad(set_to_none=True)
    return seconds


def plan_comparison(
    plan: Plan,
    networks: Mapping[str, nn.Module],
    example: Any,
    *,
    count: int,
    batch_size: int,
    cut_bytes: Sequence[int],
) -> Plan:
    """Add running all networks on the probe and comparing them; `cut_bytes` are those of one input at each location.

    Args:
        plan: what comes before.
        networks: the networks by task.
        example: one input.
        count: how many inputs the probe has.
        batch_size: inputs in a batch.
        cut_bytes: bytes of one input at each location.

    Returns:
        The longer plan.
    """
    from branchnet.affinity.features.memory_plan import default_limit

    batch = batch_of(example, min(batch_size, count))
    forwards = sum(forward_seconds(network, batch) for network in networks.values()) * math.ceil(count / batch_size)
    device = next(next(iter(networks.values())).parameters()).device
    kept = min(count * sum(cut_bytes), default_limit(device))
    matrices = len(networks) * len(cut_bytes) * count * (count - 1) // 2 * 4
    plan = plan.step(
        f"run {len(networks)} networks on {count} inputs", seconds=forwards, memory=memory_of(networks) + kept
    )
    features = len(networks) * sum(cut_bytes) / 4
    return plan.step(
        f"compare them at {len(cut_bytes)} locations",
        seconds=features * count**2 / _rate(device),
        memory=kept + matrices,
    )


def plan_distillation(
    plan: Plan, name: str, networks: Sequence[nn.Module], example: Any, *, steps: int, batch_size: int, activations: int
) -> Plan:
    """Add `steps` batches of training of what costs as much as `networks`; `activations`: bytes for one input.

    Args:
        plan: what comes before.
        name: what the plan calls the training.
        networks: what one step costs as much as.
        example: one input.
        steps: how many batches.
        batch_size: inputs in a batch.
        activations: bytes that are kept for one input.

    Returns:
        The longer plan.
    """
    seconds = step_seconds(networks, batch_of(example, batch_size)) * steps
    weights = memory_of({str(number): network for number, network in enumerate(networks)})
    return plan.step(name, seconds=seconds, memory=_OPTIMIZER_COPIES * weights + batch_size * activations)


def _run(network: nn.Module, batch: Any) -> Any:
    # A branched network takes a dict or tuple as one argument.
    return network(batch) if isinstance(network, BranchedNetwork | SeparateNetworks) else call(network, batch)


def _device_of(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def _rate(device: torch.device) -> float:
    """Multiply-adds in a second of a matrix product."""
    matrix = torch.rand(512, 512, device=device)
    seconds_of(lambda: matrix @ matrix, [device])
    return float(512**3 / seconds_of(lambda: matrix @ matrix, [device]))
