"""Initial weights of a shared network compared: one donor, the plain mean of two, and their mean after alignment.

Pairs of residual networks are trained on scikit-learn's handwritten digits from different random weights. One network
shared by both tasks is then built without any training; BatchNorm is estimated anew on the same images for all. Printed
is the test accuracy of the worse of the two heads. With `--data DIR` the same is tried on three trained MobileNetV2
(no BatchNorm, different classes): share of held-out photos on which each network's decision is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import branchnet
from branchnet import BranchedNetwork, StagedNetwork, Tree
from branchnet.builder import estimate_batchnorm, weight_distance
from branchnet.builder.weights.averaging import average_nodes


class Digits(nn.Module):
    """A residual network with BatchNorm for 8 x 8 images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.back = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.last = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.out = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 1, 8, 8)."""
        x = self.stem(x)
        x = F.relu(x + self.back(self.inner(x)))
        return self.out(self.last(x).mean((2, 3)))  # type: ignore[no-any-return]


def three_ways(cut: dict[str, StagedNetwork], tree: Tree, probe: Tensor) -> dict[str, BranchedNetwork]:
    plain = branchnet.build(tree, cut, init="donor")
    average_nodes(plain, cut)
    donor = branchnet.build(tree, cut, init="donor")
    for network in (plain, donor):
        estimate_batchnorm(network, [network], probe.split(64))
    return {
        "donor": donor,
        "plain mean": plain,
        "aligned mean": branchnet.build(tree, cut, init="merge", probe=probe),
    }


def digits(width: int, seed: int) -> dict[str, float]:
    source = load_digits()
    x, y = torch.tensor(source.images, dtype=torch.float32)[:, None] / 16, torch.tensor(source.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    made: dict[str, nn.Module] = {}
    for number, task in enumerate("ab"):
        torch.manual_seed(2 * seed + number)
        made[task] = Digits(width)
        branchnet.fit(
            made[task],
            (x[:1400], y[:1400]),
            F.cross_entropy,
            steps=200,
            learning_rate=3e-3,
            keep="last",
            progress=False,
        )
    cut = branchnet.split_all(made, x[:2], locations=["stem", "back", "last"])
    networks = three_ways(cut, Tree.shared(("a", "b"), 3), x[:512])
    with torch.no_grad():
        outputs = {name: list(network(x[1400:]).values()) for name, network in networks.items()}
        outputs["separate"] = [network(x[1400:]) for network in made.values()]
    right = {name: [float((o.argmax(1) == y[1400:]).float().mean()) for o in found] for name, found in outputs.items()}
    return {name: 100 * min(values) for name, values in right.items()} | {
        "distance": weight_distance(cut["a"], cut["b"])
    }


def photos(data: Path, locations: int, shared: int) -> dict[str, Any]:
    sys.path.insert(0, str(data))
    from mobilenetv2 import load  # type: ignore[import-not-found]

    from branchnet.data import load_images

    tasks = ("imagenet", "birds", "insects")
    made = {task: load(str(data / f"{task}.safetensors")) for task in tasks}
    middle = 128 / 255
    x = load_images(data / "photos", size=224, mean=(middle,) * 3, std=(middle,) * 3)[::2]
    cut = branchnet.split_all(made, x[:1], locations=locations)
    tree = Tree(tasks, [[tasks]] * shared + [[(task,) for task in tasks]] * (locations - shared))
    networks = three_ways(cut, tree, x[:128])
    held_out = x[128:].split(50)
    with torch.no_grad():
        wanted = {task: torch.cat([made[task](part).argmax(1) for part in held_out]) for task in tasks}
        found = {}
        for name, network in networks.items():
            outputs = [network(part) for part in held_out]
            found[name] = {
                task: 100 * float((torch.cat([o[task].argmax(1) for o in outputs]) == wanted[task]).float().mean())
                for task in tasks
            }
    pairs = [(a, b) for i, a in enumerate(tasks) for b in tasks[i + 1 :]]
    found["distance"] = {f"{a} and {b}": weight_distance(cut[a], cut[b], shared) for a, b in pairs}
    return {"shared": shared, "locations": locations, "kept": found}


def as_markdown(results: dict[str, Any]) -> str:
    columns = ("separate", "donor", "plain mean", "aligned mean", "distance")
    lines = [
        "# Initial weights of a shared network, without training", "",
        "`python benchmarks/merging.py`", "",
        "Digits: test accuracy in percent of the worse of two heads on one shared network; BatchNorm estimated anew.",
        "",
        "| width | seed | " + " | ".join(columns) + " |", "|---" * (2 + len(columns)) + "|",
    ]  # fmt: skip
    lines += [
        f"| {row['width']} | {row['seed']} | " + " | ".join(f"{row[name]:.2f}" for name in columns) + " |"
        for row in results["digits"]
    ]
    if "photos" in results:
        lines += ["", *photo_lines(**results["photos"])]
    return "\n".join([*lines, ""])


def photo_lines(shared: int, locations: int, kept: dict[str, dict[str, float]]) -> list[str]:
    distances = ", ".join(f"{pair} {distance:.2f}" for pair, distance in kept["distance"].items())
    ways = {name: row for name, row in kept.items() if name != "distance"}
    tasks = list(next(iter(ways.values())))
    return [
        f"Three MobileNetV2 (no BatchNorm) sharing {shared} of {locations} stages: decisions kept on held-out photos "
        f"(percent). Distances of their weights there: {distances}.",
        "",
        f"| shared weights | {' | '.join(tasks)} |",
        "|---" * (1 + len(tasks)) + "|",
        *(f"| {name} | {' | '.join(f'{row[task]:.1f}' for task in tasks)} |" for name, row in ways.items()),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="folder with three MobileNetV2 and photos")
    parser.add_argument("--locations", type=int, default=6)
    parser.add_argument("--shared", type=int, default=2, help="stages that the three MobileNetV2 share")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "digits": [
            {"width": width, "seed": seed} | digits(width, seed)
            for width in arguments.widths
            for seed in range(arguments.seeds)
        ]
    }
    if arguments.data is not None:
        results["photos"] = photos(arguments.data.resolve(), arguments.locations, arguments.shared)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "merging.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "merging.md").write_text(as_markdown(results))
    print(as_markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
