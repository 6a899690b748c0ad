"""Specifications: the same content after writing and reading, the same bytes for the same content, precise errors."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from branchnet.affinity import Affinity
from branchnet.builder.weights.donors import choose_donors
from branchnet.clustering import Budget, Tree, search
from branchnet.errors import SpecError
from branchnet.specification.architecture import SCHEMA_VERSION, Architecture, json_schema
from branchnet.specification.nested_tree import donors_of, flatten, nest
from branchnet.specification.sections import budget_text
from tests.architecture.toys import NAMES, architectures, shuffled, trees

RELAXED = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPEC = """\
schema_version: 1
tasks: [edges, depth, shape]
input:
  shape: [1, 3, 32, 32]
  dtype: float32
networks:
  edges:
    constructor: "branchnet:scene_network"
    arguments: {kind: dense, outputs: 1}
locations: [stem, layer1, layer2]
tree:
  - until: stem
    branches:
      - until: layer2
        branches: [edges, depth]
      - until: layer2
        branches: [shape]
costs:
  stages:
    stem: {params: 1, flops: 2}
    layer1: {params: 3, flops: 4}
    layer2: {params: 5, flops: 6}
search: {budget: "60% params", proven: true, cost: 1e-3}
"""


def load(text: str, folder: Path) -> Architecture:
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return Architecture.load(path)


def errors(text: str, folder: Path) -> list[str]:
    with pytest.raises(SpecError) as raised:
        load(text, folder)
    return [problem.partition("spec.yaml:")[2] for problem in raised.value.problems]


@RELAXED
@given(architecture=architectures())
def test_a_saved_architecture_is_loaded_unchanged(architecture: Architecture, tmp_path: Path) -> None:
    architecture.save(tmp_path / "x.yaml")
    loaded = Architecture.load(tmp_path / "x.yaml")
    assert loaded == architecture
    assert loaded.tree == architecture.tree
    assert loaded.donors == architecture.donors
    assert loaded.to_yaml() == architecture.to_yaml()


@RELAXED
@given(architectures(), st.randoms())
def test_equal_content_is_written_as_equal_bytes(architecture: Architecture, source: random.Random) -> None:
    content = architecture.model_dump(by_alias=True, mode="json")
    other = Architecture.create(**shuffled(content, source))  # type: ignore[arg-type]
    assert other == architecture
    assert other.to_yaml() == architecture.to_yaml()


@RELAXED
@given(architectures())
def test_another_yaml_reader_reads_the_same(architecture: Architecture) -> None:
    content = yaml.safe_load(architecture.to_yaml())
    assert Architecture.create(**content) == architecture


@RELAXED
@given(trees(), st.integers(0, 2**31))
def test_nesting_and_flattening_a_tree_are_inverse(tree: Tree, seed: int) -> None:
    locations = [f"location {stage}" for stage in range(tree.depth)]
    n = len(tree.tasks)
    affinity = Affinity(tree.tasks, locations, np.random.default_rng(seed).random((tree.depth, n, n)))
    donors = choose_donors(tree, affinity)
    roots = nest(tree, locations, donors)
    assert flatten(roots, tree.tasks, locations) == tree
    assert donors_of(roots, tree, locations) == donors


def test_a_person_reads_the_tree_off_the_file(tmp_path: Path) -> None:
    architecture = load(SPEC, tmp_path)
    assert architecture.tree.partitions == (
        (("edges", "depth", "shape"),),
        (("edges", "depth"), ("shape",)),
        (("edges", "depth"), ("shape",)),
    )
    assert architecture.stage_costs is not None
    assert architecture.stage_costs.params == (1, 3, 5)
    assert architecture.search is not None
    assert architecture.search.cost == 0.001
    assert architecture.to_yaml().startswith("# yaml-language-server: $schema=")


def test_every_error_of_a_file_is_reported_at_once(tmp_path: Path) -> None:
    broken = (
        SPEC.replace("until: stem", "until: stm")
        .replace("branches: [shape]", "branches: [shap]")
        .replace("kind: dense", "weights: DEFAULT")
        .replace("60% params", "60% parrots")
        .replace("params: 3", "params: -3")
        .replace("locations:", "lokations:\nlocations:")
    )
    assert errors(broken, tmp_path) == [
        "9:26: networks.edges.arguments.weights: refused: a specification names no weights, files, addresses or code "
        "(load weights separately)",
        "10:1: lokations: unknown key; did you mean locations?",
        "13:3: tree: lacks the task 'shape'",
        "13:12: tree[0].until: unknown location 'stm'; did you mean 'stem'?",
        "18:20: tree[0].branches[1].branches[0]: unknown task 'shap'; did you mean 'shape'?",
        "22:22: costs.stages.layer1.params: -3 is wrong: expected greater than or equal to 0",
        "24:18: search.budget: cannot read the budget '60% parrots'; expected for example '60% params', '25e6 params', "
        "'4 GMACs', '8 GFLOPs' (two per multiply-add), '4 ms' or '8 ms for depth+edges'",
    ]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[edges, depth, shape]", "[edges, depth, no]", "2:23: tasks[2]: no means different things"),
        ("[edges, depth, shape]", "[edges, depth, 1e-3]", "2:23: tasks[2]: 0.001 is not text (write it in quotes)"),
        ("[edges, depth, shape]", "[edges, depth, 12:30]", '"12:30" in quotes as text'),
        ("[edges, depth, shape]", "[edges, depth, depth]", "tasks[2]: 'depth' occurs twice"),
        ("[edges, depth, shape]", '[edges, depth, shape, ""]', "tasks[3]: is empty"),
        ("tasks: [edges, depth, shape]", "tasks: edges", 'tasks: "edges" is wrong'),
        ("tasks: [edges, depth, shape]\n", "", "1:1: tasks: is missing"),
        ("until: stem", "until: layer2", "14:16: tree[0].branches[0].until: 'layer2' does not come after 'layer2'"),
        ("branches: [shape]", "branches: [shape, edges]", "'edges' occurs in the tree twice"),
        ("branches: [shape]", "branches: []", "17:19: tree[0].branches[1].branches: is empty"),
        ("branches: [shape]", "branches: [shape]\n        donor: shape", "names donors of some nodes"),
        ("    layer1: {params: 3, flops: 4}\n", "", "costs.stages: lacks 'layer1'"),
        ("flops: 6}", "flops: 6}\n  heads:\n    edges: {params: 1, flops: 1}", "costs.heads: lacks 'depth', 'shape'"),
        ("  edges:\n    constructor", "  edge:\n    constructor", "7:3: networks.edge: unknown key: not a task"),
        ("branchnet:scene_network", "os:system", "networks.edges.constructor: 'os:system' is not a named constructor"),
        ("cost: 1e-3", "cost: .nan", ".nan is not a finite number"),
        ("proven: true", "proven: 1", "search.proven: 1 is wrong"),
        ("proven: true", "proven: yes", '"yes" in quotes as text, true as a truth value'),
        ("[1, 3, 32, 32]", "[1, 3, -32, 32]", "4:17: input.shape[2]: -32 is wrong"),
        ("[1, 3, 32, 32]", "[1, 3, 100000, 100000]", "input.shape: has over 268,435,456 elements or 8 dimensions"),
        ("[1, 3, 32, 32]", "[1, 1, 1, 1, 1, 1, 1, 1, 1]", "input.shape: has over 268,435,456 elements or 8 dimensions"),
        ("float32", "int64\n  low: 3\n  high: 2", "input.high: no integer lies between 3 and 2"),
        (
            "float32",
            "int64\n  high: 9223372036854775808",
            "input.high: no integer lies between 0 and 9223372036854775808",
        ),
        ("float32", "float31", 'input.dtype: "float31" is wrong'),
        ("schema_version: 1", "schema_version: 0", "unknown version 0; expected 1"),
        ("schema_version: 1", 'schema_version: "1"', 'schema_version: "1" is wrong'),
    ],
)
def test_errors_name_the_place_and_what_would_be_right(old: str, new: str, problem: str, tmp_path: Path) -> None:
    assert old in SPEC
    assert any(problem in error for error in errors(SPEC.replace(old, new), tmp_path)), errors(
        SPEC.replace(old, new), tmp_path
    )


def test_a_newer_version_is_refused_with_advice_and_nothing_else(tmp_path: Path) -> None:
    text = SPEC.replace("schema_version: 1", f"schema_version: {SCHEMA_VERSION + 1}\nwhat_comes_later: 1")
    (problem,) = errors(text, tmp_path)
    assert problem.startswith("1:17: schema_version: 2 was written by a newer branchnet")
    assert "pip install --upgrade branchnet" in problem


def test_files_of_every_released_version_are_read() -> None:
    architecture = Architecture.load(Path(__file__).parent / "version1.yaml")
    assert architecture.tree.widths == (1, 2, 3)
    assert architecture.donors == (("no",), ("no", "12:30"), ("no", "depth", "12:30"))
    assert architecture.to_yaml() == (Path(__file__).parent / "version1.yaml").read_text(encoding="utf-8")


def test_from_search_records_what_was_found() -> None:
    tasks, locations = ("a", "b", "c"), ("x", "y")
    values = np.eye(3) + np.array([[[0, 0.9, 0.2], [0.9, 0, 0.1], [0.2, 0.1, 0]]] * 2)
    affinity = Affinity(tasks, locations, values, measure="rsa", probe_hash="00ff")
    result = search(affinity, [10, 20], "70% params")
    architecture = Architecture.from_search(result, affinity=affinity, budget="70% params", seed=3)
    found = architecture.search
    assert architecture.tree == result.tree
    assert architecture.locations == locations
    assert found is not None
    assert (found.budget, found.measure, found.probe_hash, found.seed) == ("70% params", "rsa", "00ff", 3)
    assert (found.cost, found.size, found.proven) == (result.cost, result.size, result.proven)
    assert architecture.donors == choose_donors(result.tree, affinity)


def test_from_search_needs_locations() -> None:
    affinity = Affinity(("a", "b"), ("x", "y"), np.ones((2, 2, 2)))
    result = search(affinity, [10, 20], 60)
    with pytest.raises(SpecError, match=r"0 locations are known, \[\]; expected 2"):
        Architecture.from_search(result)


@RELAXED
@given(st.floats(1e-9, 1e15), st.sampled_from(["params", "flops", "latency"]), st.booleans())
def test_a_budget_survives_as_text(amount: float, unit: str, relative: bool) -> None:
    budget = Budget(amount / 1e15 if relative else amount, unit, relative)
    read = Budget.parse(budget_text(budget))
    assert (read.unit, read.relative) == (unit, relative)
    assert read.amount == pytest.approx(budget.amount, rel=1e-15)


def test_a_tree_too_deep_for_the_reader_is_not_written() -> None:
    tasks = [f"t{i}" for i in range(40)]
    tree = Tree(tasks, [[[t] for t in tasks[:d]] + [tasks[d:]] for d in range(39)])
    locations = [f"l{d}" for d in range(39)]
    architecture = Architecture.create(tasks=tasks, locations=locations, tree=nest(tree, locations))
    with pytest.raises(SpecError, match="39 nodes lie on one path"):
        architecture.to_yaml()


def test_create_names_every_problem() -> None:
    with pytest.raises(SpecError) as raised:
        Architecture.create(
            tasks=["a", "a"], locations=["x"], tree=[{"until": "x", "branches": ["a"]}], costs={"stages": {}}
        )
    assert len(raised.value.problems) == 2


@RELAXED
@given(architectures())
def test_the_json_schema_knows_every_key_that_is_written(architecture: Architecture) -> None:
    schema = json_schema()
    _check(yaml.safe_load(architecture.to_yaml()), schema, schema)


def _check(value: Any, rule: dict[str, Any], schema: dict[str, Any]) -> None:
    """A small validator of the parts of JSON Schema that the schema uses."""
    if "$ref" in rule:
        rule = schema["$defs"][rule["$ref"].rpartition("/")[2]]
    if alternatives := rule.get("anyOf") or rule.get("oneOf"):
        assert any(_accepts(value, alternative, schema) for alternative in alternatives), (value, rule)
        return
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    if "type" in rule and rule["type"] != "null":
        assert isinstance(value, kinds[rule["type"]]), (value, rule)
    assert "enum" not in rule or value in rule["enum"]
    assert "type" not in rule or rule["type"] != "null" or value is None
    if isinstance(value, dict) and "properties" in rule:
        assert rule["additionalProperties"] is False
        assert set(rule.get("required", [])) <= set(value) <= set(rule["properties"])
    if isinstance(value, dict):
        for key, item in value.items():
            inner = rule.get("properties", {}).get(key, rule.get("additionalProperties"))
            _check(item, inner if isinstance(inner, dict) else {}, schema)
    for item in value if isinstance(value, list) else []:
        _check(item, rule.get("items", {}), schema)


def _accepts(value: Any, rule: dict[str, Any], schema: dict[str, Any]) -> bool:
    try:
        _check(value, rule, schema)
    except AssertionError:
        return False
    return True


def test_the_json_schema_is_json() -> None:
    assert json.loads(json.dumps(json_schema()))["properties"]["tree"]["type"] == "array"


def test_reading_and_writing_imports_no_torch() -> None:
    path = Path(__file__).parent / "version1.yaml"
    code = f"import sys; from branchnet import Architecture as A; A.load({str(path)!r}).to_yaml()"
    assert (
        subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], check=False).returncode == 0
    )


@RELAXED
@given(NAMES)
def test_any_task_name_can_be_a_key(name: str) -> None:
    architecture = Architecture.create(
        tasks=[name],
        locations=["x"],
        tree=[{"until": "x", "branches": [name]}],
        networks={name: {"constructor": "timm:resnet18"}},
    )
    assert yaml.safe_load(architecture.to_yaml())["networks"] == {name: {"constructor": "timm:resnet18"}}
