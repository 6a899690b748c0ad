"""Every exported file gives the network's outputs, elsewhere and at other batch sizes, or is not written at all."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import unicodedata
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import Architecture, BranchedNetwork, Tree
from branchnet.deploy import Exported, load_weights
from branchnet.deploy import exporting as exporting_module
from branchnet.deploy.model_card import model_card
from branchnet.errors import BuildError
from tests.builder.toys import KINDS, images, networks, split_networks

TASKS = tuple(KINDS)
TREE = Tree(TASKS, [[TASKS], [TASKS], [("depth", "edges"), ("scene", "count")]] + [[(t,) for t in TASKS]] * 2)


@pytest.fixture(scope="module")
def branched() -> BranchedNetwork:
    return branchnet.build(TREE, split_networks(), init="donor").eval()


class Pair(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"sum": x.sum(1), "half": x / 2}


def named(tasks: dict[str, nn.Module]) -> BranchedNetwork:
    """A network of two inputs by name, whose tasks are called what they like."""

    class Both(nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh())
            self.head = head

        def forward(self, left: Tensor, right: Tensor) -> object:
            return self.head(self.body(torch.cat((left, right), 1)))

    example = {"left": torch.rand(1, 2), "right": torch.rand(1, 4)}
    cut = branchnet.split_all({task: Both(head).eval() for task, head in tasks.items()}, example, locations=["body.1"])
    return branchnet.build(Tree.shared(tuple(tasks), 1), cut, init="donor").eval()


def run_in_torch_alone(code: str, folder: Path) -> None:
    """Run code in a process in which branchnet cannot be imported."""
    guard = "import sys; sys.modules['branchnet'] = None\nimport torch\n"
    done = subprocess.run([sys.executable, "-c", guard + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pt2(branched: BranchedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The whole network as net.pt2, in a folder of its own."""
    return branchnet.export(branched, images(1), tmp_path_factory.mktemp("pt2") / "net.pt2")


def test_pt2_and_its_card_run_without_branchnet_at_any_batch_size(
    branched: BranchedNetwork, pt2: Exported, tmp_path: Path
) -> None:
    assert pt2.outputs == TASKS and pt2.batches == (1, 3)
    assert {path.name for path in pt2.model.parent.iterdir()} == {"net.pt2", "net.yaml", "net.md"}
    x = images(5, seed=3)
    with torch.no_grad():
        torch.save((x, branched(x)), tmp_path / "case.pt")
    shutil.copy(pt2.model, tmp_path)
    code = pt2.card.read_text().split("```python\n")[1].split("```")[0]
    run_in_torch_alone(
        f"""
x, expected = torch.load("case.pt")
found = torch.export.load("net.pt2").module()(x)
assert list(found) == list(expected), list(found)
for task in expected:
    torch.testing.assert_close(found[task], expected[task], rtol=1e-5, atol=1e-6)
input = torch.rand(4, 3, 32, 32)
{code}
assert len(outputs) == 4
""",
        tmp_path,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_an_aoti_package_runs_without_branchnet_at_any_batch_size(branched: BranchedNetwork, tmp_path: Path) -> None:
    exported = branchnet.export(branched, images(2), tmp_path / "net.pt2", format="aoti", tasks=["scene", "depth"])
    assert exported.outputs == ("depth", "scene")
    x = images(5, seed=3)
    with torch.no_grad():
        torch.save((x, branched(x, ["depth", "scene"])), tmp_path / "case.pt")
    run_in_torch_alone(
        """
x, expected = torch.load("case.pt")
for rows in (5, 1):
    found = torch._inductor.aoti_load_package("net.pt2")(x[:rows])
    assert list(found) == list(expected), list(found)
    for task in expected:
        torch.testing.assert_close(found[task], expected[task][:rows], rtol=1e-4, atol=1e-5)
""",
        tmp_path,
    )


def test_onnx_outputs_are_called_after_the_tasks(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = named({"a.b": nn.Linear(4, 3), "two of them": Pair(), "ünï": nn.Linear(4, 1)})
    x = {"left": torch.rand(1, 2), "right": torch.rand(1, 4)}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*LeafSpec")  # torch's own, when it copies the exported program
        exported = branchnet.export(network, x, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    names = ["a.b", "two of them.sum", "two of them.half", "ünï"]
    assert [output.name for output in session.get_outputs()] == names == list(exported.outputs)
    assert [entry.name for entry in session.get_inputs()] == ["left", "right"]
    x = {"left": torch.rand(7, 2), "right": torch.rand(7, 4)}
    found = dict(zip(names, session.run(None, {key: value.numpy() for key, value in x.items()}), strict=True))
    with torch.no_grad():
        expected = network(x)
    torch.testing.assert_close(torch.from_numpy(found["ünï"]), expected["ünï"])
    torch.testing.assert_close(torch.from_numpy(found["two of them.half"]), expected["two of them"]["half"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safetensors_fill_the_network_that_the_specification_describes(
    branched: BranchedNetwork, tmp_path: Path, dtype: torch.dtype
) -> None:
    x = images(2).to(dtype)
    network = branchnet.build(TREE, split_networks(), init="donor").eval().to(dtype)
    branchnet.export(network, x, tmp_path / "net.safetensors", tasks=["edges", "count"])
    architecture = Architecture.load(tmp_path / "net.yaml")
    assert architecture.tasks == ("edges", "count")
    loaded = architecture.build().eval()
    load_weights(loaded, tmp_path / "net.safetensors")
    with torch.no_grad():
        found, expected = loaded(x.float()), network(x)
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    for task in ("edges", "count"):
        torch.testing.assert_close(found[task], expected[task].float(), rtol=1e-5, atol=rounding)


def test_the_code_on_the_card_of_safetensors_loads_the_weights(
    branched: BranchedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branchnet.export(branched, images(2), tmp_path / "net.safetensors", tasks=["edges"])
    code = (tmp_path / "net.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    with torch.no_grad():
        assert torch.equal(names["branched"](images(2))["edges"], branched(images(2))["edges"])


def test_of_a_writers_warnings_only_torchs_own_on_leaves_is_silenced(
    branched: BranchedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = exporting_module.WRITERS["safetensors"]

    def warning(*args: object) -> object:
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use another", FutureWarning, stacklevel=2)
        warnings.warn("`isinstance(treespec, TreeSpec)` is deprecated, use another", FutureWarning, stacklevel=2)
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use another", UserWarning, stacklevel=2)
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setitem(exporting_module.WRITERS, "safetensors", warning)
    with pytest.warns(Warning) as caught:
        branchnet.export(branched, images(2), tmp_path / "net.safetensors")
    said = [(each.category, str(each.message).split()[1]) for each in caught]
    assert said == [(FutureWarning, "TreeSpec)`"), (UserWarning, "LeafSpec)`")]


def test_a_subset_holds_only_the_nodes_that_it_needs(branched: BranchedNetwork, tmp_path: Path) -> None:
    branchnet.export(branched, images(2), tmp_path / "one.pt2", tasks=["scene"])
    program = torch.export.load(tmp_path / "one.pt2")
    single = networks()["scene"]
    assert sum(p.numel() for p in program.parameters()) == sum(p.numel() for p in single.parameters())


def test_nothing_on_the_card_is_hidden(branched: BranchedNetwork) -> None:
    text = model_card(
        branched,
        {"im\x1b[31mage": torch.rand(1, 3, 32, 32)},
        name="na\u202eme",
        format="onnx",
        file="fi\nle.onnx",
        dynamic=True,
        outputs={"dep\x1bth\u2066": torch.rand(1, 2)},
        difference={"dep\x1bth\u2066": 0.0},
        tolerance=1e-4,
        batches=[1],
    )
    assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"]
    for shown in (r"# na\u202eme", r"`fi\nle.onnx`", r'"im\u001b[31mage": im', r"| dep\\u001bth\\u2066 | batch x 2"):
        assert shown in text


def test_the_card_says_what_it_is(branched: BranchedNetwork, pt2: Exported) -> None:
    card = pt2.card.read_text()
    assert all(f"| {task} | batch x" in card for task in TASKS)
    assert "| input | batch x 3 x 32 x 32 | float32 |" in card
    assert f"| parameters | {sum(p.numel() for p in branched.parameters()):,} |" in card


def test_a_fixed_batch_stays_fixed(tmp_path: Path) -> None:
    network = named({"a": nn.Linear(4, 3)})
    x = {"left": torch.rand(2, 2), "right": torch.rand(2, 4)}
    assert branchnet.export(network, x, tmp_path / "net.pt2", dynamic=False).batches == (2,)
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    with pytest.raises(Exception, match=r"size|shape"):
        loaded(left=torch.rand(3, 2), right=torch.rand(3, 4))


def test_what_differs_after_loading_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = named({"edges": nn.Linear(4, 3), "depth": nn.Linear(4, 1)})
    x = {"left": torch.rand(2, 2), "right": torch.rand(2, 4)}
    branchnet.export(network, x, tmp_path / "net.pt2")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = exporting_module.WRITERS["pt2"]

    def damaged(*args: object) -> object:
        run = write(*args)  # type: ignore[arg-type]
        return lambda x: {name: value * (1.01 if name == "edges" else 1) for name, value in run(x).items()}

    monkeypatch.setitem(exporting_module.WRITERS, "pt2", damaged)
    with pytest.raises(BuildError, match=r"'edges' differs from the network's by 1\.00e-02"):
        branchnet.export(network, x, tmp_path / "net.pt2")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("net.bin", {}, "expected one of pt2, aoti, onnx, safetensors"),
        ("net.pt2", {"format": "tflite"}, "'tflite'"),
        ("net.pt2", {"format": "onnx"}, "ends in '.onnx'"),
        ("net.pt2", {"tasks": ["depht"]}, "depht"),
        ("net.pt2", {"tasks": []}, "names no task"),
    ],
)
def test_wrong_requests_are_refused(
    branched: BranchedNetwork, tmp_path: Path, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        branchnet.export(branched, images(2), tmp_path / name, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("swapped", "found"),
    [
        (("net.pt2", torch.rand(1, 3, 32, 32)), "the example is a str and the path a Tensor"),
        (
            (PurePosixPath("net.pt2"), {"x": torch.rand(1)}),
            "the example is a PurePosixPath and the path a dict",
        ),
        (("net.pt2", "net.pt2"), "the example is a str and the path a str"),
        ((torch.rand(1, 3, 32, 32), None), "the path a NoneType"),
    ],
)
def test_an_example_and_a_path_in_the_wrong_order_are_told_apart(
    branched: BranchedNetwork, swapped: tuple[Any, Any], found: str
) -> None:
    with pytest.raises(BuildError, match=rf"{found}.*; expected export\(network, example, path\)"):
        branchnet.export(branched, *swapped)


def test_training_mode_and_untraceable_heads_are_refused(tmp_path: Path) -> None:
    network = named({"a": nn.Linear(4, 3)})
    x = {"left": torch.rand(2, 2), "right": torch.rand(2, 4)}
    with pytest.raises(BuildError, match="training mode"):
        branchnet.export(network.train(), x, tmp_path / "net.pt2")

    class Deciding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    network.eval().heads[0] = Deciding()
    with pytest.raises(BuildError, match="pt2 export failed"):
        branchnet.export(network, x, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_no_number_is_a_difference() -> None:
    compared, nan, inf = exporting_module.compared_outputs, float("nan"), float("inf")
    masked = torch.tensor([-inf, nan, 50.0])
    assert compared([{"a": masked}], [{"a": masked.clone()}]) == {"a": 0.0}
    assert compared([{"a": masked}], [{"a": masked + 1e-3}])["a"] == pytest.approx(1e-3 / 50, rel=1e-3)
    for wrong in ([-inf, nan, 51.0], [-inf, 0.0, 50.0], [inf, nan, 50.0], [0.0, nan, 50.0], [-inf, nan, nan]):
        with pytest.raises(BuildError, match="'a' differs"):
            compared([{"a": masked}], [{"a": torch.tensor(wrong)}])
    with pytest.raises(BuildError, match="'a' differs"):
        compared([{"a": torch.zeros(2)}] * 2, [{"a": torch.zeros(2)}, {"a": torch.tensor([0.0, nan])}])


@dataclass
class Scores:
    """Tensors in a class that torch does not know how to unpack."""

    values: Tensor


class Scoring(nn.Module):
    def forward(self, x: Tensor) -> Scores:
        return Scores(2 * x)


class Silent(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Scoring(), "the output of 'a' holds a Scores, which exporters"),
        (Silent(), "'a' holds no tensor"),
    ],
)
def test_outputs_that_would_be_missing_in_the_file_are_refused(tmp_path: Path, head: nn.Module, message: str) -> None:
    network = named({"a": nn.Linear(4, 3), "b": nn.Linear(4, 2)})
    network.heads[0] = head
    with pytest.raises(BuildError, match=message):
        branchnet.export(network, {"left": torch.rand(2, 2), "right": torch.rand(2, 4)}, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_a_task_called_like_an_input_cannot_be_an_output_of_the_same_file(tmp_path: Path) -> None:
    network = named({"left": nn.Linear(4, 3)})
    with pytest.raises(BuildError, match="'left' is an input and an output"):
        branchnet.export(network, {"left": torch.rand(2, 2), "right": torch.rand(2, 4)}, tmp_path / "net.onnx")


def test_an_example_without_samples_is_refused(branched: BranchedNetwork, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="has no samples"):
        branchnet.export(branched, images(2)[:0], tmp_path / "net.pt2")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_network_is_exported_as_exact_as_its_type(
    branched: BranchedNetwork, tmp_path: Path, dtype: torch.dtype
) -> None:
    cast, x = copy.deepcopy(branched).to(dtype), images(3, seed=4)
    tasks = ["depth", "scene"]  # one of each kind of head
    branchnet.export(cast, images(2).to(dtype), tmp_path / "net.pt2", tasks=tasks)
    found = torch.export.load(tmp_path / "net.pt2").module()(x.to(dtype))
    with torch.no_grad():
        for task, value in branched(x, tasks).items():
            assert found[task].dtype == dtype
            assert (found[task].float() - value).abs().max() <= exporting_module.TOLERANCES[dtype] * value.abs().max()


def test_tasks_of_a_half_precision_network_run_in_onnx(branched: BranchedNetwork, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    branchnet.export(copy.deepcopy(branched).half(), images(2).half(), tmp_path / "net.onnx", tasks=["scene", "edges"])
    session, x = onnxruntime.InferenceSession(tmp_path / "net.onnx"), images(5, seed=5)
    assert [output.name for output in session.get_outputs()] == ["edges", "scene"]
    found = session.run(None, {"input": x.half().numpy()})
    with torch.no_grad():
        for array, value in zip(found, branched(x, ["edges", "scene"]).values(), strict=True):
            assert array.dtype == "float16"
            assert (torch.from_numpy(array).float() - value).abs().max() <= 1e-2 * value.abs().max()


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_tf32_is_off_while_a_gpus_network_is_exported(precision: str) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision(precision)
        with exporting_module._without_tf32("cuda"):
            assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == precision
        with exporting_module._without_tf32("cpu"):
            assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class Sized(nn.Module):
    def forward(self, x: Tensor) -> dict[str, object]:
        return {"values": x, "count": x.shape[0], "type": x.dtype}


def test_sizes_among_the_outputs_are_left_out_of_the_file(tmp_path: Path) -> None:
    network = named({"a": nn.Linear(4, 3)})
    network.heads[0] = Sized()
    x = {"left": torch.rand(2, 2), "right": torch.rand(2, 4)}
    assert branchnet.export(network, x, tmp_path / "net.pt2").outputs == ("a.values",)


class Many(nn.Module):
    """Goes another way in large batches."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2, self.l3 = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.l1(x))
        return self.l3(torch.relu(self.l2(x * 2 if x.shape[0] > 100 else x)))


def test_a_file_for_any_batch_size_is_refused_where_the_network_allows_some(tmp_path: Path) -> None:
    """Nothing in the file would look at the size: 101 samples would be taken the way of a few."""
    example = torch.rand(4, 8)
    networks = {task: Many().eval() for task in ("a", "b")}
    branched = branchnet.build(Tree.shared(["a", "b"], 1), networks, example=example, locations=["l1"], init="donor")
    with pytest.raises(BuildError, match=r"refuses 101: .*\(101, 8\); expected.*dynamic=False"):
        branchnet.export(branched.eval(), example, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
    assert branchnet.export(branched, example, tmp_path / "model.pt2", dynamic=False).model.exists()
