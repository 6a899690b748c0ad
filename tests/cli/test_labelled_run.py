"""`branchnet run` with `supervised: true`, and `branchnet train`, on a described folder of made scenes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy, l1_loss

import branchnet
from branchnet.cli import main
from branchnet.data import LabelledTable, scenes
from tests.cli.toys import Walker

pytest.importorskip("PIL")

COUNT, SIZE = 36, 16
SPLITS = {"train": range(20), "val": range(20, 28), "test": range(28, COUNT)}
MEAN, STD = [0.4, 0.5, 0.6], [0.5, 0.25, 0.2]


def config(**changes: Any) -> dict[str, Any]:
    made = {
        "networks": {
            task: {
                "constructor": "branchnet:scene_network",
                "arguments": {"outputs": outputs, "kind": kind, "width": 4},
                "mean": MEAN,
                "std": STD,
            }
            for task, outputs, kind in (("depth", 1, "dense"), ("scene", 6, "image"))
        },
        "supervised": True,
        "train": {"table": "data.yaml", "split": "train"},
        "validation": {"table": "data.yaml", "split": "val"},
        "test": {"table": "data.yaml", "split": "test"},
        "fit": {"steps": 3, "batch_size": 8, "learning_rate": 0.01, "every": 1, "keep": "last"},
        "stitch_steps": 2,
        "locations": 2,
        "probe": 20,
        "budget": "90% params",
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def write(folder: Path, **changes: Any) -> None:
    (folder / "run.yaml").write_text(json.dumps(config(**changes), indent=1))  # YAML, too, and without anchors


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, depth in millimetres, and a table with splits, in which one scene is unknown."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("labelled")
    made = scenes(COUNT, seed=0, size=SIZE)
    rows = ["image,split,scene"]
    for kind in ("photos", "depth"):
        (folder / kind).mkdir()
    for split, numbers in SPLITS.items():
        for number in numbers:
            pixels = (255 * made.images[number]).byte().movedim(0, -1)
            Image.fromarray(pixels.numpy()).save(folder / "photos" / f"{number:02}.png")
            depth = (1000 * made.labels["depth"][number, 0]).to(torch.uint16)
            Image.fromarray(depth.numpy()).save(folder / "depth" / f"{number:02}.png")
            rows.append(f"{number:02}.png,{split},{'' if number in (2, 30) else int(made.labels['scene'][number])}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    tasks = {
        "depth": {"kind": "depth", "folder": "depth", "scale": 0.001, "unit": "m"},
        "scene": {"kind": "classification", "column": "scene", "classes": 6},
    }
    table = {"images": "photos", "table": "labels.csv", "split_column": "split", "tasks": tasks}
    (folder / "data.yaml").write_text(yaml.safe_dump(table))
    return folder


@pytest.fixture
def walker(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Walker:
    monkeypatch.setattr("branchnet.pipeline.network_timing.compiler_problem", lambda device: "not here")
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    write(tmp_path)
    return Walker(tmp_path, monkeypatch, capsys)


def by_hand(network: torch.nn.Module, table: LabelledTable, task: str) -> float:
    """RMSE of depth, or the share of right scenes, sample by sample."""
    errors, right = [], []
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for image, labels in table:
        with torch.no_grad():
            output = network(((image - mean) / std)[None])
        output = output[task] if isinstance(output, dict) else output
        if labels[task] is not None and task == "depth":
            errors.append((output[0] - labels[task]).square().mean())
        elif labels[task] is not None:
            right.append(float(output[0].argmax() == labels[task]))
    return float(torch.stack(errors).mean().sqrt()) if errors else 100 * sum(right) / len(right)


def test_a_run_with_labels_goes_from_names_to_measurements(walker: Walker) -> None:
    assert main(["validate", "run.yaml"]) == 0
    assert walker("run run.yaml --dry-run --json") == 0, walker.err
    planned = [step["step"] for step in json.loads(walker.out)["steps"]]
    assert planned[0].startswith("train 2 networks on labels, 3 batches each")
    assert any(step.startswith("train 1 branched network on labels, 3 batches") for step in planned)
    assert not Path("run-branched").exists()
    assert walker("run run.yaml --quiet --json") == 0, walker.err
    told = json.loads(walker.out)
    names = ["separate", "branched", "before training", "without stitches", "constant"]
    assert list(told["networks"]) == names
    assert told["metrics"] == {"depth": "RMSE m", "scene": "accuracy %"}
    assert told["networks"]["branched"]["metrics"] != told["networks"]["before training"]["metrics"]
    test = LabelledTable("data.yaml", "test")
    branched = branchnet.load("run-branched")
    for task in ("depth", "scene"):
        assert told["networks"]["branched"]["metrics"][task] == pytest.approx(by_hand(branched, test, task), rel=1e-5)
    single = branchnet.create("branchnet:scene_network", outputs=1, kind="dense", width=4).eval()
    branchnet.deploy.load_weights(single, "run-branched/.steps/single-0.safetensors")
    assert told["networks"]["separate"]["metrics"]["depth"] == pytest.approx(by_hand(single, test, "depth"), rel=1e-5)
    train = [labels for _, labels in LabelledTable("data.yaml", "train")]
    classes = [int(labels["scene"]) for labels in train if labels["scene"] is not None]
    known = [labels["scene"] for _, labels in test if labels["scene"] is not None]
    scores = [100 * sum(int(label) == one for label in known) / len(known) for one in range(6)]
    most = max(map(classes.count, range(6)))
    assert told["networks"]["constant"]["metrics"]["scene"] in [
        pytest.approx(scores[one]) for one in range(6) if classes.count(one) == most
    ]
    first = dict(told)
    assert walker("run run.yaml --json") == 0, walker.err  # everything is read back
    again = json.loads(walker.out)
    assert {name: net["metrics"] for name, net in again["networks"].items()} == {
        name: net["metrics"] for name, net in first["networks"].items()
    }
    for name in ("single-0", "single-1", "affinity", "branched"):
        assert f"reused {name}" in walker.err, walker.err


def test_one_task_is_trained_as_fit_trains_it(walker: Walker) -> None:
    from branchnet.pipeline.config.config_sources import make_networks
    from branchnet.pipeline.config.run_config import RunConfig
    from branchnet.pipeline.labelled_run.label_sources import read_sources
    from branchnet.pipeline.labelled_run.single_training import train_single

    settings = RunConfig.model_validate(
        config(fit={"steps": 2, "batch_size": 20, "learning_rate": 0.01, "keep": "last", "schedule": "constant"})
    )
    networks = make_networks(settings, Path())
    sources = read_sources(settings, Path(), networks)
    trained = train_single(settings, Path(), networks["scene"], sources, "scene", None)
    torch.manual_seed(1)  # the second task, seed 0
    expected = branchnet.create("branchnet:scene_network", outputs=6, kind="image", width=4).train()
    weights = [p for p in expected.parameters() if p.dim() > 1]
    assert len(weights) > 1
    images, labels = [], []
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for image, label in LabelledTable("data.yaml", "train"):
        if label["scene"] is not None:
            images.append((image - mean) / std)
            labels.append(label["scene"])
    loss = cross_entropy(expected(torch.stack(images)), torch.stack(labels))  # 19 of 20: one batch, one label missing
    history = branchnet.fit(
        networks["scene"], [(x, y) for x, y in zip(images, labels, strict=True)], cross_entropy, steps=1, batch_size=19,
        learning_rate=1e-9, keep="last", progress=False,
    )  # fmt: skip
    assert history.losses["loss"][0] < float(loss.detach())  # two steps on the only batch lower its loss
    assert trained is networks["scene"] and not trained.training
    assert sources.losses["depth"](torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)) == l1_loss(
        torch.zeros(4), torch.ones(4)
    )


@pytest.mark.slow
def test_processes_train_the_same_networks(walker: Walker) -> None:
    assert walker("run run.yaml --quiet --json --out one") == 0, walker.err
    write(walker.folder, processes=2)
    assert walker("run run.yaml --quiet --json --out two") == 0, walker.err
    for name in ("single-0", "single-1", "branched"):
        one, two = (Path(folder, ".steps", f"{name}.safetensors").read_bytes() for folder in ("one", "two"))
        assert one == two, name


def test_train_writes_weights_and_history_and_goes_on(walker: Walker) -> None:
    write(walker.folder, supervised=None, test=None, branched="architecture.yaml")
    networks = {
        task: branchnet.create("branchnet:scene_network", width=4, **arguments)
        for task, arguments in (("depth", {"outputs": 1}), ("scene", {"outputs": 6, "kind": "image"}))
    }
    staged = branchnet.split_all(networks, torch.rand(1, 3, SIZE, SIZE), locations=2)
    built = branchnet.build(branchnet.Tree.shared(["depth", "scene"], 2), staged, init="donor").eval()
    branchnet.save(built, "saved")
    shutil.copy("saved/architecture.yaml", "architecture.yaml")
    assert walker("train run.yaml --dry-run") == 0, walker.err
    assert "history.png" in walker.out and not Path("trained").exists()
    assert walker("train run.yaml --branched saved --quiet --json") == 0, walker.err
    told = json.loads(walker.out)
    assert list(told["networks"]) == ["before", "trained", "constant"]
    validation = LabelledTable("data.yaml", "val")
    trained = branchnet.load("trained")
    for task in ("depth", "scene"):
        assert told["networks"]["before"][task] == pytest.approx(by_hand(built, validation, task), rel=1e-5)
        assert told["networks"]["trained"][task] == pytest.approx(by_hand(trained, validation, task), rel=1e-5)
    with Path("trained/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[0]["held-out metric depth"]) == pytest.approx(told["networks"]["before"]["depth"])
    assert Path("trained/history.png").read_bytes().startswith(b"\x89PNG")
    assert not list(Path("trained").glob(".train*"))
    assert walker("train run.yaml --steps 1 --out other") == 0, walker.err  # from the config's architecture
    assert "metric of each task" in walker.out.lower()


def killed_and_run_again(words: list[str], sign: str, seconds: float) -> None:
    """Kill a command some time after a file is there, then let it come to its end."""
    command = [sys.executable, "-m", "branchnet", *words, "--quiet"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=environment)
    while running.poll() is None and not Path(sign).exists():
        time.sleep(0.02)
    time.sleep(seconds)
    running.kill()
    running.wait()
    subprocess.run(command, env=environment, check=True, timeout=600)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_killed_commands_end_in_the_same_bits(walker: Walker, seconds: float) -> None:
    fit = {"steps": 40, "batch_size": 8, "learning_rate": 0.01, "every": 10, "ema": 0.9}
    write(walker.folder, fit=fit)
    assert walker("run run.yaml --quiet --out whole") == 0, walker.err
    words = ["run", "run.yaml", "--out", "killed"]
    killed_and_run_again(words, "killed/.steps/single-0.safetensors.json", seconds)
    for name in ("weights.safetensors", "history.csv"):
        assert Path("whole", name).read_bytes() == Path("killed", name).read_bytes(), name
    write(walker.folder, supervised=None, test=None, fit=fit)
    assert walker("train run.yaml --branched whole --quiet --out trained") == 0, walker.err
    words = ["train", "run.yaml", "--branched", "whole", "--out", "killed-training"]
    killed_and_run_again(words, "killed-training/.train.unfinished", seconds)
    for name in ("weights.safetensors", "history.csv"):
        assert Path("trained", name).read_bytes() == Path("killed-training", name).read_bytes(), name


def test_a_run_with_labels_from_python_is_that_of_the_command(walker: Walker) -> None:
    result = branchnet.run_from_config("run.yaml", quiet=True)
    assert result.folder == Path("run-branched")
    assert result.comparison.metric_names == {"depth": "RMSE m", "scene": "accuracy %"}
    test = LabelledTable("data.yaml", "test")
    for task in ("depth", "scene"):
        assert result.comparison.networks[1].metrics[task] == pytest.approx(
            by_hand(result.network, test, task), rel=1e-5
        )
    for name, steps in (("history", 3), ("history_stitches", 2)):
        with Path("run-branched", f"{name}.csv").open() as file:
            assert [row["step"] for row in csv.DictReader(file)] == [str(step) for step in range(steps + 1)]
    assert Path("run-branched/history.png").read_bytes().startswith(b"\x89PNG")
    assert walker("run run.yaml --quiet --json") == 0, walker.err  # everything is read back
    assert json.loads(walker.out)["networks"] == json.loads(json.dumps(result.to_dict()))["networks"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": None}, "test: is missing; `supervised: true` needs it"),
        ({"images": {"npz": "x.npz"}}, "images: are not read with `supervised: true`"),
        ({"validation": {"table": "data.yaml", "split": "test"}, "train": {"table": "data.yaml", "split": "test"}},
         "validation: is the same source as `train`"),
        ({"train": {"table": "data.yaml", "factory": "a:b"}}, "train: needs either a table or a factory"),
        ({"train": {"table": "data.yaml", "split": "trian"}}, "split='trian'; expected one of"),
        ({"fit": {"steps": 0}}, "fit.steps"),
        ({"distill": {"steps": 5, "matching": "features"}}, "distill.matching"),
        ({"distill": {"steps": 5}, "steps": 3}, "distill.steps: is given twice"),
        ({"distill": {"match": "both sides"}}, "distill.match"),
        ({"compare": True, "baselines": []}, "baselines: `[]` trains none"),
        ({"train": "no_such_module_here:train"}, "no_such_module_here"),
    ],
)  # fmt: skip
def test_mistakes_are_named(changes: dict[str, Any], message: str, walker: Walker) -> None:
    write(walker.folder, **changes)
    assert walker("run run.yaml --dry-run") == 2
    assert message in walker.err, walker.err


def test_a_sample_in_two_splits_is_refused(walker: Walker) -> None:
    table = yaml.safe_load(Path("data.yaml").read_text())
    table["splits"] = {"train": "train.txt"}
    del table["split_column"]
    Path("other.yaml").write_text(yaml.safe_dump(table))
    Path("train.txt").write_text("".join(f"{number:02}.png\n" for number in range(5, 29)))
    write(walker.folder, train={"table": "other.yaml", "split": "train"})
    assert walker("run run.yaml --dry-run") == 2
    assert "'20.png' is in `train` and in `validation`" in walker.err, walker.err


FACTORIES = """
import branchnet

def depth():
    return branchnet.create("branchnet:scene_network", outputs=1, kind="dense", width=4)

def scene():
    return branchnet.create("branchnet:scene_network", outputs=6, kind="image", width=4)
"""


def test_networks_of_factories_that_know_nothing_are_refused_or_trained(walker: Walker) -> None:
    Path("own.py").write_text(FACTORIES)
    made = config()["networks"]

    def networks(**more: Any) -> dict[str, Any]:
        return {
            task: {"factory": f"own:{task}", "mean": net["mean"], "std": net["std"], **more}
            for task, net in made.items()
        }

    write(walker.folder, networks=networks())
    assert walker("run run.yaml --quiet") == 2
    assert "'depth' (RMSE m " in walker.err and "`train: true`" in walker.err and "no trained weights" in walker.err
    write(walker.folder, networks=networks(train=True))
    assert walker("run run.yaml --quiet --json") == 0, walker.err
    trained = json.loads(walker.out)
    write(walker.folder)  # constructors without weights: the same networks under the same seeds
    assert walker("run run.yaml --quiet --json --out constructors") == 0, walker.err
    assert trained["networks"]["separate"]["metrics"] == json.loads(walker.out)["networks"]["separate"]["metrics"]
    assert trained["samples"] == {"depth": 8, "scene": 7}  # the scene of one of the eight test photos is unknown
    write(walker.folder, networks=networks(train=False))
    assert walker("run run.yaml --quiet --out untrained") == 0, walker.err
    assert "so that a change says nothing: depth (" in walker.out
    write(walker.folder, networks={task: net | {"train": True, "weights": "x.pt"} for task, net in made.items()})
    assert walker("run run.yaml") == 2 and "networks.depth.train: `true` trains from the start" in walker.err


def test_results_of_a_run_on_other_samples_are_kept(walker: Walker) -> None:
    assert walker("run run.yaml --quiet") == 0, walker.err
    kept = Path("run-branched/metrics.json").read_bytes()
    write(walker.folder, validation=None)
    assert walker("run run.yaml --quiet") == 2
    assert "run-branched holds the results of a run on other data" in walker.err
    assert Path("run-branched/metrics.json").read_bytes() == kept
    write(walker.folder, budget="80% params")
    assert walker("run run.yaml --quiet") == 0, walker.err


def test_validate_reads_descriptions_of_labels_down_to_the_cells(walker: Walker) -> None:
    assert walker("validate data.yaml run.yaml") == 0, walker.err
    assert "description of samples with labels is valid: 8 test, 20 train, 8 val; with a label: scene 34" in walker.out
    lines = Path("labels.csv").read_text().splitlines()
    lines[1], lines[30] = "00.png,train,6", "29.png,test,street"
    Path("labels.csv").write_text("\n".join(lines) + "\n")
    assert walker("validate data.yaml") == 2
    for said in (
        "row 2 (00.png), column 'scene': '6'; expected a number from 0 to 5",
        "row 31 (29.png), column 'scene': 'street'",
    ):
        assert said in walker.err, walker.err
    table = yaml.safe_load(Path("data.yaml").read_text())
    table["tasks"] = {"depth": {"kind": "depth"}, "scene": {"kind": "classification", "column": "scene"}}
    Path("data.yaml").write_text(yaml.safe_dump(table))
    assert walker("validate data.yaml") == 2
    assert "tasks.depth: kind 'depth' has a label at each pixel" in walker.err
    assert "tasks.scene: kind 'classification' needs `classes`" in walker.err


def test_validate_names_cut_rows_missing_images_and_infinite_numbers(walker: Walker) -> None:
    lines = Path("labels.csv").read_text().splitlines()
    Path("labels.csv").write_text("\n".join([*lines[:5], "04.png,train", *lines[6:]]) + "\n")
    assert walker("validate data.yaml") == 2
    assert "row 6 has another number of cells than the line of headings" in walker.err, walker.err
    table = yaml.safe_load(Path("data.yaml").read_text())
    table["tasks"] = {"scene": {"kind": "regression", "column": "scene"}}
    Path("data.yaml").write_text(yaml.safe_dump(table))
    changed = [line.replace("01.png,train,", "01.png,train,1e400 ") for line in lines]
    Path("labels.csv").write_text("\n".join([*changed, "99.png,train,3"]) + "\n")
    assert walker("validate data.yaml") == 2
    assert "row 38 (99.png), column 'image': photos/99.png is not there" in walker.err, walker.err
    assert "row 3 (01.png), column 'scene': '1e400" in walker.err, walker.err


def test_training_starts_again_where_a_factory_gives_other_weights(walker: Walker) -> None:
    Path("start_of_depth.py").write_text(FACTORIES + '\n\nimport torch, pathlib\n\ndef kept():\n    made = depth()\n'
        '    made.load_state_dict(torch.load("start.pt"))\n    return made\n')  # fmt: skip
    for seed in (1, 2):
        torch.manual_seed(seed)
        start = branchnet.create("branchnet:scene_network", outputs=1, kind="dense", width=4)
        torch.save(start.state_dict(), "start.pt")
        made = config()["networks"]
        write(
            walker.folder,
            networks={
                "depth": {"factory": "start_of_depth:kept", "train": True, "mean": MEAN, "std": STD},
                "scene": made["scene"],
            },
        )
        assert walker("run run.yaml --json") == 0, walker.err
        assert "reused single-0" not in walker.err
    assert "reused single-1" in walker.err
