"""ExecuTorch programs: every method run by ExecuTorch's own runtime against eager, and weights once in the file."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, BuildError, Sharing, Tree
from branchnet.deploy import ExecutorchProgram, executorch_program

TASKS = ("depth", "edges", "scene")
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

lowers = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs executorch: pip install 'branchnet[executorch]'"
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def block(channels: int, outputs: int, stride: int, groups: int = 1, size: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(channels, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """A block of MobileNetV2: wide inside, convolved by channels, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            block(channels, 6 * channels, 1, size=1),
            block(6 * channels, 6 * channels, 1, groups=6 * channels),
            nn.Conv2d(6 * channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def with_statistics(network: nn.Module) -> nn.Module:
    """With BatchNorm that changes what passes."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


def convolutional(head: nn.Module) -> nn.Module:
    return with_statistics(nn.Sequential(block(3, 32, 2), block(32, 64, 2), block(64, 128, 2), head))


def mobile(head: nn.Module) -> nn.Module:
    return with_statistics(nn.Sequential(block(3, 16, 2), InvertedResidual(16), block(16, 24, 2), head))


def heads(channels: int) -> tuple[nn.Module, ...]:
    scene = nn.Sequential(nn.Conv2d(channels, 5, 1), Pooled())
    return nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 2, 1), scene


@pytest.fixture(scope="module")
def branched() -> BranchedNetwork:
    torch.manual_seed(0)
    networks = {task: convolutional(head) for task, head in zip(TASKS, heads(128), strict=True)}
    tree = Tree(TASKS, [[TASKS], [TASKS], [("depth", "edges"), ("scene",)]])
    return branchnet.build(tree, networks, example=X, locations=["0", "1", "2"], init="donor").eval()


def methods_of(file: Path) -> tuple[Any, dict[str, Any]]:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(file)
    return program, json.loads(program.load_method("branchnet").execute([])[0])


def assert_equal(network: Any, file: Path, sizes: tuple[int, ...]) -> None:
    program, note = methods_of(file)
    assert program.method_names == {*note["methods"], "branchnet"}
    for name, tasks in note["methods"].items():
        method = program.load_method(name)
        for size in sizes:
            x = torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(size))
            with torch.no_grad():
                expected = network(x, tasks)
            found = method.execute([x])
            assert len(found) == len(tasks)
            for task, value in zip(tasks, found, strict=True):
                torch.testing.assert_close(value, expected[task], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def program(branched: BranchedNetwork, tmp_path_factory: pytest.TempPathFactory) -> ExecutorchProgram:
    return executorch_program(
        branched,
        X,
        tmp_path_factory.mktemp("program") / "net.pte",
        max_batch_size=4,
        labels={"scene": list("abcde")},
        preprocessing={"size": 32},
    )


@lowers
@pytest.mark.slow
def test_every_method_gives_the_networks_outputs(branched: BranchedNetwork, program: ExecutorchProgram) -> None:
    assert program.methods == {"forward": TASKS} | {task: (task,) for task in TASKS}
    assert program.batches == (1, 2, 4) and 0 < program.difference < 1e-4
    assert_equal(branched, program.path, (1, 3, 4))


@lowers
@pytest.mark.slow
def test_weights_stand_in_the_file_once(branched: BranchedNetwork, program: ExecutorchProgram) -> None:
    weights = sum(parameter.numel() * 4 for parameter in branched.parameters())
    size = program.path.stat().st_size
    assert weights * 0.99 < size < 1.05 * weights
    content = program.path.read_bytes()
    for head in branched.heads:  # the trunk's convolutions are multiplied with their BatchNorm, in the file
        bias = next(tensor for name, tensor in head.state_dict().items() if name.endswith("bias"))
        assert bias.numel() < 2 or content.count(bias.numpy().tobytes()) == 1


@lowers
@pytest.mark.slow
def test_metadata_is_a_constant_method(program: ExecutorchProgram) -> None:
    _, note = methods_of(program.path)
    methods = {name: list(outputs) for name, outputs in program.methods.items()}
    assert note == {
        "tasks": list(TASKS),
        "methods": methods,
        "labels": {"scene": list("abcde")},
        "preprocessing": {"size": 32},
    }


@lowers
@pytest.mark.slow
def test_chosen_methods_of_mobile_stages(tmp_path: Path) -> None:
    torch.manual_seed(1)
    networks = {task: mobile(head) for task, head in zip(TASKS, heads(24), strict=True)}
    tree = Tree(TASKS, [[TASKS], [("depth", "edges"), ("scene",)], [("depth",), ("edges",), ("scene",)]])
    network = branchnet.build(tree, networks, example=X, locations=["0", "1", "2"], init="donor").eval()
    made = executorch_program(network, X, tmp_path / "net.pte", tasks=[["depth"], ["edges", "depth"]])
    assert made.methods == {"depth": ("depth",), "depth_edges": ("depth", "edges")}
    assert_equal(network, made.path, (2,))


@lowers
@pytest.mark.slow
def test_tasks_computed_one_at_a_time_share_nodes_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(2)
    networks = {task: convolutional(head) for task, head in zip(TASKS[:2], heads(128), strict=False)}
    sharing = Sharing(TASKS[:2], [[["depth"], ["edges"]], [["depth"], ["edges"]], [["depth", "edges"]]])
    network = branchnet.build(sharing, networks, example=X, locations=["0", "1", "2"]).eval()
    made = executorch_program(network, X, tmp_path / "net.pte")
    assert made.methods == {"depth": ("depth",), "edges": ("edges",)}
    assert_equal(network.separate_paths(), made.path, (2,))
    weights = sum(parameter.numel() * 4 for parameter in network.parameters())
    assert weights * 0.99 < made.path.stat().st_size < 1.05 * weights
    with pytest.raises(BuildError, match=r"expected one: an input belongs to one task"):
        executorch_program(network, X, tmp_path / "both.pte", tasks=[["depth", "edges"]])


@lowers
@pytest.mark.slow
def test_a_network_that_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    class ByValue(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    networks = {task: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1)).eval() for task in "ab"}
    network = branchnet.build(Tree.shared("ab", 1), networks, example=X, locations=["0"], init="donor").eval()
    network.heads[0] = ByValue()
    with pytest.raises(BuildError, match="ExecuTorch export failed"):
        executorch_program(network, X, tmp_path / "net.pte")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": [["depht"]]}, "'depht'; did you mean 'depth'"),
        ({"tasks": ["depth"]}, "expected a list of lists of tasks"),
        ({"tasks": []}, "expected a list of lists of tasks"),
        ({"tasks": [["depth"], ["depth"]]}, "two methods would be called 'depth'"),
        ({"max_batch_size": 1}, "max_batch_size=1; expected 2 or more"),
        ({"labels": {"scnee": ["a"]}}, "'scnee'"),
    ],
)
def test_wrong_arguments_are_refused(
    branched: BranchedNetwork, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        executorch_program(branched, X, tmp_path / "net.pte", **options)
    assert not list(tmp_path.iterdir())


def test_other_suffixes_and_training_mode_are_refused(branched: BranchedNetwork, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"net.onnx'; expected one that ends in '.pte'"):
        executorch_program(branched, X, tmp_path / "net.onnx")
    branched.train()
    with pytest.raises(BuildError, match="training mode"):
        executorch_program(branched, X, tmp_path / "net.pte")
    branched.eval()


def test_without_executorch_the_command_that_installs_it_is_named(
    branched: BranchedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    with pytest.raises(BuildError, match=r"pip install 'branchnet\[executorch\]'"):
        executorch_program(branched, X, tmp_path / "net.pte")
