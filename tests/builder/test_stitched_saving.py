"""Stitched networks as folders: saved, loaded, damaged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

import branchnet
from branchnet.errors import BranchnetError, CheckpointError
from tests.damage import damaged
from tests.stitching.toys import STITCHED, inputs, networks, outputs_by_hand, stitched

KINDS = ("images", "tokens", "vectors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_stitched_network_comes_back_bit_exact(kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    branched, x = stitched(kind), inputs(kind)
    branched.freeze("heads.1")
    branchnet.save(branched, tmp_path)
    loaded = branchnet.load(tmp_path, networks(kind))
    assert not recwarn.list
    with torch.no_grad():
        found, by_hand = loaded(x), outputs_by_hand(branched, x)
        for task, output in branched(x).items():
            assert torch.equal(found[task], output)
            torch.testing.assert_close(output, by_hand[task])
    for edge in STITCHED:
        one, other = branched.stitches[edge], loaded.stitches[edge]
        for name in ("source", "target", "method", "r2", "rank", "size", "folded"):
            assert getattr(one, name) == getattr(other, name)
    assert loaded.initialisation == branched.initialisation
    assert not any(tensor.requires_grad for tensor in loaded.stitches[STITCHED[1]].parameters())
    branchnet.save(loaded, tmp_path / "again")
    for name in ("architecture.yaml", "weights.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_stitches_of_a_given_specification_are_those_of_the_network(tmp_path: Path) -> None:
    branched = stitched("vectors")
    described = branchnet.Architecture.from_tree(branched.tree, networks=networks("vectors"), description="from a tree")
    branchnet.save(branched, tmp_path, architecture=described)
    loaded = branchnet.load(tmp_path, networks("vectors"))
    assert list(loaded.stitches) == STITCHED
    assert branchnet.Architecture.load(tmp_path / "architecture.yaml").description == "from a tree"


def test_stitches_have_names_of_their_own_in_the_weights(tmp_path: Path) -> None:
    branchnet.save(stitched("vectors"), tmp_path)
    stored = set(load((tmp_path / "weights.safetensors").read_bytes()))
    for name in ("nodes.1.1", "heads.1"):
        assert {f"{name}.stitch.maps.0.weights.0", f"{name}.stitch.maps.0.bias"} <= stored
        assert any(key.startswith(f"{name}.stage.") for key in stored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: re.sub(r"  heads\.1:.*(?=costs:)", "", text, flags=re.S),
            r"heads\.1\.stitch\.maps\.0\.bias: unknown tensor",
        ),
        (
            lambda text: text.replace("dimension: 1\n", "dimension: 1\n        rank: 2\n", 1),
            r"nodes\.1\.1\.stitch\.maps\.0\.weights\.1: not in the file",
        ),
        (lambda text: text.replace("channels: [5, 5]", "channels: [6, 5]", 1), "6 channels arrive in tensor 0; exp"),
        (lambda text: text.replace("  heads.1:", "  heads.0:", 1), r"heads\.0\.stitch\.maps\.0\.weights\.0: not in"),
    ],
)
def test_other_stitches_than_those_of_the_weights_are_refused(change: object, message: str, tmp_path: Path) -> None:
    branchnet.save(stitched("vectors"), tmp_path)
    path = tmp_path / "architecture.yaml"
    changed = change(path.read_text())  # type: ignore[operator]
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(BranchnetError, match=message):
        branchnet.load(tmp_path, networks("vectors"))


def test_a_changed_number_of_a_stitch_is_noticed(tmp_path: Path) -> None:
    branchnet.save(stitched("vectors"), tmp_path)
    path = tmp_path / "weights.safetensors"
    tensors = load(path.read_bytes())
    metadata = branchnet.deploy.weight_files.read_metadata(path)
    tensors["heads.1.stitch.maps.0.bias"][0] += 1
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="is damaged or was changed"):
        branchnet.load(tmp_path, networks("vectors"))


def test_damaged_specifications_give_errors_of_ours_or_the_same_stitches(tmp_path: Path) -> None:
    branchnet.save(stitched("vectors"), tmp_path)
    path = tmp_path / "architecture.yaml"
    start = path.read_bytes().index(b"stitches:")
    content = path.read_bytes()
    refused = 0
    for part in damaged(content[start:], 40):
        path.write_bytes(content[:start] + part)
        try:
            branchnet.load(tmp_path, networks("vectors"))
        except BranchnetError:
            refused += 1
    assert refused > 20
