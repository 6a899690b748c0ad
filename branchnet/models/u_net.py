"""The U-Net (Ronneberger et al. 2015, figure 1) with padded convolutions and batch normalisation.

Names: `enter`, then `down1` .. `down4` (each halves the resolution), `up1` .. `up4` (each doubles it and takes the
feature map of the same resolution from the way down), `head`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unet(outputs: int, width: int = 64, channels: int = 3) -> UNet:
    """Make a U-Net.

    Args:
        outputs: channels of the output.
        width: channels at full resolution; each of the four levels below has twice as many.
        channels: channels of the input image.

    Returns:
        The network, with random weights.
    """
    return UNet(outputs, width, channels)


class UNet(nn.Module):
    """The U-Net. Input (B, channels, H, W) with H and W divisible by 16; output (B, outputs, H, W).

    Args:
        outputs: channels of the output.
        width: channels at full resolution.
        channels: channels of the input image.
    """

    def __init__(self, outputs: int, width: int, channels: int) -> None:
        super().__init__()
        self.enter = _two_convolutions(channels, width)
        self.down1 = _down(width)
        self.down2 = _down(2 * width)
        self.down3 = _down(4 * width)
        self.down4 = _down(8 * width)
        self.up1 = Up(16 * width)
        self.up2 = Up(8 * width)
        self.up3 = Up(4 * width)
        self.up4 = Up(2 * width)
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Run the network.

        Args:
            image: (B, channels, H, W).

        Returns:
            (B, outputs, H, W).
        """
        full = self.enter(image)
        half = self.down1(full)
        quarter = self.down2(half)
        eighth = self.down3(quarter)
        features = self.up1(self.down4(eighth), eighth)
        features = self.up2(features, quarter)
        features = self.up3(features, half)
        output: Tensor = self.head(self.up4(features, full))
        return output


class Up(nn.Module):
    """Double the resolution with half the channels, append the map from the way down, convolve twice."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(inputs, inputs // 2, 2, stride=2)
        self.convolutions = _two_convolutions(inputs, inputs // 2)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """(B, C, H, W) and (B, C / 2, 2 H, 2 W) to (B, C / 2, 2 H, 2 W)."""
        output: Tensor = self.convolutions(torch.cat([skip, self.enlarge(features)], dim=1))
        return output


def _down(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.MaxPool2d(2), *_two_convolutions(inputs, 2 * inputs))


def _two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
