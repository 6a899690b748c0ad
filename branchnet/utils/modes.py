"""Running a network in one mode for a while: every module gets its own mode back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode inside, by its own `eval()`, and back by each module's own `train()`.

    Some layers do more then than set a flag: adapters merge their weights, for example.

    Args:
        network: any module.

    Yields:
        Nothing; afterwards every module has the mode that it had before.
    """
    with _restored_modes(network) as modes:
        network.eval()
        try:
            yield
        finally:
            for module, mode in modes:  # from the network inwards: most have theirs back after its own call
                if module.training != mode:
                    module.train(mode)


@contextmanager
def mode_of(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Set the mode of a network and of all modules below it inside, past any `train()` of theirs.

    A module may override `train()` to keep frozen BatchNorm in evaluation mode, or to refuse training; what is traced
    or measured needs the mode that was asked for.

    Args:
        network: any module.
        training: the mode.

    Yields:
        Nothing; afterwards every module has the mode that it had before.
    """
    with _restored_modes(network):
        for module in network.modules():
            module.training = training
        yield


@contextmanager
def _restored_modes(network: nn.Module) -> Iterator[list[tuple[nn.Module, bool]]]:
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield modes
    finally:
        # Not by `train()`, which would set the children as well.
        for module, mode in modes:
            module.training = mode
