import json
import sys

import pytest
import torch
from torch import nn

import branchnet
from branchnet import BuildError, Tree
from branchnet.deploy import fastest_runtime
from branchnet.errors import DataError
from branchnet.inference.latency import Latency

TASKS = ("a", "b", "c")
X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """A head with two tensors by name."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x):
        return {"one": self.one(x), "other": (self.other(x), 7)}


def network(head):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


@pytest.fixture(scope="module")
def branched():
    torch.manual_seed(1)
    networks = {"a": network(nn.Linear(8, 2)), "b": network(Pair()), "c": network(nn.Linear(8, 4))}
    tree = Tree(TASKS, [[("a", "b"), ("c",)]])
    return branchnet.build(tree, networks, example=X[:2], locations=["1"], init="donor").eval()


def assert_equal(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "onnxruntime", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("tasks", [None, ["c"], ["b", "a"]])
def test_every_backend_gives_the_networks_outputs(branched, backend, tasks):
    if backend == "onnxruntime":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    fast = branchnet.runtime(branched, example=X[:2], backends=[backend])
    assert fast.backend == backend and set(fast.milliseconds) == {backend}
    for batch in (X[:2], X, X[:1]):
        with torch.no_grad():
            assert_equal(fast(batch, tasks=tasks), branched(batch, tasks=tasks))


def test_the_fastest_is_taken_and_kept(branched, tmp_path, monkeypatch):
    times = {"eager": 0.002, "compiled": 0.001}
    monkeypatch.setitem(fastest_runtime._MAKERS, "compiled", fastest_runtime._MAKERS["eager"])
    measured = []

    def compare(functions, inputs, repeats):
        measured.append(list(functions))
        return {name: Latency((times[name],) * repeats) for name in functions}

    monkeypatch.setattr(fastest_runtime, "compare_latency", compare)
    fast = branchnet.runtime(branched, example=X, backends=list(times), folder=tmp_path)
    assert fast.backend == "compiled" and str(fast) == "compiled 1.00 ms, eager 2.00 ms"
    again = branchnet.runtime(branched, example=X, backends=list(times), folder=tmp_path)
    assert (again.backend, again.milliseconds) == (fast.backend, fast.milliseconds) and len(measured) == 1
    branchnet.runtime(branched, example=X[:2], backends=list(times), folder=tmp_path)
    assert len(measured) == 2  # other inputs
    changed = branchnet.build(branched.tree, {task: network(nn.Linear(8, 2)) for task in TASKS}, example=X[:2],
                              locations=["1"], init="donor").eval()  # fmt: skip
    branchnet.runtime(changed, example=X[:2], backends=list(times), folder=tmp_path)
    assert len(measured) == 3  # other weights
    (tmp_path / "runtime.json").write_text("{")
    with pytest.raises(DataError, match=r"runtime\.json is damaged"):
        branchnet.runtime(branched, example=X, backends=list(times), folder=tmp_path)


def test_a_backend_with_other_outputs_is_left_out(branched, monkeypatch):
    def wrong(network, inputs):
        return lambda x, tasks: {"a": network(x)["a"] + 1, **{task: network(x)[task] for task in tasks if task != "a"}}

    monkeypatch.setitem(fastest_runtime._MAKERS, "compiled", wrong)
    fast = branchnet.runtime(branched, example=X, backends=["eager", "compiled"])
    assert fast.backend == "eager" and "'a' differs" in fast.left_out["compiled"]
    assert "compiled: the exported output 'a' differs" in str(fast)
    with pytest.raises(BuildError, match="no backend can run the network"):
        branchnet.runtime(branched, example=X, backends=["compiled"])


def test_what_is_not_installed_is_left_out(branched, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    fast = branchnet.runtime(branched, example=X, backends=["eager", "onnxruntime"])
    assert "pip install 'branchnet[export]'" in fast.left_out["onnxruntime"]


def test_a_saved_network_is_loaded(tmp_path):
    networks = {task: branchnet.create("branchnet:scene_network", outputs=1, width=2) for task in ("a", "b")}
    images = torch.rand(2, 3, 16, 16)
    tree = Tree.shared(networks, 1)
    made = branchnet.build(tree, networks, example=images, locations=["layer2"], init="donor").eval()
    branchnet.save(made, tmp_path)
    fast = branchnet.runtime(tmp_path, example=images, backends=["eager"])
    with torch.no_grad():
        assert_equal(fast(images), made(images))
    assert json.loads((tmp_path / "runtime.json").read_text())["backend"] == "eager"


def test_wrong_calls_are_refused(branched):
    with pytest.raises(BuildError, match=r"unknown backends: \['tensorrt'\]"):
        branchnet.runtime(branched, backends=["tensorrt"])
    with pytest.raises(BuildError, match="training mode"):
        branchnet.runtime(branched.train(), example=X)
    branched.eval()
    fast = branchnet.runtime(branched, example=X, backends=["eager"])
    with pytest.raises(BuildError, match="'d'"):
        fast(X, tasks=["d"])


def test_runtime_and_fused_networks_are_called_as_the_network_is(branched):
    fast = branchnet.runtime(branched, example=X[:2], backends=["eager"])
    fused = branchnet.inference.FusedNetwork(branched, [0])
    with torch.no_grad():
        wanted = branched(X)
        for run in (fast, fused):
            for given in (run(X), run(pixel_values=X), run(x=X)):
                assert_equal(given, wanted)
            for given in (run(X, ["c"]), run(X, tasks=["c"]), run(pixel_values=X, tasks=["c"])):
                assert list(given) == ["c"]
                assert_equal(given["c"], wanted["c"])
            with pytest.raises(BuildError, match="no input was given; expected"):
                run()
            with pytest.raises(BuildError, match="by position and by name"):
                run(X, mask=X)
            for wrong in ((X, X), [X], {"image_x": X}):
                with pytest.raises(BuildError, match="expected"):
                    run(wrong)
