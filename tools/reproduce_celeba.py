"""Parameters of the published tree for the 40 attributes of CelebA (ieee8023/latentshift), in all and by level."""

from __future__ import annotations

from pathlib import Path

from published import Reproduction, Row, facts_json, run

from branchnet import Architecture
from branchnet.clustering import tree_size

SPEC = Path(__file__).resolve().parents[1] / "architectures" / "celeba_40.yaml"


def reproduce() -> Reproduction:
    """Branches and parameters of every level, and the total of the network that is built."""
    facts = facts_json("celeba_branched_tree_latentshift.json")
    spec = Architecture.load(SPEC)
    costs, widths = spec.stage_costs, spec.tree.widths
    assert costs is not None
    levels = list(facts["branches_per_level"])
    rows = [
        Row(f"{level}: branches", facts["branches_per_level"][level], width)
        for level, width in zip(levels, widths, strict=False)
    ]
    rows += [
        Row(f"{level}: parameters", facts["learnable_params_per_level_computed"][level], width * params)
        for level, width, params in zip(levels, widths, costs.params, strict=False)
    ]
    total = facts["learnable_params_total_computed_excluding_6_normalisation_constants"]
    branched = spec.build()
    told = int(tree_size(spec.tree, costs, head_costs=spec.head_costs))
    rows.append(Row("parameters in the specification", total, told))
    rows.append(Row("parameters of the network that is built", total, sum(p.numel() for p in branched.parameters())))
    source = "ieee8023/latentshift, attribute_classifier/BranchedTiny.py; totals computed from its layers"
    return Reproduction("A tree for the 40 attributes of CelebA", source, tuple(rows))


if __name__ == "__main__":
    run(__doc__, reproduce)
