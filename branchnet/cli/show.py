"""`branchnet show`: a saved branched network in a few lines."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console


def show(directory: Path) -> None:
    """Print the tree and the costs of the branched network in DIRECTORY, and load it where it says how it is made.

    Example: `branchnet show branchnet-demo`

    Parameters
    ----------
    directory
        Folder with architecture.yaml and weights.safetensors.
    """
    import branchnet
    from branchnet.builder.saving import ARCHITECTURE, WEIGHTS
    from branchnet.clustering import tree_size
    from branchnet.reporting.units import percent, si

    architecture = branchnet.Architecture.load(directory / ARCHITECTURE)
    console = Console(highlight=False)
    tree = architecture.tree
    console.print(str(tree), markup=False)
    separate = branchnet.Tree.separate(tree.tasks, tree.depth)
    costs, heads = architecture.stage_costs, architecture.head_costs
    for name, unit in (("parameters", "params"), ("FLOPs (multiply-adds)", "flops")):
        if costs is not None:
            size, alone = (
                tree_size(each, costs, head_costs=heads if heads else None, unit=unit) for each in (tree, separate)
            )
            console.print(f"{name}: {si(size)}, {percent(size / alone)} of {len(tree.tasks)} separate networks")
    unnamed = [task for task, constructor in architecture.constructors.items() if constructor is None]
    if unnamed:
        console.print(f"to load it, pass the networks of {', '.join(unnamed)} to branchnet.load", markup=False)
        return
    branched = branchnet.load(directory)
    count = sum(parameter.numel() for parameter in branched.parameters())
    console.print(f"{WEIGHTS} fits: {si(count)} parameters loaded")
