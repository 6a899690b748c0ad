"""Stitching losses through the verbs: measured, searched with their directions, and tried by `run`."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import branchnet
from branchnet import Affinity, Architecture, Tree
from branchnet.cli import main
from branchnet.data import scenes
from branchnet.stages import StagedNetwork
from tests.cli.toys import SIZE, TASKS, Walker, make_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config that knows a classifier, its locations, and stitching losses."""
    folder = make_folder(tmp_path_factory.mktemp("stitching"))
    config = yaml.safe_load((folder / "run.yaml").read_text())
    config["networks"]["count"]["arguments"]["outputs"] = 4
    config["networks"]["count"] |= {"kind": "classification"}
    del config["networks"]["count"]["weights"]
    (folder / "run.yaml").write_text(yaml.safe_dump({**config, "baselines": [], "steps": 0}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["split", "run.yaml", "--locations", "3", "--quiet"]) == 0
        assert (
            main(
                [
                    "affinity",
                    "run.yaml",
                    "split.yaml",
                    "--measure",
                    "stitch",
                    "--bootstrap",
                    "5",
                    "--quiet",
                    "--out",
                    "s.npz",
                ]
            )
            == 0
        )
    return folder


@pytest.fixture
def walker(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Walker:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Walker(tmp_path, monkeypatch, capsys)


def directed(folder: Path) -> Affinity:
    """Losses in which everything works on the features of `depth`, and nothing on those of others."""
    measured = Affinity.load(folder / "s.npz")
    values = np.full_like(measured.values, 0.05)
    values[:, measured.tasks.index("depth")] = 0.9
    values[:, range(3), range(3)] = 1.0
    found = Affinity(measured.tasks, measured.locations, values, "stitch", directed=True)
    found.save(folder / "directed.npz")
    return found


def test_losses_are_directed_and_resampled(walker: Walker) -> None:
    found = Affinity.load("s.npz")
    assert found.directed and found.measure.startswith("stitch") and found.samples.shape == (5, 3, 3, 3)
    assert (found.values <= 1).all() and np.allclose(found.values, found.values.transpose(0, 2, 1)) is False


@dataclass(frozen=True)
class Built:
    """The networks of the specification, and what one stitch at each location holds."""

    staged: dict[str, StagedNetwork]
    images: torch.Tensor
    stitches: list[int]


@pytest.fixture(scope="module")
def built(made: Path) -> Built:
    """Where all networks part after one stage, every stitch lies there."""
    spec, images = Architecture.load(made / "split.yaml"), scenes(40, size=SIZE).images
    networks = {task: constructor.create() for task, constructor in spec.constructors.items()}
    staged, tasks, stitches = branchnet.split_all(networks, images[:1], locations=[*spec.locations]), spec.tasks, []
    for d in range(3):
        parted = Tree(tasks, [[tasks]] * (d + 1) + [[(task,) for task in tasks]] * (2 - d))
        stitched = branchnet.build(parted, staged, init="stitch", probe=images)
        (size,) = {stitch.size for stitch in stitched.stitches.values()}
        stitches.append(size)
    return Built(staged, images, stitches)


@pytest.mark.parametrize("objective", ["medoid", "stitch"])
def test_search_finds_what_trying_all_trees_finds_with_stitches_counted(
    walker: Walker, built: Built, objective: str
) -> None:
    found, spec = directed(walker.folder), Architecture.load("split.yaml")
    params, heads = spec.stage_costs.params, sum(cost.params for cost in spec.head_costs.values())

    def size(tree: Tree) -> float:
        widths = [*tree.widths, len(TASKS)]
        maps = sum(
            (after - before) * one for (before, after), one in zip(pairwise(widths), built.stitches, strict=True)
        )
        return sum(w * p for w, p in zip(tree.widths, params, strict=True)) + heads + maps

    trees = list(branchnet.enumerate_trees(list(spec.tasks), 3))
    limit = 0.8 * max(size(tree) for tree in trees if set(tree.widths) == {3})
    costs = {tree: branchnet.clustering_cost(tree, found, objective=objective) for tree in trees if size(tree) <= limit}
    line = f"search directed.npz split.yaml --budget 80%params --objective {objective} --out found.yaml"
    assert walker(f"{line} --json") == 0, walker.err
    told = json.loads(walker.out)
    tree = Tree(spec.tasks, told["tree"])
    assert told["cost"] == pytest.approx(min(costs.values()), abs=1e-9) == pytest.approx(costs[tree], abs=1e-9)
    stitched = branchnet.build(tree, built.staged, init="stitch", probe=built.images)
    assert told["size"] == size(tree) == sum(parameter.numel() for parameter in stitched.parameters())
    assert walker(line) == 0 and "stitches are counted" in walker.out
    assert Architecture.load("found.yaml").search.objective == objective


def test_donors_of_a_search_are_those_of_the_specification(walker: Walker) -> None:
    directed(walker.folder)
    assert walker("search directed.npz split.yaml --budget 45%params --objective stitch --out found.yaml") == 0
    spec = Architecture.load("found.yaml")
    assert spec.donors is not None
    shared = [
        donor
        for clusters, donors in zip(spec.tree.partitions, spec.donors, strict=True)
        for cluster, donor in zip(clusters, donors, strict=True)
        if len(cluster) > 1
    ]
    assert shared and set(shared) == {"depth"}


def test_symmetric_objectives_take_the_mean_of_both_directions(walker: Walker) -> None:
    found = directed(walker.folder)
    assert (
        walker("search directed.npz split.yaml --objective mean-pair --budget 80%params --json --out found.yaml") == 0
    )
    told = json.loads(walker.out)
    cost = branchnet.clustering_cost(Tree(found.tasks, told["tree"]), found.symmetric(), objective="mean-pair")
    assert told["cost"] == pytest.approx(cost)


@pytest.mark.slow
def test_a_report_on_a_tree_of_stitching_losses_shows_its_front(walker: Walker) -> None:
    assert walker("search s.npz split.yaml --budget 80%params --objective stitch --out found.yaml") == 0, walker.err
    assert walker("build found.yaml --config run.yaml --out built") == 0, walker.err
    assert walker("report built --affinity s.npz --config run.yaml --no-latency --out r.html") == 0, walker.err
    assert "clustering cost (stitch)" in Path("r.html").read_text()


def test_a_run_ends_after_stitching_and_says_what_it_tried(walker: Walker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("branchnet.pipeline.network_timing.compiler_problem", lambda device: "not here")
    assert walker("run run.yaml --out result --steps 0") == 0, walker.err
    said = " ".join(walker.out.split())
    assert "trees that were measured with stitching layers before any training, proposed by" in said
    assert {"measured.png", "stitch_affinity.npz"} <= {path.name for path in Path("result").iterdir()}
    assert Image.open("result/measured.png").size[0] > 300
    page = Path("result/report.html").read_text()
    for word in ("own network", "constant", "without stitches", "stitched", "agreement beyond chance %"):
        assert f">{word}</t" in page, word
    assert 'id="tried"' in page and "--steps 0" in page
    told = json.loads(Path("result/metrics.json").read_text())
    assert told["proposed_by"] in said and "before training" not in told["networks"]
    assert walker("run run.yaml --out alone --measure rsa --json --quiet") == 0, walker.err
    alone = json.loads(walker.out)
    assert (alone["measured_trees"], alone["proposed_by"]) == ([], "RSA (medoid)")


def test_a_dry_run_names_all_the_work_once(walker: Walker) -> None:
    assert walker("run run.yaml --steps 7 --dry-run --json") == 0, walker.err
    names = [step["step"] for step in json.loads(walker.out)["steps"]]
    (depth,) = (int(name.split()[3]) for name in names if name.startswith("compare them at"))
    wanted = (
        f"stitching losses: {depth * 6} rests of networks on at most 64 inputs",
        "proposed trees with stitches",
        "200 batches of stitches alone, 7 of whole",
        "time 2 networks, 30 calls each",
        "50 bootstrap replicates",
    )
    for part in wanted:
        assert sum(part in name for name in names) == 1, (part, names)
    assert walker("run run.yaml --measure rsa --dry-run --json") == 0
    names = [step["step"] for step in json.loads(walker.out)["steps"]]
    assert not any("stitching losses" in name or "proposed" in name or "distil" in name for name in names)


def test_a_dry_run_of_the_losses_counts_the_rests(walker: Walker) -> None:
    assert walker("affinity run.yaml split.yaml --measure stitch --dry-run --json --out n.npz") == 0, walker.err
    (step,) = json.loads(walker.out)["steps"]
    assert step["step"].startswith("stitching losses: 18 rests") and step["seconds"] > 0


def test_a_wrong_measure_is_named(walker: Walker) -> None:
    assert walker("run run.yaml --measure both") == 2 and "both" in walker.err
    config = yaml.safe_load(Path("run.yaml").read_text())
    Path("stitch.yaml").write_text(yaml.safe_dump({**config, "objective": "stitch"}))
    assert walker("run stitch.yaml") == 2 and "stitch.yaml:" in walker.err
    assert "for stitching losses" in " ".join(walker.err.split())
