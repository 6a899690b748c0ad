"""How fast a branched network runs beside N separate networks, all ways of running both measured in turns in one run.

    python benchmarks/inference.py                                     # the core: ResNet-50 and ViT-S, 5 tasks, 50%
    python benchmarks/inference.py --networks resnet18 mobilenet_v3_large --tasks 2 5 --shares 30 70 --batches 1 32
    python benchmarks/inference.py --device cuda --mode reduce-overhead
    python benchmarks/inference.py --table

Cases with a result are skipped (`--again` measures them anew), so an interrupted run goes on where it stopped. Networks
have random weights; speed does not depend on them. The tree of a case is, of 2,000 drawn at random, the one whose
parameters and multiply-adds are nearest to the share of the separate ones. Everything runs in one call for
all tasks, without gradients. With `--mode reduce-overhead` on a GPU both sides run as CUDA graphs. Ratios are medians
of the ratios of single rounds with a 95% interval: a bar that lies inside it is met or missed within the noise only.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from stages import define_torchvision_operators
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import branchnet
from branchnet import BranchedNetwork, LatencyTable, StagedNetwork, Tree
from branchnet.builder import Latency, SeparateNetworks, compare_latency, measure_latency, ratio_interval
from branchnet.builder.fusion_choice import faster_fused
from branchnet.builder.graphs import compiled_apart, first_line
from branchnet.builder.stage_latency import predicted_rounds, table_beside
from branchnet.clustering import tree_sampler, tree_size
from branchnet.files import write_text

RESULTS = Path(__file__).parent / "results" / "inference.json"
TABLE = RESULTS.with_suffix(".md")
LOCATIONS = {
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "mobilenet_v3_large": ["features.3", "features.6", "features.10", "features.16"],
    "convnext_tiny": ["features.1", "features.3", "features.5", "features.7"],
    "vit_small": ["blocks.2", "blocks.5", "blocks.8", "blocks.11"],
}
CLASSES = 10
DRAWS = 2000
SLACK = 10
LONGEST = 300
"""Seconds of measuring in turns; slow networks get fewer rounds than asked for, but not fewer than FEWEST."""
FEWEST = 7
MANY = 9
"""From so many tasks on, equal nodes are compiled once, as regions of the graph: else compiling takes longest."""
Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Case:
    """One comparison."""

    network: str
    tasks: int
    share: int
    batch: int
    device: str
    mode: str | None

    @property
    def key(self) -> str:
        """The case in words, its name in the results."""
        how = f"{self.device}{f' {self.mode}' if self.mode else ''}"
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


def make_network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if name == "vit_small":
        import timm

        return timm.create_model("vit_small_patch16_224", num_classes=CLASSES).eval()  # type: ignore[no-any-return]
    from torchvision import models

    return models.get_model(name, num_classes=CLASSES).eval()  # type: ignore[no-any-return]


def without_head(name: str) -> tuple[nn.Module, nn.Module]:
    """One plain backbone and what its network does after pooling, the head of each task."""
    network = make_network(name, 0)
    attribute = "fc" if name.startswith("resnet") else "head" if name == "vit_small" else "classifier"
    head = getattr(network, attribute)
    setattr(network, attribute, nn.Identity())
    return network, head


class OneBackbone(nn.Module):
    """A plain network whose head is there N times: what full sharing means without this package."""

    def __init__(self, name: str, count: int) -> None:
        super().__init__()
        self.backbone, head = without_head(name)
        self.heads = nn.ModuleList(copy.deepcopy(head) for _ in range(count))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Run the backbone once and every head on its features."""
        features = self.backbone(x)
        return [head(features) for head in self.heads]


def make_subject(case: Case) -> Subject:
    tasks = tuple(f"task{i}" for i in range(case.tasks))
    networks = {task: make_network(case.network, i) for i, task in enumerate(tasks)}
    # All tasks' networks are alike but for their weights: one is split, and every node is a copy of its stages.
    first = branchnet.split(networks[tasks[0]], torch.randn(case.batch, 3, 224, 224), locations=LOCATIONS[case.network])
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


def sides(case: Case, subject: Subject, x: Tensor, folder: Path) -> Iterator[tuple[str, Callable[[], Run], int]]:
    """Every way of running the case: its name, what prepares it, and the parameters that it holds."""
    separate = SeparateNetworks(subject.networks).eval().to(case.device)
    branched = branchnet.build(subject.tree, subject.staged).eval().to(case.device)
    shared = branchnet.build(subject.shared, subject.staged).eval().to(case.device)
    plain = OneBackbone(case.network, case.tasks).eval().to(case.device)
    sizes = {name: count(each) for name, each in (("s", separate), ("b", branched), ("h", shared), ("p", plain))}

    def compiled(network: BranchedNetwork, **options: Any) -> Callable[[], Run]:
        return lambda: branchnet.compile(network, x, mode=case.mode, dynamic=False, **options)

    yield "separate, eager", lambda: separate, sizes["s"]
    yield "separate, compiled", lambda: one_by_one(list(separate.networks), case.mode), sizes["s"]
    yield "separate, stacked by vmap, compiled", lambda: stacked(list(separate.networks), case.mode), sizes["s"]
    yield "fully shared, eager", lambda: shared, sizes["h"]
    yield "one backbone and N heads, eager", lambda: plain, sizes["p"]
    yield "fully shared, compiled", compiled(shared), sizes["h"]
    yield "one backbone and N heads, compiled", lambda: alone(plain, case.mode), sizes["p"]
    yield "branched, eager", lambda: branched, sizes["b"]
    if case.device == "cuda":
        streams = {"dynamic": False, "streams": True}
        yield "branched, compiled, on streams", lambda: branchnet.compile(branched, x, **streams), sizes["b"]
    many = {"regions": case.tasks >= MANY}
    yield "branched, compiled", compiled(branched, **many), sizes["b"]
    yield "branched, compiled, fused", compiled(branched, fuse=True), sizes["b"]
    tuned = {"fold_batchnorm": True, "channels_last": True} | many
    yield "branched, compiled, BatchNorm folded, channels last", compiled(branched, **tuned), sizes["b"]
    yield "branched, nodes compiled one by one", lambda: nodes_one_by_one(branched, case.mode), sizes["b"]
    yield "branched, ONNX Runtime", lambda: onnx_runtime(branched, x, folder), sizes["b"]
    yield "branched, AOTInductor", lambda: aot_inductor(branched, x, folder), sizes["b"]


def alone(network: nn.Module, mode: str | None) -> Run:
    def run(x: Tensor) -> Any:
        return network(x)

    return compiled_apart(run, mode=mode, dynamic=False)


def one_by_one(networks: Sequence[nn.Module], mode: str | None) -> Run:
    """Compile once for all networks, which have the same structure, and call one after another."""

    def run(network: nn.Module, x: Tensor) -> Any:
        return network(x)

    compiled = compiled_apart(run, mode=mode, dynamic=False)
    return lambda x: [compiled(network, x) for network in networks]


def stacked(networks: list[nn.Module], mode: str | None) -> Run:
    params, buffers = stack_module_state(networks)
    template = networks[0]

    def run(x: Tensor) -> Any:
        return vmap(lambda p, b: functional_call(template, (p, b), (x,)))(params, buffers)

    return compiled_apart(run, mode=mode, dynamic=False)


def nodes_one_by_one(branched: BranchedNetwork, mode: str | None) -> Run:
    """Every node compiled alone: the sum of its nodes' times, measured in one go."""

    def run(node: nn.Module, cut: tuple[Any, ...]) -> Any:
        return node(*cut)

    # Nodes of one stage have one structure and share a graph; so do the heads.
    stages = [compiled_apart(run, mode=mode, dynamic=False) for _ in branched.nodes]
    head = compiled_apart(run, mode=mode, dynamic=False)
    labels = branched.tree.labels()

    def all_nodes(x: Tensor) -> list[Any]:
        cuts: list[tuple[Any, ...]] = [(x,)]
        for stage, parents in enumerate(branched.tree.parents):
            row: nn.ModuleList = branched.nodes[stage]  # type: ignore[assignment]
            cuts = [stages[stage](node, cuts[parents[k] if stage else 0]) for k, node in enumerate(row)]
        return [head(branched.heads[i], cuts[labels[-1][i]]) for i in range(len(branched.heads))]

    return all_nodes


def onnx_runtime(branched: BranchedNetwork, x: Tensor, folder: Path) -> Run:
    import onnxruntime

    path = branchnet.export(branched, x, folder / "branched.onnx").model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider"]}[x.device.type]
    if missing := set(wanted) - set(onnxruntime.get_available_providers()):
        raise RuntimeError(f"onnxruntime without {', '.join(missing)}")
    session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
    return lambda x: session.run(None, {"input": x.numpy(force=True)})


def aot_inductor(branched: BranchedNetwork, x: Tensor, folder: Path) -> Run:
    path = branchnet.export(branched, x, folder / "branched.pt2", format="aoti", dynamic=False).model
    loaded: Run = torch._inductor.aoti_load_package(str(path))
    return loaded


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def measure(case: Case, repeats: int, *, auto: bool) -> dict[str, Any]:
    begun = time.perf_counter()
    subject = make_subject(case)
    x = torch.randn(case.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(case.device)
    result: dict[str, Any] = {
        "tree": [[list(cluster) for cluster in stage] for stage in subject.tree.partitions],
        "widths": list(subject.tree.widths),
        "params ratio": subject.ratio("params"),
        "flops ratio": subject.ratio("flops"),
        "flops": {name: subject.size(tree, "flops") for name, tree in flops_of(subject).items()},
        "setting": setting(case),
        "errors": {},
        "preparation": {"networks and tree": time.perf_counter() - begun},
        "peak bytes": {},
    }
    print(f"  copies of the stages {result['widths']}: ready after {time.perf_counter() - begun:.1f} s", flush=True)
    runs: dict[str, Run] = {}
    once = 0.0
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, prepare, parameters in sides(case, subject, x, Path(folder)):
            start = time.perf_counter()
            try:
                run = prepare()
                run(x)
            except Exception as error:  # one way that does not work here must not keep the others from being measured
                result["errors"][name] = f"{type(error).__name__}: {first_line(error)}"
                print(f"  {name}: {result['errors'][name]}", flush=True)
                continue
            runs[name] = run
            result["preparation"][name] = time.perf_counter() - start
            once += measure_latency(run, x, repeats=1, warmup=1).median
            print(f"  {name}: ready after {result['preparation'][name]:.1f} s", flush=True)
            if "ONNX" not in name:  # its memory is its own, and torch sees none of it
                result["peak bytes"][name] = 4 * parameters + peak_activations(run, x)
        rounds = max(min(repeats, FEWEST), min(repeats, int(LONGEST / once)))
        times = compare_latency(runs, x, repeats=rounds, warmup=2)
    result["seconds"] = {name: list(latency.samples) for name, latency in times.items()}
    compiled = {"branched, compiled": runs["branched, compiled"]} if "branched, compiled" in runs else {}
    table, beside = table_beside(
        subject.staged,
        x,
        compiled,
        device=case.device,
        mode=case.mode,
        widths=sorted({*subject.tree.widths, 1}),
        repeats=rounds,
    )
    result["in turns with the table"] = {name: list(latency.samples) for name, latency in beside.items()}
    result["latency table"] = table.to_dict()
    if auto:
        branched = branchnet.build(subject.tree, subject.staged).eval().to(case.device)
        result["stages chosen to be fused"] = list(faster_fused(branched, x, mode=case.mode))
    return result | {"ceilings": ceilings(case.device), "took": time.perf_counter() - begun}


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
    }


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


def ceilings(device: str) -> dict[str, float]:
    """What this device reaches at best: multiply-adds per second of a large product, bytes per second of a copy."""
    size = 4096 if device == "cuda" else 1024
    a = torch.randn(size, size, device=device)
    big = torch.empty(64 * 2**20, device=device)
    copy = torch.empty_like(big)
    times = compare_latency({"product": lambda *_: a @ a, "copy": lambda *_: copy.copy_(big)}, a, repeats=7)
    return {
        "multiply-adds per second": size**3 / times["product"].median,
        "bytes per second": 2 * big.numel() * 4 / times["copy"].median,
    }


def median(samples: Sequence[float]) -> float:
    ordered = sorted(samples)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def tables(results: dict[str, Any]) -> str:
    lines = ["# Inference: a branched network beside N separate ones", ""]
    lines += [line.rstrip() for line in (__doc__ or "").split("\n\n")[-1].strip().splitlines()] + [""]
    lines += ["Efficiency is (multiply-adds / separate) / (time / separate compiled): 1 means that every multiply-add "]
    lines[-1] += (
        "saved is time saved. FLOPs count one multiply-add as one. Memory is parameters and activations at peak."
    )
    for key, result in results.items():
        lines += ["", f"## {key}", "", *case_table(result), "", *bars(key, result)]
    return "\n".join(lines) + "\n"


def case_table(result: dict[str, Any]) -> list[str]:
    times = {name: median(samples) for name, samples in result["seconds"].items()}
    baseline = times.get("separate, compiled", math.nan)
    batch = result["latency table"]["setting"].split("inputs ")[1].split("x")[0]
    setting = result["setting"]
    widths = "-".join(map(str, result["widths"]))
    lines = [
        f"{setting['device']}, {setting['threads']} threads, torch {setting['torch']}, mode {setting['mode']}"
        f"{', equal nodes compiled once' if setting.get('regions') else ''}; "
        f"copies of the stages {widths}; {result['params ratio']:.1%} of the parameters, "
        f"{result['flops ratio']:.1%} of the multiply-adds of the separate networks.",
        "",
        "| | ms (10% to 90%) | inputs/s | / separate compiled | GFLOPs | efficiency | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, samples in result["seconds"].items():
        flops = next(
            (v for kind, v in result["flops"].items() if name.startswith(kind)), result["flops"]["fully shared"]
        )
        ratio = times[name] / baseline
        ordered = sorted(samples)
        low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        peak = f"{result['peak bytes'][name] / 1e6:.0f}" if name in result["peak bytes"] else "-"
        efficiency = flops / result["flops"]["separate"] / ratio
        lines.append(
            f"| {name} | {1e3 * times[name]:.1f} ({1e3 * low:.1f} to {1e3 * high:.1f}) | "
            f"{int(batch) / times[name]:.1f} | {ratio:.3f} | {flops / 1e9:.2f} | {efficiency:.2f} | {peak} |"
        )
    return lines + [f"| {name} | {error} | | | | | |" for name, error in result["errors"].items()]


def bars(key: str, result: dict[str, Any]) -> list[str]:
    times = {name: Latency(tuple(samples)) for name, samples in result["seconds"].items()}
    table = LatencyTable.from_dict(result["latency table"])
    claims = [
        claim("branched compiled / sum of its nodes compiled one by one", times, "branched, compiled",
              "branched, nodes compiled one by one", 1.10),
        claim("fully shared compiled / one plain backbone with N heads compiled", times, "fully shared, compiled",
              "one backbone and N heads, compiled", 1.03),
        claim("fully shared eager / one plain backbone with N heads eager (the wrapper)", times, "fully shared, eager",
              "one backbone and N heads, eager", 1.02),
        prediction(table, Tree(table.tasks, result["tree"]), result.get("in turns with the table", {})),
    ]  # fmt: skip
    if "branched, compiled, fused" in times:
        gain = times["branched, compiled"].median / times["branched, compiled, fused"].median
        chosen = result.get("stages chosen to be fused")
        claims.append(
            f"- fused everywhere runs at {gain:.2f} times the speed of unfused"
            + ("" if chosen is None else f'; `fuse="auto"` fuses {[table.locations[s] for s in chosen] or "no stage"}')
        )
    if ", cuda" in key and {"separate, compiled", "branched, compiled"} <= set(times):
        speedup = times["separate, compiled"].median / times["branched, compiled"].median
        claims.append(f"- {speedup:.2f} times as fast as the separate compiled networks (bar for ResNet-50: 1.8)")
    if "branched, compiled" not in times:
        return claims
    top = result["ceilings"]
    per_second = result["flops"]["branched"] / times["branched, compiled"].median
    moved = result["peak bytes"]["branched, compiled"] / times["branched, compiled"].median
    claims.append(
        f"- branched compiled: {per_second / 1e9:.0f} G multiply-adds/s, "
        f"{per_second / top['multiply-adds per second']:.0%} of a large product's; {moved / 1e9:.1f} GB/s counting "
        f"weights and peak activations once, {moved / top['bytes per second']:.0%} of a copy's"
    )
    return claims


def prediction(table: LatencyTable, tree: Tree, beside: dict[str, list[float]]) -> str:
    """The table's prediction against the tree's time of the same rounds, and whether they lie within 10%."""
    if "branched, compiled" not in beside:
        return "- prediction of the latency table: not measured in turns with the tree"
    predicted, measured = predicted_rounds(table, tree), Latency(tuple(beside["branched, compiled"]))
    ratio, low, high = ratio_interval(predicted, measured)
    inside, outside = low >= 0.9 and high <= 1.1, high < 0.9 or low > 1.1
    verdict = judged(0.9 <= ratio <= 1.1, settled=inside or outside, rounds=len(measured.samples))
    return (
        f"- predicted by the latency table {1e3 * predicted.median:.1f} ms, measured in turns with it "
        f"{1e3 * measured.median:.1f} ms; predicted / measured: {ratio:.3f} (95%: {low:.3f} to {high:.3f}; "
        f"bar: 0.90 to 1.10): {verdict}"
    )


def claim(text: str, times: dict[str, Latency], one: str, other: str, bar: float) -> str:
    """The ratio of two times with its 95% interval, and whether it meets its bar."""
    if one not in times or other not in times:
        return f"- {text}: not measured"
    ratio, low, high = ratio_interval(times[one], times[other])
    verdict = judged(ratio <= bar, settled=high <= bar or low > bar, rounds=len(times[one].samples))
    return f"- {text}: {ratio:.3f} (95%: {low:.3f} to {high:.3f}; bar: {bar:.2f}): {verdict}"


def judged(met: bool, *, settled: bool, rounds: int) -> str:
    """The verdict in words. Of fewer than six rounds no interval holds the median with 95%, so they settle nothing."""
    if not settled or rounds < 6:
        return f"{'met' if met else 'missed'} within the noise"
    return "met" if met else "**missed**"


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
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    cases = [
        Case(network, tasks, share, batch, arguments.device, arguments.mode)
        for network in arguments.networks
        for tasks in arguments.tasks
        for share in arguments.shares
        for batch in arguments.batches
    ]
    for case in [] if arguments.table else cases:
        if case.key in results and not arguments.again:
            continue
        print(case.key, flush=True)
        results[case.key] = measure(case, arguments.repeats, auto=arguments.auto)
        print(f"  measured in {results[case.key]['took']:.0f} s", flush=True)
        write_text(arguments.results, json.dumps(results, indent=1) + "\n")
        print("\n".join([*case_table(results[case.key]), *bars(case.key, results[case.key])]), flush=True)
    write_text(arguments.results.with_suffix(".md"), tables(results))


if __name__ == "__main__":
    main()
