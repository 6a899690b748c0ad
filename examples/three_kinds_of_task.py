"""A classifier, a segmentation and a regression on one backbone of your own.

Replace `Backbone` and the heads by yours: any `nn.Module` will do, as long as the networks begin with the same layers.
`data` are scenes that are rendered on the spot; put your images and `{task: labels}` in their place.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import branchnet
from branchnet.data import scenes
from branchnet.training import accuracy, mean_iou, rmse


class Backbone(nn.Module):
    """Three blocks, each of which halves height and width."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64)
        for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            block = nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())
            self.add_module(f"block{number}", block)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 64, H/8, W/8)."""
        features: Tensor = self.block2(self.block1(self.block0(images)))
        return features


class Network(nn.Module):
    """A backbone and a head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), head

    def forward(self, images: Tensor) -> Tensor:
        """What the head makes of the backbone's features."""
        output: Tensor = self.head(self.backbone(images))
        return output


torch.manual_seed(0)
data, test = scenes(256, size=32), scenes(96, size=32, start=256)
pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
networks = {
    "scene": Network(nn.Sequential(*pooled, nn.Linear(64, 6))),
    "segmentation": Network(nn.Sequential(nn.Conv2d(64, 7, 1), nn.Upsample(scale_factor=8, mode="bilinear"))),
    "count": Network(nn.Sequential(*pooled, nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))),
}
losses = {"scene": cross_entropy, "segmentation": cross_entropy, "count": mse_loss}
metrics = {"scene": accuracy(), "segmentation": mean_iou(7), "count": rmse("objects")}
for task, network in networks.items():
    branchnet.fit(network, (data.images, data.labels[task]), losses[task], steps=60, learning_rate=3e-3)

staged = branchnet.split_all(networks, data.images[:1])
affinity = branchnet.rsa(staged, data.images[:128])
found = branchnet.search(affinity, staged, "60% params")
branched = branchnet.build(found.tree, staged, affinity=affinity, probe=data.images)
labels = {task: data.labels[task] for task in networks}
branchnet.fit(branched, (data.images, labels), losses, steps=40, learning_rate=1e-3)

others = {task: test.labels[task] for task in networks}
scores = {
    "separate": branchnet.evaluate(branchnet.SeparateNetworks(networks), test.images, others, metrics),
    "branched": branchnet.evaluate(branched, test.images, others, metrics),
    "constant": branchnet.constant_scores(labels, others, metrics),
}
print(found.tree)
for name, by_task in scores.items():
    print(f"{name:>9}:", ", ".join(f"{task} {by_task[task]:.3g} ({metrics[task].name})" for task in networks))
