"""`branchnet build --add` and `branchnet distill --only`: one more task in a network that is deployed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import yaml

import branchnet
from branchnet import Architecture, Tree
from branchnet.cli import main
from branchnet.data import scenes
from tests.cli.toys import SIZE, TASKS, Walker, make_folder

OLD = ["edges", "depth"]
SPLIT = "split two.yaml --locations layer1,layer2,layer3 --out two-split.yaml --quiet"
ADD = "build deployed --config run.yaml --add count --beside depth --until layer2 --out grown"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.yaml of three tasks, and `deployed`, which has two of them and was built by the command."""
    folder = make_folder(tmp_path_factory.mktemp("grow"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        lines = (folder / "run.yaml").read_text().splitlines()
        (folder / "two.yaml").write_text("\n".join(line for line in lines if "count" not in line))
        assert main(SPLIT.split()) == 0
        separate = Architecture.load("two-split.yaml").to_dict()
        tree = Tree(OLD, [[OLD], [OLD], [["edges"], ["depth"]]])
        shared = Architecture.from_tree(tree, locations=separate["locations"]).to_dict()
        Architecture.create(**(separate | {"tree": shared["tree"]})).save("two-tasks.yaml")
        assert main(["build", "two-tasks.yaml", "--config", "two.yaml", "--out", "deployed", "--quiet"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def walker(deployed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Walker:
    return Walker(deployed, monkeypatch, capsys)


def test_a_task_is_added_and_trained_and_the_old_outputs_stay_the_same_to_the_bit(walker: Walker) -> None:
    x = scenes(4, size=SIZE, seed=3).images
    wanted = branchnet.load("deployed")(x)
    assert walker(ADD) == 0, walker.err
    grown = branchnet.load("grown")
    assert grown.tasks == (*OLD, "count")
    assert grown.tree.partitions == ((("edges", "depth", "count"),),) * 2 + ((("edges",), ("depth",), ("count",)),)
    config = yaml.safe_load(Path("run.yaml").read_text())
    Path("last.yaml").write_text(yaml.safe_dump(config | {"distill": {"keep": "last"}}))
    assert walker("distill grown last.yaml --only count --steps 4 --out trained") == 0, walker.err
    trained = branchnet.load("trained")
    assert not trained.frozen
    for task in OLD:
        assert torch.equal(grown(x)[task], wanted[task])
        assert torch.equal(trained(x)[task], wanted[task])
    assert not torch.equal(trained(x)["count"], grown(x)["count"])


def test_the_new_branch_has_the_weights_of_its_own_network(walker: Walker) -> None:
    assert walker(ADD) == 0, walker.err
    network = branchnet.create("branchnet:scene_network", outputs=1, kind=TASKS["count"], width=4)
    branchnet.deploy.load_weights(network, Path("count.safetensors"))
    own = [tensor for tensor in network.state_dict().values() if tensor.dim() > 1]
    branch = [node for node in branchnet.load("grown").members() if node.tasks == ("count",)]
    copied = [tensor for node in branch for tensor in node.module.state_dict().values() if tensor.dim() > 1]
    assert len(copied) > 1
    assert all(any(torch.equal(tensor, other) for other in own) for tensor in copied)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("build deployed --config run.yaml --add count", 2, "--add count needs --beside, --until, too"),
        ("build deployed --add count --beside depth --until layer2", 2, "--add count needs --config, too"),
        ("build deployed --config run.yaml --beside depth", 2, "there is no --add"),
        (ADD.replace("--add count", "--add depth"), 2, "task 'depth' exists already"),
        (ADD.replace("layer2", "layer9") + " --dry-run", 2, "unknown location until='layer9'"),
        (ADD.replace("layer2", "layer9"), 2, "unknown location until='layer9'"),
        (ADD.replace("--add count", "--add pose"), 2, "pose is missing"),
        (ADD.replace("deployed", "two-tasks.yaml"), 4, "is not a saved network"),
        ("distill deployed run.yaml --only pose", 2, "--only: unknown task 'pose'"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(walker: Walker, line: str, code: int, message: str) -> None:
    before = set(walker.folder.rglob("*"))
    assert walker(line.replace("grown", "new")) == code
    assert message in " ".join(walker.err.split())
    assert set(walker.folder.rglob("*")) == before
