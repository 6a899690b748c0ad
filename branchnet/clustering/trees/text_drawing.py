"""Trees as text for the terminal, as a networkx graph and as DOT text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from branchnet.utils.visible_text import visible

if TYPE_CHECKING:
    import networkx as nx

    from branchnet.clustering.trees.tree import Tree

Node = tuple[int, int]


def tree_graph(tree: Tree) -> nx.DiGraph:
    """Nodes `(stage, number)` with attributes `stage` and `tasks`; edges from each stage to the next."""
    import networkx as nx

    graph = nx.DiGraph()
    for stage, clusters in enumerate(tree.partitions):
        for number, cluster in enumerate(clusters):
            if not tree.is_node(stage, number):
                continue
            graph.add_node((stage, number), stage=stage, tasks=cluster)
            if stage:
                graph.add_edge((stage - 1, tree.parents[stage][number]), (stage, number))
    return graph


def tree_text(tree: Tree, marks: Mapping[Node, str] | None = None) -> str:
    """One line for each run of stages that the same tasks share; what branches off is indented below it.

    A task that leaves the trunk early has a line where it does.

    Args:
        tree: the tree.
        marks: by stage and number what is written behind a node, which then begins a line; (D, i) is the head of task
            i, which has a line only if it is marked.
    """
    lines = [f"{len(tree.tasks)} tasks, {tree.depth} stages, {sum(tree.copies)} nodes"]
    for number in range(tree.widths[0]):
        lines.extend(_subtree_lines(tree, (0, number), marks or {}))
    return "\n".join(lines)


def _subtree_lines(tree: Tree, node: Node, marks: Mapping[Node, str]) -> Iterator[str]:
    mark = f" ({visible(marks[node])})" if node in marks else ""
    if node[0] == tree.depth:
        yield f"head of {visible(tree.tasks[node[1]])}{mark}"
        return
    if not tree.is_node(*node):
        task = tree.partitions[node[0]][node[1]][0]
        mark = f" ({visible(marks[head])})" if (head := (tree.depth, tree.tasks.index(task))) in marks else ""
        yield f"{visible(task)} leaves after stage {node[0] - 1}{mark}"
        return
    chain, children = _chain(tree, node, marks)
    stages = f"stage {chain[0][0]}" if len(chain) == 1 else f"stages {chain[0][0]}-{chain[-1][0]}"
    yield f"{stages}: {', '.join(map(visible, tree.partitions[node[0]][node[1]]))}{mark}"
    if chain[-1][0] == tree.depth - 1:
        heads = [(tree.depth, tree.tasks.index(task)) for task in tree.partitions[node[0]][node[1]]]
        children = [head for head in heads if head in marks]
    for position, child in enumerate(children):
        last = position == len(children) - 1
        for index, line in enumerate(_subtree_lines(tree, child, marks)):
            joint = ("└── " if last else "├── ") if index == 0 else ("    " if last else "│   ")
            yield joint + line


def _chain(tree: Tree, node: Node, marks: Mapping[Node, str]) -> tuple[list[Node], list[Node]]:
    """The nodes from `node` on that serve the same tasks, and the nodes into which the last of them branches."""
    chain = [node]
    while True:
        children = _children(tree, chain[-1])
        if len(children) != 1 or children[0] in marks or not tree.is_node(*children[0]):
            return chain, children
        chain.append(children[0])


def _children(tree: Tree, node: Node) -> list[Node]:
    stage = node[0] + 1
    if stage == tree.depth:
        return []
    return [(stage, number) for number, parent in enumerate(tree.parents[stage]) if parent == node[1]]


def tree_dot(tree: Tree) -> str:
    """The tree in Graphviz's DOT language, input at the top, with one box for each node."""
    lines = ["digraph tree {", "  node [shape=box];"]
    for stage, clusters in enumerate(tree.partitions):
        for number, cluster in enumerate(clusters):
            if not tree.is_node(stage, number):
                continue
            label = _quoted(f"stage {stage}: {', '.join(visible(task, lines=True) for task in cluster)}")
            lines.append(f"  n{stage}_{number} [label={label}];")
    for stage in range(1, tree.depth):
        for number, parent in enumerate(tree.parents[stage]):
            if tree.is_node(stage, number):
                lines.append(f"  n{stage - 1}_{parent} -> n{stage}_{number};")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
