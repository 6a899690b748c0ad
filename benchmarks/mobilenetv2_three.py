"""Three really trained MobileNetV2 merged by `branchnet.run`, without labels, at several budgets.

DIR holds `mobilenetv2.py`, one safetensors file for each network and `photos/` (1,000 photos, one for each ImageNet
class, in class order). Reports what each budget keeps: agreement with each donor on held-out photos, ImageNet accuracy,
parameters, FLOPs, latency, and the affinities by location. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path

import torch
from torch import Tensor, nn

import branchnet
from branchnet import BudgetError, RunResult
from branchnet.data import load_images
from branchnet.deploy import load_weights
from branchnet.pipeline import held_out_rows

CLASSES = {"imagenet": 1001, "birds": 965, "insects": 1022}
HELD_OUT = 0.2
MIDDLE = 128 / 255  # the networks take (x - 128) / 128 of bytes


def load_networks(data: Path) -> dict[str, nn.Module]:
    """The three networks with their weights."""
    sys.path.insert(0, str(data))
    from mobilenetv2 import MobileNetV2

    networks = {}
    for task, classes in CLASSES.items():
        networks[task] = MobileNetV2(classes).eval()
        load_weights(networks[task], data / f"{task}.safetensors")
    return networks


def imagenet_accuracy(networks: dict[str, nn.Module], photos: Tensor, result: RunResult) -> dict[str, float]:
    """Top-1 on the held-out photos of the ImageNet donor and of the branched network, in percent."""
    assert len(photos) == 1000, f"one photo for each of 1,000 classes is expected; there are {len(photos)}"
    rows = torch.tensor(held_out_rows(len(photos), HELD_OUT)[1])
    truth = rows + 1  # class 0 is the background
    accuracy = {}
    for name in ("donor", "branched"):
        hits = 0
        with torch.no_grad():
            for part, wanted in zip(rows.split(50), truth.split(50), strict=True):
                x = photos[part]
                out = networks["imagenet"](x) if name == "donor" else result.network(x, tasks=["imagenet"])["imagenet"]
                hits += int((out.argmax(1) == wanted).sum())
        accuracy[name] = 100 * hits / len(rows)
    return accuracy


def merged(
    networks: dict[str, nn.Module], photos: Tensor, budget: str, arguments: argparse.Namespace
) -> dict[str, object] | str:
    """What one budget keeps; the error's text where no tree fits it."""
    try:
        result = branchnet.run(
            networks,
            photos,
            budget,
            folder=arguments.work / f"budget-{budget.split('%')[0]}",
            objective=arguments.objective,
            locations=arguments.locations,
            probe=500,
            held_out=HELD_OUT,
            steps=arguments.steps,
            stitch_steps=arguments.stitch_steps,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            baselines=arguments.baselines,
            donor=arguments.donor,
            kinds=dict.fromkeys(CLASSES, "classification"),
        )
    except BudgetError as error:
        return textwrap.fill(f"branchnet: {error}", 110)
    return summary(networks, photos, result)


def summary(networks: dict[str, nn.Module], photos: Tensor, result: RunResult) -> dict[str, object]:
    affinity = result.affinity
    return {
        "run": result.to_dict(),
        "imagenet_accuracy": imagenet_accuracy(networks, photos, result),
        "affinity": {
            name: {"tasks": list(affinity.tasks), "values": values.round(4).tolist()}
            for name, values in zip(affinity.locations, affinity.values, strict=True)
        },
    }


def as_markdown(results: dict[str, dict[str, object] | str], command: str) -> str:
    lines = [
        "# Three trained MobileNetV2 as one branched network",
        "",
        f"`{command}`",
        "",
        "1,000 photos without labels: 800 to compare, to fit and to distil on, 200 held out for the figures below.",
        "Budgets count the classifiers, which no tree can share. Each cell: KL divergence to the own network in nats,",
        "the share of the best constant answer's KL that is explained (100 = the own network, 0 = that constant),",
        "agreement beyond chance (Cohen's kappa), plain agreement. The bird and the insect network answer one class",
        "on most photos, so that plain agreement says little. Donors, trees and states are chosen by branchnet on",
        "other photos than these 200. One seed.",
        "",
    ]
    for budget, result in results.items():
        lines += [f"## Budget {budget}", ""]
        if isinstance(result, str):
            lines += ["```", result.strip(), "```", ""]
            continue
        run = result["run"]
        accuracy = result["imagenet_accuracy"]
        lines += [
            f"Tree: `{run['trees']['branched']}`, proposed by {run['proposed_by']}; RSA alone gives the same tree in "
            f"{100 * run['same_tree_in_replicates']:.0f}% of bootstrap replicates.",
            "",
            "| network | parameters | GFLOPs (multiply-adds) | eager ms | compiled ms | "
            + " | ".join(f"{task}: KL, explained %, kappa %, agreement %" for task in CLASSES)
            + " |",
            "|---" * (5 + len(CLASSES)) + "|",
        ]
        for name in run["networks"]:
            network = run["networks"][name]
            further = network["further"]
            size = f"{network['params']:,} | {network['flops'] / 1e9:.3f}" if network["params"] else " | "
            times = [
                f"{1000 * network['latency'][how]['median']:.1f}" if how in network["latency"] else ""
                for how in ("eager", "compiled")
            ]
            kept = [
                f"{further[f'{t}: KL nats']:.3f}, {network['metrics'][t]:.1f}, "
                f"{further[f'{t}: agreement beyond chance %']:.1f}, {further[f'{t}: top-1 agreement %']:.1f}"
                for t in CLASSES
            ]
            lines.append(f"| {name} | {size} | {times[0]} | {times[1]} | " + " | ".join(kept) + " |")
        lines += [
            "",
            f"ImageNet top-1 on the held-out photos: donor {accuracy['donor']:.1f}%, "
            f"branched {accuracy['branched']:.1f}%.",
            "",
            "RSA by location (500 photos): "
            + "; ".join(
                f"`{name}` "
                + ", ".join(
                    f"{a['tasks'][i]}-{a['tasks'][j]} {a['values'][i][j]:.3f}" for i, j in ((0, 1), (0, 2), (1, 2))
                )
                for name, a in result["affinity"].items()
            ),
            "",
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the three networks and the photos")
    parser.add_argument("--work", type=Path, default=Path("mobilenetv2-three-work"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    parser.add_argument("--budgets", nargs="+", default=["70% params", "85% params"])
    parser.add_argument("--baselines", nargs="*", default=[])
    parser.add_argument("--objective", default="medoid")
    parser.add_argument("--locations", type=int, default=6)
    parser.add_argument("--donor", help="whose weights shared nodes start from; by default chosen by stitching losses")
    parser.add_argument("--steps", type=int, default=150, help="of whole networks; 0 ends before any training")
    parser.add_argument("--stitch-steps", type=int, default=100, help="of the stitching layers alone, before that")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=lambda text: text if text == "auto" else float(text), default="auto")
    arguments = parser.parse_args()

    networks = load_networks(arguments.data)
    photos = load_images(arguments.data / "photos", size=224, mean=[MIDDLE] * 3, std=[MIDDLE] * 3)
    results: dict[str, dict[str, object] | str] = {}
    for budget in arguments.budgets:
        results[budget] = merged(networks, photos, budget, arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/mobilenetv2_three.py --data DIR"
    (arguments.out / "mobilenetv2_three.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "mobilenetv2_three.md").write_text(as_markdown(results, command))
    print(as_markdown(results, command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
