"""Small residual networks for the demo and for examples: one backbone, two kinds of head.

The backbone is a ResNet of basic blocks (He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2):
`stem`, `layer1` .. `layer4`, then `head`. A 64 x 64 image leaves the stem and `layer1` at 32 x 32, then each layer
halves it: 16, 8, 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


def scene_network(
    outputs: int,
    kind: Literal["dense", "image"] = "dense",
    width: int = 16,
    blocks: Sequence[int] = (1, 1, 1, 1),
    channels: int = 3,
) -> SceneNetwork:
    """Make a small residual network.

    Args:
        outputs: channels of a dense output, or length of an image's output vector.
        kind: `"dense"` for one output per pixel, `"image"` for one vector per image.
        width: channels of `layer1`; each later layer has twice as many as the one before.
        blocks: basic blocks of `layer1` .. `layer4`.
        channels: channels of the input image.

    Returns:
        The network, with random weights.

    Raises:
        ValueError: an unknown kind, or not four layers.
    """
    if kind not in ("dense", "image"):
        raise ValueError(f"kind is {kind!r}; expected 'dense' or 'image'")
    if len(blocks) != 4:
        raise ValueError(f"blocks has {len(blocks)} entries; expected one for each of the four layers")
    widths = [width, 2 * width, 4 * width, 8 * width]
    head = DenseHead(widths, outputs) if kind == "dense" else ImageHead(widths[-1], outputs)
    return SceneNetwork(channels, widths, blocks, head)


class SceneNetwork(nn.Module):
    """A residual backbone and a head that reads the feature maps of all four layers.

    Input (B, channels, H, W) with H and W divisible by 16; output (B, outputs, H, W) or (B, outputs).

    Args:
        channels: channels of the input image.
        widths: channels of `layer1` .. `layer4`.
        blocks: basic blocks of each layer.
        head: takes the four layers' maps.
    """

    def __init__(self, channels: int, widths: Sequence[int], blocks: Sequence[int], head: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        self.layer1 = _layer(widths[0], widths[0], blocks[0], stride=1)
        self.layer2 = _layer(widths[0], widths[1], blocks[1], stride=2)
        self.layer3 = _layer(widths[1], widths[2], blocks[2], stride=2)
        self.layer4 = _layer(widths[2], widths[3], blocks[3], stride=2)
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        """Run the backbone and the head.

        Args:
            image: (B, channels, H, W).

        Returns:
            The head's output, (B, outputs, H, W) or (B, outputs).
        """
        first = self.layer1(self.stem(image))
        second = self.layer2(first)
        third = self.layer3(second)
        output: Tensor = self.head(first, second, third, self.layer4(third))
        return output


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a residual connection, (B, inputs, H, W) to (B, outputs, H / stride, W / stride).

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = nn.Identity() if stride == 1 and inputs == outputs else _projection(inputs, outputs, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Run the block.

        Args:
            features: (B, inputs, H, W).

        Returns:
            (B, outputs, H / stride, W / stride).
        """
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features)))))
        output: Tensor = self.relu(residual + self.downsample(features))
        return output


class DenseHead(nn.Module):
    """A light decoder: from the deepest map to the shallowest, project, upsample twofold, add; then one 3 x 3.

    Lateral 1 x 1 convolutions and top-down sums are those of feature pyramids (Lin et al. 2017, section 3).
    """

    def __init__(self, widths: Sequence[int], outputs: int, width: int = 16) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(inputs, width, 1) for inputs in widths)
        self.fuse = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.predict = nn.Conv2d(width, outputs, 1)

    def forward(self, first: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> Tensor:
        """Return (B, outputs, H, W) from the maps of `layer1` .. `layer4`."""
        fused = self.laterals[3](fourth)
        fused = self.laterals[2](third) + _twice(fused)
        fused = self.laterals[1](second) + _twice(fused)
        fused = self.laterals[0](first) + _twice(fused)
        return _twice(self.predict(self.fuse(fused)))


class ImageHead(nn.Module):
    """Global average pooling of the deepest map and one linear layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.predict = nn.Linear(inputs, outputs)

    def forward(self, first: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> Tensor:
        """Return (B, outputs); only the last map is read."""
        output: Tensor = self.predict(self.pool(fourth).flatten(1))
        return output


def _layer(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


def _twice(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
