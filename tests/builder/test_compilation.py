"""Compiled equals eager, without graph breaks, without recompilation beyond what is promised."""

from __future__ import annotations

import itertools
import re
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import branchnet
from branchnet import Tree
from branchnet.builder import SeparateNetworks
from branchnet.errors import BuildError, SplitError
from branchnet.inference import CompiledNetwork, compiler_problem, prepare
from branchnet.inference.compilation import _copied
from branchnet.inference.torch_compile import compiled_apart
from tests.builder.toys import KINDS, LETTERS, Unruly, images, linear_tree, split_networks
from tests.stages.test_sizes import Padded, image


def convolutional(tasks: tuple[str, ...] = tuple(KINDS)) -> branchnet.BranchedNetwork:
    tree = Tree(tasks, [[tasks]] * 3 + [[tasks[:2], tasks[2:]], [(task,) for task in tasks]])
    return branchnet.build(tree, split_networks(tasks), init="donor").eval()


def test_one_graph_for_every_batch_size_from_two_and_one_for_size_one(graphs: list[int]) -> None:
    compiled = CompiledNetwork(linear_tree())
    for batch in (2, 5, 9, 33, 2):
        assert compiled(torch.rand(batch, 6))["a"].shape == (batch, 2)
    assert len(graphs) == 1
    compiled(torch.rand(1, 6))
    assert len(graphs) == 2


def test_every_subset_of_tasks_has_its_own_single_graph(graphs: list[int]) -> None:
    network = linear_tree()
    compiled = CompiledNetwork(network)
    subsets = [s for n in range(1, 5) for s in itertools.combinations(LETTERS, n)]
    x = torch.rand(4, 6)
    for _ in range(2):
        for subset in subsets:
            found, expected = compiled(x, subset), network(x, subset)
            assert list(found) == list(subset)
            assert all(torch.equal(found[task], expected[task]) for task in subset)
    assert len(graphs) == len(subsets) == 15


def test_equal_stages_of_many_networks_share_one_graph(graphs: list[int]) -> None:
    """More than the eight graphs that torch.compile makes of one function at most."""
    made = {f"t{i}": nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).eval() for i in range(10)}
    cut = branchnet.split_all(made, torch.rand(3, 6), locations=["1"])

    def run(stage: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        return stage(x)  # type: ignore[no-any-return]

    compiled = compiled_apart(run, dynamic=False)
    x = torch.rand(3, 6)
    for network in cut.values():
        assert torch.equal(compiled(network.stages[0], x)[0], network.stages[0](x)[0])
    assert len(graphs) == 1


def test_the_callers_tensor_is_not_marked(graphs: list[int]) -> None:
    x = torch.rand(4, 6)
    CompiledNetwork(linear_tree())(x)
    assert not hasattr(x, "_dynamo_dynamic_indices")


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(BuildError, match="'z'"):
        CompiledNetwork(linear_tree())(torch.rand(2, 6), ["z"])


@pytest.mark.parametrize("fuse", [False, True])
def test_wrong_inputs_are_compared_with_the_example(graphs: list[int], fuse: bool) -> None:
    network = linear_tree().eval()
    compiled = branchnet.compile(network, torch.rand(2, 6), fuse=fuse)
    with pytest.raises(BuildError, match=r"inputs of shape \(2, 7\) float32; expected \(3, 6\) float32"):
        compiled(torch.rand(2, 7))
    with pytest.raises(BuildError, match="int64"):
        compiled(torch.ones(2, 6, dtype=torch.int64))
    with pytest.raises(BuildError, match="2 inputs were given; expected 1"):
        compiled((torch.rand(2, 6), torch.rand(2, 6)))
    x = torch.rand(4, 6)
    assert (compiled(x)["d"] - network(x)["d"]).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("tasks", "message"),
    [("ab", "expected one or more"), (["z"], "unknown task 'z'"), ([], "expected one or more")],
)
def test_separate_networks_refuse_wrong_tasks(tasks: list[str], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        SeparateNetworks({"a": nn.Linear(6, 2), "b": nn.Linear(6, 3)})(torch.rand(2, 6), tasks)


def test_separate_networks_compile_too(graphs: list[int]) -> None:
    singles = SeparateNetworks({"a": nn.Linear(6, 2), "b": nn.Linear(6, 3)}).eval()
    found = CompiledNetwork(singles)(torch.rand(2, 6))
    assert {task: tuple(value.shape) for task, value in found.items()} == {"a": (2, 2), "b": (2, 3)}


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 0.0),
        ({"channels_last": True}, 1e-5),
        ({"fold_batchnorm": True}, 1e-4),
        ({"fuse": True}, 1e-5),
        ({"regions": True}, 0.0),
        ({"regions": True, "cast": torch.bfloat16, "channels_last": True}, 5e-2),
        ({"autocast": torch.bfloat16}, 5e-2),
        ({"autocast": torch.float16}, 1e-2),
        ({"cast": torch.float16}, 1e-2),
        ({"cast": torch.bfloat16}, 5e-2),
        ({"cast": torch.bfloat16, "channels_last": True, "fold_batchnorm": True}, 5e-2),
    ],
)
def test_every_option_keeps_the_outputs_with_one_graph_or_one_for_each_size_of_fused_nodes(
    graphs: list[int], options: dict[str, Any], tolerance: float
) -> None:
    network = convolutional()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    compiled = branchnet.compile(network, images(2), **options)
    for batch in (2, 3, 5):
        x = images(batch, seed=batch)
        with torch.no_grad():
            expected = network(x)
        found = compiled(x)
        assert list(found) == list(expected)
        for task, value in expected.items():
            assert (found[task].float() - value).abs().max() <= tolerance * value.abs().max()
    assert len(graphs) == (3 if options.get("fuse") else 1)
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_equal_nodes_are_compiled_once_as_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor lowers one graph for each kind of node next to the whole, whatever the number of copies."""
    from torch._inductor.graph import GraphLowering

    lowered: list[str] = []
    run = GraphLowering.run
    monkeypatch.setattr(GraphLowering, "run", lambda self, *args: (lowered.append(self.name), run(self, *args))[1])
    counts = []
    assert not compiler_problem("cpu")  # compiles something itself, once
    for tasks in (4, 6):
        names = tuple(f"t{i}" for i in range(tasks))
        made = {
            t: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)) for t in names
        }
        cut = branchnet.split_all(made, torch.rand(2, 6), locations=["1", "3"])
        network = branchnet.build(Tree.separate(names, 2), cut).eval()
        lowered.clear()
        with torch._inductor.utils.fresh_cache():
            compiled = branchnet.compile(network, torch.rand(2, 6), regions=True)
        counts.append(len(lowered))
        x = torch.rand(5, 6)
        for task, value in network(x).items():
            torch.testing.assert_close(compiled(x)[task], value)
    assert counts == [3, 3]  # two stages and the whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"autocast": torch.bfloat16, "cast": torch.bfloat16}, "expected one of them at most"),
        ({"cast": torch.int8}, "floating-point"),
        ({"fuse": "sometimes"}, "'sometimes'"),
    ],
)
def test_options_that_make_no_sense_are_refused(graphs: list[int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        branchnet.compile(linear_tree(), torch.rand(2, 6), **options)


def test_training_mode_is_compiled_with_a_warning_and_evaluation_mode_without(graphs: list[int]) -> None:
    network = convolutional().train()
    with pytest.warns(UserWarning, match=r"compiled in training mode.*call branched\.eval\(\)") as caught:
        compiled = branchnet.compile(network, images(2))
    assert caught[0].filename == __file__
    before = network.nodes[0][0].state_dict()  # type: ignore[index]
    before = {name: value.clone() for name, value in before.items()}
    compiled(images(4))
    after = network.nodes[0][0].state_dict()  # type: ignore[index]
    assert any(not torch.equal(value, after[name]) for name, value in before.items())  # BatchNorm counted them
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        branchnet.compile(network.eval(), images(2))


def test_folding_leaves_no_batchnorm_behind_a_convolution() -> None:
    network = convolutional()
    folded = prepare(network, fold_batchnorm=True)
    before, after = (sum(isinstance(module, nn.BatchNorm2d) for module in each.modules()) for each in (network, folded))
    assert before > 0 and after == 0
    with pytest.raises(BuildError, match="evaluation mode"):
        prepare(network.train(), fold_batchnorm=True)


class ReadTwice(nn.Module):
    """A network that also reads the weights of its convolution themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.last, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
        self.norm.running_var.fill_(4.0)

    def forward(self, x: Tensor) -> Tensor:
        means = torch.relu(self.norm(self.convolution(x))).mean((2, 3))
        return self.head(torch.relu(self.last(means * self.convolution.weight.abs().sum((1, 2, 3)))))


def test_folding_leaves_convolutions_alone_whose_weights_are_read_apart() -> None:
    network, x = ReadTwice().eval(), torch.rand(3, 3, 8, 8)
    cut = branchnet.split_all({"a": network}, x, locations=["last"])
    folded = prepare(branchnet.build(Tree.shared(("a",), 1), cut, init="donor").eval(), fold_batchnorm=True)
    with torch.no_grad():
        torch.testing.assert_close(folded(x)["a"], network(x))


def test_folding_leaves_alone_what_it_must() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.norm = nn.BatchNorm2d(4)
            self.second = nn.Conv2d(4, 4, 1)
            self.own = nn.BatchNorm2d(4)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x = x + self.norm(x)  # the convolution has a second reader
            x = self.own(self.second(self.second(x)).relu())  # called twice, and no convolution right before
            return self.head(x)

    torch.manual_seed(0)
    made = {task: Twice() for task in "ab"}
    for network in made.values():
        network(torch.randn(8, 3, 4, 4) * 3 + 1)
        network.eval()
    x = torch.randn(2, 3, 4, 4)
    built = branchnet.build(Tree.shared("ab", 1), branchnet.split_all(made, x, locations=["own"]), init="donor")
    folded = prepare(built, fold_batchnorm=True)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == 2
    assert torch.equal(folded(x)["a"], made["a"](x))


def test_a_head_that_cannot_be_compiled_runs_eagerly_and_is_named(graphs: list[int]) -> None:
    network = linear_tree()
    network.heads[1] = Unruly()
    compiled = CompiledNetwork(network)
    x = torch.rand(3, 6)
    with pytest.warns(UserWarning, match="the head of 'b' cannot be compiled"):
        found = compiled(x)
    graphs_before = len(graphs)
    again = compiled(torch.rand(5, 6))
    assert len(graphs) == graphs_before and again["b"].shape == (5, 8)
    compiled(x, ["a", "b", "d"])
    assert len(graphs) == graphs_before + 1  # the trunk and the heads of a and d
    expected = network(x)
    assert list(found) == list(LETTERS) and compiled.eager_heads == ("b",)
    assert all(torch.equal(found[task], expected[task]) for task in LETTERS)
    assert list(compiled(x, ["a", "c"])) == ["a", "c"]


def test_a_trunk_that_cannot_be_compiled_is_an_error(graphs: list[int]) -> None:
    network = linear_tree()

    class UnrulyNode(Unruly):
        def forward(self, x: Tensor) -> tuple[Tensor]:  # type: ignore[override]
            return (super().forward(x),)

    network.nodes[1][0] = UnrulyNode()  # type: ignore[index, operator]
    with pytest.raises(torch._dynamo.exc.Unsupported):
        CompiledNetwork(network)(torch.rand(3, 6))


@pytest.mark.parametrize(("copy_outputs", "safe"), [(True, True), (False, False)])
def test_outputs_are_copied_out_of_memory_that_the_next_call_overwrites(
    monkeypatch: pytest.MonkeyPatch, copy_outputs: bool, safe: bool
) -> None:
    """Stands in for CUDA graphs, which write to the same memory at every call."""

    def replaying(function: Any, **options: object) -> Any:
        static: dict[str, Tensor] = {}

        def replay(x: Tensor) -> Any:
            outputs, cuts = function(x)
            for task, value in outputs.items():
                static.setdefault(task, torch.empty_like(value)).copy_(value)
            return dict(static), cuts

        return replay

    monkeypatch.setattr(torch, "compile", replaying)
    compiled = CompiledNetwork(linear_tree(), mode="reduce-overhead", copy_outputs=copy_outputs)
    assert not compiled._copies  # there are no CUDA graphs on a CPU
    compiled._copies = copy_outputs
    kept = compiled(torch.zeros(2, 6))
    before = {task: value.clone() for task, value in kept.items()}
    compiled(torch.ones(2, 6))
    assert all(torch.equal(kept[task], before[task]) for task in LETTERS) is safe


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("options", [{}, {"fuse": "auto"}, {"fold_batchnorm": True, "channels_last": True}])
def test_inductor_equals_eager(options: dict[str, Any]) -> None:
    network = convolutional()
    compiled = branchnet.compile(network, images(2), **options)
    x = images(5, seed=1)
    with torch.no_grad():
        expected = network(x)
    for task, value in compiled(x).items():
        assert (value - expected[task]).abs().max() <= 1e-4 * expected[task].abs().max()


class PerImage(nn.Module):
    """Fixes the batch size when it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([2 * one for one in x])


def test_a_head_that_fixes_the_batch_size_runs_eagerly_at_every_size(graphs: list[int]) -> None:
    network = linear_tree()
    network.heads[2] = PerImage()
    compiled = CompiledNetwork(network)
    with pytest.warns(UserWarning, match="the head of 'c' cannot be compiled"):
        compiled(torch.rand(3, 6))
    before = len(graphs)
    for size in (2, 5, 7):
        x = torch.rand(size, 6)
        found, expected = compiled(x), network(x)
        assert all(torch.equal(found[task], expected[task]) for task in LETTERS)
    assert len(graphs) == before and compiled.eager_heads == ("c",)
    later = CompiledNetwork(network)
    later(torch.rand(1, 6))  # one sample has a graph of its own, in which nothing is dynamic
    with pytest.warns(UserWarning, match="the head of 'c' cannot be compiled"):
        assert later(torch.rand(3, 6))["c"].shape == (3, 8)
    network.heads[2] = nn.Identity()  # an exchanged head gets its chance
    x = torch.rand(4, 6)
    assert torch.equal(compiled(x)["c"], network(x)["c"]) and compiled.eager_heads == ()


class Peculiar(nn.Module):
    """A full graph with an operator that the backend does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(x / 10)


def test_a_head_that_the_backend_refuses_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_, made = torch.compile, []

    def compiling(function: object, **options: Any) -> Any:
        def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
            if any(node.target is torch.erfinv for node in graph.graph.nodes):
                raise NotImplementedError("no code for erfinv")
            made.append(graph)
            return graph.forward

        if options.pop("backend") == "eager":
            return compile_(function, backend="eager", **options)  # type: ignore[call-overload]
        return compile_(function, backend=backend, **options)  # type: ignore[call-overload]

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compiling)
    network = linear_tree()
    network.heads[0] = Peculiar()
    compiled = CompiledNetwork(network)
    x = torch.rand(3, 6)
    with pytest.warns(UserWarning, match="the head of 'a' cannot be compiled"):
        found = compiled(x)
    assert all(torch.equal(found[task], value) for task, value in network(x).items())
    assert compiled.eager_heads == ("a",) and len(made[-1].graph.find_nodes(op="output")) == 1


@pytest.mark.parametrize(
    ("device", "mode", "everywhere", "copied"),
    [
        ("cuda", "reduce-overhead", False, True),
        ("cuda", "max-autotune", False, True),
        ("cuda", None, True, True),
        ("cuda", None, False, False),
        ("cpu", "reduce-overhead", True, False),
    ],
)
def test_outputs_are_copied_wherever_cuda_graphs_are_recorded(
    monkeypatch: pytest.MonkeyPatch, device: str, mode: str | None, everywhere: bool, copied: bool
) -> None:
    places = ["cpu", device]
    monkeypatch.setattr("branchnet.inference.compilation.device_of", lambda network: places[0])
    with torch._inductor.config.patch({"triton.cudagraphs": everywhere}):
        compiled = CompiledNetwork(linear_tree(), mode=mode)
        assert not compiled._copies
        del places[0]
        compiled._forget()  # as when the network was moved there
        assert compiled._copies is copied


def test_tensors_in_classes_that_torch_does_not_take_apart_are_copied() -> None:
    @dataclass(frozen=True)
    class Boxes:
        corners: Tensor
        scores: list[Tensor]
        count: int

    boxes = Boxes(torch.ones(2), [torch.ones(3)], 4)
    copied = _copied(boxes)
    boxes.corners.zero_()
    boxes.scores[0].zero_()
    assert copied.corners.sum() == 2 and copied.scores[0].sum() == 3 and copied.count == 4


def backbone(name: str) -> tuple[nn.Module, Any, list[str]]:
    """A network of a kind that is in use, as shallow as it can be; what it takes; and where to split it."""
    if name == "transformers vit":
        pytest.importorskip("transformers")
        from transformers import ViTConfig, ViTForImageClassification

        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        network = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8))
        layers = [n for n, m in network.named_modules() if type(m).__name__ == "ViTLayer"]
        return network, {"pixel_values": torch.rand(2, 3, 32, 32)}, layers
    if name == "timm vit":
        import timm

        network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
        return network, torch.rand(2, 3, 32, 32), ["blocks.0", "blocks.1"]
    from torchvision.models import convnext, mobilenetv3, resnet

    x = torch.rand(2, 3, 64, 64)
    if name == "resnet":
        return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10), x, ["layer1", "layer3"]
    if name == "convnext":
        blocks = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)]
        return convnext.ConvNeXt(blocks, num_classes=10), x, ["features.1", "features.3"]
    sizes = [(16, 3, 16, 16, True, "RE", 2, 1), (16, 3, 32, 24, False, "RE", 2, 1), (24, 5, 48, 24, True, "HS", 1, 1)]
    settings = [mobilenetv3.InvertedResidualConfig(*values, width_mult=1.0) for values in sizes]
    return mobilenetv3.MobileNetV3(settings, 32, num_classes=10), x, ["features.1", "features.3"]


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v3", "convnext", "timm vit", "transformers vit"])
def test_backbones_have_one_graph_for_all_sizes_from_two_up_and_one_for_size_one(name: str, graphs: list[int]) -> None:
    network, example, locations = backbone(name)
    cut = branchnet.split(network.eval(), example, locations=locations)
    tree = Tree(("a", "b", "c"), [[("a", "b", "c")], [("a", "b"), ("c",)]])
    network_of_all = branchnet.build(tree, dict.fromkeys(tree.tasks, cut), init="donor").eval()
    compiled = CompiledNetwork(network_of_all)
    for size in (2, 5, 2, 1, 1):
        x = pytree.tree_map(lambda tensor, size=size: tensor[:1].repeat(size, 1, 1, 1), example)
        with torch.no_grad():
            found, expected = (pytree.tree_leaves(run(x)) for run in (compiled, network_of_all))
        assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    assert len(graphs) == 2


def test_inputs_that_are_not_contiguous_and_empty_batches(graphs: list[int]) -> None:
    network, compiled = linear_tree(), CompiledNetwork(linear_tree())
    wide = torch.rand(3, 12)
    for x in (wide[:, ::2], torch.rand(6, 3).T, torch.rand(0, 6)):
        found, expected = compiled(x), network(x)
        assert all(torch.equal(found[task], expected[task]) for task in LETTERS)


@pytest.mark.parametrize("separate", [False, True])
def test_sizes_that_the_network_refuses_are_refused_compiled_as_well(graphs: list[int], separate: bool) -> None:
    """Graphs do not look at sizes: without the check these would be padded as the example was."""
    networks = {task: Padded().eval() for task in ("a", "b")}
    example, other = image(2, 16, 16), image(2, 16, 20)
    staged = branchnet.split_all(networks, example)
    tree = Tree.separate(["a", "b"], len(staged["a"].stages))
    network = SeparateNetworks(staged) if separate else branchnet.build(tree, staged, init="donor").eval()
    compiled = CompiledNetwork(network)
    torch.testing.assert_close(compiled(example)["a"], networks["a"](example), rtol=1e-5, atol=1e-6)
    try:
        found = network(other)
    except SplitError as error:
        with pytest.raises(SplitError, match=re.escape(str(error))):
            compiled(other)
    else:
        torch.testing.assert_close(compiled(other)["b"], found["b"], rtol=1e-5, atol=1e-6)
    with pytest.raises(SplitError, match=r"\(2, 3, 16, 20\); expected"):
        compiled(other, tasks=["b"])
