"""The three published trees of AutoBRANE for twelve algorithmic reasoning tasks: groups of every layer, both ways."""

from __future__ import annotations

from pathlib import Path

from published import Reproduction, Row, facts_json, run

from branchnet import Architecture, Tree
from branchnet.specification.tree_formats import tree_from_autobrane, tree_to_autobrane

ARCHITECTURES = Path(__file__).resolve().parents[1] / "architectures"
SPECS = {"tree_structure_final": "autobrane_final", "tree_structure_1": "autobrane_1", "gat_tree": "autobrane_gat"}


def groups_of(tree: Tree, layer: int) -> str:
    """The groups of a layer in one order."""
    return "; ".join(sorted(", ".join(sorted(cluster)) for cluster in tree.partitions[layer]))


def reproduce() -> Reproduction:
    """Groups of every published layer in the ready specification, and after a way through the file format."""
    rows = []
    published = facts_json("autobrane_clrs_trees.json")["trees_layer_to_groups"]
    for name, spec in SPECS.items():
        tree = Architecture.load(ARCHITECTURES / f"{spec}.yaml").tree
        again = tree_from_autobrane(tree_to_autobrane(tree))
        for layer, groups in published[name].items():
            wanted = "; ".join(sorted(", ".join(sorted(group)) for group in groups))
            rows.append(Row(f"{name}, layer {layer}: {len(groups)} groups", wanted, groups_of(tree, int(layer) - 1)))
            rows.append(Row(f"{name}, layer {layer}, written and read", wanted, groups_of(again, int(layer) - 1)))
    source = "VirtuosoResearch/Multitask-algorithmic-reasoning, clrs_experiments/tree_configs"
    return Reproduction("Trees of AutoBRANE for algorithmic reasoning", source, tuple(rows))


if __name__ == "__main__":
    run(__doc__, reproduce)
