"""The model card that travels with an exported network: what it is, what it takes and gives, how to load it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from branchnet.builder.stitch_costs import StitchCost, stitch_costs
from branchnet.clustering.budgets.tree_sizes import tree_size
from branchnet.clustering.trees.text_drawing import tree_text
from branchnet.clustering.trees.tree import Tree
from branchnet.stages import Example, flat_example
from branchnet.utils.visible_text import visible

if TYPE_CHECKING:
    from branchnet.builder.network.branched_network import BranchedNetwork

_KINDS = {
    "pt2": "a torch.export program",
    "aoti": "an AOTInductor package",
    "onnx": "an ONNX model",
    "safetensors": "weights in safetensors",
}


def model_card(
    network: BranchedNetwork,
    example: Example,
    *,
    name: str,
    format: str,
    file: str,
    dynamic: Literal[True, False, "sizes"],
    outputs: Mapping[str, Tensor],
    difference: Mapping[str, float],
    tolerance: float,
    batches: Sequence[int],
    sources: Sequence[str] = (),
) -> str:
    """Write the card as Markdown.

    Args:
        network: what was exported.
        example: the inputs that it was exported with.
        name: its title.
        format: see `export`.
        file: name of the exported file.
        dynamic: whether the batch size, or images' sizes, too, may differ.
        outputs: the network's own outputs by name.
        difference: by output, the largest difference found, as a share of the output's largest value.
        tolerance: how large it may be.
        batches: the batch sizes at which it was looked for.
        sources: the lines of a section on source models.
    """
    stitches = stitch_costs(network, example)
    tree, name, file = network.tree, visible(name), visible(file)
    inputs = [
        f"| {table_cell(title)} | {_form(tensor, bool(dynamic), sizes=dynamic == 'sizes')} |"
        for title, tensor in zip(input_names(example), flat_example(example), strict=True)
    ]
    given = [
        f"| {table_cell(output)} | {_form(value, bool(dynamic))} | {difference[output]:.1e} |"
        for output, value in outputs.items()
    ]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"A branched network of {len(tree.tasks)} tasks, `{file}`: {_KINDS[format]}, written by branchnet.",
            f"`{name}.yaml` is its specification.",
            "",
            *tree_section(network, stitches),
            "",
            "## Inputs",
            "",
            "| input | shape | type |",
            "|---|---|---|",
            *inputs,
            "",
            "Preprocess as the single-task networks were; the file holds no resizing or normalisation but theirs.",
            "",
            "## Outputs",
            "",
            "| output | shape | type | largest difference |",
            "|---|---|---|---|",
            *given,
            "",
            f"Differences to the PyTorch network, as shares of each output's largest value, at batch sizes "
            f"{', '.join(map(str, batches))}; allowed: {tolerance:.0e}.",
            "",
            "## Cost",
            "",
            *cost_table(network),
            "",
            *stitch_table(stitches),
            *sources,
            "## Loading",
            "",
            *_loading(format, file, name, example, alone=None not in network.constructors.values()),
            "",
            "Load such files from sources that you trust only.",
            "",
            f"Made with torch {torch.__version__} on {_device(network)}.",
            "",
        ]
    )


def tree_section(network: BranchedNetwork, stitches: Sequence[StitchCost]) -> list[str]:
    """The tree as text, with its stitches, and where its stages end."""
    return [
        "## Tree",
        "",
        "```",
        tree_text(network.tree, {cost.place: f"stitched to {cost.source}'s features" for cost in stitches}),
        "```",
        "",
        f"Stages end at: {', '.join(map(visible, network.locations))}.",
    ]


def cost_table(network: BranchedNetwork) -> list[str]:
    """Parameters and multiply-adds, next to those of one network per task."""
    tree = network.tree
    separate = Tree.separate(tree.tasks, tree.depth, tree.depths)
    lines = ["| | this network | one network per task |", "|---|---|---|"]
    for unit, title in (("params", "parameters"), ("flops", "multiply-adds at the example's size")):
        sizes = [tree_size(each, network.costs, head_costs=network.head_costs, unit=unit) for each in (tree, separate)]
        lines.append(f"| {title} | {sizes[0]:,.0f} | {sizes[1]:,.0f} |")
    return lines


def stitch_table(costs: Sequence[StitchCost]) -> list[str]:
    """A table of the stitches; nothing where there is none."""
    if not costs:
        return []
    rows = [
        f"| {cost.child} | {table_cell(cost.source)} | {table_cell(cost.target)} | {cost.rank or '-'} | "
        f"{cost.params:,} | {cost.flops:,} | {'folded' if cost.folded else 'kept'} |"
        for cost in costs
    ]
    return [
        "## Stitches",
        "",
        "Affine maps of one task's features to those that a node of another task's network expects; folded ones are "
        "part of the weights next to them. Parameters and multiply-adds are not in the table above.",
        "",
        "| before | from | to | rank | parameters | multiply-adds | |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _loading(format: str, file: str, name: str, example: Example, *, alone: bool) -> list[str]:
    named = isinstance(example, Mapping)
    titles = [visible(title) for title in input_names(example)]
    arguments = ", ".join(f"{title}={title}" if named else title for title in titles)
    feeds = ", ".join(f'"{title}": {title}.numpy()' for title in titles)
    code = {
        "pt2": [
            "import torch",
            "",
            f'network = torch.export.load("{file}").module()',
            f"outputs = network({arguments})",
        ],
        "aoti": [
            "import torch",
            "",
            f'network = torch._inductor.aoti_load_package("{file}")',
            f"outputs = network({arguments})",
        ],
        "onnx": [
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession("{file}")',
            f"values = session.run(None, {{{feeds}}})",
            "outputs = dict(zip([output.name for output in session.get_outputs()], values))",
        ],
        "safetensors": [
            "import branchnet",
            "from branchnet.deploy import load_weights",
            "",
            *([] if alone else ["# networks: the single-task networks by task; only their structure counts"]),
            f'branched = branchnet.Architecture.load("{name}.yaml").build({"" if alone else "networks"}).eval()',
            f'load_weights(branched, "{file}")',
        ],
    }
    return ["```python", *code[format], "```"]


def input_names(example: Example) -> list[str]:
    """What the inputs are called in an ONNX file and on the card."""
    if isinstance(example, Mapping):
        return list(example)
    count = len(flat_example(example))
    return ["input"] if count == 1 else [f"input_{number}" for number in range(count)]


def _form(tensor: Tensor, dynamic: bool, *, sizes: bool = False) -> str:
    shape = ("batch", *tensor.shape[1:]) if dynamic and tensor.dim() else tensor.shape
    if sizes and tensor.dim() == 4:
        shape = ("batch", tensor.shape[1], "height", "width")
    elif sizes and tensor.dim() == 2 and not tensor.is_floating_point():
        shape = ("batch", "length")
    return f"{' x '.join(map(str, shape)) or 'scalar'} | {str(tensor.dtype).removeprefix('torch.')}"


def table_cell(text: str) -> str:
    """Text as it can stand in a cell of a table."""
    return visible(text.replace("\n", " ")).replace("\\", "\\\\").replace("|", "\\|")


def _device(network: BranchedNetwork) -> str:
    place = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    return torch.cuda.get_device_name(place) if place.type == "cuda" else f"{platform.machine()} CPU"
