"""CUDA graphs: outputs that the caller keeps are not overwritten, and are those of the network run eagerly."""

from __future__ import annotations

import pytest
import torch

import branchnet
from tests.gpu.toys import assert_close, branched, images

CALLS = [(batch, tasks) for batch in (1, 2, 4) for tasks in (None, ["scene", "depth"])]


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_outputs_kept_by_the_caller_survive_later_calls(cuda: str, mode: str) -> None:
    network = branched().to(cuda)
    x = images().to(cuda)
    compiled = branchnet.compile(network, x, mode=mode)
    for _ in range(3):  # warm-up, recording, replay
        compiled(x)
    kept = compiled(x)
    before = {task: value.clone() for task, value in kept.items()}
    for seed in range(1, 4):
        compiled(images(seed=seed).to(cuda))
    assert all(torch.equal(kept[task], value) for task, value in before.items())
    with torch.no_grad():
        assert_close(kept, network(x))


def test_outputs_that_are_not_copied_lie_in_the_memory_of_the_graph(cuda: str) -> None:
    """Otherwise the test above could not fail: without the copy the next call writes to the same place."""
    compiled = branchnet.compile(branched().to(cuda), images().to(cuda), mode="reduce-overhead", copy_outputs=False)
    places = []
    for seed in range(6):
        outputs = compiled(images(seed=seed).to(cuda))
        places.append(outputs["scene"].data_ptr())
        del outputs
    assert len(set(places[-3:])) == 1


def test_kept_outputs_of_other_sizes_and_tasks_survive(cuda: str) -> None:
    network = branched().to(cuda)
    compiled = branchnet.compile(network, images().to(cuda), mode="reduce-overhead")
    inputs = {batch: images(batch, seed=batch).to(cuda) for batch in (1, 2, 4)}
    kept = [[compiled(inputs[batch], tasks) for batch, tasks in CALLS] for _ in range(4)]
    with torch.no_grad():
        for outputs in kept:
            for (batch, tasks), found in zip(CALLS, outputs, strict=True):
                assert_close(found, network(inputs[batch], tasks))


def test_weights_changed_in_place_and_replaced_count_at_the_next_call(cuda: str) -> None:
    network = branched().to(cuda)
    x = images().to(cuda)
    compiled = branchnet.compile(network, x, mode="reduce-overhead")
    for change in ("none", "in place", "replaced"):
        weight = next(network.heads[0].parameters())
        with torch.no_grad():
            if change == "in place":
                weight.mul_(2)
            elif change == "replaced":
                weight.data = weight.data * 3
            expected = network(x)
        for _ in range(4):
            assert_close(compiled(x), expected)
