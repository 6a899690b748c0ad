"""Float against int8, node by node, on networks that were really trained.

`mobilenetv2_three`: three MobileNetV2 (ImageNet, birds, insects) as one network, once with nothing shared and once with
birds and insects on one trunk by stitches. `overlay36`: eight small CNNs on two trunks, trained with labels. Each is
quantised for speed and for size under a limit of loss, and for speed without one. Measured on inputs that nothing was
calibrated or chosen on: bytes, milliseconds (rounds in turns, one image), KL divergence, Cohen's kappa by task with the
single-task networks or, on overlay36, with labels.

    OMP_NUM_THREADS=1 python benchmarks/quantization.py --data DIR --work DIR
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mobilenetv2_three
import numpy as np
import overlay36
import torch
from sklearn.metrics import cohen_kappa_score, r2_score
from torch import Tensor

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.data import load_images
from branchnet.deploy import Quantized
from branchnet.utils.files import write_text

FASTEST, LEAST_SPEEDUP, LEAST_SMALLER, POINTS = 6, 1.5, 3.0, 1.0
SETTINGS: dict[str, dict[str, Any]] = {
    "speed, 1% loss": {"goal": "latency", "max_loss": 0.01},
    "size, 1% loss": {"goal": "bytes", "max_loss": 0.01},
    "speed, any loss": {"goal": "latency", "max_loss": 1e6},
}


@dataclass(frozen=True)
class Problem:
    """A network, and what it is judged by.

    Attributes:
        network: the float network.
        probe: inputs without labels.
        test: other inputs.
        truth: by task classes, or numbers, for the test inputs.
        kinds: the kinds of the tasks' outputs.
    """

    network: BranchedNetwork
    probe: Tensor
    test: Tensor
    truth: Mapping[str, Tensor]
    kinds: Mapping[str, Any]


def three(data: Path, tree: Tree | None) -> Problem:
    """Three MobileNetV2; the truth is what each single-task network answers."""
    middle = [mobilenetv2_three.MIDDLE] * 3
    networks = mobilenetv2_three.load_networks(data / "mobilenetv2_three")
    photos = load_images(data / "mobilenetv2_three" / "photos", size=224, mean=middle, std=middle)
    probe, test = photos[0:800:8], photos[800:]
    staged = branchnet.split_all(networks, photos[:2], locations=6)
    kinds = dict.fromkeys(networks, "classification")
    if tree is None:
        network = branchnet.build(Tree.separate(list(networks), 6), staged, init="donor")
    else:
        network = branchnet.build(tree, staged, init="stitch", probe=probe, kinds=kinds)
    with torch.no_grad():
        truth = {task: torch.cat([one(part).argmax(1) for part in test.split(20)]) for task, one in networks.items()}
    return Problem(network.eval(), probe, test, truth, kinds)


def overlay(data: Path, work: Path) -> Problem:
    """Seed 0 of overlay36 and the tree that its benchmark chose; the truth is the labels."""
    train, test = overlay36.load(data / "overlay36")
    folder = work / "overlay36" / "seed0"
    singles = {task: overlay36.single_network(task, 0, train, folder, 600) for task in overlay36.TASKS}
    staged = branchnet.split_all(singles, train.images[:2], locations=overlay36.LOCATIONS)
    families = [[t for t in overlay36.TASKS if t[0] == letter] for letter in "mf"]
    network = branchnet.build(Tree(overlay36.TASKS, [families] * len(overlay36.LOCATIONS)), staged, init="donor")
    branchnet.fit(
        network,
        (train.images, train.labels),
        {task: overlay36.loss(task) for task in overlay36.TASKS},
        steps=300,
        batch_size=overlay36.BATCH,
        learning_rate=overlay36.RATE,
        keep="last",
        seed=0,
    )
    kinds = {task: "classification" for task in overlay36.TASKS if task.endswith("class")}
    return Problem(network.eval(), train.images[:200], test.images, test.labels, kinds)


def scores(run: Callable[[Tensor], Mapping[str, Tensor]], problem: Problem) -> tuple[dict[str, float], dict[str, Any]]:
    """By task kappa or R squared with the truth, in points; and the outputs."""
    with torch.no_grad():
        parts = [run(part) for part in problem.test.split(20)]
    outputs = {task: torch.cat([part[task] for part in parts]) for task in problem.network.tasks}
    found = {}
    for task, output in outputs.items():
        truth = problem.truth[task]
        if task in problem.kinds:
            found[task] = 100 * float(cohen_kappa_score(truth, output.argmax(1)))
        else:
            found[task] = 100 * float(r2_score(truth.reshape(len(truth), -1), output))
    return found, outputs


def divergences(own: Mapping[str, Tensor], found: Mapping[str, Tensor], kinds: Mapping[str, Any]) -> dict[str, float]:
    """KL divergence of the quantised network's softmax from the float network's, in nats, by task that classifies."""
    return {
        task: float(
            torch.nn.functional.kl_div(
                found[task].double().log_softmax(1),
                own[task].double().log_softmax(1),
                reduction="batchmean",
                log_target=True,
            )
        )
        for task in kinds
    }


def measured(problem: Problem) -> dict[str, Any]:
    """All settings on one network."""
    own, own_outputs = scores(problem.network, problem)
    results = {}
    first: Quantized = branchnet.quantize(problem.network, problem.probe, kinds=problem.kinds)
    for name, setting in SETTINGS.items():
        made = first.choose(**setting)
        assert len(made.latency.samples) >= FASTEST, "too few rounds to judge"
        print(f"{name}\n{made}\n", flush=True)
        found, outputs = scores(made, problem)
        lost = {task: own[task] - found[task] for task in own}
        small, fast = made.smaller >= LEAST_SMALLER, made.speedup[0] >= LEAST_SPEEDUP
        results[name] = made.to_dict() | {
            "scores": found,
            "points_lost": lost,
            "kl": divergences(own_outputs, outputs, problem.kinds),
            "met": bool((small or fast) and max(lost.values()) < POINTS),
        }
    return {"float_scores": own, "tree": str(problem.network.tree), "settings": results}


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    lines = [
        "# int8, node by node",
        "",
        "`OMP_NUM_THREADS=1 python benchmarks/quantization.py --data DIR --work DIR`",
        "",
        *report["notes"],
        "",
        f"Machine: {report['machine']}. Both sides by ONNX Runtime, one image, {report['rounds']} rounds in turns.",
        "Points: Cohen's kappa (classes) or R squared, in percent, of the quantised network; in brackets what it lost",
        "against the float network. Target: 1.5 times as fast or 3 times smaller with less than one point lost.",
        "",
    ]
    for name, problem in report["problems"].items():
        tasks = list(problem["float_scores"])
        lines += [
            f"## {name}",
            "",
            "```",
            problem["tree"],
            "```",
            "",
            "| setting | nodes int8 / weights / float | bytes | smaller | ms | faster [95%] | "
            + " | ".join(tasks)
            + " | KL in nats | target |",
            "|---" * (8 + len(tasks)) + "|",
            "| float | | {:,} | | {:.2f} | | ".format(*_float_side(problem))
            + " | ".join(f"{problem['float_scores'][task]:.2f}" for task in tasks)
            + " | | |",
        ]
        for setting, found in problem["settings"].items():
            modes = list(found["modes"].values())
            counts = " / ".join(str(modes.count(mode)) for mode in ("int8", "weights", "float"))
            size, speed = found["bytes"], found["speedup"]
            median = float(np.median(found["milliseconds"]["quantised"]))
            lines.append(
                f"| {setting} | {counts} | {size['quantised']:,} | {size['float'] / size['quantised']:.2f} | "
                f"{median:.2f} | {speed['median']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}] | "
                + " | ".join(f"{found['scores'][task]:.2f} ({-found['points_lost'][task]:+.2f})" for task in tasks)
                + " | "
                + ", ".join(f"{task} {value:.4f}" for task, value in found["kl"].items())
                + f" | {'met' if found['met'] else 'missed'} |"
            )
        lines += ["", *_node_table(problem), ""]
    return "\n".join(lines)


def _float_side(problem: Mapping[str, Any]) -> tuple[int, float]:
    first = next(iter(problem["settings"].values()))
    return first["bytes"]["float"], float(np.median(first["milliseconds"]["float"]))


def _node_table(problem: Mapping[str, Any]) -> list[str]:
    """What each node costs alone, and what `speed, 1% loss` made of it."""
    found = problem["settings"]["speed, 1% loss"]
    lines = [
        "What each node costs alone, in percent of a constant answer's loss (int8; weights alone), and its mode at "
        "`speed, 1% loss`:",
        "",
        "| node | mode | KB saved | ms saved by int8 | losses |",
        "|---|---|---|---|---|",
    ]
    by_option = {(cost["node"], cost["mode"]): cost for cost in found["costs"]}
    for node, mode in found["modes"].items():
        computed, stored = by_option[node, "int8"], by_option[node, "weights"]
        losses = ", ".join(
            f"{task} {100 * computed['losses'][task]:.2g}; {100 * stored['losses'][task]:.2g}"
            for task in computed["tasks"]
        )
        back = " (taken back)" if node in found["taken_back"] else ""
        lines.append(
            f"| {node} | {mode}{back} | {computed['saved_bytes'] / 1000:.1f} | "
            f"{1000 * computed['saved_seconds']:.3f} | {losses} |"
        )
    return lines


def main() -> None:
    """Measure what is missing in the work folder, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with mobilenetv2_three and overlay36")
    parser.add_argument("--work", type=Path, required=True, help="folder for trained networks and partial results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the report")
    parser.add_argument("--note", nargs="*", default=[], help="sentences on how it was measured, for the report")
    parser.add_argument("--problems", nargs="*", help="names of those to measure; of others what the work folder holds")
    arguments = parser.parse_args()
    tasks = list(mobilenetv2_three.CLASSES)
    two = Tree(tasks, [[["imagenet"], ["birds", "insects"]]] * 6)
    makers: dict[str, Callable[[], Problem]] = {
        "overlay36": lambda: overlay(arguments.data, arguments.work),
        "mobilenetv2_three, nothing shared": lambda: three(arguments.data, None),
        "mobilenetv2_three, birds and insects on one trunk": lambda: three(arguments.data, two),
    }
    problems = {}
    for name, make in makers.items():
        file = arguments.work / f"{name.replace(' ', '_').replace(',', '')}.json"
        if not file.exists() and name in (arguments.problems or makers):
            write_text(file, json.dumps(measured(make())) + "\n")
        if file.exists():
            problems[name] = json.loads(file.read_text())
    first = next(iter(problems.values()))["settings"]["speed, 1% loss"]
    report = {
        "machine": f"{_processor()}, {torch.get_num_threads()} thread",
        "rounds": len(first["milliseconds"]["float"]),
        "notes": arguments.note,
        "problems": problems,
    }
    write_text(arguments.out / "quantization.json", json.dumps(report, indent=1) + "\n")
    write_text(arguments.out / "quantization.md", as_markdown(report))
    print(as_markdown(report))


def _processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
