"""What affinities cost: against the networks' forward passes, and against other libraries on the same features.

Four parts, each in a process of its own so that peak memory is its own:

- `overhead`: RSA of ResNet-50s at the four stage ends; everything but the forward passes, as a share of them.
- `peers`: RDMs and Spearman comparison of the same features by branchnet, numpy/scipy, a scipy loop and rsatoolbox.
- `cka`: minibatch CKA of the same features by branchnet and as torch-cka computes it, pair by pair.
- `memory`: ResNet-50's first stage (802,816 features) on many inputs under a memory limit.

Times are CPU seconds of the process, so that other work on the machine disturbs little; set OMP_NUM_THREADS=1 and
OPENBLAS_NUM_THREADS=1 for figures per core. On a GPU (`--device cuda`) they are wall-clock seconds.

    python benchmarks/affinity.py overhead peers cka memory
    python benchmarks/affinity.py overhead --inputs 2000 --networks 2 --image 224
    python benchmarks/affinity.py --table
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from branchnet.affinity import Options, cka, compare_rdms, rdm, rsa
from branchnet.stages import split_all
from branchnet.utils.files import write_text
from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators

RESULTS = Path(__file__).parent / "results" / "affinity.json"
STAGE_ENDS = ["layer1", "layer2", "layer3", "layer4"]


class Clock:
    """Seconds of CPU work, or of wall-clock time where a GPU works."""

    def __init__(self, device: str) -> None:
        self._device = device

    def __call__(self) -> float:
        """Seconds since some fixed moment."""
        if self._device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def of(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """What a piece of work took, and gave."""
        start = self()
        result = work()
        return self() - start, result


class StageTimer:
    """Time spent in the stages of networks and, with `freeing`, on freeing what they returned, as a plain pass does."""

    def __init__(self, clock: Clock, networks: dict[str, Any], *, freeing: bool) -> None:
        self._clock = clock
        self._freeing = freeing
        self._started = self.total = 0.0
        self._returned: list[Any] = []
        self._network: Any = None
        for network in networks.values():
            for stage in network.stages:
                stage.register_forward_pre_hook(partial(self._start, network))
                stage.register_forward_hook(self._stop)

    def _start(self, network: Any, *_: object) -> None:
        self._started = self._clock()
        if network is not self._network:
            self._network = network
            self._returned.clear()

    def _stop(self, _: object, __: object, returned: Any) -> None:
        if self._freeing:
            self._returned.append(returned)
        self.total += self._clock() - self._started

    def finish(self) -> float:
        """The time of everything."""
        self._started = self._clock()
        self._returned.clear()
        self.total += self._clock() - self._started
        return self.total


def make_networks(count: int, image: int, locations: list[str], device: str) -> dict[str, Any]:
    """ResNet-50s with random weights of different seeds, split at `locations`."""
    define_torchvision_operators()
    from torchvision.models import resnet50

    networks = {}
    for seed in range(count):
        torch.manual_seed(seed)
        networks[f"task{seed}"] = resnet50(weights=None)
    staged = split_all(networks, torch.randn(2, 3, image, image), locations=locations)
    return {task: network.to(device) for task, network in staged.items()}


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    clock = Clock(options.device)
    networks = make_networks(options.networks, options.image, STAGE_ENDS, options.device)
    timer = StageTimer(clock, networks, freeing=True)
    probe = smooth_images(options.inputs, options.image)
    total, affinity = clock.of(lambda: rsa(networks, probe, batch_size=options.batch, bootstrap=options.bootstrap))
    rest = total - timer.total
    forward = timer.finish()
    return {
        "forward_s": forward,
        "rest_s": rest,
        "rest_percent_of_forward": 100 * rest / forward,
        "mean_affinity": [float(one[np.triu_indices(len(one), 1)].mean()) for one in affinity.values],
    }


def smooth_images(count: int, size: int) -> Tensor:
    """Images of coarse random patches: they differ as pictures do, at low frequencies."""
    coarse = torch.randn(count, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def make_features(options: argparse.Namespace) -> list[Tensor]:
    """Features (K, F) of several networks that have something in common."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(options.inputs, 32, generator=generator)
    made = []
    for _ in range(options.networks):
        mixing = torch.randn(32, options.features, generator=generator)
        made.append(
            torch.relu(shared @ mixing + 4 * torch.randn(options.inputs, options.features, generator=generator))
        )
    return [one.to(options.device) for one in made]


def peers(options: argparse.Namespace) -> dict[str, Any]:
    clock, features = Clock(options.device), make_features(options)
    rdm(features[0][:, :1000])
    ours_rdm, rdms = clock.of(lambda: [rdm(one) for one in features])
    ours_compare, ours = clock.of(lambda: compare_rdms(rdms).cpu().numpy())
    result = {"branchnet": {"rdm_s": ours_rdm, "compare_s": ours_compare}}
    arrays = [one.cpu().numpy() for one in features]
    upper = np.triu_indices(options.inputs, 1)
    others = {"numpy float32, scipy": partial(numpy_scipy, arrays, upper, clock)}
    if options.inputs <= 1000:
        others["numpy, scipy loop over pairs"] = partial(scipy_loop, arrays, upper, clock)
    if importlib.util.find_spec("rsatoolbox") is not None:
        others["rsatoolbox"] = partial(toolbox, arrays, clock)
    for name, other in others.items():
        spent_rdm, spent_compare, theirs = other()
        result[name] = {
            "rdm_s": spent_rdm,
            "compare_s": spent_compare,
            "times_branchnet": (spent_rdm + spent_compare) / (ours_rdm + ours_compare),
            "largest_difference": float(np.abs(theirs - ours).max()),
        }
    return result


def numpy_scipy(arrays: list[Any], upper: Any, clock: Clock) -> tuple[float, float, Any]:
    spent_rdm, rdms = clock.of(lambda: [1 - np.corrcoef(one, dtype=np.float32)[upper] for one in arrays])
    spent_compare, values = clock.of(lambda: spearmanr(np.stack(rdms), axis=1).statistic)
    return spent_rdm, spent_compare, values if np.ndim(values) else np.array([[1, values], [values, 1]])


def scipy_loop(arrays: list[Any], upper: Any, clock: Clock) -> tuple[float, float, Any]:
    spent_rdm, rdms = clock.of(lambda: [1 - np.corrcoef(one)[upper] for one in arrays])
    spent_compare, values = clock.of(lambda: np.array([[spearmanr(a, b).statistic for b in rdms] for a in rdms]))
    return spent_rdm, spent_compare, values


def toolbox(arrays: list[Any], clock: Clock) -> tuple[float, float, Any]:
    import rsatoolbox

    data = [rsatoolbox.data.Dataset(one) for one in arrays]
    spent_rdm, rdms = clock.of(lambda: rsatoolbox.rdm.calc_rdm(data, method="correlation"))
    spent_compare, values = clock.of(lambda: rsatoolbox.rdm.compare(rdms, rdms, method="spearman"))
    return spent_rdm, spent_compare, values


class Lookup(nn.Module):
    """A stage that hands out rows of given features, which are no buffer, as buffers are compared after every run."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self._rows = features

    def forward(self, index: Tensor) -> tuple[Tensor]:
        """The rows of these inputs."""
        return (self._rows[index],)


class LookupNetwork(nn.Module):
    """A split network of one stage whose features are given."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Lookup(features)])
        self.locations = ("features",)


def batch_cka(options: argparse.Namespace) -> dict[str, Any]:
    clock, features = Clock(options.device), make_features(options)
    networks = {f"task{index}": LookupNetwork(one) for index, one in enumerate(features)}
    settings = {"estimator": "minibatch", "batch_size": options.batch, "bootstrap": 0, "device": options.device}
    index = torch.arange(options.inputs)
    cka(networks, index[: options.batch], **settings)
    spent, ours = clock.of(lambda: cka(networks, index, **settings))
    theirs_spent, theirs = clock.of(lambda: torch_cka_style(features, options.batch))
    return {
        "branchnet_s": spent,
        "torch_cka_style_s": theirs_spent,
        "times_branchnet": theirs_spent / spent,
        "largest_difference": float(np.abs(theirs - ours.values[0]).max()),
    }


def torch_cka_style(features: list[Tensor], batch: int) -> Any:
    """Every pair of networks on its own, both kernels and three HSICs for every batch, as torch-cka does."""
    values = np.eye(len(features))
    for i in range(len(features)):
        for j in range(i):
            sums = torch.zeros(3)
            for start in range(0, len(features[i]), batch):
                x, y = (features[k][start : start + batch] for k in (i, j))
                k, l = (one @ one.T for one in (x, y))  # noqa: E741
                k.fill_diagonal_(0)
                l.fill_diagonal_(0)
                sums += torch.stack([hsic(k, l), hsic(k, k), hsic(l, l)]).cpu()
            values[i, j] = values[j, i] = sums[0] / (sums[1] * sums[2]).sqrt()
    return values


def hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    n = len(k)
    ones = torch.ones(n, 1, device=k.device)
    result = torch.trace(k @ l)
    result += (ones.T @ k @ ones @ ones.T @ l @ ones).item() / ((n - 1) * (n - 2))
    result -= (ones.T @ k @ l @ ones).item() * 2 / (n - 2)
    return result / (n * (n - 3))


def memory(options: argparse.Namespace) -> dict[str, Any]:
    clock = Clock(options.device)
    networks = make_networks(1, options.image, STAGE_ENDS[:1], options.device)
    timer = StageTimer(clock, networks, freeing=False)
    probe = Coarse(options.inputs, options.image, options.batch)
    settings = {"bootstrap": 0, "memory_limit": int(options.memory_limit * 1e9)}
    total, _ = clock.of(lambda: rsa(networks, probe, **settings))
    return {"forward_s": timer.total, "rest_s": total - timer.total, "memory_limit_gb": options.memory_limit}


class Coarse:
    """Batches of smooth images, made when they are read."""

    def __init__(self, count: int, size: int, batch: int) -> None:
        self._count, self._size, self._batch = count, size, batch

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        for start in range(0, self._count, self._batch):
            coarse = torch.randn(min(self._batch, self._count - start), 3, 7, 7, generator=generator)
            yield nn.functional.interpolate(coarse, size=(self._size, self._size), mode="bilinear")


PARTS = {"overhead": overhead, "peers": peers, "cka": batch_cka, "memory": memory}


def run_part(part: str, options: argparse.Namespace, queue: Any) -> None:
    result = PARTS[part](options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    used = {name: value for name, value in vars(options).items() if name not in ("parts", "table")}
    common = {"part": part, "settings": used, "threads": torch.get_num_threads(), "peak_gb": peak}
    if options.device != "cpu":
        common["peak_of_device_gb"] = torch.cuda.max_memory_allocated() / 1e9
    queue.put(common | result)


def measure(part: str, options: argparse.Namespace) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=run_part, args=(part, options, queue))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{part} failed")
    found: dict[str, Any] = queue.get()
    return found


def table(results: list[dict[str, Any]]) -> str:
    """What was measured, as Markdown."""
    lines = [
        "# Affinities: time and memory",
        "",
        "Printed by `python benchmarks/affinity.py`. CPU seconds unless on a GPU.",
    ]
    for one in results:
        chosen = one["settings"]
        lines += ["", f"## {one['part']}", ""]
        lines += [", ".join(f"{name} {chosen[name]}" for name in chosen) + f", {one['threads']} thread(s)", ""]
        lines += ["| | |", "| --- | --- |"]
        for name, value in one.items():
            if isinstance(value, dict) and name != "settings":
                lines += [f"| {name} | " + ", ".join(f"{k} {v:.3g}" for k, v in value.items()) + " |"]
            elif name not in ("part", "settings", "threads"):
                shown = ", ".join(f"{v:.3g}" for v in value) if isinstance(value, list) else f"{value:.4g}"
                lines += [f"| {name} | {shown} |"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--inputs", type=int, default=500, help="K")
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--image", type=int, default=224, help="side of the images")
    parser.add_argument("--features", type=int, default=100_352, help="per input, for peers and cka")
    parser.add_argument("--batch", type=int, default=Options().batch_size)
    parser.add_argument("--bootstrap", type=int, default=100)
    parser.add_argument("--memory-limit", type=float, default=4.0, help="gigabytes, for memory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--table", action="store_true", help="write the kept results as Markdown")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown parts {sorted(unknown)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for part in options.parts:
        found = measure(part, options)
        print(json.dumps(found, indent=1), flush=True)
        results = [one for one in results if (one["part"], one["settings"]) != (part, found["settings"])] + [found]
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    write_text(RESULTS.with_suffix(".md"), table(results))
    print(table(results))


if __name__ == "__main__":
    main()
