"""`branchnet affinity` from a config that names labels and losses: by gradients, and by stitches judged with them."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import mse_loss

import branchnet
from branchnet import Affinity, Tree
from branchnet.cli import main
from branchnet.data import scenes
from tests.cli.toys import SIZE, TASKS, Walker, make_folder

COUNT = 40
RATE = 1e-3
TRUTH = """
import torch

def labels():
    shapes = {"edges": (1, 32, 32), "depth": (1, 32, 32), "count": (1,)}
    generator = torch.Generator().manual_seed(5)
    return {task: torch.rand(40, *shape, generator=generator) for task, shape in shapes.items()}

def too_few():
    return {task: values[:7] for task, values in labels().items()}

def of_one_task():
    return {"edges": labels()["edges"]}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labelled.yaml, and the network in which everything is shared."""
    folder = make_folder(tmp_path_factory.mktemp("labelled"))
    (folder / "truth_of_gradients.py").write_text(TRUTH)
    config = yaml.safe_load((folder / "run.yaml").read_text())
    for network in config["networks"].values():
        network["loss"] = "torch.nn.functional:mse_loss"
    (folder / "labelled.yaml").write_text(
        yaml.safe_dump({**config, "labels": "truth_of_gradients:labels", "learning_rate": RATE})
    )
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["split", "run.yaml", "--locations", "3", "--quiet"]) == 0
        networks = {}
        for task, kind in TASKS.items():
            networks[task] = branchnet.create("branchnet:scene_network", outputs=1, kind=kind, width=4).eval()
            branchnet.deploy.load_weights(networks[task], folder / f"{task}.safetensors")
        staged = branchnet.split_all(networks, scenes(1, size=SIZE).images, locations=3)
        branchnet.save(branchnet.build(Tree.shared(list(TASKS), 3), staged, init="donor"), folder / "shared")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def walker(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Walker:
    return Walker(made, monkeypatch, capsys)


def by_hand(rate: float) -> np.ndarray:
    """1 - L_j after / L_j before, where the weights of one stage take task i's step: copies, autograd and a loop."""
    network = branchnet.load("shared")
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))[8:24]  # a fifth is held out
    pixels = torch.from_numpy(np.load("images.npz")["images"]).movedim(-1, 1).float().contiguous() / 255
    namespace: dict = {}
    exec(TRUTH, namespace)
    labels = namespace["labels"]()
    found = np.zeros((2, 3, 3, 3))
    for number, batch in enumerate(order.split(8)):
        x, y = pixels[batch], {task: labels[task][batch] for task in network.tasks}
        before = {task: mse_loss(output, y[task]) for task, output in network(x).items()}
        for d, i in np.ndindex(3, 3):
            moved = copy.deepcopy(network)
            mse_loss(moved(x)[network.tasks[i]], y[network.tasks[i]]).backward()
            (node,) = [node for node in moved.members() if node.id.startswith(f"nodes.{d}.")]
            with torch.no_grad():
                for parameter in node.module.parameters():
                    parameter -= rate * parameter.grad
                after = moved(x)
            for j, task in enumerate(network.tasks):
                found[number, d, i, j] = 1 - float(mse_loss(after[task], y[task]) / before[task])
    return found.mean(0)


def test_the_look_ahead_of_a_saved_network_is_what_steps_by_hand_give(walker: Walker) -> None:
    line = "affinity labelled.yaml shared --measure lookahead --probe 16 --batch-size 8 --out hand.npz"
    assert walker(line) == 0, walker.err
    found = Affinity.load("hand.npz")
    assert found.directed and found.standard_errors is not None
    np.testing.assert_allclose(found.values, by_hand(RATE), rtol=1e-3, atol=2e-6)
    assert "look-ahead" in walker.out and "→" in walker.out


@pytest.mark.parametrize("measure", ["lookahead", "first-order", "gradient-cosine"])
def test_a_shared_network_is_trained_and_what_is_found_can_be_searched(walker: Walker, measure: str) -> None:
    assert walker(f"affinity labelled.yaml split.yaml --measure {measure} --steps 3 --out {measure}.npz --quiet") == 0
    found = Affinity.load(f"{measure}.npz")
    assert found.values.shape == (3, 3, 3) and np.isfinite(found.values).all() and walker.err == ""
    assert walker(f"search {measure}.npz split.yaml --budget 80%params --out found.yaml") == 0, walker.err
    assert walker(f"group {measure}.npz split.yaml --groups 2 --out groups.yaml") == 0, walker.err


def test_stitches_are_judged_by_the_losses_that_the_config_names(walker: Walker) -> None:
    """The labels lie near what the networks answer; one network, without a loss, is compared with its own outputs."""
    pixels = torch.from_numpy(np.load("images.npz")["images"]).movedim(-1, 1).float().contiguous() / 255
    networks, labels = {}, {}
    for task, kind in TASKS.items():
        networks[task] = branchnet.create("branchnet:scene_network", outputs=1, kind=kind, width=4).eval()
        branchnet.deploy.load_weights(networks[task], f"{task}.safetensors")
        answer = networks[task](pixels).detach()
        labels[task] = answer + 0.1 * answer.std() * torch.randn(answer.shape, generator=torch.Generator())
    np.savez("near.npz", **{task: of_task.numpy() for task, of_task in labels.items()})
    Path("truth_near.py").write_text("import numpy\n\ndef labels():\n    return dict(numpy.load('near.npz'))\n")
    config = yaml.safe_load(Path("labelled.yaml").read_text())
    del config["networks"]["count"]["loss"]
    Path("partly.yaml").write_text(yaml.safe_dump({**config, "labels": "truth_near:labels"}))
    line = "affinity partly.yaml split.yaml --measure stitch --bootstrap 0 --cache kept --quiet"
    for out in ("--labelled --out judged.npz", "--labelled --out again.npz", "--out by_kind.npz"):
        assert walker(f"{line} {out}") == 0, walker.err
    found, again, by_kind = (Affinity.load(f"{name}.npz").values for name in ("judged", "again", "by_kind"))

    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))[8:]  # a fifth is held out
    wanted = branchnet.stitch_affinity(
        branchnet.split_all(networks, pixels[:1], locations=3),
        pixels[order],
        losses=dict.fromkeys(("edges", "depth"), mse_loss),
        labels={task: labels[task][order] for task in ("edges", "depth")},
        batch_size=8,
        bootstrap=0,
    )
    np.testing.assert_allclose(found, wanted.values, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found, again)
    np.testing.assert_allclose(found[:, :, 2], by_kind[:, :, 2], rtol=1e-6)
    assert (found[:, 0, 1] != by_kind[:, 0, 1]).any() and any(Path("kept").iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run.yaml split.yaml --measure stitch --labelled", "--labelled needs labels and the loss of one network"),
        ("labelled.yaml split.yaml --measure rsa --labelled", "only stitch does"),
        ("labelled.yaml split.yaml --measure lookahead --cache kept", "gradients are not kept"),
    ],
)
def test_options_of_other_measures_are_refused(walker: Walker, line: str, message: str) -> None:
    assert walker(f"affinity {line} --out nothing.npz") != 0
    assert message in " ".join(walker.err.split()) and not Path("nothing.npz").exists()


def test_a_dry_run_counts_the_passes(walker: Walker) -> None:
    assert walker("affinity labelled.yaml split.yaml --measure lookahead --dry-run --out nothing.npz") == 0
    assert "3 backward" in walker.out and "train the shared network" in walker.out
    assert not Path("nothing.npz").exists()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"labels": None}, "", "missing: labels (such as"),
        ({"labels": "truth_of_gradients:too_few"}, "", "for 'count'; expected 40 labels"),
        ({"labels": "truth_of_gradients:of_one_task"}, "", "returned edges"),
        ({"labels": "truth_of_gradients:nothing"}, "", "has no function 'nothing'"),
        ({}, "--dtype float64", "--dtype float64: gradients are taken in the type"),
    ],
)
def test_what_is_missing_is_said(walker: Walker, changes: dict[str, str], options: str, message: str) -> None:
    config = yaml.safe_load(Path("labelled.yaml").read_text())
    Path("changed.yaml").write_text(yaml.safe_dump({**config, **changes}))
    assert walker(f"affinity changed.yaml split.yaml --measure lookahead {options}") == 2
    assert message in " ".join(walker.err.split())


@pytest.mark.parametrize(
    ("loss", "message"),
    [("torch.nn:MSELoss", "is a class"), ("truth_of_gradients:labels", "called with an output and the labels")],
)
def test_a_loss_that_takes_no_output_and_labels_is_refused(walker: Walker, loss: str, message: str) -> None:
    config = yaml.safe_load(Path("labelled.yaml").read_text())
    config["networks"]["count"]["loss"] = loss
    Path("changed.yaml").write_text(yaml.safe_dump(config))
    assert walker("affinity changed.yaml split.yaml --measure lookahead") == 2
    assert message in " ".join(walker.err.split())


def test_a_config_without_losses_and_steps_without_gradients_are_refused(walker: Walker) -> None:
    assert walker("affinity run.yaml split.yaml --measure first-order") == 2
    assert "networks: edges: loss" in walker.err and "torch.nn.functional:mse_loss" in walker.err
    assert walker("affinity run.yaml split.yaml --steps 3") == 2
    assert "only the gradient measures" in " ".join(walker.err.split())
