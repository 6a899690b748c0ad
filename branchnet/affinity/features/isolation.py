"""Side-effect free reading of features: a network leaves this room exactly as it came."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from branchnet.utils.modes import evaluation_mode
from branchnet.utils.random_state import seeded


@contextmanager
def untouched(network: nn.Module, device: torch.device | None = None) -> Iterator[torch.device]:
    """In eval mode, without gradients, on `device` (its own by default) inside; as it was before, outside.

    Training flags, the content and place of parameters and buffers and the random state are put back, also after an
    exception.

    Args:
        network: the network.
        device: where to move it meanwhile.

    Yields:
        The device that it is on.
    """
    place = device if device is not None else device_of(network)
    with evaluation_mode(network), seeded(0, place), torch.no_grad():
        # After eval() and before the way back: layers may merge weights whenever their mode changes.
        before = _State.of(network, place)
        try:
            if device is not None:
                network.to(device)
            yield place
        finally:
            before.restore()


def device_of(network: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU where there is none."""
    for tensor in chain(network.parameters(), network.buffers()):
        return tensor.device
    return torch.device("cpu")


@dataclass(frozen=True)
class _State:
    """What running a network could change, its mode apart.

    Buffers are copied, and so are parameters that stay where they are: some networks normalise their weights in
    `forward`. Others are written to in another place.
    """

    parameters: list[tuple[nn.Parameter, Tensor, Tensor | None]]
    buffers: list[tuple[nn.Module, str, Tensor, Tensor]]

    @classmethod
    def of(cls, network: nn.Module, place: torch.device) -> _State:
        buffers = [
            (module, name, buffer, buffer.clone())
            for module in network.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        parameters = [
            (parameter, parameter.data, parameter.detach().clone() if parameter.device == place else None)
            for parameter in network.parameters()
        ]
        return cls(parameters, buffers)

    def restore(self) -> None:
        for parameter, data, content in self.parameters:
            parameter.data = data
            if content is not None and not torch.equal(data, content):
                data.copy_(content)
        for module, name, buffer, content in self.buffers:
            if not torch.equal(buffer, content):
                buffer.copy_(content)
            module._buffers[name] = buffer
