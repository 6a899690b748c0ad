"""Trees of other projects: published files are read as their code reads them, and what is written is read back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchnet.clustering import Tree, enumerate_trees
from branchnet.errors import SpecError
from branchnet.specification.tree_formats import (
    tree_from_autobrane,
    tree_from_bmtas,
    tree_from_json,
    tree_from_treemtl,
    tree_to_autobrane,
    tree_to_bmtas,
    tree_to_json,
    tree_to_treemtl,
)
from tests.architecture.toys import trees

RELAXED = settings(deadline=None, max_examples=100)
FACTS = Path(__file__).parents[1] / "facts"
AUTOBRANE_GAT = """\
1: bfs dfs bridges strongly_connected_components mst_kruskal dag_shortest_paths
1: floyd_warshall topological_sort articulation_points dijkstra
1: mst_prim bellman_ford
2: bfs
2: dfs bridges
2: strongly_connected_components
2: mst_kruskal dag_shortest_paths
2: floyd_warshall
2: topological_sort articulation_points
2: dijkstra
2: mst_prim \n2: bellman_ford"""


@RELAXED
@given(trees())
def test_every_format_reads_back_what_it_writes(tree: Tree) -> None:
    assert tree_from_json(tree_to_json(tree)) == tree
    assert tree_from_treemtl(tree_to_treemtl(tree), tree.tasks) == tree
    assert tree_from_bmtas(tree_to_bmtas(tree), tree.tasks) == tree
    if all(task.split() == [task] for task in tree.tasks):
        assert tree_from_autobrane(tree_to_autobrane(tree)) == tree


def test_treemtl_layouts_are_numbered_as_in_the_published_table() -> None:
    """TreeMTL prints layouts as lists of sets; 20 of its 51 layouts for three tasks and five blocks."""
    layouts = [
        "[[{0, 1, 2}], [{0, 1, 2}], [{0, 1, 2}], [{0, 1, 2}], [{0, 1, 2}]]",
        "[[{0, 2}, {1}], [{0, 2}, {1}], [{0, 2}, {1}], [{0}, {1}, {2}], [{0}, {1}, {2}]]",
    ]
    read = [tree_from_treemtl(layout, list("abc")) for layout in layouts]
    assert read[0] == Tree.shared(list("abc"), 5)
    assert read[1].widths == (2, 2, 2, 3, 3)
    assert len({tree_to_treemtl(tree) for tree in enumerate_trees(list("abc"), 5)}) == 51  # TreeMTL's own count


def test_bmtas_example_of_its_documentation() -> None:
    """The example of BranchMobileNetV2's docstring: tasks with equal numbers after they have parted do not share."""
    config = [[0, 0, 0, 0], [2, 2, 2, 2], [1, 1, 2, 2], [0, 0, 2, 3], [0, 1, 2, 3], [1, 1, 3, 3]]
    tree = tree_from_bmtas(json.dumps({"config": config}), list("abcd"))
    assert tree.widths == (1, 1, 2, 3, 4, 4)
    assert tree.partitions[2:4] == ((("a", "b"), ("c", "d")), (("a", "b"), ("c",), ("d",)))


@RELAXED
@given(
    st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(st.integers(0, n - 1), min_size=n, max_size=n), min_size=1))
)
def test_bmtas_partitions_are_the_published_refinements(config: list[list[int]]) -> None:
    """Compare with the rule of its code: split by number, then intersect with the groups of the layer before."""
    tasks = [f"t{i}" for i in range(len(config[0]))]
    groups = [set(range(len(tasks)))]
    expected = []
    for row in config:
        parts = [{i for i, x in enumerate(row) if x == number} for number in range(len(tasks))]
        groups = [part & group for part in parts for group in groups if part & group]
        expected.append([[tasks[i] for i in group] for group in groups])
    assert tree_from_bmtas(json.dumps({"config": config}), tasks) == Tree(tasks, expected)


def test_an_autobrane_file_as_published() -> None:
    published = json.loads((FACTS / "autobrane_clrs_trees.json").read_text())["trees_layer_to_groups"]["gat_tree"]
    tree = tree_from_autobrane(AUTOBRANE_GAT)
    assert [{frozenset(c) for c in clusters} for clusters in tree.partitions] == [
        {frozenset(group) for group in published[layer]} for layer in ("1", "2")
    ]


def test_layers_before_the_first_autobrane_layer_are_shared() -> None:
    tree = tree_from_autobrane("3: a b\n3: c\n")
    assert tree.partitions == ((("a", "b", "c"),), (("a", "b", "c"),), (("a", "b"), ("c",)))


@pytest.mark.parametrize(
    ("read", "text", "problem"),
    [
        (lambda text: tree_from_treemtl(text, ["a", "b"]), "[[{0, 1}], [{0}]]", "leaves out b"),
        (lambda text: tree_from_treemtl(text, ["a", "b"]), "[[{0, 5}]]", "unknown task number 5; expected 0 to 1"),
        (lambda text: tree_from_treemtl(text, ["a", "b"]), "__import__('os')", "a TreeMTL layout cannot be read"),
        (lambda text: tree_from_treemtl(text, ["a", "b"]), "[" * 100_000, "a TreeMTL layout cannot be read"),
        (lambda text: tree_from_bmtas(text, ["a", "b"]), '{"config": [[0]]}', "every row needs 2 numbers"),
        (lambda text: tree_from_bmtas(text, ["a", "b"]), '{"config": []}', "rows of block numbers"),
        (tree_from_autobrane, "1: a b\n3: a\n3: b", "these are missing: [2]"),
        (tree_from_autobrane, "1: a b\n2; a", "line 2: '2; a' cannot be read"),
        (tree_from_autobrane, "1: a\n1: b\n2: a b", "which stage 0 has separated"),
        (tree_from_autobrane, "", "names no layer"),
        (tree_from_json, '{"tasks": ["a"]}', "a tree has `tasks`, `partitions`"),
        (tree_from_json, '{"tasks": ["a"], "partitions": [["a"]]}', "partitions are lists of groups"),
    ],
)
def test_other_text_is_refused(read: object, text: str, problem: str) -> None:
    with pytest.raises(SpecError, match=re.escape(problem)):
        read(text)  # type: ignore[operator]


def test_names_with_spaces_do_not_fit_autobrane() -> None:
    with pytest.raises(SpecError, match="expected none"):
        tree_to_autobrane(Tree.shared(["a b"], 1))
