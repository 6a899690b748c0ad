"""Running a network in evaluation mode, or in training mode, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def mode_of(network: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Switch `network` to evaluation (or training) inside; outside, every module has the mode that it had before.

    Modes are switched by `train()`, as some layers do more then than set a flag: they merge weights, or stay frozen.

    Args:
        network: any module.
        training: the mode inside.

    Yields:
        Nothing.
    """
    before = [(module, module.training) for module in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        try:
            for module, mode in before:  # from the network inwards: most are back after its own call
                if module.training != mode:
                    module.train(mode)
        finally:
            for module, mode in before:
                module.training = mode
