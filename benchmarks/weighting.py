"""What each weighting of losses costs: time of one backward pass, and memory, against the plain one of the sum.

    python benchmarks/weighting.py

Three tasks share the first half of five backbones. All methods alternate in one process; TorchJD's own
`mtl_backward`, with the same aggregator on the same shared half, runs among them. Writes results/weighting.md
and .json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators

RESULTS = Path(__file__).parent / "results" / "weighting.json"
OUTPUTS = {"a": 10, "b": 5, "c": 3}
BATCH = 8
PLAIN = "plain backward of the sum"
PEER = "TorchJD mtl_backward, UPGrad"
METHODS = (
    *("equal", "uncertainty", "dwa", "rlw", "imtl-l", "famo", "gradnorm", "imtl", "mgda", "pcgrad", "graddrop"),
    *("cagrad", "nash-mtl", "aligned-mtl", "config", "upgrad", "imtl-g"),
)
Step = Callable[[], None]


def backbones() -> Iterator[tuple[str, Callable[[int], nn.Module], int, str]]:
    """By name what makes a network of some outputs, the size of its images, and the end of the half that is shared."""
    import timm
    import torchvision.models as models

    yield "torchvision resnet18", lambda n: models.resnet18(num_classes=n), 64, "layer2"
    yield "torchvision mobilenet_v3_small", lambda n: models.mobilenet_v3_small(num_classes=n), 64, "features.6"
    yield "timm vit_tiny_patch16", partial(_timm, timm, "vit_tiny_patch16_224", img_size=64), 64, "blocks.5"
    yield "timm convnext_atto", partial(_timm, timm, "convnext_atto"), 64, "stages.2.blocks.2"
    yield (
        "torchvision lraspp_mobilenet_v3_large",
        lambda n: models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=n),
        64,
        "backbone.10",
    )


def _timm(timm: Any, name: str, outputs: int, **settings: Any) -> nn.Module:
    return timm.create_model(name, num_classes=outputs, **settings)  # type: ignore[no-any-return]


class Problem:
    """A branched network whose tasks share its first half, and losses on random images."""

    def __init__(self, make: Callable[[int], nn.Module], size: int, half: str) -> None:
        import branchnet

        torch.manual_seed(0)
        self.images = torch.randn(BATCH, 3, size, size)
        networks = {task: make(outputs) for task, outputs in OUTPUTS.items()}
        staged = branchnet.split_all(networks, self.images, locations=[half])
        tree = branchnet.Tree.shared(list(OUTPUTS), 1)
        self.network = branchnet.build(tree, staged, init="donor").train()
        self.shared = list(self.network.nodes.parameters())
        torch.manual_seed(1)
        # mtl_backward takes no features of which one depends on another, as where decoders skip stages.
        self.peer_applies = len(self.features(self.network.trunk(self.images))) == 1
        self.signs = {task: torch.randn(()).sign() for task in OUTPUTS}

    def losses(self) -> dict[str, Tensor]:
        """Of all tasks."""
        return {task: self.loss(task, output) for task, output in self.network(self.images).items()}

    def loss(self, task: str, output: Any) -> Tensor:
        """Of one task."""
        value = output["out"] if isinstance(output, Mapping) else output
        return (value - self.signs[task]).square().mean()

    def plain(self) -> Step:
        """Run a forward pass, and return the backward pass of the sum."""
        loss = torch.stack(list(self.losses().values())).sum()
        return loss.backward

    def weighted(self, weighting: Any) -> Step:
        """Run a forward pass, and return what a weighting does after it."""
        losses = self.losses()

        def step() -> None:
            weighting.backward(self.network, losses)
            weighting.after_step(self.losses)

        return step

    def features(self, cuts: Mapping[str, tuple[Any, ...]]) -> list[Tensor]:
        """What the heads take from the shared half."""
        return [value for value in cuts["a"] if isinstance(value, Tensor) and value.requires_grad]

    def peer(self) -> Step:
        """Run a forward pass, and return what TorchJD does after it."""
        from torchjd.aggregation import UPGrad
        from torchjd.autojac import jac_to_grad, mtl_backward

        cuts = self.network.trunk(self.images)
        features = self.features(cuts)
        losses = [self.loss(t, h(*cuts[t])) for t, h in zip(self.network.tasks, self.network.heads, strict=True)]
        heads = [head.parameters() for head in self.network.heads]

        def step() -> None:
            mtl_backward(
                losses, features=features, tasks_params=heads, shared_params=self.shared, parallel_chunk_size=1
            )
            jac_to_grad(self.shared, UPGrad())

        return step


def measure(make: Callable[[int], nn.Module], size: int, half: str, rounds: int) -> dict[str, Any]:
    """For each method its median CPU seconds, and the most bytes held; the plain pass first.

    CPU seconds of one thread: what else the machine does shows in them least.
    """
    from branchnet.training import weighting_of

    problem = Problem(make, size, half)
    weightings = {name: weighting_of(name, problem.network.tasks, problem.network) for name in METHODS}
    sides: dict[str, Callable[[], Step]] = {PLAIN: problem.plain}
    if problem.peer_applies:
        sides[PEER] = problem.peer
    sides |= {name: partial(problem.weighted, weighting) for name, weighting in weightings.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            problem.network.zero_grad()
            step = sides[name]()
            start = time.process_time()
            step()
            if number:  # the first round warms up
                times[name].append(time.process_time() - start)
    found = {
        name: {"seconds": statistics.median(times[name]), "bytes": _peak(problem, side)} for name, side in sides.items()
    }
    parameters = sum(p.numel() for p in problem.network.parameters())
    shared = sum(p.numel() for p in problem.shared)
    same = _same(problem, sides) if problem.peer_applies else None
    return {"methods": found, "parameters": parameters, "shared": shared, "same_as_peer": same}


def _peak(problem: Problem, side: Callable[[], Step]) -> int:
    """Bytes held at most in a forward and a backward pass, beyond parameters and what was there."""
    problem.network.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        side()()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def _same(problem: Problem, sides: dict[str, Callable[[], Step]]) -> float:
    """The largest difference of a gradient by UPGrad from TorchJD's own, relative to the largest gradient."""
    found = []
    for name in (PEER, "upgrad"):
        problem.network.zero_grad()
        torch.manual_seed(2)  # of dropout
        sides[name]()()
        found.append(torch.cat([p.grad.flatten() for p in problem.network.parameters() if p.grad is not None]))
    return float((found[0] - found[1]).abs().max() / found[0].abs().max())


def table(results: dict[str, Any]) -> str:
    """The results as markdown."""
    names = list(results["networks"])
    lines = [
        "# What weightings of losses cost",
        "",
        f"torch {torch.__version__}, CPU, {results['threads']} thread(s); ",
    ]
    lines[-1] += (
        f"three tasks, batch {BATCH}, the first half of the network shared; {results['rounds']} rounds in which "
    )
    lines[-1] += (
        "all methods alternate. CPU seconds of one backward pass (for FAMO with its second forward pass), and bytes "
    )
    lines[-1] += "held at most by a forward and a backward pass beyond the parameters, both over those of the plain "
    lines[-1] += "backward pass of the sum: time x, memory x."
    lines += ["", "| method | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for method in (PLAIN, *METHODS, PEER):
        row = [_cell(results["networks"][name]["methods"], method) for name in names]
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    shares = [
        f"{results['networks'][name]['shared'] / 1e6:.1f} of {results['networks'][name]['parameters'] / 1e6:.1f}"
        for name in names
    ]
    lines.append("| *million parameters shared* | " + " | ".join(shares) + " |")
    differences = [results["networks"][name]["same_as_peer"] for name in names]
    same = ["" if difference is None else f"{difference:.0e}" for difference in differences]
    lines.append("| *UPGrad: largest difference from TorchJD's gradients* | " + " | ".join(same) + " |")
    return "\n".join([*lines, ""])


def _cell(methods: dict[str, Any], method: str) -> str:
    if method not in methods:
        return "does not apply"
    plain, entry = methods[PLAIN], methods[method]
    if method == PLAIN:
        return f"{entry['seconds'] * 1e3:.0f} ms, {entry['bytes'] / 2**20:.0f} MiB"
    return f"{entry['seconds'] / plain['seconds']:.2f}, {entry['bytes'] / plain['bytes']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="", help="part of a network's name; what others gave is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    define_torchvision_operators()
    from branchnet.utils.files import write_text

    earlier = json.loads(RESULTS.read_text())["networks"] if arguments.only and RESULTS.exists() else {}
    results: dict[str, Any] = {"rounds": arguments.rounds, "threads": torch.get_num_threads(), "networks": earlier}
    for name, make, size, half in backbones():
        if arguments.only in name:
            earlier[name] = measure(make, size, half, arguments.rounds)
            print(name, earlier[name], flush=True)
            write_text(RESULTS, json.dumps(results, indent=1) + "\n")
            write_text(RESULTS.with_suffix(".md"), table(results))
    print(table(results))


if __name__ == "__main__":
    main()
