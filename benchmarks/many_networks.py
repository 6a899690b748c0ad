"""Real affinities of many tasks, for the clustering benchmark: 39 to 40 networks trained on shared inputs.

- `handwriting`: 40 attributes of handwritten characters, read by small CNNs of six stages. The attributes come from the
  recorded pen strokes (where, how long, how many, which direction), from the image, and from who wrote what.
- `molecules`: 39 assays and side effects (Tox21, SIDER) of molecules, read from Morgan fingerprints by small MLPs.

Every task has its own network, trained from its own random weights; RSA on 500 inputs that no network was trained on.
The tensors are stored, so that the clustering benchmark needs neither the data nor the training.

    OMP_NUM_THREADS=1 python benchmarks/many_networks.py --data DIR
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchnet
from branchnet import Affinity

RESULTS = Path(__file__).parent / "results" / "affinities"
PROBE, BATCH, RATE = 500, 128, 3e-3
CHANNELS, STRIDES = (12, 16, 24, 32, 40, 48), (2, 1, 2, 1, 2, 1)
HIDDEN = (128, 96, 96, 64, 64, 48)


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One task: the inputs that it was labelled on and their labels, classes (int64) or standardised numbers."""

    inputs: Tensor
    labels: Tensor
    classes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with omniglot_motor35 and molnet")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the two affinities")
    parser.add_argument("--steps", type=int, default=400, help="training steps of each network")
    parser.add_argument("--only", choices=("handwriting", "molecules"), help="one of the two")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, load, build in (("handwriting", handwriting, cnn), ("molecules", molecules, mlp)):
        if options.only in (None, name):
            attributes, probe = load(options.data)
            affinity = trained_affinity(attributes, probe, build, options.steps)
            dataclasses.replace(affinity, samples=None).save(options.out / f"{name}.npz")
            print(name, affinity.values.shape, [round(float(v), 3) for v in affinity.values.mean(axis=(1, 2))])


def trained_affinity(
    attributes: Mapping[str, Attribute], probe: Tensor, build: Callable[[int, int], nn.Module], steps: int
) -> Affinity:
    networks = {}
    for number, (task, attribute) in enumerate(attributes.items()):
        networks[task] = train(build(attribute.inputs.shape[1], _outputs(attribute)), attribute, steps, number)
        print(task, flush=True)
    staged = branchnet.split_all(networks, probe[:2], locations=[f"stage{d}" for d in range(6)])
    return branchnet.rsa(staged, probe)


def _outputs(attribute: Attribute) -> int:
    return max(attribute.classes, 1)


def train(network: nn.Module, attribute: Attribute, steps: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    loss = F.cross_entropy if attribute.classes else F.mse_loss
    for _ in range(steps):
        chosen = torch.randint(len(attribute.inputs), (BATCH,))
        outputs = network(attribute.inputs[chosen])
        optimizer.zero_grad()
        loss(outputs if attribute.classes else outputs[:, 0], attribute.labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def cnn(inputs: int, outputs: int) -> nn.Module:
    """Six convolutions, about 45,000 parameters."""
    widths = (inputs, *CHANNELS)
    stages = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        for a, b, stride in zip(widths, CHANNELS, STRIDES, strict=False)
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * CHANNELS[-1], outputs))
    return _named(stages, head)


def mlp(inputs: int, outputs: int) -> nn.Module:
    """Six fully connected stages."""
    widths = (inputs, *HIDDEN)
    stages = [
        nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in zip(widths, HIDDEN, strict=False)
    ]
    return _named(stages, nn.Linear(HIDDEN[-1], outputs))


def _named(stages: list[nn.Sequential], head: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict([*((f"stage{d}", stage) for d, stage in enumerate(stages)), ("head", head)]))


def handwriting(folder: Path) -> tuple[dict[str, Attribute], Tensor]:
    """Forty attributes; drawers 0 to 14 train, the probe comes from the other five."""
    with np.load(folder / "omniglot_motor35" / "omniglot_motor35.npz") as stored:
        data = {name: stored[name] for name in stored.files}
    seen = data["drawer"] < 15
    images = data["images"].astype(np.float32)[:, None]
    images = (images - images[seen].mean()) / images[seen].std()
    numbers, classes = _numbers(data), _classes(data)
    attributes = {name: Attribute(torch.tensor(images[seen]), _scaled(v[seen]), 0) for name, v in numbers.items()}
    attributes |= {
        name: Attribute(torch.tensor(images[seen]), torch.tensor(v[seen].astype(np.int64)), int(v.max()) + 1)
        for name, v in classes.items()
    }
    unseen = np.random.default_rng(0).permutation(np.flatnonzero(~seen))[:PROBE]
    return attributes, torch.tensor(images[unseen])


def _numbers(data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = ("n_strokes", "log_duration", "path_len", "holes", "turning", "ink", "straightness")
    found = {name: data[name].astype(np.float32) for name in names}
    for name, parts in (("start", "xy"), ("end", "xy"), ("first_dir", "xy"), ("bbox", ("x0", "y0", "x1", "y1"))):
        found |= {f"{name}_{part}": data[name][:, column] for column, part in enumerate(parts)}
    for row, column in np.ndindex(2, 2):
        quarter = np.s_[:, 17 * row : 17 * row + 18, 17 * column : 17 * column + 18]
        drawn = data["order_map"][quarter].astype(np.float32)
        found[f"ink_{row}{column}"] = (drawn > 0).mean(axis=(1, 2))
        found[f"time_{row}{column}"] = drawn.sum(axis=(1, 2)) / np.maximum((drawn > 0).sum(axis=(1, 2)), 1)
    return found


def _classes(data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [str(name) for name in data["alphabet_names"]]
    found = {name: data[name] for name in ("alphabet", "char", "drawer")}
    found |= {f"is_{name}": data["alphabet"] == number for number, name in enumerate(names)}
    found["one_stroke"] = data["n_strokes"] == 1
    found["has_hole"] = data["holes"] > 0
    found["slow"] = data["log_duration"] > np.median(data["log_duration"])
    found["tall"] = data["bbox"][:, 3] - data["bbox"][:, 1] > data["bbox"][:, 2] - data["bbox"][:, 0]
    return found


def molecules(folder: Path) -> tuple[dict[str, Attribute], Tensor]:
    """Thirty-nine binary labels; the last 250 molecules of either collection are the probe."""
    with np.load(folder / "molnet" / "molnet_morgan1024.npz") as stored:
        data = {name: stored[name] for name in stored.files}
    attributes, probes = {}, []
    for kind in ("tox21", "sider"):
        bits = torch.tensor(np.unpackbits(data[f"{kind}_fp"], axis=1).astype(np.float32))
        probes.append(bits[-PROBE // 2 :])
        for column, task in enumerate(data[f"{kind}_tasks"].tolist()):
            labels = data[f"{kind}_y"][: -PROBE // 2, column]
            known = labels >= 0
            inputs = bits[: -PROBE // 2][known]
            attributes[task] = Attribute(inputs, torch.tensor(labels[known].astype(np.int64)), 2)
    return attributes, torch.cat(probes)


def _scaled(values: np.ndarray) -> Tensor:
    return torch.tensor(((values - values.mean()) / values.std()).astype(np.float32))


if __name__ == "__main__":
    main()
