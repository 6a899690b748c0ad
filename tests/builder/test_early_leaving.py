"""Networks of which some leave the trunk early: split, compared, built, stitched, changed, saved, drawn, timed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import branchnet
from branchnet.builder import add_task, merge_nodes, remove_task, split_node
from branchnet.errors import BuildError, SpecError, SplitError
from branchnet.inference.fusion import FusedNetwork
from branchnet.inference.latency_tables import LatencyTable, predicted_rounds
from branchnet.inference.schedule import make_schedule
from branchnet.reporting.plots.tree_plot import draw_tree, tree_plot_data
from branchnet.stages import split_all
from tests.stages.checks import assert_evaluates_alike, assert_same_keys, assert_trains_alike

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(7))
LOCATIONS = ["b1", "b2", "n1", "n2"]


def layer(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.SiLU())


class Detector(nn.Module):
    """A backbone of two layers, a neck that reads both of them, a head."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.b1, self.b2, self.n1, self.n2 = layer(3, 8), layer(8, 16), layer(24, 16, 1), layer(16, 32)
        self.head = nn.Conv2d(32, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.b1(x)
        second = self.b2(first)
        up = nn.functional.interpolate(second, size=first.shape[-2:])
        return self.head(self.n2(self.n1(torch.cat([first, up], 1))))


class Classifier(nn.Module):
    """The same backbone, and then something else."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.b1, self.b2, self.fc = layer(3, 8), layer(8, 16), nn.Linear(16, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.b2(self.b1(x)).mean((2, 3)))


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"classify": Classifier(5).eval(), "people": Detector(3).eval(), "cars": Detector(4).eval()}


@pytest.fixture(scope="module")
def donors() -> dict[str, nn.Module]:
    return networks()


@pytest.fixture(scope="module")
def staged(donors):
    return split_all(donors, IMAGES, locations=LOCATIONS, depth="auto")


@pytest.fixture
def branched(staged):
    tree = branchnet.Tree.shared(list(staged), 4, {"classify": 2})
    return branchnet.build(tree, staged, init="donor", donors=[["people"]] * 2 + [["classify", "people"]] * 2).eval()


def test_the_others_share_on_where_one_network_ends(donors, staged):
    assert {task: network.depth for task, network in staged.items()} == {"classify": 2, "people": 4, "cars": 4}
    for task, network in staged.items():
        assert network.locations == tuple(LOCATIONS) and len(network.stages) == 4
        assert_same_keys(donors[task], network)
        for size in (32, 48):
            inputs = torch.randn(3, 3, size, size)
            assert_evaluates_alike(donors[task], network, inputs)
            assert_trains_alike(donors[task], network, inputs)
        assert network.costs == staged["people"].costs and network.costs.depths == {"classify": 2}
    own = sum(p.numel() for p in donors["classify"].parameters())
    assert sum(staged["classify"].costs.params[:2]) + staged["classify"].head_cost.params == own
    shared = split_all(donors, IMAGES)
    assert shared["people"].first_difference.shareable < 0.4 < 0.9 < staged["people"].first_difference.shareable


def test_places_are_chosen_before_exits_too(donors):
    staged = split_all(donors, IMAGES, depth="auto")
    depth = staged["classify"].depth
    assert 0 < depth < staged["people"].depth == len(staged["people"].locations)
    assert staged["classify"].locations[depth - 1].startswith("b2")
    two = split_all(donors, IMAGES, locations=2, depth="auto")
    assert two["classify"].depth == 1 and len(two["people"].locations) == 2


def test_without_it_all_pass_all_stages(donors):
    assert {network.depth for network in split_all(donors, IMAGES).values()} == {3}
    with pytest.raises(SplitError, match="'classify' leaves the trunk before 'n1', the first location"):
        split_all(donors, IMAGES, locations=["n1", "n2"], depth="auto")
    with pytest.raises(SplitError, match="depth is 'deep'; expected one of 'common', 'auto'"):
        split_all(donors, IMAGES, depth="deep")


def test_the_head_hangs_where_the_task_leaves(donors, branched):
    assert [node.id for node in branched.members()] == [
        *(f"nodes.{d}.0" for d in range(2)),
        *(f"nodes.{d}.1" for d in (2, 3)),
        *(f"heads.{k}" for k in range(3)),
    ]
    head = branched.member("heads.0")
    assert branched.parent_of(head) == "nodes.1.0"
    with torch.no_grad():
        outputs = branched(IMAGES)
        assert torch.equal(outputs["people"], donors["people"](IMAGES))
        mixed = copy.deepcopy(donors["classify"])
        mixed.b1, mixed.b2 = donors["people"].b1, donors["people"].b2
        assert torch.equal(outputs["classify"], mixed(IMAGES))
        assert torch.equal(branched(IMAGES, tasks=["classify"])["classify"], outputs["classify"])
        assert torch.equal(branched.path("classify")(IMAGES), outputs["classify"])
    params = sum(p.numel() for p in branched.parameters())
    heads = branched.head_costs
    assert branchnet.clustering.tree_size(branched.tree, branched.costs, head_costs=heads) == params
    branched.train()
    assert all(module.training for module in branched.modules())
    branched.freeze("classify")
    assert branched.frozen == {"nodes.0.0", "nodes.1.0", "heads.0"}


def test_networks_are_compared_and_searched_with_their_heads(staged):
    found = branchnet.rsa(staged, IMAGES)
    assert found.depths == {"classify": 2} and found.values[2, 0].tolist() == [1, 0, 0]
    result = branchnet.search(found, staged, "60% params")
    assert result.tree.depths == {"classify": 2}
    one = branchnet.build(result, staged, init="donor")
    assert sum(p.numel() for p in one.parameters()) == result.size
    separate = sum(sum(p.numel() for p in network.parameters()) for network in staged.values())
    assert result.size <= 0.6 * separate == result.limit


def test_stitches_lead_to_the_head_where_the_task_leaves(donors, staged):
    inputs = torch.randn(100, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    affinity = branchnet.stitch_affinity(staged, inputs)
    assert affinity.depths == {"classify": 2}
    result = branchnet.search(affinity, staged, "75% params", objective="stitch")
    assert alone(result.tree)
    tree = branchnet.Tree.shared(list(staged), 4, {"classify": 2})
    one = branchnet.build(tree, staged, probe=inputs, donors=[["people"]] * 2 + [["classify", "people"]] * 2).eval()
    assert set(one.stitches) == {("nodes.1.0", "heads.0"), ("nodes.3.1", "heads.2")}
    plain = branchnet.build(tree, staged, init="donor", donors=one.donors).eval()
    with torch.no_grad():
        wanted = donors["classify"](inputs)
        errors = [float((each(inputs)["classify"] - wanted).square().mean()) for each in (one, plain)]
    assert errors[0] < errors[1]
    noted = branchnet.build(tree, staged, init="donor", probe=inputs, donors=plain.donors).initialisation.nodes
    assert {n.id: set(n.rsa) for n in noted if n.rsa}["nodes.1.0"] == set(staged)
    own = branchnet.build(tree, staged, probe=inputs, donors=[["classify"]] * 2 + [["classify", "people"]] * 2).eval()
    assert set(own.stitches) == {("nodes.1.0", "nodes.2.1"), ("nodes.3.1", "heads.2")}
    with torch.no_grad():
        assert torch.equal(own(inputs)["classify"], wanted)


def alone(tree: branchnet.Tree) -> bool:
    return tree.depths == {"classify": 2} and all(["classify"] in map(list, stage) for stage in tree.partitions[2:])


def test_means_are_taken_of_those_that_pass(staged):
    related = {task: copy.deepcopy(network) for task, network in staged.items()}
    for task, depth in {"cars": 4, "classify": 2}.items():
        for stage in range(depth):
            related[task].stages[stage].load_state_dict(related["people"].stages[stage].state_dict())
    tree = branchnet.Tree.shared(list(staged), 4, {"classify": 2})
    one = branchnet.build(tree, related, init="mean").eval()
    with torch.no_grad():
        torch.testing.assert_close(one(IMAGES)["people"], related["people"].eval()(IMAGES))
    with pytest.raises(BuildError, match="does not know tasks that leave the trunk early, as classify"):
        branchnet.build(tree, related, init="merge", probe=IMAGES)


def test_trees_must_leave_where_networks_do(staged):
    with pytest.raises(BuildError, match=r"at \{'classify': 3\} in the tree, at \{'classify': 2\} in the networks"):
        branchnet.build(branchnet.Tree.shared(list(staged), 4, {"classify": 3}), staged)
    deep = branchnet.Tree(list(staged), [[list(staged)]] * 3 + [[["classify"], ["people", "cars"]]])
    with pytest.raises(BuildError, match="does not fit the networks: stage 2 joins"):
        branchnet.build(deep, staged)


def test_specifications_say_where_tasks_leave(donors, branched, tmp_path):
    spec = branchnet.Architecture.from_network(branched)
    spec.save(tmp_path / "spec.yaml")
    read = branchnet.Architecture.load(tmp_path / "spec.yaml")
    assert read.tree == branched.tree and read.donors == branched.donors and read.stage_costs.depths == {"classify": 2}
    assert read.roots[0].until == "b2" and read.roots[0].branches[0] == "classify"
    again = read.build(donors, example=IMAGES).eval()
    with torch.no_grad():
        assert torch.equal(again(IMAGES)["classify"], branched(IMAGES)["classify"])
    branchnet.save(branched, tmp_path / "saved")
    loaded = branchnet.load(tmp_path / "saved", donors).eval()
    with torch.no_grad():
        for task, output in loaded(IMAGES).items():
            assert torch.equal(output, branched(IMAGES)[task])


def test_it_can_be_changed(donors, branched):
    with torch.no_grad():
        wanted = branched(IMAGES)
        parts = split_node(branched, "nodes.1.0", [["classify"], ["people", "cars"]])
        assert parts.tree.depths == {"classify": 2} and parts.tree.copies == (1, 2, 1, 1)
        for one in (parts, merge_nodes(parts, "nodes.1.1", "nodes.1.0"), remove_task(branched, "cars")):
            found = one.eval()(IMAGES)
            assert all(torch.equal(found[task], wanted[task]) for task in found)
        assert remove_task(branched, "classify").tree.depths == {}
        more = add_task(branched, "lamps", networks()["cars"], beside="people", until="n1").eval()
        assert more.tree.depths == {"classify": 2} and torch.equal(more(IMAGES)["classify"], wanted["classify"])


def test_it_runs_fused_in_streams_and_exported(branched, tmp_path):
    with torch.no_grad():
        apart = split_node(branched, "nodes.2.1", [["people"], ["cars"]])
        apart = split_node(apart, "nodes.0.0", [["classify"], ["people", "cars"]]).eval()
        wanted = apart(IMAGES)
        for task, output in FusedNetwork(apart, [2, 3])(IMAGES).items():
            torch.testing.assert_close(output, wanted[task], rtol=1e-4, atol=1e-5)
        steps = make_schedule(branched.tree).steps
        assert {step.id for step in steps} == {node.id for node in branched.members()}
        assert next(step.reads for step in steps if step.id == "heads.0") == "nodes.1.0"
        branchnet.export(branched, IMAGES, tmp_path / "one.pt2")
        program = torch.export.load(tmp_path / "one.pt2").module()
        found = program(IMAGES)
        for task, output in branched(IMAGES).items():
            torch.testing.assert_close(found[task], output, rtol=1e-4, atol=1e-5)


def test_latencies_count_no_stages_that_it_does_not_pass(staged, branched):
    table = branchnet.latency_table(staged, IMAGES, compiled=False, repeats=3)
    assert table.depths == {"classify": 2}
    again = LatencyTable.from_dict(table.to_dict())
    shared = branchnet.Tree.shared(list(staged), 4, {"classify": 2})
    sums = sum(row[1] for row in table.costs) + sum(table.head_costs.values())
    assert abs(again.predict(shared) - sums) < 1e-9
    assert abs(again.predict(branchnet.Tree(shared.tasks, shared.partitions)) - sums) < 1e-9
    assert len(predicted_rounds(table, shared).samples) == 3


def test_drawings_and_reports_show_no_empty_nodes(branched):
    plot = tree_plot_data(branched.tree)
    assert [(node.stage, node.tasks) for node in plot.nodes if "classify" in node.tasks][-1][0] == 1
    assert plot.widths == (1, 1, 1, 1)
    draw_tree(plot)
    assert "nodes.2.0" not in str(branchnet.report(branched, IMAGES).to_dict())


def test_specifications_need_a_node_to_the_last_location():
    with pytest.raises(SpecError, match="no node until 'n2', the last location"):
        branchnet.Architecture.create(
            tasks=("a", "b"), locations=("n1", "n2"), tree=({"until": "n1", "branches": ["a", "b"]},)
        )


def test_whole_networks_and_training_know_it(donors, staged):
    matrix = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]])
    groups = branchnet.group_by_affinity(matrix, 2, tasks=list(staged))
    served = branchnet.build(groups, staged, init="donor").eval().served_network()
    assert served.tree.depths == {"classify": 2}
    branchnet.distill(served, donors, IMAGES, steps=2, batch_size=2)
    served.train()(IMAGES)["classify"].sum().backward()
    reached = {node.id for node in served.members() if all(p.grad is not None for p in node.module.parameters())}
    assert {"nodes.0.0", "nodes.1.0", "heads.0"} <= reached
    assert all(output.isfinite().all() for output in served.eval()(IMAGES).values())


def test_a_whole_run_lets_tasks_leave(donors, tmp_path):
    images = branchnet.data.scenes(60, seed=0, size=32).images
    chosen = {"depth": "auto", "locations": LOCATIONS, "steps": 0, "compiled": False, "quiet": True}
    result = branchnet.run(donors, images, "70% params", folder=tmp_path / "out", compare=True, **chosen)
    assert result.network.tree.depths == {"classify": 2}
    assert set(result.network(images[:2])) == set(donors)
    assert {network.name for network in result.comparison.networks} >= {"separate", "branched"}
    assert branchnet.load(tmp_path / "out", donors).tree == result.network.tree
