"""`branchnet show`: a saved branched network, or an architecture, in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from branchnet.cli.options import AsJson, OptionalConfig

Shown = Annotated[Path, Parameter(help="Folder with architecture.yaml and weights.safetensors, or an architecture.")]


def show(network: Shown, *, config: OptionalConfig = None, as_json: AsJson = False) -> None:
    """Print the tree and the costs of NETWORK; load its weights where it says how its networks are made.

    Example: `branchnet show branchnet-demo`
    """
    from branchnet.cli.loading import read_branched, read_spec
    from branchnet.cli.printing import print_json, print_text
    from branchnet.clustering import Tree, tree_size
    from branchnet.clustering.trees.text_drawing import tree_text
    from branchnet.deploy.saving import WEIGHTS
    from branchnet.reporting.units import percent, si
    from branchnet.specification.stitch_sections import stitch_marks

    spec = read_spec(network)
    tree, costs, heads = spec.tree, spec.stage_costs, spec.head_costs or None
    separate = Tree.separate(tree.tasks, tree.depth)
    sizes = {}
    for unit in ("params", "flops") if costs is not None else ():
        assert costs is not None
        sizes[unit] = [tree_size(each, costs, head_costs=heads, unit=unit) for each in (tree, separate)]
    unnamed = [task for task, constructor in spec.constructors.items() if constructor is None]
    loadable = network.is_dir() and (not unnamed or config is not None)
    count = sum(p.numel() for p in read_branched(network, config).parameters()) if loadable else None
    if as_json:
        described = {unit: {"branched": size, "separate": alone} for unit, (size, alone) in sizes.items()}
        print_json(
            {
                "tree": spec.tree.partitions,
                **described,
                "stitches": {name: stitch.model_dump() for name, stitch in spec.stitches.items()},
                "unnamed": unnamed,
                "loaded_params": count,
            }
        )
        return
    print_text(tree_text(tree, stitch_marks(spec.stitches, tree.depth)))
    for unit, name in (("params", "parameters"), ("flops", "FLOPs (multiply-adds)")):
        if unit in sizes:
            size, alone = sizes[unit]
            print_text(f"{name}: {si(size)}, {percent(size / alone)} of {len(tree.tasks)} separate networks")
    if spec.stitches:
        size = sum(stitch.size for stitch in spec.stitches.values())
        print_text(f"{len(spec.stitches)} stitches: {si(size)} parameters, not counted above")
    if count is not None:
        print_text(f"{WEIGHTS} fits: {si(count)} parameters loaded")
    elif unnamed:
        print_text(f"to load it, pass the networks of {', '.join(unnamed)} to branchnet.load")
