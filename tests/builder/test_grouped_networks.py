"""Selections of whole networks against chains composed by hand: every task of a set is there, each is served once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor

import branchnet
from branchnet import Architecture
from branchnet.builder import GroupedNetworks, merge_nodes, remove_task, replicate, split_node
from branchnet.builder.network.surgery import keep_tasks
from branchnet.clustering import Grouping, Selection
from branchnet.deploy.checkpoint_metadata import separate_records
from branchnet.errors import BuildError, CheckpointError, SpecError
from branchnet.inference import compiler_problem, prepare
from branchnet.specification import GroupedArchitecture
from tests.builder.toys import KINDS, images, networks, split_networks

TASKS = tuple(KINDS)
A, B, C, D = TASKS
SETS = ({A: 0.1, B: 0.2}, {B: 0.5, C: 0.3, D: 0.4})


def selection() -> Selection:
    """Networks of a, b and of b, c, d; b is served by the first and trained along in the second."""
    return branchnet.select_networks([*SETS, {A: 9.0}], [1, 1, 1], 2)


def by_hand(donor: str, task: str, x: Tensor) -> Tensor:
    staged = split_networks()
    cut: tuple[Tensor, ...] = (x,)
    for stage in staged[donor].stages:
        cut = stage(*cut)
    return staged[task].head(*cut)  # type: ignore[no-any-return]


def test_a_selection_builds_the_networks_that_were_measured() -> None:
    grouped = branchnet.build(selection(), split_networks(), init="donor")
    assert isinstance(grouped, GroupedNetworks)
    assert [set(network.tasks) for network in grouped.networks] == [set(one) for one in SETS]
    assert grouped.serving == {A: 0, B: 0, C: 1, D: 1}
    x = images()
    found = grouped(x)
    assert tuple(found) == TASKS
    for task, donor in {A: A, B: A, C: B, D: B}.items():  # the first task of a set gives the weights
        torch.testing.assert_close(found[task], by_hand(donor, task, x), rtol=0, atol=0)
    torch.testing.assert_close(grouped.networks[1](x)[B], by_hand(B, B, x), rtol=0, atol=0)


def test_only_the_serving_network_runs_and_only_the_served_tasks() -> None:
    grouped = branchnet.build(selection(), split_networks(), init="donor")
    ran: list[int] = []
    for number, network in enumerate(grouped.networks):
        for head in network.heads:
            head.register_forward_hook(lambda *_, number=number: ran.append(number))
    assert tuple(grouped(images(), tasks=[D, B])) == (B, D)
    assert ran == [0, 1]
    ran.clear()
    grouped(images())
    assert ran == [0, 0, 1, 1]
    with pytest.raises(BuildError, match="smell"):
        grouped(images(), tasks=["smell"])


def test_every_network_trains_its_auxiliary_tasks_and_no_other_network() -> None:
    grouped = branchnet.build(selection(), split_networks(), init="donor").train()
    sum(output.square().mean() for output in grouped.networks[1](images()).values()).backward()
    assert all(parameter.grad is not None for parameter in grouped.networks[1].parameters())
    assert all(parameter.grad is None for parameter in grouped.networks[0].parameters())
    pointers = [{p.data_ptr() for p in network.parameters()} for network in grouped.networks]
    assert not pointers[0] & pointers[1]


def test_a_grouping_builds_alike() -> None:
    effects = np.array([[0, 0.5, -1, -1], [0.4, 0, 0.3, -1], [-1, -1, 0, 0.6], [-1, -1, 0.2, 0]])
    found = branchnet.group_by_affinity(effects, 3, tasks=TASKS)
    grouped = branchnet.build(found, split_networks(), init="random", seed=3)
    assert [frozenset(network.tasks) for network in grouped.networks] == list(found.groups)
    assert grouped.tasks == TASKS
    assert all(found.groups[index] >= {task} for task, index in grouped.serving.items())
    assert found.score == pytest.approx(
        np.mean([np.mean([effects[TASKS.index(o), TASKS.index(t)] for o in found.groups[found.assignment[t]] - {t}])
                 for t in TASKS])
    )  # fmt: skip


def test_what_does_not_fit_is_refused() -> None:
    staged = split_networks()
    with pytest.raises(BuildError, match=f"tasks \\['{D}'\\] without a network"):
        branchnet.build(selection(), {task: staged[task] for task in (A, B, C)}, init="donor")
    with pytest.raises(BuildError, match="expected donors=None"):
        branchnet.build(selection(), staged, donors=((A,),), init="donor")
    grouping = Grouping((frozenset((A, B)),), {A: 0, B: 0}, 0.0)
    network = branchnet.build(grouping, staged, init="donor").networks[0]
    with pytest.raises(BuildError, match="served by network 1"):
        GroupedNetworks([network], {A: 1})
    with pytest.raises(BuildError, match="served by network 0"):
        GroupedNetworks([network], {C: 0})


def serving_outputs(grouped: GroupedNetworks, x: Tensor) -> dict[str, Tensor]:
    """What the plain sum of the networks gives: each network run whole, and of each task the one that serves it."""
    with torch.no_grad():
        whole = [network(x) for network in grouped.networks]
    return {task: whole[k][task] for task, k in grouped.serving.items()}


def equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0) -> None:
    assert list(found) == list(expected)
    for task, output in expected.items():
        torch.testing.assert_close(found[task], output, rtol=tolerance, atol=tolerance)


def test_the_served_network_is_the_networks_without_auxiliary_tasks() -> None:
    grouped = branchnet.build(selection(), split_networks(), init="donor").eval()
    served, x = grouped.served_network(), images()
    equal(served(x), serving_outputs(grouped, x))
    assert served.tree == branchnet.Tree.grouped([(A, B), (C, D)], 5)
    assert all(node.donor in node.tasks for node in served.members())
    own = {p.data_ptr() for p in grouped.networks[1].heads[0].parameters()}  # the auxiliary task's
    assert {p.data_ptr() for p in served.parameters()} == {p.data_ptr() for p in grouped.parameters()} - own
    grouped.networks[1].freeze("nodes.0.0", C)
    grouped.train()
    frozen = grouped.served_network()
    expected = {f"nodes.{d}.1" for d in range(5)} | {"heads.2"}
    assert frozen.frozen == expected
    assert not frozen.member("nodes.0.1").module.training and frozen.member("nodes.0.0").module.training


def test_saved_networks_are_loaded_with_their_auxiliary_tasks(tmp_path: Path) -> None:
    grouped, x = branchnet.build(selection(), split_networks(), init="donor").eval(), images()
    grouped.networks[1].freeze(D)
    branchnet.save(grouped, tmp_path / "net")
    loaded = branchnet.load(tmp_path / "net")
    assert isinstance(loaded, GroupedNetworks) and loaded.serving == grouped.serving and loaded.tasks == grouped.tasks
    assert loaded.networks[1].frozen == grouped.networks[1].frozen
    assert loaded.networks[0].initialisation == grouped.networks[0].initialisation
    for one, other in zip(grouped.networks, loaded.networks, strict=True):
        equal(other(x), one(x))
    branchnet.save(loaded, tmp_path / "again")
    pair = [tmp_path / name / "weights.safetensors" for name in ("net", "again")]
    assert pair[0].read_bytes() == pair[1].read_bytes()


def test_damaged_and_exchanged_files_are_refused(tmp_path: Path) -> None:
    grouped = branchnet.build(selection(), split_networks(), init="donor")
    branchnet.save(grouped, tmp_path)
    content = bytearray((tmp_path / "weights.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or was changed"):
        branchnet.load(tmp_path)
    branchnet.save(grouped, tmp_path)
    tensors = load((tmp_path / "weights.safetensors").read_bytes())  # a mapped file must not be written
    for text in ("[", "{}", '["x"]', "[1, 2]", "[" * 100_000):
        with pytest.raises(CheckpointError, match="the weights' metadata are not"):
            separate_records(text, 2)
    save_file(tensors, tmp_path / "weights.safetensors", metadata={"branchnet": '["{}", "{}"]'})
    with pytest.raises(CheckpointError, match="are not a valid record"):
        branchnet.load(tmp_path)
    save_file(tensors, tmp_path / "weights.safetensors")
    equal(branchnet.load(tmp_path)(images()), serving_outputs(grouped.eval(), images()))
    branchnet.save(grouped.networks[0], tmp_path / "one")
    (tmp_path / "one" / "architecture.yaml").write_bytes((tmp_path / "architecture.yaml").read_bytes())
    with pytest.raises(CheckpointError, match="does not fit"):
        branchnet.load(tmp_path / "one")
    with pytest.raises(CheckpointError, match="expected one whose groups serve"):
        branchnet.save(grouped, tmp_path / "one", architecture=Architecture.from_network(grouped.networks[0]))
    with pytest.raises(CheckpointError, match="describes several networks"):
        branchnet.save(grouped.networks[0], tmp_path, architecture=GroupedArchitecture.from_networks(grouped))


def test_the_exported_file_serves_every_task(tmp_path: Path) -> None:
    grouped, x = branchnet.build(selection(), split_networks(), init="donor").eval(), images()
    exported = branchnet.export(grouped, x, tmp_path / "net.pt2")
    assert exported.outputs == TASKS
    equal(dict(torch.export.load(exported.model).module()(x)), serving_outputs(grouped, x), 1e-5)
    assert Architecture.load(exported.specification).tasks == TASKS


def test_the_report_counts_what_serves() -> None:
    grouped, x = branchnet.build(selection(), split_networks(), init="donor").eval(), images()
    costs = branchnet.report(grouped, x, latency=False).costs
    auxiliary = sum(p.numel() for p in grouped.networks[1].heads[0].parameters())
    assert costs.params == sum(p.numel() for p in grouped.parameters()) - auxiliary
    alone = [branchnet.report(keep_tasks(n, own), x, latency=False).costs for n, own in
             zip(grouped.networks, ((A, B), (C, D)), strict=True)]  # fmt: skip
    assert costs.flops == sum(one.flops for one in alone)
    assert set(branchnet.report(grouped, x, repeats=1).latencies) == {"branched"}


def test_a_prepared_and_a_compiled_network_serve_every_task() -> None:
    grouped, x = branchnet.build(selection(), split_networks(), init="donor").eval(), images()
    prepared = prepare(grouped, fold_batchnorm=True)
    assert isinstance(prepared, branchnet.BranchedNetwork)
    equal(prepared(x), serving_outputs(grouped, x), 1e-4)
    if compiler_problem("cpu"):
        pytest.skip("no compiler")
    effects = [[0.0, 0.5, -0.2], [0.4, 0.0, -0.1], [-0.3, -0.2, 0.0]]
    plain = {task: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)) for task in "abc"}
    small = branchnet.build(
        branchnet.group_by_affinity(effects, 2, tasks=list("abc")), plain, example=torch.zeros(2, 4), locations=["0"],
        init="donor",
    ).eval()  # fmt: skip
    y = torch.rand(3, 4)
    equal(branchnet.compile(small, y)(y), serving_outputs(small, y), 1e-5)


def test_what_cannot_be_meant_is_refused_by_name() -> None:
    grouped = branchnet.build(selection(), split_networks(), init="donor")
    for change in (lambda: remove_task(grouped, A), lambda: merge_nodes(grouped, "nodes.0.0", "nodes.0.1"),
                   lambda: split_node(grouped, "nodes.0.0", [[A], [B]]), lambda: replicate(grouped)):  # fmt: skip
        with pytest.raises(BuildError, match=r"GroupedNetworks; expected a BranchedNetwork: one of grouped\.networks"):
            change()
    with pytest.raises(SpecError, match=r"GroupedArchitecture\.from_networks describes grouped ones"):
        Architecture.from_network(grouped)
    with pytest.raises(CheckpointError, match=r"is a Linear; expected what branchnet\.build returned"):
        branchnet.save(torch.nn.Linear(2, 2), "nowhere")
    other = branchnet.build(
        branchnet.Tree.shared([C], 1), {C: networks((C,))[C]}, example=images(), locations=["layer1"], init="donor"
    )
    with pytest.raises(BuildError, match="expected the same locations in all of them"):
        GroupedNetworks([grouped.networks[0], other], {A: 0, C: 1})


def test_a_specification_of_groups_reads_back_and_names_its_problems(tmp_path: Path) -> None:
    grouped = branchnet.build(selection(), split_networks(), init="donor")
    described = GroupedArchitecture.from_networks(grouped)
    described.save(tmp_path / "groups.yaml")
    assert GroupedArchitecture.load(tmp_path / "groups.yaml") == described
    assert described.tasks == TASKS
    built = described.build()
    assert built.serving == grouped.serving
    assert [n.tree for n in built.networks] == [n.tree for n in grouped.networks]
    both = [group.architecture for group in described.groups]
    with pytest.raises(SpecError, match="unknown task 'depth'"):
        GroupedArchitecture.of(both, [[A, B], [C, D, A]])
    with pytest.raises(SpecError, match="'edges' is served by group 0, too"):
        GroupedArchitecture.of(both, [[A, B], [B, C, D]])
    with pytest.raises(SpecError, match="no group serves a task"):
        GroupedArchitecture.of(both, [[], []])
    text = (tmp_path / "groups.yaml").read_text()
    (tmp_path / "bad.yaml").write_text(text.replace("serves: [depth, edges]", "serves: [depth, edges, smell]"))
    with pytest.raises(SpecError, match=r"bad.yaml:\d+:\d+: groups\[0\]\.serves\[2\]: unknown task 'smell'"):
        GroupedArchitecture.load(tmp_path / "bad.yaml")
    with pytest.raises(SpecError, match="unknown tasks"):
        described.build({"smell": torch.nn.Linear(1, 1)})
