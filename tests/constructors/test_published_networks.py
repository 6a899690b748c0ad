"""The U-Net and the thin VGG-16 have the layers and parameter counts that were published."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import fx, nn

from branchnet.models.constructors import create

FACTS = Path(__file__).parents[1] / "facts"


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_unet_is_the_widely_used_one() -> None:
    """milesial/Pytorch-UNet with transposed convolutions, 3 channels in and 1 out, has 31,037,633 parameters."""
    assert parameters(create("branchnet:unet", outputs=1)) == 31_037_633


def test_the_unet_answers_at_the_inputs_resolution_and_can_be_traced() -> None:
    network = create("branchnet:unet", outputs=2, width=4, channels=1).eval()
    image = torch.randn(1, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    assert network(image).shape == (1, 2, 32, 48)
    torch.testing.assert_close(fx.symbolic_trace(network)(image), network(image), rtol=0, atol=0)


def test_the_thin_vgg_has_the_published_parameters_at_every_level() -> None:
    facts = json.loads((FACTS / "celeba_branched_tree_latentshift.json").read_text())
    totals, branches = facts["learnable_params_per_level_computed"], facts["branches_per_level"]
    network = create("branchnet:thin_vgg16")
    counts = [parameters(module) for module in network.children()]
    assert counts == [totals[level] // branches[level] for level in totals]
    assert network.eval()(torch.zeros(2, 3, 224, 224)).shape == (2, 1)
