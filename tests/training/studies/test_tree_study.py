import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import mse_loss

import branchnet
from branchnet import Tree
from branchnet.errors import DataError, TrainingError
from branchnet.training import r_squared
from tests.training.studies.small_study import ARMS, TASKS, network, rows, settings


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return branchnet.compare(ARMS, dict.fromkeys(TASKS, network), folder=folder, **settings()), folder


def test_every_tree_is_trained_under_every_seed(study):
    found, _ = study
    assert len(found.runs) == (1 + 1 + 1 + 2) * 2
    assert {(run.arm, run.number, run.seed) for run in found.runs} == {
        (arm, k, seed) for arm, trees in found.arms.items() for k in range(trees) for seed in (0, 1)
    }
    assert found.reference == "separate"


def test_a_run_is_what_building_and_training_by_hand_gives(study):
    found, _ = study
    run = next(run for run in found.runs if run.arm == "found" and run.seed == 1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        networks = {task: network() for task in TASKS}
    train, test = rows()
    with pytest.warns(UserWarning, match="features of another network"):
        branched = branchnet.build(ARMS["found"], networks, example=train[0][:2], locations=["1", "3"])
    losses = dict.fromkeys(TASKS, mse_loss)
    branchnet.fit(branched, train, losses, steps=8, learning_rate=1e-2, keep="last", seed=1, progress=False)
    assert branchnet.evaluate(branched, *test, settings()["metrics"]) == run.metrics


def test_random_trees_have_the_first_trees_widths_and_are_others(study):
    found, _ = study
    trees = {Tree(TASKS, json.loads(run.tree)) for run in found.runs if run.arm == "random"}
    assert len(trees) == 2 and ARMS["found"] not in trees
    assert {tree.widths for tree in trees} == {ARMS["found"].widths}


def test_paired_differences_are_those_of_scipy(study):
    found, _ = study
    single = found.values("separate")[:, 0]
    other = found.values("shared")[:, 0]
    paired = found.paired("shared", "separate")
    for k, task in enumerate(TASKS):
        wanted = stats.ttest_rel(other[:, k], single[:, k]).confidence_interval(0.95)
        assert (paired.points[task].low, paired.points[task].high) == pytest.approx((wanted.low, wanted.high))
        assert paired.percent[task].mean == pytest.approx(100 * paired.points[task].mean / abs(single[:, k].mean()))
    assert paired.delta.mean == pytest.approx(np.mean([paired.percent[task].mean for task in TASKS]))
    swapped = found.paired("separate", "shared")
    assert swapped.delta.mean == pytest.approx(-paired.delta.mean)
    assert swapped.beaten == 1 - paired.beaten
    assert found.tree_deltas("random").mean() == pytest.approx(found.delta("random").mean)


def test_the_table_and_the_verdict_name_every_arm(study):
    found, _ = study
    text = found.table() + found.verdict("found")
    assert all(arm in text for arm in ARMS)
    assert "found against random" in found.verdict("found")
    with pytest.raises(TrainingError, match=r"no arm 'best'.*found"):
        found.paired("best", "found")


def test_the_same_call_trains_nothing_again(study):
    found, folder = study
    times = {file: file.stat().st_mtime_ns for file in (folder / "runs").glob("*.json")}
    again = branchnet.compare(ARMS, dict.fromkeys(TASKS, network), folder=folder, **settings())
    assert again == found
    assert {file: file.stat().st_mtime_ns for file in (folder / "runs").glob("*.json")} == times


@pytest.mark.parametrize("change", [{"steps": 9}, {"seeds": [0, 2]}, {"learning_rate": 1e-3}, {"locations": ["1"]}])
def test_a_folder_holds_one_study(study, change):
    _, folder = study
    arms = ARMS if "locations" not in change else {"separate": Tree.separate(TASKS, 1)}
    with pytest.raises(
        DataError, match=f"other in .*{'settings' if 'learning_rate' in change else next(iter(change))}"
    ):
        branchnet.compare(arms, dict.fromkeys(TASKS, network), folder=folder, **settings() | change)


def test_settings_are_compared_by_what_they_do(tmp_path):
    """Functions made anew in each process are the same setting, others are not; so is the probe."""
    arms = {"separate": Tree.separate(TASKS, 2)}

    def compared(decay, **given):
        optimizer = lambda groups: torch.optim.SGD(groups, momentum=decay)  # noqa: E731
        call = settings() | {"steps": 1, "seeds": [0], "optimizer": optimizer} | given
        return branchnet.compare(arms, dict.fromkeys(TASKS, network), folder=tmp_path, **call)

    first = compared(0.5)
    assert compared(0.5) == first
    with pytest.raises(DataError, match="other in settings"):
        compared(0.9)
    with pytest.raises(DataError, match="other in samples"):
        compared(0.5, probe=rows()[0][0])


def test_groups_are_trained_with_every_task_of_theirs(tmp_path):
    groups = branchnet.group_by_affinity(torch.rand(3, 3).numpy(), 2, tasks=TASKS)
    arms = {"separate": Tree.separate(TASKS, 2), "groups": groups}
    study = branchnet.compare(arms, dict.fromkeys(TASKS, network), folder=tmp_path, **settings() | {"seeds": [0]})
    run = study.runs[1]
    assert run.arm == "groups" and set(run.metrics) == set(TASKS)
    assert run.widths == (len(groups.groups),) * 2


def test_a_damaged_result_is_named(study, tmp_path):
    _, folder = study
    file = sorted((folder / "runs").glob("*.json"))[0]
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    try:
        with pytest.raises(DataError, match=f"{file.name} is damaged"):
            branchnet.compare(ARMS, dict.fromkeys(TASKS, network), folder=folder, **settings())
    finally:
        file.write_text(whole)


def test_trained_networks_are_stitched_and_distilled_without_labels(tmp_path):
    torch.manual_seed(0)
    train, test = rows()
    networks = {task: network().eval() for task in TASKS}
    arms = {"shared": Tree.shared(TASKS, 2), "separate": Tree.separate(TASKS, 2)}
    given = settings() | {"losses": None, "steps": 2, "probe": train[0], "seeds": [0], "keep": "best"}
    given["test"] = (test[0], {task: own(test[0]).detach() for task, own in networks.items()})
    study = branchnet.compare(arms, networks, folder=tmp_path, **given)
    assert study.values("separate").min() == pytest.approx(1)  # step 0 is kept, whose outputs are the networks' own
    assert study.values("shared").min() < 1


@pytest.mark.parametrize(
    ("arms", "networks", "change", "message"),
    [
        ({}, network, {}, "nothing to compare"),
        ({"found": Tree.shared(["sum"], 2)}, network, {}, "tree of"),
        ({"random": 3}, network, {}, "a tree before it"),
        ({"shared": Tree.shared(TASKS, 2), "random": 3}, network, {}, "0 other trees"),
        ({"shared": "yes"}, network, {}, "expected a tree"),
        (ARMS, network, {"losses": None}, "teach nothing"),
        (ARMS, network, {"metrics": {"sum": r_squared()}}, "the same tasks"),
        (ARMS, network, {"seeds": []}, "one or more"),
        (ARMS, network, {"example": None}, "example="),
        (ARMS, network, {"learning_rate": 1e30}, "found, tree 0, seed 0: "),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, arms, networks, change, message):
    with pytest.raises(TrainingError, match=message):
        branchnet.compare(arms, dict.fromkeys(TASKS, networks), folder=tmp_path, **settings() | change)


@pytest.mark.slow
def test_processes_share_a_folder_and_a_killed_ones_runs_are_done_by_others(tmp_path):
    script = [sys.executable, "-m", "tests.training.studies.small_study", str(tmp_path)]
    place = {"cwd": Path(__file__).parents[3], "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    killed = subprocess.Popen(script, **place)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("runs/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    others = [subprocess.Popen(script, **place) for _ in range(2)]
    assert [process.wait(timeout=200) for process in others] == [0, 0]
    alone = branchnet.compare(ARMS, dict.fromkeys(TASKS, network), folder=tmp_path / "alone", **settings())
    shared = branchnet.compare(ARMS, dict.fromkeys(TASKS, network), folder=tmp_path, **settings())
    for one, other in zip(alone.runs, shared.runs, strict=True):
        assert (one.arm, one.number, one.seed, one.metrics) == (other.arm, other.number, other.seed, other.metrics)


def test_a_study_is_drawn(study):
    figure = branchnet.plot(study[0])
    texts = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert texts[0] == "found" and "random (2 trees)" in texts and texts.count("sum") == 3
