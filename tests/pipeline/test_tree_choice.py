"""The tree of a run: every proposal within the budget, each measured as by hand, the best one taken, all of it kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import branchnet
from branchnet import Affinity, RunResult, Tree
from branchnet.affinity.probes import read_probe
from branchnet.builder.stitches.top_down_fit import stitch_donors
from branchnet.errors import DataError, SpecError
from branchnet.pipeline import steps
from branchnet.pipeline.config.run_config import RunOptions
from branchnet.pipeline.problem import divide, set_aside
from branchnet.pipeline.search_inputs import replicates_of
from branchnet.pipeline.tree_choice import choosing
from branchnet.pipeline.tree_choice.choosing import Choice
from branchnet.pipeline.tree_choice.proposals import Proposal
from branchnet.training import History

TASKS = ("c", "a", "b", "d")
BUDGET = "72% params"
LOCATIONS = ["3", "7"]
STITCH = 12 * 12 + 12
X = torch.randn(240, 6, generator=torch.Generator().manual_seed(0))
OPTIONS: dict[str, Any] = {
    "steps": 0,
    "probe": 160,
    "locations": LOCATIONS,
    "baselines": [],
    "compiled": False,
    "quiet": True,
}


def network(seed: int) -> nn.Module:
    """Two pairs: the second of a pair is the first with a little noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed // 2)
        layers = [nn.Linear(6 if first else 12, 12) for first in (True, False, False, False)]
        made = nn.Sequential(*(module for layer in layers for module in (layer, nn.Tanh())), nn.Linear(12, 2))
        torch.manual_seed(100 + seed)
        for parameter in made.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


NETWORKS = {task: network(seed) for seed, task in enumerate(TASKS)}


def run(**others: Any) -> RunResult:
    return branchnet.run(NETWORKS, X, BUDGET, **OPTIONS | others)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def result(folder: Path) -> RunResult:
    return run(folder=folder)


def test_every_proposal_is_another_tree_within_the_budget_stitches_counted(result: RunResult) -> None:
    staged = branchnet.split_all(NETWORKS, X[:2], locations=LOCATIONS)
    separate = sum(parameter.numel() for net in NETWORKS.values() for parameter in net.parameters())
    trees = [tried.tree for tried in result.measured]
    assert len(trees) == len(set(trees)) > 3
    for tried in result.measured:
        built = branchnet.build(tried.tree, staged, init="donor")
        changes = sum(
            built.donors[stage][built.tree.parents[stage + 1][k]] != donor
            for stage in range(1)
            for k, donor in enumerate(built.donors[stage + 1])
        ) + sum(built.donors[-1][k] != task for k, cluster in enumerate(tried.tree.partitions[-1]) for task in cluster)
        own = sum(parameter.numel() for parameter in built.parameters())
        assert tried.size == own + changes * STITCH <= 0.72 * separate


def test_the_chosen_tree_is_the_one_that_measured_best(result: RunResult) -> None:
    best = min(result.measured, key=lambda tried: tried.mean)
    assert result.tree == result.search.tree == best.tree
    assert result.proposer == best.by and best.by in result.search.why and best.by in str(result)
    assert result.search.cost == pytest.approx(
        branchnet.clustering_cost(best.tree, result.affinity, objective="medoid")
    )


def test_what_was_measured_is_the_unexplained_variance_on_images_set_aside(result: RunResult) -> None:
    """Each tree is stitched again here, and the share of variance computed from all its outputs at once."""
    options = RunOptions.checked(probe=160)
    train, validation = (part.take(torch.arange(part.known_count)).inputs for part in set_aside(divide(X, options)[0]))
    staged = branchnet.split_all(NETWORKS, X[:2], locations=LOCATIONS)
    probe = read_probe(train[:160], 32)
    for tried in result.measured:
        donors = branchnet.builder.choose_donors(tried.tree, result.losses)
        built = branchnet.build(tried.tree, staged, init="donor", donors=donors).eval()
        stitch_donors(built, staged, probe, corrected=False)
        with torch.no_grad():
            for task, net in NETWORKS.items():
                own = net(validation)
                unexplained = (built(validation)[task] - own).square().sum() / (own - own.mean(0)).square().sum()
                assert tried.losses[task] == pytest.approx(float(unexplained), rel=1e-3, abs=1e-7)


def test_predictions_are_the_mean_loss_at_the_last_change_of_donor(result: RunResult) -> None:
    assert result.losses is not None
    for tried in result.measured:
        total = branchnet.clustering_cost(tried.tree, result.losses, objective="stitch")
        assert tried.predicted == pytest.approx(total / len(TASKS))


def test_the_same_run_measures_nothing_again(result: RunResult, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    for name in ("measure_trees", "stitch_affinity"):
        monkeypatch.setattr(choosing, name, again)
    resumed = run(folder=folder)
    assert resumed.to_dict() == result.to_dict()
    assert (resumed.tree.tasks, resumed.measured) == (result.tree.tasks, result.measured)
    assert Affinity.load(folder / "stitch_affinity.npz").values.tolist() == resumed.losses.values.tolist()  # type: ignore[union-attr]
    with pytest.raises(AssertionError, match="measured again"):
        run(folder=folder, kinds={"a": "classification"})


def test_other_budgets_take_up_the_losses_of_the_same_trees_with_their_own_sizes_and_proposers(
    result: RunResult, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def proposed(*given: Any) -> tuple[Proposal, ...]:
        return tuple(Proposal(tried.tree, "the other run", 0.5) for tried in reversed(result.measured))

    monkeypatch.setattr(choosing, "propose_trees", proposed)
    monkeypatch.setattr(choosing, "measure_trees", None)
    other = branchnet.run(NETWORKS, X, "0.1 GFLOPs", folder=folder, **OPTIONS)
    assert {tried.tree: tried.losses for tried in other.measured} == {
        tried.tree: tried.losses for tried in result.measured
    }
    assert {(tried.by, tried.predicted) for tried in other.measured} == {("the other run", 0.5)}
    staged = branchnet.split_all(NETWORKS, X[:2], locations=LOCATIONS)
    shared = next(tried for tried in other.measured if tried.tree == Tree.shared(TASKS, 2))
    built = branchnet.build(shared.tree, staged, init="donor")
    linear = sum(layer.weight.numel() for layer in built.modules() if isinstance(layer, nn.Linear))
    assert shared.size == linear + 3 * 12 * 12  # multiply-adds, those of three stitches among them


def test_other_locations_are_measured_again(result: RunResult, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    def proposed(*given: Any) -> tuple[Proposal, ...]:
        return tuple(Proposal(tried.tree, tried.by) for tried in result.measured)

    monkeypatch.setattr(choosing, "propose_trees", proposed)
    monkeypatch.setattr(choosing, "measure_trees", again)
    with pytest.raises(AssertionError, match="measured again"):
        run(folder=folder, locations=["3", "5"])


def test_rsa_alone_takes_the_tree_of_its_search(result: RunResult) -> None:
    alone = run(measure="rsa")
    found = branchnet.search(
        alone.affinity,
        branchnet.split_all(NETWORKS, X[:2], locations=LOCATIONS),
        BUDGET,
        stitch_sizes=[STITCH] * 2,
    )
    assert alone.tree == found.tree and alone.search.cost == found.cost
    assert (alone.measured, alone.losses, alone.proposer) == ((), None, "RSA (medoid)")
    assert alone.affinity.values.tolist() == result.affinity.values.tolist()


def test_a_named_donor_stays_exact_whatever_tree_is_chosen() -> None:
    found = run(donor="d")
    with torch.no_grad():
        assert torch.equal(found.network(X)["d"], NETWORKS["d"](X))


def test_the_objective_of_stitching_losses_is_refused_for_rsa() -> None:
    with pytest.raises(SpecError, match="'stitch' is for stitching losses, which `measure: auto` searches with"):
        run(objective="stitch")


def test_the_run_without_training_reports_stitched_constant_and_unstitched(result: RunResult) -> None:
    names = [network.name for network in result.comparison.networks]
    assert names == ["separate", "branched", "without stitches", "constant"]
    assert Tree.shared(TASKS, 2) in {tried.tree for tried in result.measured}


def test_a_classifier_that_answers_all_test_images_alike_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    constant = network(0)
    with torch.no_grad():
        list(constant.parameters())[-2].zero_()
    with pytest.raises(DataError, match=r"task 'd' cannot be judged by its network's outputs: .* same distribution"):
        branchnet.run(
            NETWORKS | {"d": constant}, X, BUDGET, kinds={"d": "classification"}, folder=tmp_path / "new", **OPTIONS
        )
    assert not (tmp_path / "new").exists()


def test_stability_is_of_the_search_that_counts_stitches(result: RunResult) -> None:
    alone = run(measure="rsa")
    staged = branchnet.split_all(NETWORKS, X[:2], locations=LOCATIONS)
    replicates = replicates_of(alone.affinity)
    counted, plain = (
        branchnet.stability(alone.search, replicates, staged, BUDGET, stitch_sizes=sizes)
        for sizes in ([STITCH] * 2, None)
    )
    assert str(alone.stability) == str(counted) != str(plain)
    assert str(result.stability) == str(counted)


@pytest.mark.parametrize("changed", ["nothing", "locations", "donors"])
def test_trained_weights_are_of_their_locations_and_donors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """The tree is the same each time, and the names and shapes of weights are."""
    trained: list[str] = []
    options = {"folder": tmp_path, "measure": "rsa", "steps": 1}

    def train(*_: object, name: str, **__: object) -> dict[str, History]:
        trained.append(name)
        return {}

    monkeypatch.setattr(steps, "distill_in_two_steps", train)
    shared = Tree.shared(TASKS, 2)
    monkeypatch.setattr(steps, "choose_tree", lambda *given: Choice(replace(given[3], tree=shared), "hand"))
    monkeypatch.setattr(steps, "choose_donors", lambda *_, **__: (("c",), ("a",)))
    run(**options)
    if changed == "donors":
        monkeypatch.setattr(steps, "choose_donors", lambda *_, **__: (("b",), ("a",)))
    run(**options | ({"locations": ["2", "7"]} if changed == "locations" else {}))
    assert trained == ["branched"] * (1 if changed == "nothing" else 2)
