"""Four YOLO networks as one: what is shared, how fast it is split and run, and that nothing is lost.

Networks are made from the YAML files of ultralytics with random weights (nothing is downloaded): four tasks, and four
detectors for different classes. Measured are the time of `split_all`; the share of parameters and multiply-adds in
front of the heads; outputs of a network that shares nothing against the originals at three sizes, and of one that
shares frozen backbones; latencies of that one against the four networks, eager, compiled and in ONNX Runtime, both
sides in turns in one run. Needs ultralytics, which is AGPL and no dependency of branchnet.

    python benchmarks/detectors.py [--families yolov8n yolo11n] [--part facts|latency] [--size 320]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parent.parent))

import branchnet
from branchnet import BranchedNetwork, StagedNetwork, Tree
from tests.stages.heads.yolo import predictions, yolo

RESULTS = Path(__file__).parent / "results" / "detectors.json"
TASKS = ("detect", "segment", "pose", "obb")
CLASSES = {"people": 1, "signs": 3, "cars": 5, "everything": 80}
SIZES = ((64, 64), (96, 64), (64, 160))
BACKBONE = 10
"""Layers before the neck; the last of them but one is the end of what is frozen."""
ROUNDS = 15
WAYS = ("eager", "ONNX Runtime", "compiled")


def suites(family: str) -> dict[str, dict[str, nn.Module]]:
    return {
        "four tasks": {task: yolo(family, task, seed) for seed, task in enumerate(TASKS)},
        "four detectors": {
            name: yolo(family, "detect", seed, classes) for seed, (name, classes) in enumerate(CLASSES.items())
        },
    }


def raw(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    return {task: branchnet.raw_heads(model) for task, model in models.items()}


def freeze_backbones(models: Mapping[str, nn.Module]) -> None:
    """Give all networks the first one's backbone, as networks have that were trained with it frozen."""
    first, *others = models.values()
    for other in others:
        for mine, layer in zip(list(other.model)[:BACKBONE], first.model, strict=False):  # type: ignore[arg-type]
            mine.load_state_dict(layer.state_dict())


def exact(one: BranchedNetwork, models: Mapping[str, nn.Module]) -> dict[str, bool]:
    """By size whether all that is decoded is bitwise what the networks themselves return."""
    found = {}
    for height, width in SIZES:
        images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height + width))
        with torch.no_grad():
            outputs = one(images)
            pairs = [
                (mine, own)
                for task, model in models.items()
                for mine, own in zip(
                    tree_leaves(branchnet.decode(model, outputs[task])),
                    tree_leaves(predictions(model(images))),
                    strict=True,
                )
            ]
        found[f"{height} x {width}"] = all(torch.equal(*pair) for pair in pairs)
    return found


def shares(staged: Mapping[str, StagedNetwork]) -> dict[str, Any]:
    """How much of all networks lies in front of the heads, and how large the fully shared network is."""
    first = next(iter(staged.values()))
    found: dict[str, Any] = {"locations": list(first.locations), "traced by": first.traced_by}
    for unit in ("params", "flops"):
        trunk = sum(getattr(cost, unit) for cost in first.costs)
        heads = sum(getattr(network.head_cost, unit) for network in staged.values())
        separate = len(staged) * trunk + heads
        found[unit] = {"in front of heads": len(staged) * trunk / separate, "fully shared": (trunk + heads) / separate}
    return found


def facts(models: dict[str, nn.Module]) -> dict[str, Any]:
    example = torch.rand(1, 3, 64, 64)
    networks = raw(models)
    start, cpu = time.perf_counter(), time.process_time()
    staged = branchnet.split_all(networks, example)
    seconds = {"seconds": time.perf_counter() - start, "CPU seconds": time.process_time() - cpu}
    apart = branchnet.build(
        Tree.separate(tuple(models), len(staged[next(iter(models))].locations)), staged, init="donor"
    )
    found = {"split": seconds} | shares(staged) | {"shares nothing, exact": exact(apart.eval(), models)}
    freeze_backbones(models)
    one = sharing_backbones(models, example)
    found["frozen backbones"] = {
        "exact": exact(one, models),
        "parameters": sum(p.numel() for p in one.parameters()) / total(models),
    }
    return found


def total(models: Mapping[str, nn.Module]) -> int:
    return sum(p.numel() for model in raw(models).values() for p in model.parameters())


def sharing_backbones(models: Mapping[str, nn.Module], example: Tensor) -> BranchedNetwork:
    end = f"model.{BACKBONE - 1}"
    staged = branchnet.split_all(raw(models), example, locations=[end])
    return branchnet.build(Tree.shared(tuple(models), 1), staged, init="donor").eval()


def turns(sides: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Milliseconds of each side, the median over rounds in which the sides take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    for _ in range(ROUNDS):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def latency(models: dict[str, nn.Module], size: int, way: str) -> dict[str, float]:
    """Milliseconds at batch 1 with raw outputs; in ONNX Runtime with decoded ones."""
    freeze_backbones(models)
    images = torch.rand(1, 3, size, size)
    one, networks = sharing_backbones(models, images), list(raw(models).values())
    if way == "ONNX Runtime":
        return onnx_latency(one, models, images)
    together: Callable[[Tensor], Any] = one
    each: list[Callable[[Tensor], Any]] = list(networks)
    if way == "compiled":
        together, each = branchnet.compile(one, images), [torch.compile(network) for network in networks]
    with torch.no_grad():
        return turns({"one": lambda: together(images), "four": lambda: [network(images) for network in each]})


def onnx_latency(one: BranchedNetwork, models: Mapping[str, nn.Module], images: Tensor) -> dict[str, float]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()

    def session(network: BranchedNetwork, names: Mapping[str, nn.Module], path: Path) -> Callable[[], Any]:
        exported = branchnet.export(network, images, path, decode=names, dynamic=False)
        loaded = onnxruntime.InferenceSession(str(exported.model), options)
        return lambda: loaded.run(None, {"input": images.numpy()})

    with tempfile.TemporaryDirectory() as folder:
        together = session(one, models, Path(folder) / "one.onnx")
        apart = [
            session(sharing_backbones({task: model}, images), {task: model}, Path(folder) / f"{task}.onnx")
            for task, model in models.items()
        ]
        return turns({"one": together, "four": lambda: [run() for run in apart]})


def page(found: Mapping[str, Any]) -> str:
    lines = [
        "# Four YOLO networks as one",
        "",
        "Made by `python benchmarks/detectors.py` (random weights from the YAML files of ultralytics "
        f"{found['versions']['ultralytics']}; torch {found['versions']['torch']}, CPU).",
        "Times were measured on two cores shared with other work: seconds of the CPU and ratios of sides that took "
        "turns say more than seconds on the clock.",
        "",
        "## What can be shared, and how long splitting takes",
        "",
        "`split_all` with an example of 64 x 64. Shares are of four separate networks: what lies in front of the "
        "heads, and the size of the network that shares all of it. Exact: all decoded outputs of all four are bitwise "
        f"those of the originals at {', '.join(f'{h} x {w}' for h, w in SIZES)}, of a network that shares nothing, and "
        "of one that shares frozen backbones.",
        "",
        "| networks | split, s (CPU) | traced by | last location | parameters in front of heads, fully shared | "
        "multiply-adds | exact | exact with frozen backbones | its parameters |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in found["facts"].items():
        frozen = entry["frozen backbones"]
        sizes = [
            f"{100 * entry[unit]['in front of heads']:.0f}%, {100 * entry[unit]['fully shared']:.0f}%"
            for unit in ("params", "flops")
        ]
        split = f"{entry['split']['seconds']:.1f} ({entry['split']['CPU seconds']:.1f})"
        lines.append(
            f"| {name} | {split} | {entry['traced by']} | "
            f"{entry['locations'][-1]} | {sizes[0]} | {sizes[1]} | {said(entry['shares nothing, exact'])} | "
            f"{said(frozen['exact'])} | {100 * frozen['parameters']:.0f}% |"
        )
    lines += ["", "## Latency", ""]
    lines += [
        "Milliseconds for one image through all four, medians of rounds in which both sides take turns; one: the "
        "network that shares frozen backbones (layers 0 to 9), four: the networks one after the other. ONNX files "
        "decode inside. The rows were measured at different times, under different load: compare within a row.",
        "",
        "| networks | pixels | way | one | four | four / one |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in found["latency"].items():
        for way in WAYS:
            if way in entry:
                one, four = entry[way]["one"], entry[way]["four"]
                lines.append(f"| {name} | {entry['size']} | {way} | {one:.1f} | {four:.1f} | {four / one:.2f} |")
    return "\n".join(lines) + "\n"


def said(exact: Mapping[str, bool]) -> str:
    return "yes" if all(exact.values()) else f"not at {', '.join(size for size, same in exact.items() if not same)}"


def save(found: Mapping[str, Any]) -> None:
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["yolov8n", "yolo11n"])
    parser.add_argument("--suites", nargs="+", default=["four tasks", "four detectors"])
    parser.add_argument("--part", choices=("facts", "latency"))
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    import ultralytics

    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"facts": {}, "latency": {}}
    found["versions"] = {"torch": torch.__version__, "ultralytics": ultralytics.__version__}
    for family in options.families:
        for suite in options.suites:
            name = f"{family}, {suite}"
            if options.part in (None, "facts"):
                found["facts"][name] = facts(suites(family)[suite])
            if options.part in (None, "latency"):
                entry = found["latency"].setdefault(name, {"size": options.size})
                for way in options.ways:
                    entry[way] = latency(suites(family)[suite], options.size, way)
                    save(found)
            save(found)
            print(name, "done", file=sys.stderr, flush=True)
    print(page(found))


if __name__ == "__main__":
    main()
