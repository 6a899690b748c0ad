"""Stitches in a specification: every one is named, strictly read, and written as the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import branchnet
from branchnet.clustering import Tree
from branchnet.errors import BuildError, SpecError
from branchnet.specification.architecture import Architecture
from tests.architecture.toys import NAMES
from tests.stitching.toys import STITCHED, TREE, networks, stitched

SPEC = """\
schema_version: 1
tasks: [a, b, c]
locations: ["1", "3"]
tree:
  - until: "1"
    donor: a
    branches:
      - until: "3"
        donor: a
        branches: [a, b]
      - until: "3"
        donor: c
        branches: [c]
stitches:
  nodes.1.1:
    source: a
    target: c
    method: ridge
    r2: 0.5
    maps:
      - tensor: 0
        channels: [4, 4]
        dimension: 1
  heads.1:
    source: a
    target: b
    maps:
      - tensor: 0
        channels: [4, 4]
        dimension: 1
        rank: 2
"""
RELAXED = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
MAP = st.fixed_dictionaries(
    {"channels": st.tuples(st.integers(3, 99), st.integers(3, 99)), "dimension": st.integers(1, 4)},
    optional={"rank": st.integers(1, 3)},
)
STITCH = st.fixed_dictionaries(
    {"source": NAMES, "target": NAMES, "maps": st.lists(MAP, min_size=1, max_size=3)},
    optional={"method": NAMES, "r2": st.floats(-10, 1)},
)


def load(text: str, folder: Path) -> Architecture:
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    return Architecture.load(folder / "spec.yaml")


@RELAXED
@given(stitches=st.dictionaries(st.sampled_from(["heads.2", "nodes.1.0", "heads.0", "nodes.1.1"]), STITCH))
def test_stitches_are_read_back_and_written_as_the_same_bytes(stitches: dict[str, dict], tmp_path: Path) -> None:
    for stitch in stitches.values():
        for tensor, each in enumerate(stitch["maps"]):
            each["tensor"] = tensor
    content = {"tasks": TREE.tasks, "locations": ["1", "3"], "stitches": stitches}
    content["tree"] = load(SPEC, tmp_path).model_dump(by_alias=True)["tree"]
    architecture = Architecture.create(**content)
    other = Architecture.create(**content | {"stitches": dict(reversed(stitches.items()))})
    architecture.save(tmp_path / "x.yaml")
    loaded = Architecture.load(tmp_path / "x.yaml")
    assert loaded == architecture == other
    assert loaded.to_yaml() == architecture.to_yaml() == other.to_yaml()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("nodes.1.1:", "nodes.0.0:", "15:3: stitches['nodes.0.0']: unknown key: not a node after the first stage"),
        ("nodes.1.1:", "nodes.1.2:", "15:3: stitches['nodes.1.2']: unknown key"),
        ("nodes.1.1:", "nodes.01.1:", "unknown key: not a node"),
        ("heads.1:", "heads.3:", "stitches['heads.3']: unknown key: not a node"),
        ("heads.1:", "nodes.1.1:", "nodes.1.1"),
        ("source: a\n    target: c", "target: c", "stitches['nodes.1.1'].source: is missing"),
        ("target: c", 'target: ""', "stitches['nodes.1.1'].target:"),
        ("target: c", "target: c\n    folded: true", "stitches['nodes.1.1'].folded: unknown key (remove it)"),
        ("r2: 0.5", "r2: 1.5", "stitches['nodes.1.1'].r2: 1.5 is wrong: expected less than or equal to 1"),
        ("r2: 0.5", "r2: .nan", ".nan is not a finite number"),
        ("tensor: 0", "tensor: -1", "stitches['nodes.1.1'].maps[0].tensor: -1 is wrong"),
        ("channels: [4, 4]", "channels: [4]", "stitches['nodes.1.1'].maps[0].channels"),
        ("channels: [4, 4]", "channels: [4, 1000000000000]", "stitches['nodes.1.1'].maps[0].channels[1]"),
        ("dimension: 1", "dimension: 0", "stitches['nodes.1.1'].maps[0].dimension: 0 is wrong"),
        ("rank: 2", "rank: 5", "stitches['heads.1'].maps[0].rank: 5 is wrong: expected at most 4"),
        (
            "rank: 2",
            "rank: 2\n      - tensor: 0\n        channels: [4, 4]\n        dimension: 1",
            "stitches['heads.1'].maps[1].tensor: 0 does not come after 0",
        ),
    ],
)
def test_errors_in_stitches_name_the_place(old: str, new: str, problem: str, tmp_path: Path) -> None:
    assert old in SPEC
    with pytest.raises(SpecError) as raised:
        load(SPEC.replace(old, new, 1), tmp_path)
    assert any(problem in found for found in raised.value.problems), raised.value.problems


@pytest.mark.parametrize("kind", ["images", "tokens", "vectors"])
def test_a_stitched_network_is_described_and_built_with_all_its_stitches(kind: str, tmp_path: Path) -> None:
    branched = stitched(kind)
    assert list(branched.stitches) == STITCHED
    branchnet.Architecture.from_network(branched).save(tmp_path / "x.yaml")
    spec = Architecture.load(tmp_path / "x.yaml")
    assert sum(stitch.size for stitch in spec.stitches.values()) == sum(s.size for s in branched.stitches.values())
    rebuilt = spec.build(networks(kind))
    assert list(rebuilt.stitches) == STITCHED
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (branched, rebuilt)]
    assert shapes[0] == shapes[1]
    assert Architecture.from_network(rebuilt) == spec


def test_maps_that_are_not_those_of_the_networks_are_named(tmp_path: Path) -> None:
    spec = load(SPEC, tmp_path)
    assert [s.rank for s in spec.build(networks("images")).stitches.values()] == [4, 2]
    for old, new, problem in (
        ("[4, 4]", "[4, 5]", r"stitches\.nodes\.1\.1: 5 channels are expected in tensor 0; expected 4"),
        ("tensor: 0", "tensor: 1", "tensor 1 is not in the cut; expected one of 1 tensors"),
        ("dimension: 1", "dimension: 2", "dimension 2 of a tensor of the shape"),
    ):
        with pytest.raises(BuildError, match=problem):
            load(SPEC.replace(old, new, 1), tmp_path).build(networks("images"))


def test_built_maps_leave_features_as_they_are(tmp_path: Path) -> None:
    """Without weights of its own a full map is the identity, so that the network is the one without stitches."""
    spec = load(SPEC.replace("        rank: 2\n", ""), tmp_path)
    x = torch.randn(2, 3, 8, 8)
    plain = branchnet.build(spec.tree, networks("images"), init="donor", donors=spec.donors).eval()
    with torch.no_grad():
        found, expected = spec.build(networks("images")).eval()(x), plain(x)
    for task in TREE.tasks:
        torch.testing.assert_close(found[task], expected[task])


def test_specifications_without_stitches_have_none(tmp_path: Path) -> None:
    tree = Tree(["a", "b"], [[["a", "b"]]])
    assert "stitches" not in Architecture.from_tree(tree, locations=["1"]).to_yaml()
    assert load(SPEC[: SPEC.index("stitches:")], tmp_path).stitches == {}
