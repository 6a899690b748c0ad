"""The demo's network: output shapes, published structure, tracing, and gradients that reach every parameter."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from branchnet.models import BasicBlock
from branchnet.models.constructors import create


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_a_dense_head_answers_at_the_inputs_resolution(size: tuple[int, int]) -> None:
    network = create("branchnet:scene_network", outputs=3)
    assert network(torch.zeros(2, 3, *size)).shape == (2, 3, *size)


def test_an_image_head_answers_with_one_vector() -> None:
    network = create("branchnet:scene_network", outputs=5, kind="image", channels=1)
    assert network(torch.zeros(2, 1, 64, 64)).shape == (2, 5)


def test_the_basic_block_is_torchvisions() -> None:
    resnet = pytest.importorskip("torchvision.models.resnet")
    projection = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 1, stride=2, bias=False), torch.nn.BatchNorm2d(16))
    expected = resnet.BasicBlock(8, 16, stride=2, downsample=projection)
    block = BasicBlock(8, 16, stride=2)
    block.load_state_dict(expected.state_dict())
    features = torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(features), expected(features))


@pytest.mark.parametrize("kind", ["dense", "image"])
def test_it_can_be_traced_and_every_parameter_learns(kind: str) -> None:
    network = create("branchnet:scene_network", outputs=2, kind=kind, width=4, blocks=[1, 2, 1, 1])
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    traced = fx.symbolic_trace(network.eval())
    torch.testing.assert_close(traced(image), network(image), rtol=0, atol=0)
    network.train()(image).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_the_children_are_named_after_the_stages() -> None:
    children = [name for name, _ in create("branchnet:scene_network", outputs=1).named_children()]
    assert children == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]


@pytest.mark.parametrize(
    ("arguments", "problem"), [({"kind": "pixel"}, "'dense' or 'image'"), ({"blocks": [1]}, "four")]
)
def test_wrong_arguments_say_what_is_right(arguments: dict[str, object], problem: str) -> None:
    with pytest.raises(Exception, match=problem):
        create("branchnet:scene_network", outputs=1, **arguments)
