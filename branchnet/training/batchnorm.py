"""BatchNorm statistics of nodes that are fed by another donor's features, estimated anew from data."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from branchnet.builder import BranchedNetwork
from branchnet.training.inputs import Inputs, batches, count_samples, take
from branchnet.training.modes import evaluation_mode

SAMPLES = 512


def foreign_modules(branched: BranchedNetwork) -> list[nn.Module]:
    """Nodes and heads that do not get their own donor's features: some node above them has another donor."""
    foreign = []
    for node in branched.members():
        stage = int(node.id.split(".")[1]) if node.id.startswith("nodes.") else branched.tree.depth
        path = (donors[branched.tree.cluster_of(node.tasks[0], d)] for d, donors in enumerate(branched.donors[:stage]))
        if any(donor != node.donor for donor in path):
            foreign.append(node.module)
    return foreign


def reestimate_batchnorm(branched: BranchedNetwork, images: Inputs, *, batch_size: int = 64) -> int:
    """Replace the running statistics below foreign features by the mean over batches of up to 512 samples.

    BatchNorm that tracing made a part of a stage's graph cannot be estimated apart; a warning counts those layers.

    Returns:
        the number of BatchNorm layers that were estimated.
    """
    foreign = foreign_modules(branched)
    layers = [m for node in foreign for m in node.modules() if isinstance(m, _BatchNorm)]
    layers = [layer for layer in dict.fromkeys(layers) if layer.running_mean is not None]
    statistics = sum(name.endswith("running_mean") for node in foreign for name, _ in node.named_buffers())
    if statistics > len(layers):
        message = f"{statistics - len(layers)} BatchNorm layers were traced into their stages and keep their statistics"
        warnings.warn(f"{message}; training adapts them", stacklevel=2)
    if not layers:
        return 0
    device = next(branched.parameters()).device
    momenta = [layer.momentum for layer in layers]
    with torch.no_grad(), evaluation_mode(branched):
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # a cumulative mean over the batches
                layer.train()
            for index in batches(min(count_samples(images), SAMPLES), batch_size):
                if len(index) > 1:
                    branched(take(images, index, device))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    return len(layers)
