"""`branchnet show`: a saved branched network, or an architecture, in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchnet.cli.options import AsJson, OptionalConfig

if TYPE_CHECKING:
    from branchnet.specification import GroupedArchitecture

Shown = Annotated[Path, Parameter(help="Folder with architecture.yaml and weights.safetensors, or an architecture.")]


def show(network: Shown, *, config: OptionalConfig = None, as_json: AsJson = False) -> None:
    """Print the tree and the costs of NETWORK; load its weights where it says how its networks are made.

    Example: `branchnet show branchnet-demo`
    """
    from branchnet.cli.loading import read_specification
    from branchnet.cli.printing import print_json, print_text
    from branchnet.cli.saved_networks import read_saved, unnamed_tasks
    from branchnet.clustering import Tree, tree_size
    from branchnet.clustering.trees.text_drawing import tree_text
    from branchnet.reporting.units import percent, si
    from branchnet.specification import GroupedArchitecture
    from branchnet.specification.stitch_sections import stitch_marks

    spec = read_specification(network)
    unnamed = list(unnamed_tasks(spec))
    loadable = network.is_dir() and (not unnamed or config is not None)
    count = sum(p.numel() for p in read_saved(network, config).parameters()) if loadable else None
    if isinstance(spec, GroupedArchitecture):
        _show_groups(spec, unnamed, count, as_json=as_json)
        return
    tree, costs, heads = spec.tree, spec.stage_costs, spec.head_costs or None
    separate = Tree.separate(tree.tasks, tree.depth, tree.depths)
    sizes = {}
    for unit in ("params", "flops") if costs is not None else ():
        assert costs is not None
        sizes[unit] = [tree_size(each, costs, head_costs=heads, unit=unit) for each in (tree, separate)]
    stitched = sum(stitch.size for stitch in spec.stitches.values())
    if "params" in sizes:
        sizes["params"][0] += stitched
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
        counted = "their multiply-adds, which depend on the size of inputs, are not counted above"
        print_text(f"of these {len(spec.stitches)} stitches: {si(stitched)} parameters; {counted}")
    print_text(*_loading(unnamed, count))


def _loading(unnamed: list[str], count: int | None) -> list[str]:
    """Whether the weights fit, or what is needed to find out."""
    from branchnet.deploy.saving import WEIGHTS
    from branchnet.reporting.units import si

    if count is not None:
        return [f"{WEIGHTS} fits: {si(count)} parameters loaded"]
    return [f"to load it, pass the networks of {', '.join(unnamed)} to branchnet.load"] if unnamed else []


def _show_groups(spec: GroupedArchitecture, unnamed: list[str], count: int | None, *, as_json: bool) -> None:
    """Print the tree of every network, and which tasks it serves."""
    from branchnet.cli.printing import print_json, print_text

    if as_json:
        groups = [{"tree": g.architecture.tree.partitions, "serves": list(g.serves)} for g in spec.groups]
        print_json({"groups": groups, "unnamed": unnamed, "loaded_params": count})
        return
    for number, group in enumerate(spec.groups, start=1):
        print_text(f"network {number} serves {', '.join(group.serves) or 'no task'}", group.architecture.tree)
    print_text(*_loading(unnamed, count))
