"""BatchNorm statistics estimated again, for modules that see other features than those that they were trained on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn

from branchnet.errors import BuildError
from branchnet.utils.installed_torch.torch_internals import BatchNormBase
from branchnet.utils.modes import mode_of


def estimate_batchnorm(network: nn.Module, modules: Sequence[nn.Module], inputs: Iterable[Any]) -> int:
    """Replace the running statistics inside `modules` by the mean over batches of inputs, each of at least two samples.

    BatchNorm that tracing turned into operators of a stage's graph cannot be estimated; a warning counts those layers.

    Args:
        network: the network that is run; its modes are restored.
        modules: what to estimate in: nodes and heads of it.
        inputs: batches; each is read once.

    Returns:
        the number of BatchNorm layers that were estimated.

    Raises:
        BuildError: no inputs.
    """
    layers = [m for module in modules for m in module.modules() if isinstance(m, BatchNormBase)]
    layers = [layer for layer in dict.fromkeys(layers) if layer.running_mean is not None]
    statistics = sum(name.endswith("running_mean") for module in modules for name, _ in module.named_buffers())
    if statistics > len(layers):
        message = f"{statistics - len(layers)} BatchNorm layers were traced into their stages and keep their statistics"
        warnings.warn(f"{message}; training adapts them", stacklevel=3)
    if not layers:
        return 0
    batches = iter(inputs)
    first = next(batches, None)
    if first is None:
        raise BuildError(
            "there are no inputs to estimate BatchNorm statistics on; expected batches of two samples or more"
        )
    momenta = [layer.momentum for layer in layers]
    with torch.no_grad(), mode_of(network, training=False):
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # PyTorch's word for a cumulative mean: all batches weigh the same
                layer.train()  # the BatchNorm layers alone: Dropout and the like stay in eval mode
            for batch in chain([first], batches):
                network(batch)
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    return len(layers)
