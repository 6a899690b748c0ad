"""The ready specifications: written by tools/export_specs.py, buildable, with the published sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import branchnet
from branchnet.affinity import Affinity
from branchnet.builder import BranchedNetwork
from branchnet.clustering import clustering_cost
from branchnet.specification.architecture import SCHEMA_FILE, Architecture, json_schema

ROOT = Path(__file__).parents[2]
FACTS = ROOT / "tests" / "facts"
SPECS = {path.stem: path for path in sorted((ROOT / "architectures").glob("*.yaml"))}
QUICK = ["resnet18"]

PUBLISHED = {  # parameters of one network with so many outputs of a linear classifier of so many inputs, and GMACs
    "resnet18": (11_689_512, 1000, 512, 1.814),  # torchvision, ResNet18_Weights.meta
    "resnet50": (25_557_032, 1000, 2048, 4.089),  # torchvision, ResNet50_Weights.meta
    "mobilenet_v2": (3_504_872, 1000, 1280, 0.301),  # torchvision, MobileNet_V2_Weights.meta
    "mobilenet_v3_large": (5_483_032, 1000, 1280, 0.217),  # torchvision, MobileNet_V3_Large_Weights.meta
    "convnext_tiny": (28_589_128, 1000, 768, 4.456),  # torchvision, ConvNeXt_Tiny_Weights.meta
    "swin_t": (28_288_354, 1000, 768, 4.491),  # torchvision, Swin_T_Weights.meta
    "vit_b_16": (86_567_656, 1000, 768, 17.564),  # torchvision, ViT_B_16_Weights.meta
    "vit_small": (22_050_664, 1000, 384, 4.6),  # Touvron et al. 2021 (DeiT-S), table 5: 22M, 4.6 GFLOPs
    "segformer_b0": (3_752_694, 150, 256, None),  # the ADE20K checkpoint of Xie et al. 2021; table 1: 3.8M
    "unet": (31_037_633, 1, 64, None),  # milesial/Pytorch-UNet, 3 channels in, 1 out, transposed convolutions
    "bert_base": (109_482_240 + 768 * 2 + 2, 2, 768, None),  # Devlin et al. 2019: 110M; transformers' BertModel
}


def total(architecture: Architecture, unit: str) -> int:
    """Size of the whole tree: every stage as often as it is copied, and all heads."""
    costs = architecture.stage_costs
    assert costs is not None
    stages = sum(width * cost for width, cost in zip(architecture.tree.widths, getattr(costs, unit), strict=True))
    return stages + sum(getattr(cost, unit) for cost in architecture.head_costs.values())


def one_network(architecture: Architecture, task: str, unit: str) -> int:
    costs = architecture.stage_costs
    assert costs is not None
    return sum(getattr(costs, unit)) + getattr(architecture.head_costs[task], unit)


def test_there_is_one_for_every_family_that_is_promised() -> None:
    published = {"taskonomy_rsa", "celeba_40", "autobrane_final", "autobrane_1", "autobrane_gat"}
    assert set(SPECS) == set(PUBLISHED) | published


@pytest.mark.parametrize("name", SPECS)
def test_each_is_written_as_the_library_writes_it(name: str) -> None:
    assert Architecture.load(SPECS[name]).to_yaml() == SPECS[name].read_text(encoding="utf-8")


def without_defaults(schema: Any) -> Any:
    """Without `additionalProperties: true`, which says nothing, and which older versions of pydantic leave out."""
    if isinstance(schema, list):
        return [without_defaults(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_defaults(value) for key, value in schema.items() if (key, value) != ("additionalProperties", True)
    }


def test_the_schema_beside_them_is_the_librarys() -> None:
    written = json.loads((ROOT / "architectures" / SCHEMA_FILE).read_text())
    assert without_defaults(written) == without_defaults(json_schema())


@pytest.mark.parametrize("name", PUBLISHED)
def test_one_network_has_the_published_size(name: str) -> None:
    params, outputs, inputs, gmacs = PUBLISHED[name]
    architecture = Architecture.load(SPECS[name])
    for task, network in architecture.networks.items():
        own = next(
            network.arguments[key] for key in ("num_classes", "num_labels", "outputs") if key in network.arguments
        )
        assert one_network(architecture, task, "params") + (outputs - own) * (inputs + 1) == params
        if gmacs is not None:
            macs = one_network(architecture, task, "flops") + (outputs - own) * inputs
            assert macs == pytest.approx(gmacs * 1e9, rel=0.05)


def test_bert_counts_the_multiply_adds_of_its_formula() -> None:
    """Per layer: four projections of d x d, two of d x 4 d, and two attention products; plus pooler and classifier."""
    tokens, d = 128, 768
    layer = tokens * (4 * d * d + 8 * d * d) + 2 * tokens * tokens * d
    expected = 12 * layer + d * d
    architecture = Architecture.load(SPECS["bert_base"])
    assert one_network(architecture, "topic", "flops") == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in (*PUBLISHED, "celeba_40")]
)
def test_each_backbone_builds_with_the_totals_of_the_file(name: str) -> None:
    architecture = Architecture.load(SPECS[name])
    check_totals(architecture, architecture.build())


def test_the_celeba_tree_has_the_published_total() -> None:
    published = json.loads((FACTS / "celeba_branched_tree_latentshift.json").read_text())
    architecture = Architecture.load(SPECS["celeba_40"])
    assert architecture.tree.widths == tuple(published["branches_per_level"].values())[:-1]
    assert (
        total(architecture, "params")
        == published["learnable_params_total_computed_excluding_6_normalisation_constants"]
    )
    network = branchnet.split(
        branchnet.create("branchnet:thin_vgg16"), torch.zeros(1, 3, 224, 224), locations=architecture.locations
    )
    check_totals(architecture, architecture.build(dict.fromkeys(architecture.tasks, network)))


def check_totals(architecture: Architecture, branched: BranchedNetwork) -> None:
    """The network that is built has the parameters and the multiply-adds that the file promises."""
    branched.eval()
    assert sum(parameter.numel() for parameter in branched.parameters()) == total(architecture, "params")
    with torch.no_grad(), countable_attention(), FlopCounterMode(display=False) as counter:
        branched(branched.interface.random())
    assert counter.get_total_flops() / 2 == pytest.approx(total(architecture, "flops"), rel=0.06)


@contextmanager
def countable_attention() -> Iterator[None]:
    """FlopCounterMode counts neither the fused attention kernel of the CPU nor MultiheadAttention's fast path."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_the_taskonomy_tree_is_the_best_of_all_published_trees_of_its_size() -> None:
    facts = json.loads((FACTS / "treemtl_bmtn_rsa_head.json").read_text())
    best = facts["best_per_total_node_count_recomputed"]
    architecture = Architecture.load(SPECS["taskonomy_rsa"])
    affinity = Affinity(facts["tasks"], architecture.locations, facts["affinity_DTT"])
    cost = clustering_cost(architecture.tree, affinity)
    assert sum(architecture.tree.widths) <= 15
    assert cost == pytest.approx(min(best[nodes]["cost"] for nodes in best if int(nodes) <= 15), abs=1e-9)
    assert architecture.search is not None
    assert architecture.search.cost == pytest.approx(cost)


@pytest.mark.parametrize("name", ["tree_structure_final", "tree_structure_1", "gat_tree"])
def test_the_autobrane_trees_are_the_published_groups(name: str) -> None:
    layers = json.loads((FACTS / "autobrane_clrs_trees.json").read_text())["trees_layer_to_groups"][name]
    tree = Architecture.load(SPECS[f"autobrane_{name.removeprefix('tree_structure_').removesuffix('_tree')}"]).tree
    assert tree.depth == max(map(int, layers))
    for stage, clusters in enumerate(tree.partitions, start=1):
        expected = layers.get(str(stage), [tree.tasks])
        assert {frozenset(cluster) for cluster in clusters} == {frozenset(group) for group in expected}


@pytest.mark.parametrize("name", [name for name in SPECS if name not in PUBLISHED and name != "celeba_40"])
def test_trees_without_networks_are_built_from_networks_that_are_passed(name: str) -> None:
    architecture = Architecture.load(SPECS[name])
    networks = {task: stand_in(architecture.locations) for task in architecture.tasks}
    branched = architecture.build(networks, example=torch.zeros(2, 3))
    assert isinstance(branched, BranchedNetwork)
    nodes = sum(architecture.tree.widths) * 12
    assert sum(parameter.numel() for parameter in branched.parameters()) == nodes + 4 * len(architecture.tasks)
    for task, output in branched(torch.ones(2, 3)).items():
        assert output.shape == (2, 1), task


def stand_in(locations: tuple[str, ...]) -> nn.Module:
    """A small network with a module for every location."""
    network = nn.Sequential()
    for name in locations:
        network.add_module(name, nn.Linear(3, 3))
    network.add_module("head", nn.Linear(3, 1))
    return network.eval()


def test_every_size_is_a_finite_whole_number() -> None:
    for path in SPECS.values():
        architecture = Architecture.load(path)
        assert architecture.costs is None or math.isfinite(total(architecture, "flops"))
