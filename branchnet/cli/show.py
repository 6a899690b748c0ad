"""`branchnet show`: a saved branched network in a few lines."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console


def show(directory: Path) -> None:
    """Load the branched network in DIRECTORY; print its tree, its inputs and what it costs.

    Example: `branchnet show branchnet-demo`

    Parameters
    ----------
    directory
        Folder with architecture.yaml and weights.safetensors.
    """
    import branchnet
    from branchnet.clustering import tree_size
    from branchnet.reporting.units import percent, si

    branched = branchnet.load(directory)
    console = Console()
    console.print(str(branched.tree), markup=False, highlight=False)
    params = sum(parameter.numel() for parameter in branched.parameters())
    separate = branchnet.Tree.separate(branched.tasks, branched.tree.depth)
    for name, unit, own in (("parameters", "params", params), ("FLOPs (multiply-adds)", "flops", None)):
        total, alone = (
            tree_size(tree, branched.costs, head_costs=branched.head_costs, unit=unit)
            for tree in (branched.tree, separate)
        )
        console.print(
            f"{name}: {si(own or total)}, {percent(total / alone)} of {len(branched.tasks)} separate networks"
        )
