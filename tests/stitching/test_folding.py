"""Folded stitches: equal to unfolded ones up to rounding, and left alone where they cannot be equal."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.errors import BuildError
from branchnet.inference import prepare
from branchnet.stages import Stage
from branchnet.stitching import AffineMap, Stitch, StitchedStage
from tests.stitching.toys import KINDS, inputs, stitched

CHANNELS = 4
IMAGES, SEQUENCES, VECTORS, TOKENS = (2, CHANNELS, 6, 6), (2, CHANNELS, 6), (2, CHANNELS), (2, 5, CHANNELS)


def random_map(dimension: int, *, rank: int | None = None, constant: bool = True) -> AffineMap:
    affine = AffineMap(CHANNELS, CHANNELS, dimension, rank).double()
    for tensor in affine.parameters():
        nn.init.normal_(tensor, std=0.5)
    if rank is None:
        with torch.no_grad():
            affine.weights[0].add_(torch.eye(CHANNELS))  # well-conditioned, as fitted maps of related networks are
    if not constant:
        nn.init.zeros_(affine.bias)
    return affine


class Scale(nn.Module):
    """A parameter at either end, between which networks are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def chain(before: nn.Module, after: nn.Module, affine: AffineMap, example: Tensor) -> BranchedNetwork:
    """One task whose second stage, `after`, has a stitch in front, and whose first one is `before`."""
    network = nn.Sequential()
    modules = {"first": Scale(), "before": before, "one": nn.Identity(), "after": after, "two": nn.Identity()}
    for name, module in {**modules, "head": Scale()}.items():
        network.add_module(name, module)
    network = network.double().eval()
    staged = branchnet.split_all({"a": network}, example, locations=["before", "after"])
    branched = branchnet.build(Tree(["a"], [[["a"]]] * 2), staged, init="donor").eval()
    node = branched.member("nodes.1.0")
    branched.replace(node, StitchedStage(Stitch("a", "a", {0: affine}), node.module))
    return branched.eval()


def check(before: nn.Module, after: nn.Module, affine: AffineMap, shape: tuple[int, ...], *, folds: bool) -> None:
    x = torch.randn(shape).double()
    branched = chain(before, after, affine, x)
    # By hand: the modules themselves, with the map as a product in between.
    rows = before(2 * x).movedim(affine.dimension, -1)
    for weight in affine.weights:
        rows = rows @ weight.T
    expected = 2 * after((rows + affine.bias).movedim(-1, affine.dimension))
    folded = prepare(branched)
    with torch.no_grad():
        torch.testing.assert_close(branched(x)["a"], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(folded(x)["a"], expected, rtol=1e-9, atol=1e-9)
    (stitch,), (original,) = folded.stitches.values(), branched.stitches.values()
    assert stitch.folded == folds and (stitch.size == 0) == folds
    assert not original.folded and original.size > 0
    if folds:
        cut = (torch.randn(3), 5)
        assert stitch(*cut) == cut


class PaddedAsTensorFlow(nn.Conv2d):
    """A convolution that pads with zeros by itself, more at the end than at the start."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)) if self.kernel_size[0] > 1 else x)


class Standardised(nn.Conv2d):
    """A convolution whose weights are not what it computes with."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight / self.weight.std(), self.bias)


class Tied(nn.Module):
    """Two operators read one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS))
        self.entered = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.weight).relu(), self.weight)


class Generated(nn.Module):
    """The weights are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS))
        self.entered = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.tanh())


class Averaged(nn.Module):
    """A classifier of the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


class Functional(nn.Module):
    """Operators on parameters of its own, read in another order than they are made in."""

    def __init__(self, operator: str, weight: tuple[int, ...], bias: int | None, **options: object) -> None:
        super().__init__()
        self.offset = None if bias is None else nn.Parameter(torch.randn(bias))
        self.matrix = nn.Parameter(torch.randn(weight))
        self.operator, self.options = getattr(nn.functional, operator), options
        self.entered = nn.Identity()  # modules without children are kept whole

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x, self.matrix, self.offset, **self.options)  # type: ignore[no-any-return]


class Exported(nn.Module):
    """Code that torch.fx cannot trace, so that torch.export does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError
        return self.inner(x)  # type: ignore[no-any-return]


def transposed(**options: object) -> nn.Module:
    return nn.ConvTranspose2d(CHANNELS, 3, 3, **options)  # type: ignore[arg-type]


READERS = {
    "transposed": lambda: (transposed(stride=2, padding=1, output_padding=1), IMAGES, 1),
    "transposed without bias": lambda: (transposed(bias=False, dilation=2), IMAGES, 1),
    "transposed 1d": lambda: (nn.ConvTranspose1d(CHANNELS, CHANNELS, 4, stride=4), SEQUENCES, 1),
    "functional": lambda: (Functional("conv2d", (3, CHANNELS, 3, 3), 3, padding=1, stride=2), IMAGES, 1),
    "functional, same": lambda: (Functional("conv2d", (3, CHANNELS, 3, 3), None, padding="same"), IMAGES, 1),
    "functional, linear": lambda: (Functional("linear", (3, CHANNELS), None), TOKENS, 2),
    "functional, transposed": lambda: (Functional("conv_transpose2d", (CHANNELS, 3, 3, 3), 3, stride=2), IMAGES, 1),
    "exported": lambda: (Exported(nn.Conv2d(CHANNELS, 3, 3, padding=1)), IMAGES, 1),
    "exported, pooled": lambda: (Exported(nn.Sequential(
        nn.Dropout(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(CHANNELS * 4, 3))), IMAGES, 1,
    ),
    "exported, mean": lambda: (Exported(Averaged()), IMAGES, 1),
    "exported, transposed": lambda: (Exported(transposed(stride=2, bias=False)), IMAGES, 1),
    "exported, 1d": lambda: (Exported(nn.Conv1d(CHANNELS, 3, 3, bias=False)), SEQUENCES, 1),
    "1x1": lambda: (nn.Conv2d(CHANNELS, 3, 1), IMAGES, 1),
    "no padding": lambda: (nn.Conv2d(CHANNELS, 3, 3, stride=2, bias=False), IMAGES, 1),
    "zero padding": lambda: (nn.Conv2d(CHANNELS, 3, 3, padding=1, stride=2), IMAGES, 1),
    "same": lambda: (nn.Conv2d(CHANNELS, 3, 3, padding="same", dilation=2, bias=False), IMAGES, 1),
    "reflected": lambda: (nn.Conv2d(CHANNELS, 3, 3, padding=1, padding_mode="reflect"), IMAGES, 1),
    "1d": lambda: (nn.Conv1d(CHANNELS, 3, 3, padding=1), SEQUENCES, 1),
    "vectors": lambda: (nn.Linear(CHANNELS, 3), VECTORS, 1),
    "tokens": lambda: (nn.Linear(CHANNELS, 3, bias=False), TOKENS, 2),
    "dropout": lambda: (nn.Sequential(nn.Dropout(), nn.Linear(CHANNELS, 3)), TOKENS, 2),
    "flattened": lambda: (nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * 36, 3)), IMAGES, 1),
    "pooled": lambda: (
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(CHANNELS * 4, 3)), IMAGES, 1,
    ),
    "mean": lambda: (Averaged(), IMAGES, 1),
    "padded by itself": lambda: (PaddedAsTensorFlow(CHANNELS, 3, 3, stride=2), IMAGES, 1),
    "1x1 of another class": lambda: (PaddedAsTensorFlow(CHANNELS, 3, 1), IMAGES, 1),
    "pooled and convolved": lambda: (
        nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Conv2d(CHANNELS, 2, 3, padding=1)), IMAGES, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=2, deadline=None, phases=[Phase.generate])
@given(seed=st.integers(0, 10**6), rank=st.sampled_from([None, 2]))
def test_maps_are_folded_into_what_reads_them(reader: str, seed: int, rank: int | None) -> None:
    torch.manual_seed(seed)
    after, shape, dimension = READERS[reader]()
    # W p = -c has a solution for a map of lower rank only where c is one of its outputs: 0 always is.
    check(nn.ReLU(), after, random_map(dimension, rank=rank, constant=rank is None), shape, folds=True)


class InvertedResidual(nn.Module):
    """As in MobileNetV2: the input is expanded, filtered, projected, and added to the result."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(nn.Conv2d(CHANNELS, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
            *(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
            *(nn.Conv2d(8, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)  # type: ignore[no-any-return]


class Transposed(nn.Module):
    """A linear layer over positions: it reads another dimension than the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)  # type: ignore[no-any-return]


UNFOLDABLE = {
    "tied weights": lambda: (Tied(), TOKENS, 2),
    "computed weights": lambda: (Generated(), TOKENS, 2),
    "exported residual": lambda: (Exported(InvertedResidual()), IMAGES, 1),
    "functional groups": lambda: (Functional("conv2d", (CHANNELS, 1, 3, 3), None, groups=CHANNELS), IMAGES, 1),
    "transposed groups": lambda: (nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, groups=2), IMAGES, 1),
    "residual": lambda: (InvertedResidual(), IMAGES, 1),
    "batch norm": lambda: (nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.Conv2d(CHANNELS, 3, 1)), IMAGES, 1),
    "layer norm": lambda: (nn.Sequential(nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 3)), TOKENS, 2),
    "activation": lambda: (nn.Sequential(nn.ReLU(), nn.Conv2d(CHANNELS, 3, 1)), IMAGES, 1),
    "depthwise": lambda: (nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS), IMAGES, 1),
    "standardised": lambda: (Standardised(CHANNELS, 3, 1), IMAGES, 1),
    "maximum": lambda: (nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(CHANNELS, 3, 1)), IMAGES, 1),
    "positions": lambda: (Transposed(), SEQUENCES, 1),
}


@pytest.mark.parametrize("reader", UNFOLDABLE)
def test_maps_stay_where_other_code_reads_the_tensor(reader: str) -> None:
    torch.manual_seed(0)
    after, shape, dimension = UNFOLDABLE[reader]()
    check(nn.ReLU(), after, random_map(dimension), shape, folds=False)


def test_what_torch_export_traced_is_folded_with_its_names_kept() -> None:
    torch.manual_seed(0)
    after = Exported(nn.Conv2d(CHANNELS, 3, 3, padding=1))
    branched = chain(nn.ReLU(), after, random_map(1), torch.randn(IMAGES).double())
    stage = branched.member("nodes.1.0").module.stage
    assert isinstance(stage, Stage) and "aten" in str(stage.graph)
    state = set(branched.state_dict())
    folded = prepare(branched)
    assert set(branched.state_dict()) == state and "after.inner.weight" in " ".join(state)
    assert "aten.conv2d" not in str(folded.member("nodes.1.0").module.stage.graph)
    with pytest.raises(branchnet.SplitError, match="made layers, to fold stitches"):
        folded.train()


def test_a_constant_that_no_padding_value_stands_for_keeps_the_map() -> None:
    torch.manual_seed(0)
    check(nn.ReLU(), nn.Conv2d(CHANNELS, 3, 3, padding=1), random_map(1, rank=2), IMAGES, folds=False)


WRITERS = {
    "transposed": lambda: (nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, stride=2, output_padding=1), IMAGES, 1),
    "functional": lambda: (Functional("conv2d", (CHANNELS, CHANNELS, 1, 1), CHANNELS), IMAGES, 1),
    "exported": lambda: (Exported(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)), IMAGES, 1),
    "exported, linear": lambda: (Exported(nn.Linear(CHANNELS, CHANNELS)), TOKENS, 2),
    "convolution": lambda: (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), IMAGES, 1),
    "without bias": lambda: (nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.Identity()), IMAGES, 1),
    "padded by itself": lambda: (PaddedAsTensorFlow(CHANNELS, CHANNELS, 3), IMAGES, 1),
    "linear": lambda: (nn.Linear(CHANNELS, CHANNELS), TOKENS, 2),
    "vectors": lambda: (nn.Linear(CHANNELS, CHANNELS, bias=False), VECTORS, 1),
}


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=2, deadline=None, phases=[Phase.generate])
@given(seed=st.integers(0, 10**6), rank=st.sampled_from([None, 3]))
def test_maps_are_folded_into_what_makes_the_tensor(writer: str, seed: int, rank: int | None) -> None:
    torch.manual_seed(seed)
    before, shape, dimension = WRITERS[writer]()
    check(before, nn.Sequential(nn.ReLU(), nn.Tanh()), random_map(dimension, rank=rank), shape, folds=True)


UNFOLDABLE_WRITERS = {
    "groups": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2),
    "standardised": lambda: Standardised(CHANNELS, CHANNELS, 1),
    "activation": lambda: nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU()),
}


@pytest.mark.parametrize("writer", UNFOLDABLE_WRITERS)
def test_maps_of_what_no_single_layer_makes_stay(writer: str) -> None:
    torch.manual_seed(0)
    check(UNFOLDABLE_WRITERS[writer](), nn.ReLU(), random_map(1), IMAGES, folds=False)


def test_a_result_that_two_children_read_is_left_alone() -> None:
    torch.manual_seed(0)
    made = {task: nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))).eval() for task in "ab"}
    x = torch.randn(40, 3)
    staged = branchnet.split_all(made, x, locations=["0"])
    tree = Tree(["a", "b"], [[["a", "b"]]])
    branched = branchnet.build(tree, staged, init="stitch", probe=x).eval()
    assert not next(iter(prepare(branched).stitches.values())).folded
    alone = branched.remove_task("a")
    folded = prepare(alone)
    assert next(iter(folded.stitches.values())).folded
    with torch.no_grad():
        torch.testing.assert_close(folded(x)["b"], branched(x)["b"])


@pytest.mark.parametrize("kind", KINDS)
def test_whole_networks_are_equal_and_smaller_by_their_stitches(kind: str) -> None:
    branched, x = stitched(kind), inputs(kind)
    folded = prepare(branched)
    assert [stitch.folded for stitch in folded.stitches.values()] == [True, True]
    sizes = [sum(tensor.numel() for tensor in network.parameters()) for network in (branched, folded)]
    assert sizes[0] - sizes[1] == sum(stitch.size for stitch in branched.stitches.values())
    with torch.no_grad():
        for task, output in branched(x).items():
            torch.testing.assert_close(folded(x)[task], output, rtol=1e-4, atol=1e-5)
    assert not any(stitch.folded for stitch in branched.stitches.values())


def test_nothing_is_folded_in_training_or_unasked() -> None:
    branched = stitched("images")
    assert prepare(branched, fold=None) is branched
    assert prepare(copy.deepcopy(branched).train()).stitches.keys() == branched.stitches.keys()
    training = copy.deepcopy(branched).train()
    assert prepare(training) is training
    with pytest.raises(BuildError, match="fold='all'; expected 'exact' or None"):
        prepare(branched, fold="all")  # type: ignore[arg-type]
    assert isinstance(branched.member("nodes.1.1").module.stage, Stage)
