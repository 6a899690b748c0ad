"""Stitched networks that are changed, frozen, recomputed, grouped: stitches stay where they are right."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.builder.network.module_structure import structure
from branchnet.stitching import AffineMap, Stitch, StitchedStage
from branchnet.training.batchnorm import foreign_modules, reestimate_batchnorm
from branchnet.training.optimization.groups import node_groups
from tests.stitching.toys import KINDS, STITCHED, inputs, networks, stitched


def outputs(branched: BranchedNetwork, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return branched(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["a", "b", "c"])
def test_the_other_outputs_stay_bit_exact_when_a_task_is_removed(kind: str, task: str, tmp_path: Path) -> None:
    branched, x = stitched(kind), inputs(kind)
    before, rest = outputs(branched, x), branched.remove_task(task)
    after = outputs(rest, x)
    assert list(after) == [name for name in "abc" if name != task]
    assert all(torch.equal(after[name], before[name]) for name in after)
    branchnet.save(rest, tmp_path)
    loaded = branchnet.load(tmp_path, {name: networks(kind)[name] for name in rest.tasks})
    assert loaded.donors == rest.donors
    assert all(torch.equal(outputs(loaded, x)[name], before[name]) for name in after)


def test_a_stitch_stays_where_its_donor_is_gone() -> None:
    rest = stitched("vectors").remove_task("a")
    assert rest.donors == (("b",), ("b", "c"))
    assert {edge: (s.source, s.target) for edge, s in rest.stitches.items()} == {
        ("nodes.0.0", "nodes.1.1"): ("a", "c"),
        ("nodes.1.0", "heads.0"): ("a", "b"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_split_nodes_keep_their_stitches_and_outputs(kind: str) -> None:
    branched, x = stitched(kind), inputs(kind)
    before = outputs(branched, x)
    for changed in (
        branched.split_node("nodes.0.0", [["a", "b"], ["c"]]),
        branched.split_node("nodes.1.0", ["a", "b"]),
    ):
        assert len(changed.stitches) == 2
        assert all(torch.equal(after, before[task]) for task, after in outputs(changed, x).items())


def test_merging_takes_out_the_stitches_that_were_fitted_on_other_features() -> None:
    """Nodes c and a as one with a's weights: head c has no stitch, head b keeps its map of a's features."""
    branched, x = stitched("vectors"), inputs("vectors")
    by_a = branched.merge_nodes("nodes.1.0", "nodes.1.1")
    assert list(by_a.stitches) == [("nodes.1.0", "heads.1")]
    for task in "ab":
        assert torch.equal(outputs(by_a, x)[task], outputs(branched, x)[task])
    # With c's weights, head b's map of a's features goes; the stitch in front of c's node stays.
    by_c = branched.merge_nodes("nodes.1.1", "nodes.1.0")
    assert list(by_c.stitches) == [("nodes.0.0", "nodes.1.0")]
    assert torch.equal(outputs(by_c, x)["c"], outputs(branched, x)["c"])
    with torch.no_grad():
        cut = by_c.nodes[1][0](*by_c.nodes[0][0](x))
        assert torch.equal(outputs(by_c, x)["b"], networks("vectors")["b"].head(*cut))
    assert len(branched.stitches) == 2  # the network itself is as it was


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_is_added_beside_a_stitched_one(kind: str) -> None:
    branched, x = stitched(kind), inputs(kind)
    grown = branched.add_task("d", copy.deepcopy(networks(kind)["b"]), beside="c", until="3")
    assert list(grown.stitches) == STITCHED and grown.donors == branched.donors
    before = outputs(branched, x)
    assert all(torch.equal(outputs(grown, x)[task], before[task]) for task in before)


def test_freezing_and_rates_reach_stitches() -> None:
    branched = stitched("images").train()
    branched.freeze("nodes.1.1")
    stitch = branched.stitches[STITCHED[0]]
    assert not stitch.training and not any(tensor.requires_grad for tensor in stitch.parameters())
    trained = {id(tensor) for group in node_groups(branched, 1e-3) for tensor in group.parameters}
    assert {id(tensor) for tensor in branched.stitches[STITCHED[1]].parameters()} <= trained
    branched.unfreeze("nodes.1.1")
    assert all(tensor.requires_grad for tensor in stitch.parameters())


def test_recomputed_stages_give_the_same_gradients() -> None:
    plain, x = stitched("images").train(), inputs("images")
    lean = copy.deepcopy(plain)
    lean.recompute("3")
    for network in (plain, lean):
        sum(output.square().sum() for output in network(x).values()).backward()
    for one, other in zip(plain.parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
        assert one.grad is not None


def test_stitches_of_other_tasks_have_one_structure() -> None:
    def made(source: str, channels: int = 4, dimension: int = 1, r2: float = 0.5) -> nn.Module:
        stage = nn.Conv2d(4, 4, 1)
        return StitchedStage(Stitch(source, "b", {0: AffineMap(4, channels, dimension)}, r2=r2), stage)

    assert structure(made("a")) == structure(made("c", r2=0.1))
    assert structure(made("a")) != structure(made("a", channels=5)) != structure(made("a", dimension=3))


def norm_network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )


@pytest.mark.parametrize("init", ["stitch", "donor"])
def test_statistics_below_a_stitch_are_left_alone(init: str) -> None:
    made = {}
    for seed, task in enumerate("ab"):
        torch.manual_seed(seed)
        made[task] = norm_network()
        made[task].train()(inputs("images", 16))
    cut = branchnet.split_all({task: net.eval() for task, net in made.items()}, inputs("images"), locations=["2", "5"])
    x = inputs("images", 48)
    tree = Tree(["a", "b"], [[["a", "b"]], [["a"], ["b"]]])
    branched = branchnet.build(tree, cut, init=init, probe=x).eval()  # type: ignore[arg-type]
    before = {name: buffer.clone() for name, buffer in branched.named_buffers()}
    assert len(branched.stitches) == (init == "stitch")
    assert len(foreign_modules(branched)) == (0 if init == "stitch" else 2)
    assert reestimate_batchnorm(branched, x) == (0 if init == "stitch" else 1)
    changed = {name for name, buffer in branched.named_buffers() if not torch.equal(buffer, before[name])}
    assert all(name.startswith("nodes.1.1.") for name in changed) and bool(changed) == (init == "donor")
