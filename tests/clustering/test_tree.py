"""Trees: canonical form, validation, structure, drawings."""

import random

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchnet.clustering import Tree, count_trees
from branchnet.errors import TreeError
from tests.clustering.toys import all_trees, facts_json

EXAMPLE = Tree(list("abcd"), [[list("abcd")], [list("ab"), list("cd")], [list("ab"), ["c"], ["d"]]])


@given(st.integers(0, 10_000))
def test_order_given_does_not_matter(seed: int) -> None:
    generator = random.Random(seed)
    tree = generator.choice(all_trees(5, 3))
    shuffled = [[generator.sample(c, len(c)) for c in generator.sample(p, len(p))] for p in tree.partitions]
    tasks = generator.sample(tree.tasks, len(tree.tasks))
    other = Tree(tasks, shuffled)
    assert other == tree
    assert hash(other) == hash(tree)
    assert Tree(tree.tasks, shuffled).partitions == tree.partitions


def test_different_trees_differ() -> None:
    assert len(set(all_trees(4, 3))) == count_trees(4, 3) == 154


@pytest.mark.parametrize(
    ("partitions", "message"),
    [
        ([], "at least one stage"),
        ([[["a", "b"]]], "leaves out c"),
        ([[["a", "b", "c"], ["c"]]], "more than once: c"),
        ([[["a", "b", "c", "x"]]], "'x'"),
        ([[["a", "b", "c"], []]], "empty cluster"),
        ([["ab", "c"]], "'ab'"),
        ([[["a", "b"], ["c"]], [["a", "c"], ["b"]]], "cannot grow together"),
    ],
)
def test_refuses_what_is_no_tree(partitions: list, message: str) -> None:
    with pytest.raises(TreeError, match=message):
        Tree(["a", "b", "c"], partitions)


def test_refuses_name_clashes() -> None:
    with pytest.raises(TreeError, match="more than once: a"):
        Tree.shared(["a", "b", "a"], 2)
    with pytest.raises(TreeError, match="non-empty"):
        Tree.shared(["a", ""], 2)
    with pytest.raises(TreeError, match="more than once: b"):
        Tree.grouped([["a", "b"], ["b"]], 2)


def test_structure() -> None:
    assert EXAMPLE.widths == (1, 2, 3)
    assert EXAMPLE.parents == ((-1,), (0, 0), (0, 1, 1))
    assert EXAMPLE.cluster_of("d", 2) == 2
    assert [EXAMPLE.shared_depth("a", other) for other in "bcd"] == [3, 1, 1]
    assert Tree.from_labels(list("abcd"), EXAMPLE.labels()) == EXAMPLE
    assert EXAMPLE.labels("dcba")[2] == (0, 1, 2, 2)


def test_special_trees() -> None:
    assert Tree.shared(list("ab"), 3).widths == (1, 1, 1)
    assert Tree.separate(list("ab"), 3).widths == (2, 2, 2)
    assert Tree.grouped([["a", "c"], ["b"]], 2).partitions[1] == (("a", "c"), ("b",))


def test_distance_counts_stage_pairs() -> None:
    assert EXAMPLE.distance(EXAMPLE) == 0
    assert Tree.shared(list("abc"), 4).distance(Tree.separate(list("abc"), 4)) == 4 * 3
    with pytest.raises(TreeError, match="stages"):
        EXAMPLE.distance(Tree.shared(list("abcd"), 2))
    with pytest.raises(TreeError, match="these differ: e"):
        EXAMPLE.distance(Tree.shared(list("abcde"), 3))


def test_graph_is_a_forest_with_the_tasks_at_its_nodes() -> None:
    graph = EXAMPLE.to_networkx()
    assert nx.is_arborescence(graph)
    assert graph.nodes[2, 0] == {"stage": 2, "tasks": ("a", "b")}
    assert nx.number_weakly_connected_components(Tree.separate(list("abc"), 4).to_networkx()) == 3


def test_text_shows_every_branch() -> None:
    assert str(EXAMPLE).splitlines() == [
        "4 tasks, 3 stages, 6 nodes",
        "stage 0: a, b, c, d",
        "├── stages 1-2: a, b",
        "└── stage 1: c, d",
        "    ├── stage 2: c",
        "    └── stage 2: d",
    ]


def test_dot_text_escapes_names() -> None:
    text = Tree.separate(['a"b', "c\\"], 1).to_dot()
    assert r"a\"b" in text
    assert r"c\\" in text
    assert EXAMPLE.to_dot().count("->") == 5


def test_published_trees_are_trees() -> None:
    published = facts_json("treemtl_bmtn_rsa_head.json")
    assert count_trees(published["T"], published["D"]) == published["num_layouts"]
    groups = facts_json("autobrane_clrs_trees.json")["trees_layer_to_groups"]["tree_structure_final"]
    tasks = [task for group in groups["1"] for task in group]
    assert Tree(tasks, [groups[layer] for layer in sorted(groups)]).widths == (3, 6, 9, 10)


def test_names_may_be_any_text() -> None:
    assert Tree.shared(["keys", "a.b", "日本"], 1).tasks == ("keys", "a.b", "日本")
