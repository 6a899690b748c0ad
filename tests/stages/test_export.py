"""Networks that torch.fx cannot trace."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from branchnet import SplitError
from branchnet.stages import split, split_all
from tests.stages.checks import assert_evaluates_alike, assert_same_keys, assert_trains_alike

ROUNDING = 1e-5


@dataclass
class Result:
    hidden: Tensor
    logits: Tensor


torch.utils._pytree.register_dataclass(Result)


class Encoder(nn.Module):
    """A small BERT: code of its own around the blocks, masks, and a dataclass as its result."""

    def __init__(self, classes: int, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(layers))
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Result:
        if input_ids.shape[1] > 64:
            raise ValueError("too long")
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=attention_mask == 0)
        x = self.norm(x.mean(1))
        return Result(x, self.head(x))


def text(batch: int = 2, length: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(0, 20, (batch, length), generator=generator)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    originals = {"a": Encoder(3), "b": Encoder(5)}
    return originals, split_all(originals, text())


@pytest.mark.parametrize("task", ["a", "b"])
def test_export_takes_over(networks, task):
    original, staged = networks[0][task], networks[1][task]
    assert staged.traced_by == "export"
    assert len(staged.locations) >= 3
    assert all(name.startswith(("embed", "layers.")) for name in staged.locations)
    assert_same_keys(original, staged)
    for example in (text(), text(4, 9)):
        assert_evaluates_alike(original, staged, example, ROUNDING)


def test_export_trains_with_the_same_buffers():
    original = Encoder(3, layers=2)
    for module in original.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    staged = split(original, text())
    assert staged.traced_by == "export"
    assert staged.trainable, staged.eval_only
    assert_trains_alike(original, staged, text(3), 1e-4)


class Windows(nn.Module):
    """Pads to a multiple of the window, as Swin does; with free sizes its shapes become remainders of quotients."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 2, stride=2)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        batch, height, width, _ = x.shape
        for layer in self.layers:
            padded = x
            if height % 3 or width % 3:
                padded = nn.functional.pad(x, (0, 0, 0, (3 - width % 3) % 3, 0, (3 - height % 3) % 3))
            windows = padded.view(batch, padded.shape[1] // 3, 3, padded.shape[2] // 3, 3, 8).transpose(2, 3)
            back = layer(windows).transpose(2, 3).reshape(padded.shape)
            x = x + back[:, :height, :width]
        return x.mean((1, 2))


def test_involved_sizes_are_fixed_and_the_batch_stays_free():
    network = Windows()
    staged = split(network, torch.randn(2, 3, 20, 14), locations=["layers.0", "layers.1"])
    assert staged.traced_by == "export"
    assert_evaluates_alike(network, staged, torch.randn(5, 3, 20, 14), 1e-6)


def test_an_example_that_the_network_does_not_take():
    with pytest.raises(SplitError, match=r"Sequential does not run on the example \(\(2, 5\) float32\): RuntimeError"):
        split(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 5))
