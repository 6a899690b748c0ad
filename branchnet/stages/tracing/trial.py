"""Run a network to see what it does, and leave it as it was: tensors, Python attributes and random states."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def borrow(network: nn.Module) -> nn.Module:
    """A copy of the network's structure that holds the very same parameters, buffers and other tensors.

    Modes and attributes of the copy can be changed without touching the network.
    """
    return copy.deepcopy(network, tensors_of(network))


@contextmanager
def trial(network: nn.Module) -> Iterator[nn.Module]:
    """Lend a structure that may be run and written to at will.

    Its attributes are copies; its tensors are the network's own, so that it needs no other memory than their saved
    values, which are restored afterwards, also after an exception. So are the random states of Python, NumPy and torch.

    Args:
        network: any module.

    Yields:
        the structure, of no use afterwards.
    """
    with saved(network):
        yield borrow(network)


@contextmanager
def saved(network: nn.Module) -> Iterator[None]:
    """Restore afterwards what the network's tensors and the random states are now.

    Args:
        network: any module.

    Yields:
        Nothing.
    """
    tensors = [*tensors_of(network).values()]
    before = [(tensor, tensor.data, tensor.detach().clone()) for tensor in tensors]
    try:
        with random_states_kept(tensors):
            yield
    finally:
        for tensor, memory, value in before:
            _restore(tensor, memory, value)


@contextmanager
def random_states_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restore afterwards the random states of Python, NumPy and torch, there of the CPU and of these tensors' GPUs.

    Args:
        tensors: of a network.

    Yields:
        Nothing.
    """
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=_gpus(tensors)):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def random_states(tensors: Iterable[Tensor]) -> bytes:
    """The random states of Python, NumPy and torch, there on the CPU and on the GPUs of these tensors, to compare."""
    torchs = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in _gpus(tensors))]
    return pickle.dumps((random.getstate(), np.random.get_state(), [state.tolist() for state in torchs]))  # noqa: NPY002


def seed_random_states(seed: int, tensors: Iterable[Tensor]) -> None:
    """Start Python's, NumPy's and torch's random numbers, those of the CPU and of the GPUs of these tensors, at a seed.

    `torch.manual_seed` would also seed devices whose states nobody has saved.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    for device in _gpus(tensors):
        torch.cuda.default_generators[device].manual_seed(seed)


def _gpus(tensors: Iterable[Tensor]) -> list[int]:
    return sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})


def _restore(tensor: Tensor, memory: Tensor, value: Tensor) -> None:
    if not _same_memory(tensor, memory):
        tensor.data = memory
    if tensor.is_meta or (tensor.layout == torch.strided and torch.equal(tensor.detach(), value)):
        return
    # Past autograd: for a graph that someone holds, this tensor has not changed.
    tensor.data.copy_(value)


def _same_memory(tensor: Tensor, memory: Tensor) -> bool:
    if tensor.shape != memory.shape or tensor.dtype != memory.dtype or tensor.layout != torch.strided:
        return False
    return tensor.stride() == memory.stride() and (tensor.is_meta or tensor.data_ptr() == memory.data_ptr())


def tensors_of(network: nn.Module) -> dict[int, Tensor]:
    """The tensors that the modules hold, by identity: parameters, buffers, and attributes or lists of them."""
    tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    for module in network.modules():
        for value in vars(module).values():
            held = value if isinstance(value, list | tuple) else (value,)
            tensors |= {id(one): one for one in held if isinstance(one, Tensor)}
    return tensors
