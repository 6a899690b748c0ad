"""Samples from pinned memory: copied to the GPU beside the computation, they arrive whole and train alike."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import branchnet
from branchnet.data import read_samples
from branchnet.data.collation import placed

X = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.rand(64, 2, generator=torch.Generator().manual_seed(1))


def test_pinned_batches_arrive_whole(cuda: str) -> None:
    loader = DataLoader(TensorDataset(X), 8, num_workers=1, pin_memory=True)
    batches = [batch.inputs for batch in read_samples(loader).batches(1)]
    assert all(batch.is_pinned() for batch in batches)
    there = [placed(batch, torch.device(cuda)) for batch in batches]
    assert torch.equal(torch.cat(there).cpu(), X)


def test_a_pinned_loader_trains_as_one_that_is_not_pinned(device: str) -> None:
    trained = []
    for pinned in (True, False):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(768, 2)).to(device)
        loader = DataLoader(TensorDataset(X, Y), 8, shuffle=True, num_workers=1, pin_memory=pinned)
        branchnet.fit(network, loader, nn.functional.mse_loss, steps=10, progress=False)
        trained.append(network)
    for one, other in zip(*(network.parameters() for network in trained), strict=True):
        torch.testing.assert_close(one, other)
