"""Features of a probe: kept or computed again, they are the same, and no network runs twice on what is kept."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

import branchnet
from branchnet import Tree
from branchnet.affinity.probes import read_probe
from branchnet.builder.stitches import probe_features
from branchnet.builder.stitches.probe_features import OwnFeatures
from branchnet.builder.stitches.top_down_fit import stitch_donors
from branchnet.stitching.probe_division import ProbeDivision, chosen_inputs, divide_probe
from tests.stitching.toys import KINDS, TASKS, inputs, networks

TREES = [Tree(TASKS, [[TASKS], [("a", "b"), ("c",)]]), Tree(TASKS, [[TASKS], [TASKS]])]
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_networks_do_not_depend_on_what_is_kept(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for tree in TREES:
        kept = branchnet.build(tree, networks(kind), init="stitch", probe=inputs(kind, 64)).eval()
        monkeypatch.setattr(probe_features, "KEPT_BYTES", 0)
        again = branchnet.build(tree, networks(kind), init="stitch", probe=inputs(kind, 64)).eval()
        monkeypatch.undo()
        assert kept.initialisation == again.initialisation
        for name, value in kept.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])


def test_each_network_runs_once_on_each_input_for_all_trees() -> None:
    staged = networks("images")
    probe = read_probe(inputs("images", 64), 16)
    own = OwnFeatures(staged, probe, CPU, divide_probe(64, 64))
    seen = dict.fromkeys(TASKS, 0)

    def count(task: str):
        def add(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            seen[task] += len(given[0])

        return add

    handles = [network.stages[0].register_forward_pre_hook(count(task)) for task, network in staged.items()]
    try:
        for tree in TREES:
            stitch_donors(branchnet.build(tree, staged, init="donor").eval(), staged, probe, corrected=False, own=own)
    finally:
        for handle in handles:
            handle.remove()
    looked_at = 3  # three inputs tell where the channels are
    assert seen == {"a": 64, "b": 64 + looked_at, "c": 64 + looked_at}


def test_the_two_parts_are_the_inputs_of_the_division_in_order() -> None:
    x = inputs("vectors", 40)
    own = OwnFeatures(networks("vectors"), read_probe(x, 7), CPU, ProbeDivision((0, 5, 6, 20, 39), (3, 4, 30)))
    for part, numbers in (("fitted", [0, 5, 6, 20, 39]), ("judged", [3, 4, 30])):
        with torch.no_grad():
            batches = list(own.batches(part))  # type: ignore[arg-type]
            assert torch.equal(torch.cat([batch.inputs for batch in batches]), x[numbers])
            found = torch.cat([own.output(batch, "b") for batch in batches])
            torch.testing.assert_close(found, networks("vectors")["b"](x[numbers]))
            first = torch.cat([own.cut(batch, "b", 1)[0] for batch in batches])
            torch.testing.assert_close(first, networks("vectors")["b"].stages[0](x[numbers])[0])


@pytest.mark.parametrize("seed", range(30))
def test_chosen_inputs_come_in_order_and_in_few_batches(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.randint(1, 6)] * draw.randint(1, 8) + [draw.randint(1, 6)]
    count = sum(sizes)
    numbers = sorted(draw.sample(range(count), draw.randint(1, count)))
    rows = torch.arange(count)
    batches = [{"x": part.float(), "pair": (part, torch.tensor(3))} for part in rows.split(sizes)]
    found = list(chosen_inputs(batches, numbers))
    for name, values in (("x", [one["x"] for one in found]), ("pair", [one["pair"][0] for one in found])):
        assert torch.cat(values).tolist() == numbers, name
    taken = [len(one["x"]) for one in found]
    assert max(taken) <= max(sizes) and all(one["pair"][1] == 3 for one in found)
    assert all(sum(neighbours) > sizes[0] for neighbours in pairwise(taken))  # no two would fit into one


@pytest.mark.parametrize(
    "others",
    [
        [torch.zeros(2, 5), torch.zeros(2, 6)],
        [(torch.zeros(2, 5), torch.tensor(1)), (torch.zeros(2, 5), torch.tensor(2))],
        [(torch.zeros(2, 5), None), (torch.zeros(2, 5), "text")],
        [{"a": torch.zeros(2, 5)}, {"b": torch.zeros(2, 5)}],
    ],
)
def test_inputs_of_other_form_are_not_put_together(others: list) -> None:
    assert len(list(chosen_inputs(others, [0, 2]))) == 2
    assert len(list(chosen_inputs([others[0], others[0]], [0, 2]))) == 1
