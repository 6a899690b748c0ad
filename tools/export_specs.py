"""Write the ready specifications of architectures/: backbones of common families, and trees that were published."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from branchnet.affinity import Affinity
from branchnet.clustering import Tree, search
from branchnet.models.constructors import create
from branchnet.specification.architecture import SCHEMA_FILE, Architecture, json_schema
from branchnet.specification.sections import SearchSection
from branchnet.stages import split, split_all
from branchnet.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
FACTS = ROOT / "tests" / "facts"
IMAGE_TASKS = {"objects": 20, "attributes": 40, "count": 1}
DENSE_TASKS = {"parts": 7, "normals": 3, "depth": 1}
TEXT_TASKS = {"topic": 4, "sentiment": 2, "similarity": 1}


@dataclass(frozen=True)
class Backbone:
    """One family member: how it is made, where it is cut, and how many of its stages all tasks share.

    The stages after the shared ones are shared by the first two tasks, the last `own` stages by none.
    """

    title: str
    constructor: str
    outputs_name: str
    locations: Sequence[str]
    shared: int
    own: int
    tasks: Mapping[str, int] = field(default_factory=lambda: IMAGE_TASKS)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: str = "image"


LAYERS = ["layer1", "layer2", "layer3", "layer4"]
BACKBONES = {
    "resnet18": Backbone("ResNet-18", "torchvision:resnet18", "num_classes", LAYERS, 2, 1),
    "resnet50": Backbone("ResNet-50", "torchvision:resnet50", "num_classes", LAYERS, 2, 1),
    "mobilenet_v2": Backbone(
        "MobileNetV2", "torchvision:mobilenet_v2", "num_classes", [f"features.{i}" for i in (3, 6, 10, 13, 17)], 3, 1
    ),
    "mobilenet_v3_large": Backbone(
        "MobileNetV3-Large",
        "torchvision:mobilenet_v3_large",
        "num_classes",
        [f"features.{i}" for i in (3, 6, 12, 15)],
        2,
        1,
    ),
    "convnext_tiny": Backbone(
        "ConvNeXt-T", "torchvision:convnext_tiny", "num_classes", [f"features.{i}" for i in (1, 3, 5, 7)], 2, 1
    ),
    "swin_t": Backbone("Swin-T", "torchvision:swin_t", "num_classes", [f"features.{i}" for i in (1, 3, 5, 7)], 2, 1),
    "vit_b_16": Backbone(
        "ViT-B/16",
        "torchvision:vit_b_16",
        "num_classes",
        [f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8, 11)],
        2,
        1,
    ),
    "vit_small": Backbone(
        "ViT-S/16", "timm:vit_small_patch16_224", "num_classes", [f"blocks.{i}" for i in (2, 5, 8, 11)], 2, 1
    ),
    "segformer_b0": Backbone(
        "SegFormer-B0",
        "transformers:segformer",
        "num_labels",
        [f"segformer.stages.{i}" for i in range(4)],
        2,
        1,
        DENSE_TASKS,
        {"auto_class": "AutoModelForSemanticSegmentation"},
        "pixels",
    ),
    "unet": Backbone(
        "U-Net", "branchnet:unet", "outputs", ["enter", "down1", "down2", "down3", "down4", "up2"], 4, 1, DENSE_TASKS
    ),
    "bert_base": Backbone(
        "BERT-base",
        "transformers:bert",
        "num_labels",
        ["bert.embeddings", *[f"bert.encoder.layer.{i}" for i in (2, 5, 8, 11)]],
        3,
        1,
        TEXT_TASKS,
        {"auto_class": "AutoModelForSequenceClassification"},
        "tokens",
    ),
}


def example(inputs: str) -> Any:
    image = torch.zeros(1, 3, 224, 224)
    tokens = {"input_ids": torch.tensor([[0] * 127 + [30521]]), "attention_mask": torch.ones(1, 128, dtype=torch.int64)}
    return {"image": image, "pixels": {"pixel_values": image}, "tokens": tokens}[inputs]


def backbone_spec(backbone: Backbone) -> Architecture:
    networks = {
        task: create(backbone.constructor, **{backbone.outputs_name: outputs}, **backbone.arguments).eval()
        for task, outputs in backbone.tasks.items()
    }
    first, second, third = backbone.tasks
    depth = len(backbone.locations)
    shared = [[[first, second, third]]] * backbone.shared
    pairs = [[[first, second], [third]]] * (depth - backbone.shared - backbone.own)
    tree = Tree(backbone.tasks, [*shared, *pairs, *[[[first], [second], [third]]] * backbone.own])
    staged = split_all(networks, example(backbone.inputs), locations=list(backbone.locations))
    description = f"{backbone.title}: three tasks on one trunk, a template to adapt (not the result of a search)."
    return Architecture.from_tree(tree, networks=staged, description=description)


def taskonomy_spec() -> Architecture:
    facts = json.loads((FACTS / "treemtl_bmtn_rsa_head.json").read_text())
    locations = [f"block{stage}" for stage in range(1, facts["D"] + 1)]
    affinity = Affinity(facts["tasks"], locations, np.array(facts["affinity_DTT"]))
    result = search(affinity, [1.0] * facts["D"], 15, objective="mean-max")
    found = SearchSection(
        objective=result.objective,
        measure="rsa",
        method=result.method,
        cost=result.cost,
        lower_bound=result.lower_bound,
        proven=result.proven,
    )
    description = (
        "Five Taskonomy tasks on MobileNetV2 in five blocks: the best tree of at most 15 of 25 blocks under the RSA "
        "affinities (K = 500) published in zhanglijun95/TreeMTL, exps_ipynb/BranchedMTL.ipynb. Pass your networks."
    )
    return Architecture.from_tree(result.tree, locations=locations, search=found, description=description)


def celeba_spec() -> Architecture:
    facts = json.loads((FACTS / "celeba_branched_tree_latentshift.json").read_text())
    tasks = facts["attributes"]
    levels = [groups for level, groups in facts["levels"].items() if level != "fc16(heads)"]
    tree = Tree(tasks, [[[tasks[number] for number in group] for group in groups] for groups in levels])
    locations = ["conv1_6", "conv7_11", "conv12", "conv13", "fc14", "fc15"]
    staged = split(create("branchnet:thin_vgg16").eval(), example("image"), locations=locations)
    description = (
        "The 40 attributes of CelebA on a VGG-16 of width 64, the published tree of ieee8023/latentshift, "
        "attribute_classifier/BranchedTiny.py."
    )
    return Architecture.from_tree(tree, networks=dict.fromkeys(tasks, staged), description=description)


def autobrane_spec(name: str) -> Architecture:
    facts = json.loads((FACTS / "autobrane_clrs_trees.json").read_text())["trees_layer_to_groups"][name]
    layers = {int(layer): groups for layer, groups in facts.items()}
    tasks = [task for group in layers[min(layers)] for task in group]
    tree = Tree(tasks, [layers.get(layer, [tasks]) for layer in range(1, max(layers) + 1)])
    description = (
        f"Twelve algorithmic reasoning tasks (CLRS), the published tree {name} of AutoBRANE, "
        "VirtuosoResearch/Multitask-algorithmic-reasoning, clrs_experiments/tree_configs. Pass your networks."
    )
    locations = [f"layer{layer}" for layer in range(1, max(layers) + 1)]
    return Architecture.from_tree(tree, locations=locations, description=description)


SPECS: dict[str, Callable[[], Architecture]] = {
    **{name: partial(backbone_spec, backbone) for name, backbone in BACKBONES.items()},
    "taskonomy_rsa": taskonomy_spec,
    "celeba_40": celeba_spec,
    "autobrane_final": lambda: autobrane_spec("tree_structure_final"),
    "autobrane_1": lambda: autobrane_spec("tree_structure_1"),
    "autobrane_gat": lambda: autobrane_spec("gat_tree"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python tools/export_specs.py resnet18 unet")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to write (default: all): {', '.join(SPECS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "architectures", help="folder (default: %(default)s)")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(SPECS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(SPECS)}")
    write_text(options.out / SCHEMA_FILE, json.dumps(json_schema(), indent=2) + "\n")
    for name in options.names or SPECS:
        SPECS[name]().save(options.out / f"{name}.yaml")
        print(options.out / f"{name}.yaml")


if __name__ == "__main__":
    main()
