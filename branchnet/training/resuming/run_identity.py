"""What a run of training is started from, part by part, as hashes: a checkpoint is resumed by the same run only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.data.call_forms import CallForm
from branchnet.data.collation import as_labels, gather, leaves
from branchnet.data.samples import Batch, Samples, Source, read_samples
from branchnet.errors import DataError
from branchnet.stages.interface import call_form
from branchnet.training.resuming.code_hash import code_hash
from branchnet.utils.installed_torch.torch_internals import pytree
from branchnet.utils.random_state import seeded
from branchnet.utils.tensor_digest import checksum

SPREAD = 32
"""Samples that are read of a data set: reading all could take longer than training."""
HASHED_BYTES = 64 * 2**20
"""Of tensors in memory so much is hashed, spread evenly, but at least `SPREAD` samples."""

Identity = Mapping[str, str]
"""Hashes by the names under which an error tells what differs."""


def network_hash(network: nn.Module, frozen: Iterable[str] = ()) -> str:
    """Hash the weights, their names, and which nodes are frozen.

    Args:
        network: before training.
        frozen: ids of frozen nodes.
    """
    state = network.state_dict()
    tensors = checksum((name, tensor.detach().cpu().contiguous()) for name, tensor in state.items())
    return hashlib.sha256(f"{tensors} {sorted(frozen)}".encode()).hexdigest()


def samples_hash(samples: Samples) -> str:
    """Hash a sample that is spread over all, with the labels where they are read along; of loaders the first batch.

    Of a source that gives something else when it is read again under the same seed only the form counts.

    Args:
        samples: what is trained on.
    """
    content = _content(samples)
    if not samples.fixed and _content(samples) != content:
        content = str([(tuple(leaf.shape[1:]), str(leaf.dtype)) for leaf in leaves(_spread(samples).inputs)])
    return hashlib.sha256(f"{samples.kind} {samples.count} {content}".encode()).hexdigest()


def labels_hash(labels: Mapping[str, Any]) -> str:
    """Hash labels that are given for all samples; of large ones rows that are spread evenly.

    Args:
        labels: by task.
    """
    digest = hashlib.sha256()
    for task, given in sorted(labels.items()):
        whole = as_labels(given, CallForm())
        sizes = [leaf.nbytes // max(len(leaf), 1) for leaf in leaves(whole) if leaf.dim()]
        rows = gather(whole, spread(len(given), HASHED_BYTES // max(sum(sizes), 1)))
        digest.update(f"{task} {len(given)} {_tensor_hash(rows)}".encode())
    return digest.hexdigest()


def losses_hash(losses: Mapping[str, Callable[..., Any]]) -> str:
    """Hash the code of each task's loss.

    Args:
        losses: by task.
    """
    return hashlib.sha256(str({task: code_hash(losses[task]) for task in sorted(losses)}).encode()).hexdigest()


def teachers_hash(networks: Mapping[str, nn.Module]) -> str:
    """Hash the kind and the weights of each task's single-task network.

    Args:
        networks: by task.
    """
    found = {task: (type(network).__qualname__, network_hash(network)) for task, network in sorted(networks.items())}
    return hashlib.sha256(str(found).encode()).hexdigest()


def content_hash(module: nn.Module, images: Source, frozen: Iterable[str] = ()) -> str:
    """Hash initial weights, the first samples and the frozen nodes, as checkpoints of version 0.1.0 have it.

    Args:
        module: before training.
        images: the samples, of which the first 8 are read.
        frozen: ids of frozen nodes.
    """
    digest = hashlib.sha256(" ".join(sorted(frozen)).encode())
    samples = read_samples(images, call_form(module))
    with seeded(0):  # random augmentation and shuffling are the same for each start
        first = [leaf for batch in samples.first(8, 8) for leaf in leaves(batch.inputs)]
    for tensor in [*module.state_dict().values(), *first]:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def spread(count: int, most: int) -> Tensor:
    """Numbers from 0 to count - 1, evenly spread, the first and the last among them: `most`, but at least `SPREAD`."""
    return torch.linspace(0, count - 1, min(count, max(most, SPREAD)), dtype=torch.float64).round().long()


def _content(samples: Samples) -> str:
    batch = _spread(samples)
    return _tensor_hash((batch.inputs, batch.labels))


def _spread(samples: Samples) -> Batch:
    """By one seed: augmentation and shuffling are the same for each start."""
    if not samples.by_number:
        if (batch := next(samples.first(SPREAD, SPREAD, seed=0), None)) is None:
            raise DataError("the samples gave no batch; expected an iterable that starts again each time")
        return batch
    most = SPREAD
    if samples.kind == "memory":
        size = sum(leaf.nbytes for leaf in leaves(samples.source)) // samples.known_count
        most = HASHED_BYTES // max(size, 1)
    with seeded(0):
        return samples.take(spread(samples.known_count, most))


def _tensor_hash(tree: Any) -> str:
    found, form = pytree.tree_flatten(tree)
    tensors = [(str(k), leaf.detach().cpu().contiguous()) for k, leaf in enumerate(found) if isinstance(leaf, Tensor)]
    others = [leaf for leaf in found if not isinstance(leaf, Tensor)]
    return hashlib.sha256(f"{form} {others} {checksum(tensors)}".encode()).hexdigest()
