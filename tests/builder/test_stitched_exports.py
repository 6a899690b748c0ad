"""Stitched networks exported and compiled: equal outputs, with stitches folded and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import branchnet
from branchnet.deploy import load_weights
from branchnet.inference import FusedNetwork, prepare
from branchnet.inference.fusion import groups_of
from branchnet.inference.regions import with_regions
from tests.stitching.toys import STITCHED, inputs, networks, stitched


@pytest.mark.parametrize("fold", ["exact", None])
@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_pt2_gives_the_outputs_at_any_batch_size(kind: str, fold: str | None, tmp_path: Path) -> None:
    branched, x = stitched(kind), inputs(kind, 5, seed=3)
    exported = branchnet.export(branched, x[:2], tmp_path / "net.pt2", fold=fold)  # type: ignore[arg-type]
    with torch.no_grad():
        found = torch.export.load(exported.model).module()(x)
        for task, output in branched(x).items():
            torch.testing.assert_close(found[task], output, rtol=1e-4, atol=1e-5)
    assert list(branchnet.Architecture.load(exported.specification).stitches) == [child for _, child in STITCHED]
    card = exported.card.read_text()
    assert card.count("| folded |") == (2 if fold else 0) and card.count("| kept |") == (0 if fold else 2)


@pytest.mark.parametrize("fold", ["exact", None])
def test_onnx_gives_the_outputs(fold: str | None, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    branched, x = stitched("images"), inputs("images", 5, seed=3)
    exported = branchnet.export(branched, x[:2], tmp_path / "net.onnx", fold=fold)  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(str(exported.model), providers=["CPUExecutionProvider"])
    found = dict(zip(exported.outputs, session.run(None, {"input": x.numpy()}), strict=True))
    with torch.no_grad():
        for task, output in branched(x).items():
            torch.testing.assert_close(torch.from_numpy(found[task]), output, rtol=1e-4, atol=1e-5)


def test_safetensors_keep_stitches_for_the_network_that_the_specification_describes(tmp_path: Path) -> None:
    branched, x = stitched("vectors"), inputs("vectors")
    exported = branchnet.export(branched, x, tmp_path / "net.safetensors", tasks=["b", "c"])
    loaded = branchnet.Architecture.load(exported.specification).build(
        {task: networks("vectors")[task] for task in ("b", "c")}
    )
    load_weights(loaded.eval(), exported.model)
    with torch.no_grad():
        assert all(torch.equal(loaded(x)[task], branched(x)[task]) for task in ("b", "c"))


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_aoti_gives_the_outputs(tmp_path: Path) -> None:
    branched, x = stitched("images"), inputs("images", 5)
    exported = branchnet.export(branched, x, tmp_path / "net.pt2", format="aoti", fold=None)
    assert max(exported.difference.values()) < 1e-4


@pytest.mark.parametrize("options", [{}, {"fold": None}, {"fuse": True}, {"regions": True}, {"channels_last": True}])
def test_compiled_networks_give_the_outputs(options: dict[str, object], graphs: list[int]) -> None:
    branched, x = stitched("images"), inputs("images", 5)
    compiled = branchnet.compile(branched, x, **options)  # type: ignore[arg-type]
    assert graphs
    with torch.no_grad():
        for tasks in (None, ["b"], ["a", "c"]):
            expected = branched(x, tasks)
            for task, output in compiled(x, tasks).items():
                torch.testing.assert_close(output, expected[task], rtol=1e-4, atol=1e-5)


def test_equal_stitched_siblings_are_fused_and_others_left_apart() -> None:
    """Tasks b and c branch off a's first node: both are stitched and of one structure; a's own node is not."""
    tree = branchnet.Tree(["a", "b", "c"], [[["a", "b", "c"]], [["a"], ["b"], ["c"]]])
    branched, x = stitched("images", tree), inputs("images")
    assert [child for _, child in branched.stitches] == ["nodes.1.1", "nodes.1.2"]
    assert groups_of(branched.nodes[1]) == ((0,), (1, 2))
    fused = FusedNetwork(branched, range(2))
    with torch.no_grad():
        for network in (fused, fused.unfuse(), with_regions(branched)):
            for task, output in branched(x).items():
                torch.testing.assert_close(network(x)[task], output, rtol=1e-5, atol=1e-6)
    assert {s.target for s in fused.unfuse().stitches.values()} == {"b", "c"}
    assert groups_of(prepare(branched).nodes[1]) == ((0,), (1, 2))  # folded ones are of one structure, too
