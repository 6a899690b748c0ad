"""How fast a branched network runs compared with N separate networks: both, run in all ways, measured in turns.

    python benchmarks/inference.py                                     # the core: ResNet-50 and ViT-S, 5 tasks, 50%
    python benchmarks/inference.py --networks resnet18 mobilenet_v3_large --tasks 2 5 --shares 30 70 --batches 1 32
    python benchmarks/inference.py --device cuda --mode reduce-overhead
    python benchmarks/inference.py --table

Cases with a result are skipped (`--again` measures them anew), so an interrupted run goes on where it stopped. Networks
have random weights; speed does not depend on them. The tree of a case is, of 2,000 drawn at random, the one whose
parameters and multiply-adds are nearest to the share of the separate ones. Everything runs in one call for
all tasks, without gradients. Separate networks and the plain backbone are compiled by `torch.compile` as it is; shared
and branched ones by `branchnet.compile`, which does without guards on modules. With `--mode reduce-overhead` on a GPU
both sides run as CUDA graphs. Ratios are medians of the ratios of single rounds with a 95% interval: a bar that lies
inside it is met or missed within the noise only. The sides of the bars of 2 and 3% are measured once more, alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from inference_page import PAIRS, bars, case_table, tables
from inference_sides import MANY, Run, make_network, sides
from torch import Tensor, nn

import branchnet
from branchnet import StagedNetwork, Tree
from branchnet.clustering import tree_sampler, tree_size
from branchnet.errors import BudgetError
from branchnet.inference import Latency, compare_latency, measure_latency
from branchnet.inference.fusion_choice import faster_fused
from branchnet.inference.latency_tables import table_and_others
from branchnet.inference.torch_compile import first_line
from branchnet.utils.files import write_text
from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators

RESULTS = Path(__file__).parent / "results" / "inference.json"
TABLE = RESULTS.with_suffix(".md")
LOCATIONS = {
    "resnet18": ["layer1", "layer2", "layer3", "avgpool"],
    "resnet50": ["layer1", "layer2", "layer3", "avgpool"],
    "mobilenet_v3_large": ["features.3", "features.6", "features.10", "avgpool"],
    "convnext_tiny": ["features.1", "features.3", "features.5", "avgpool"],
    "vit_small": ["blocks.2", "blocks.5", "blocks.8", "fc_norm"],
    "tiny": ["stem", "layer1", "pool"],
}
"""Ends of the stages. The last one pools, as the plain backbone does before its N heads."""
SIZES = {"tiny": 16}
"""Height and width of images, 224 by default."""
DRAWS = 2000
SLACK = 10
LONGEST = 300
"""Seconds of measuring in turns; slow networks get fewer rounds than asked for, but not fewer than FEWEST."""
FEWEST = 7
CLOSE_LOOK = 30
"""Seconds of measuring alone, in turns, the two sides of a bar that lies within a few percent."""
MOST = 300


@dataclass(frozen=True)
class Case:
    """One comparison."""

    network: str
    tasks: int
    share: int
    batch: int
    device: str
    mode: str | None
    dtype: torch.dtype = torch.float32

    @property
    def key(self) -> str:
        """The case in words, its name in the results."""
        how = f"{self.device}{f' {self.mode}' if self.mode else ''}"
        if self.dtype != torch.float32:
            how += f" {str(self.dtype).removeprefix('torch.')}"
        return f"{self.network}, {self.tasks} tasks, {self.share}%, batch {self.batch}, {how}"


@dataclass(frozen=True)
class Subject:
    """The networks of a case and the tree that they are merged into."""

    networks: dict[str, nn.Module]
    staged: dict[str, StagedNetwork]
    tree: Tree

    @property
    def separate(self) -> Tree:
        """Nothing shared."""
        return Tree.separate(self.tree.tasks, self.tree.depth)

    @property
    def shared(self) -> Tree:
        """Everything shared but the heads."""
        return Tree.shared(self.tree.tasks, self.tree.depth)

    def size(self, tree: Tree, unit: str) -> float:
        """Parameters or multiply-adds of a tree, heads included."""
        first = next(iter(self.staged.values()))
        heads = {task: network.head_cost for task, network in self.staged.items()}
        return tree_size(tree, first.costs, head_costs=heads, unit=unit)

    def ratio(self, unit: str) -> float:
        """The tree's size as a share of the separate networks'."""
        return self.size(self.tree, unit) / self.size(self.separate, unit)


def make_images(case: Case) -> Tensor:
    """A batch of the case on its device, the same at every call."""
    size = SIZES.get(case.network, 224)
    x = torch.randn(case.batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    return x.to(case.device, case.dtype)


def make_subject(case: Case) -> Subject:
    tasks = tuple(f"task{i}" for i in range(case.tasks))
    networks = {task: make_network(case.network, i) for i, task in enumerate(tasks)}
    # All tasks' networks are alike but for their weights: one is split, and every node is a copy of its stages.
    example = make_images(replace(case, device="cpu", dtype=torch.float32))
    first = branchnet.split(networks[tasks[0]], example, locations=LOCATIONS[case.network])
    subject = Subject(networks, dict.fromkeys(tasks, first), Tree.separate(tasks, len(first.costs)))
    heads = dict.fromkeys(tasks, first.head_cost)
    budget = f"{case.share + SLACK}% params"
    sampler = tree_sampler(tasks, len(first.costs), costs=first.costs, budget=budget, head_costs=heads)
    generator = random.Random(0)
    wanted = {unit: case.share / 100 * subject.size(subject.tree, unit) for unit in ("params", "flops")}

    def distance(tree: Tree) -> float:
        return sum(abs(subject.size(tree, unit) / size - 1) for unit, size in wanted.items())

    trees = dict.fromkeys(sampler.draw(generator) for _ in range(DRAWS))
    return replace(subject, tree=min(trees, key=distance))


def measure(case: Case, repeats: int, *, auto: bool) -> dict[str, Any]:
    begun = time.perf_counter()
    subject = make_subject(case)
    x = make_images(case)
    result: dict[str, Any] = {
        "tree": [[list(cluster) for cluster in stage] for stage in subject.tree.partitions],
        "widths": list(subject.tree.widths),
        "locations": LOCATIONS[case.network],
        "params ratio": subject.ratio("params"),
        "flops ratio": subject.ratio("flops"),
        "flops": {name: subject.size(tree, "flops") for name, tree in flops_of(subject).items()},
        "setting": setting(case),
        "errors": {},
        "preparation": {"networks and tree": time.perf_counter() - begun},
        "peak bytes": {},
    }
    print(f"  copies of the stages {result['widths']}: ready after {time.perf_counter() - begun:.1f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs: dict[str, Run] = {}
        for name, run, parameters in prepared(sides(case, subject, x, Path(folder)), x, result):
            runs[name] = run
            if "ONNX" not in name:  # its memory is its own, and torch sees none of it
                result["peak bytes"][name] = x.itemsize * parameters + peak_activations(run, x)
        once = sum(measure_latency(run, x, repeats=1, warmup=0).median for run in runs.values())
        rounds = max(min(repeats, FEWEST), min(repeats, int(LONGEST / once)))
        tops = ceilings(case.device)
        times = compare_latency(runs | {name: run for name, (run, _) in tops.items()}, x, repeats=rounds, warmup=2)
    result["seconds"] = {name: list(times[name].samples) for name in runs}
    result["ceilings"] = {
        name: {"amount": amount, "seconds": list(times[name].samples)} for name, (_, amount) in tops.items()
    }
    result["pairs"] = {
        " / ".join(pair): {name: list(latency.samples) for name, latency in close_look(runs, pair, times, x).items()}
        for pair in PAIRS
        if set(pair) <= set(runs)
    }
    compiled = {"branched, compiled": runs["branched, compiled"]} if "branched, compiled" in runs else {}
    table, others = table_and_others(
        subject.staged,
        x,
        compiled,
        device=case.device,
        mode=case.mode,
        widths=sorted({*subject.tree.widths, 1}),
        repeats=rounds,
    )
    result["in turns with the table"] = {name: list(latency.samples) for name, latency in others.items()}
    result["latency table"] = table.to_dict()
    if auto:
        branched = branchnet.build(subject.tree, subject.staged, init="donor").eval().to(case.device)
        result["stages chosen to be fused"] = list(faster_fused(branched, x, mode=case.mode))
    return result | {"took": time.perf_counter() - begun}


def prepared(
    ways: Iterable[tuple[str, Callable[[], Run], int]], x: Tensor, result: dict[str, Any]
) -> Iterator[tuple[str, Run, int]]:
    """The sides that run here, ready and warm; `result` gets their seconds to prepare, and others' errors."""
    for name, prepare, parameters in ways:
        start = time.perf_counter()
        try:
            run = prepare()
            measure_latency(run, x, repeats=1, warmup=0)
        except Exception as error:  # one way that does not work here must not keep the others from being measured
            result["errors"][name] = f"{type(error).__name__}: {first_line(error)}"
            result.get("tracebacks", {})[name] = traceback.format_exc()
            print(f"  {name}: {result['errors'][name]}", flush=True)
            continue
        result["preparation"][name] = time.perf_counter() - start
        print(f"  {name}: ready after {result['preparation'][name]:.1f} s", flush=True)
        measure_latency(run, x, repeats=1, warmup=1)
        yield name, run, parameters


def close_look(
    runs: Mapping[str, Run],
    pair: tuple[str, str],
    times: Mapping[str, Latency],
    x: Tensor,
    *,
    seconds: float = CLOSE_LOOK,
) -> dict[str, Latency]:
    """Two sides once more, alone and as often as the seconds allow: their difference is small."""
    repeats = max(FEWEST, min(MOST, int(seconds / sum(times[name].median for name in pair))))
    with torch.no_grad():
        return compare_latency({name: runs[name] for name in pair}, x, repeats=repeats, warmup=1)


def flops_of(subject: Subject) -> dict[str, Tree]:
    return {"separate": subject.separate, "fully shared": subject.shared, "branched": subject.tree}


def setting(case: Case) -> dict[str, Any]:
    cuda = case.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "mode": case.mode or "default",
        "regions": case.tasks >= MANY,
    } | ({"TF32": True} if cuda else {})


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def peak_activations(run: Run, x: Tensor) -> int:
    """Bytes that one call holds at most beyond what was there before it."""
    if x.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch._inductor.config.patch({"triton.force_cudagraphs_warmup": True}):  # replays allocate nothing
            run(x)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run(x)
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def ceilings(
    device: str, dtype: torch.dtype = torch.float32, *, size: int | None = None, numbers: int = 64 * 2**20
) -> dict[str, tuple[Run, int]]:
    """What this device does best: a large product with its multiply-adds, a large copy with the bytes that it moves.

    size: rows and columns of the matrices. numbers: those that are copied, 4 bytes each.
    """
    size = size or (8192 if device == "cuda" else 1024)
    a = torch.randn(size, size, device=device, dtype=dtype)
    big = torch.randn(numbers, device=device)
    copy = torch.empty_like(big)
    return {"product": (lambda x: a @ a, size**3), "copy": (lambda x: copy.copy_(big), 2 * big.numel() * 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=sorted(LOCATIONS), default=["resnet50", "vit_small"])
    parser.add_argument("--tasks", nargs="+", type=int, default=[5])
    parser.add_argument("--shares", nargs="+", type=int, default=[50], help="percent of the separate parameters")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--mode", help="torch.compile's mode, for every side")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--auto", action="store_true", help='also let fuse="auto" choose its stages')
    parser.add_argument("--again", action="store_true", help="measure cases that have a result already")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the table of the results that there are")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    define_torchvision_operators()
    if arguments.device == "cuda":  # the fastest products and convolutions, for every side and for the ceilings
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    cases = [
        Case(network, tasks, share, batch, arguments.device, arguments.mode)
        for network in arguments.networks
        for tasks in arguments.tasks
        for share in arguments.shares
        for batch in arguments.batches
    ]
    for case in [] if arguments.table else cases:
        known = results.get(case.key, {})
        complete = known.get("locations") == LOCATIONS[case.network] and "pairs" in known
        if complete and not arguments.again:
            continue
        print(case.key, flush=True)
        try:
            results[case.key] = measure(case, arguments.repeats, auto=arguments.auto)
        except BudgetError as error:  # the heads alone, or one copy of everything, are larger than the share
            print(f"  there is no such tree: {error}", flush=True)
            continue
        print(f"  measured in {results[case.key]['took']:.0f} s", flush=True)
        write_text(arguments.results, json.dumps(results, indent=1) + "\n")
        print("\n".join([*case_table(results[case.key]), *bars(case.key, results[case.key])]), flush=True)
    explanation = (__doc__ or "").split("\n\n")[-1].strip()
    write_text(arguments.results.with_suffix(".md"), tables(results, explanation))


if __name__ == "__main__":
    main()
