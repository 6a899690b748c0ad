"""The face network of face-api.js: four dense blocks of separable convolutions and one linear layer.

With the weights of npm's package it gives what the package gives under TensorFlow.js 4.22 (80 faces, backends cpu and
wasm): landmarks to 2.7e-7 of a face's width, logits up to 33 to 2e-5, every decision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_entries.formats.tfjs_weights import Weights

CHANNELS = (3, 32, 64, 128, 256)
SIZE = 112
MEANS = (122.782, 117.001, 104.298)
"""Of red, green and blue, in 0 to 255: the networks take (x - mean) / 255."""

USES = {
    "filters": ("weight", (3, 2, 0, 1)),  # height, width, inputs, outputs
    "depthwise_filter": ("depthwise.weight", (2, 3, 0, 1)),  # height, width, channels, 1
    "pointwise_filter": ("pointwise.weight", (3, 2, 0, 1)),
    "weights": ("weight", (1, 0)),
    "bias": ("bias", (0,)),
}
"""What a tensor's last name means: a parameter of its module, and the order of dimensions that it has there."""


class SameConv(nn.Conv2d):
    """A 3x3 convolution; with stride 2 TensorFlow's "same" adds zeros at the bottom and on the right alone."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 1, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, stride, padding=int(stride == 1), groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.stride[0] == 2 else x)


class SeparableConv(nn.Module):
    """A 3x3 convolution of each channel on its own, then a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = SameConv(inputs, inputs, stride, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        return self.pointwise(self.depthwise(x))


class DenseBlock(nn.Module):
    """Four convolutions of which each reads the sum of all before it; the first one halves height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        first = inputs == CHANNELS[0]
        self.conv0 = SameConv(inputs, outputs, 2) if first else SeparableConv(inputs, outputs, 2)
        self.conv1 = SeparableConv(outputs, outputs)
        self.conv2 = SeparableConv(outputs, outputs)
        self.conv3 = SeparableConv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / 2, W / 2)."""
        total = self.conv0(x).relu()
        total = total + self.conv1(total)
        total = total + self.conv2(total.relu())
        total = total + self.conv3(total.relu())
        return total.relu()


class FaceNetwork(nn.Module):
    """A face of 112 x 112 to `outputs` numbers."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.dense0 = DenseBlock(*CHANNELS[0:2])
        self.dense1 = DenseBlock(*CHANNELS[1:3])
        self.dense2 = DenseBlock(*CHANNELS[2:4])
        self.dense3 = DenseBlock(*CHANNELS[3:5])
        self.pool = nn.AvgPool2d(7)
        self.fc = nn.Linear(CHANNELS[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 112, 112), normalised, to (B, outputs)."""
        x = self.dense3(self.dense2(self.dense1(self.dense0(x))))
        return self.fc(self.pool(x).flatten(1))


def with_weights(weights: Weights) -> FaceNetwork:
    """The network that has these tensors of a weight file."""
    network = FaceNetwork(weights["fc/bias"].shape[0])
    state = {}
    for name, values in weights.items():
        module, use = name.rsplit("/", 1)
        parameter, order = USES[use]
        if use == "bias" and f"{module}/pointwise_filter" in weights:
            parameter = "pointwise.bias"
        state[f"{module.replace('/', '.')}.{parameter}"] = torch.from_numpy(values).permute(order)
    network.load_state_dict(state)
    return network.eval()


def normalised(faces: Tensor) -> Tensor:
    """(B, 3, H, W) with values of 0 to 255 to what the networks take."""
    return (faces - torch.tensor(MEANS).view(3, 1, 1)) / 255
