"""Time and memory of splitting, and what composing the stages costs against the network's own forward pass.

    python benchmarks/stages_speed.py

Prints ratios of runs that alternate in one process, and writes results/stages_speed.md and .json.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators

RESULTS = Path(__file__).parent / "results" / "stages_speed.json"
SPLIT_SUBJECTS = (
    "resnet50",
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "vit_large_patch16_224",
    "vit_huge_patch14_224",
)
OVERHEAD_SUBJECTS = ("resnet18", "resnet50", "mobilenetv3_large_100", "convnext_tiny", "vit_small_patch16_224")


def split_time(name: str) -> dict[str, float]:
    """Seconds of one split beside seconds of one forward pass, each the best of three."""
    import timm

    from branchnet import split

    network = timm.create_model(name).eval()
    example = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        forward = min(_seconds(lambda: network(example)) for _ in range(3))
    repeats = 3 if sum(p.numel() for p in network.parameters()) < 100e6 else 1
    return {"split_s": min(_seconds(lambda: split(network, example)) for _ in range(repeats)), "forward_s": forward}


def overhead(name: str, rounds: int, compiled: bool) -> dict[str, float]:
    """Median time of the composed stages over that of the network, at one image, in alternating runs."""
    import timm

    from branchnet import split

    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    example = torch.randn(1, 3, 224, 224)
    staged: nn.Module = copy.deepcopy(split(network, example)).eval()
    sides: tuple[Callable[[Tensor], Any], ...] = (network, staged)
    if compiled:
        sides = (torch.compile(network, fullgraph=True), torch.compile(staged, fullgraph=True))
    times: tuple[list[float], ...] = ([], [])
    with torch.no_grad():
        for side in sides:
            for _ in range(3):
                side(example)
        for k in range(rounds):
            for which in (0, 1) if k % 2 else (1, 0):
                times[which].append(_seconds(lambda which=which: sides[which](example)))
    ratios = sorted(after / before for before, after in zip(*times, strict=True))
    return {
        "network_ms": statistics.median(times[0]) * 1e3,
        "staged_ms": statistics.median(times[1]) * 1e3,
        "ratio_of_medians": statistics.median(times[1]) / statistics.median(times[0]),
        "ratio_of_fastest": min(times[1]) / min(times[0]),
        "pairs_quartiles": (ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]),  # type: ignore[dict-item]
    }


def meta_memory(on_meta: bool) -> dict[str, float]:
    """MiB that this process needs at most for splitting a ViT-L, above what importing everything needs."""
    import timm

    from branchnet import split

    split(timm.create_model("test_vit").eval(), torch.randn(1, 3, 160, 160))
    before = _peak_mib()
    with torch.device("meta" if on_meta else "cpu"):
        network = timm.create_model("vit_large_patch16_224").eval()
        staged = split(network, torch.randn(1, 3, 224, 224))
    after = _peak_mib()
    params = sum(staged.costs.params) + staged.head_cost.params
    return {"MiB": after - before, "parameters_MiB": params * 4 / 2**20, "flops": float(sum(staged.costs.flops))}


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 1024


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def table(results: dict[str, Any]) -> str:
    """The results as markdown."""
    threads = torch.get_num_threads()
    lines = ["# What splitting costs", "", f"torch {torch.__version__}, CPU, {threads} threads, timm models.", ""]
    lines += ["| network | split | one forward pass | split / forward |", "|---|---|---|---|"]
    for name, entry in results["split"].items():
        ratio = entry["split_s"] / entry["forward_s"]
        lines.append(f"| {name} | {entry['split_s']:.2f} s | {entry['forward_s'] * 1e3:.0f} ms | {ratio:.0f} |")
    lines += ["", "Composed stages over the network's own forward pass, one image, alternating runs:", ""]
    lines += ["| network | mode | network | stages | ratio of medians | ratio of fastest runs | middle half of pairs |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for key, entry in results["overhead"].items():
        low, high = entry["pairs_quartiles"]
        lines.append(
            f"| {key.replace(' ', ' | ')} | {entry['network_ms']:.1f} ms | {entry['staged_ms']:.1f} ms "
            f"| {entry['ratio_of_medians']:.3f} | {entry['ratio_of_fastest']:.3f} | {low:.3f} to {high:.3f} |"
        )
    memory = results["memory"]
    lines += ["", "Splitting a ViT-L/16 (peak memory above a small model's split):", ""]
    lines += [
        f"- on the meta device: {memory['meta']['MiB']:.0f} MiB; its parameters would take "
        f"{memory['meta']['parameters_MiB']:.0f} MiB",
        f"- with real parameters: {memory['cpu']['MiB']:.0f} MiB, the network included",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="pairs of runs per network")
    parser.add_argument(
        "--part", choices=["split", "eager", "compiled", "meta", "cpu"], help="one part, to standard output"
    )
    parser.add_argument("--only", help="a regular expression for the networks")
    arguments = parser.parse_args()
    define_torchvision_operators()
    from branchnet.utils.files import write_text

    if arguments.part in {"meta", "cpu"}:
        print(json.dumps(meta_memory(arguments.part == "meta")))
        return
    wanted = re.compile(arguments.only or "").search
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"split": {}, "overhead": {}}
    if arguments.part in {None, "split"}:
        for name in filter(wanted, SPLIT_SUBJECTS):
            results["split"][name] = split_time(name)
            print(name, results["split"][name], flush=True)
    for mode in ("eager", "compiled"):
        if arguments.part in {None, mode}:
            for name in filter(wanted, OVERHEAD_SUBJECTS):
                entry = overhead(name, arguments.rounds, mode == "compiled")
                results["overhead"][f"{name} {mode}"] = entry
                print(name, mode, entry, flush=True)
    results["memory"] = {part: _in_own_process(part) for part in ("meta", "cpu")}
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    write_text(RESULTS.with_suffix(".md"), table(results))
    print(table(results))


def _in_own_process(part: str) -> dict[str, float]:
    run = subprocess.run([sys.executable, __file__, "--part", part], check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
