"""A VGG-16 of constant width, cut where the branched attribute classifier of latentshift branches.

Tree and layer sizes: ieee8023/latentshift, `attribute_classifier/BranchedTiny.py`, after "thin" VGG-16 trees (Lu et al.
2017, "Fully-adaptive feature sharing in multi-task networks", section 3). Names: `conv1_6`, `conv7_11`, `conv12`,
`conv13`, `fc14`, `fc15`, `head`.
"""

from __future__ import annotations

from torch import Tensor, nn


def thin_vgg16(outputs: int = 1, width: int = 64, size: int = 224) -> ThinVgg16:
    """Make a thin VGG-16.

    Args:
        outputs: length of the output vector.
        width: channels of every convolution; the hidden linear layers have twice as many units.
        size: height and width of the image, a multiple of 32.

    Returns:
        The network, with random weights.
    """
    return ThinVgg16(outputs, width, size)


class ThinVgg16(nn.Module):
    """The thin VGG-16. Input (B, 3, size, size), output (B, outputs).

    Args:
        outputs: length of the output vector.
        width: channels of every convolution.
        size: height and width of the image.
    """

    def __init__(self, outputs: int, width: int, size: int) -> None:
        super().__init__()
        first = [*_convolution(3, width), *_convolution(width, width), nn.MaxPool2d(2)]
        second = [*_convolution(width, width), *_convolution(width, width), nn.MaxPool2d(2)]
        self.conv1_6 = nn.Sequential(*first, *second, *_convolution(width, width), *_convolution(width, width))
        middle = [layer for _ in range(3) for layer in _convolution(width, width)]
        self.conv7_11 = nn.Sequential(
            *_convolution(width, width), nn.MaxPool2d(2), *middle, nn.MaxPool2d(2), *_convolution(width, width)
        )
        self.conv12 = nn.Sequential(*_convolution(width, width))
        self.conv13 = nn.Sequential(*_convolution(width, width), nn.MaxPool2d(2))
        self.fc14 = nn.Sequential(nn.Flatten(), *_linear(width * (size // 32) ** 2, 2 * width))
        self.fc15 = nn.Sequential(*_linear(2 * width, 2 * width))
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Run the network.

        Args:
            image: (B, 3, size, size).

        Returns:
            (B, outputs).
        """
        features = self.conv13(self.conv12(self.conv7_11(self.conv1_6(image))))
        output: Tensor = self.head(self.fc15(self.fc14(features)))
        return output


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


def _linear(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
