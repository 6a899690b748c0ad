"""Every way of running a case of `inference.py`: separate, shared and branched networks, eager, compiled, exported."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import branchnet
from branchnet import BranchedNetwork
from branchnet.builder import SeparateNetworks
from branchnet.inference.torch_compile import CUDA_GRAPH_MODES, compiled_apart

if TYPE_CHECKING:
    from inference import Case, Subject

CLASSES = 10
MANY = 9
"""From so many tasks on, equal nodes are compiled once, as regions of the graph: else compiling takes longest."""
ONE_GRAPH = "separate, one graph"
"""Separate networks compiled as `branchnet.compile` does with a tree: all in one graph, without guards on modules."""
Run = Callable[[Tensor], Any]


def make_network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if name == "tiny":
        return Tiny().eval()
    if name == "vit_small":
        import timm

        return timm.create_model("vit_small_patch16_224", num_classes=CLASSES).eval()  # type: ignore[no-any-return]
    from torchvision import models

    return models.get_model(name, num_classes=CLASSES).eval()  # type: ignore[no-any-return]


def without_head(name: str) -> tuple[nn.Module, nn.Module]:
    """One plain backbone and what its network does after pooling, the head of each task."""
    network = make_network(name, 0)
    attribute = next(attribute for attribute in ("fc", "head", "classifier") if hasattr(network, attribute))
    head = getattr(network, attribute)
    setattr(network, attribute, nn.Identity())
    return network, head


class Tiny(nn.Module):
    """So small that its times say nothing: it shows that a benchmark runs."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, CLASSES)."""
        logits: Tensor = self.fc(self.pool(self.layer2(self.layer1(self.stem(x)))))
        return logits


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


def sides(case: Case, subject: Subject, x: Tensor, folder: Path) -> Iterator[tuple[str, Callable[[], Run], int]]:
    """Every way of running the case: its name, what prepares it, and the parameters that it holds."""

    def placed(network: Any) -> Any:
        return network.eval().to(case.device, case.dtype)

    separate = placed(SeparateNetworks(copy.deepcopy(subject.networks)))
    branched = placed(branchnet.build(subject.tree, subject.staged, init="donor"))
    shared = placed(branchnet.build(subject.shared, subject.staged, init="donor"))
    unshared = placed(branchnet.build(subject.separate, subject.staged, init="donor"))
    plain = placed(OneBackbone(case.network, case.tasks))
    sizes = {name: count(each) for name, each in (("s", separate), ("b", branched), ("h", shared), ("p", plain))}

    def compiled(network: BranchedNetwork, **options: Any) -> Callable[[], Run]:
        # The other sides do not copy the outputs of their CUDA graphs either.
        return lambda: branchnet.compile(network, x, mode=case.mode, dynamic=False, copy_outputs=False, **options)

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
    yield ONE_GRAPH, compiled(unshared, **many), sizes["s"]
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
    for tensor in (*params.values(), *buffers.values()):
        torch._dynamo.mark_static_address(tensor, guard=False)  # else CUDA graphs copy all weights at each call
    template = networks[0]

    def run(x: Tensor) -> Any:
        return vmap(lambda p, b: functional_call(template, (p, b), (x,)))(params, buffers)

    return compiled_apart(run, mode=mode, dynamic=False)


def nodes_one_by_one(branched: BranchedNetwork, mode: str | None) -> Run:
    """Every node compiled alone: the sum of its nodes' times, measured in one go."""

    def run(node: nn.Module, cut: tuple[Any, ...]) -> Any:
        return node(*cut)

    # Nodes of one stage have one structure and share a graph; so do the heads.
    stages = [compiled_apart(run, mode=mode, dynamic=False, module_guards=False) for _ in branched.nodes]
    head = compiled_apart(run, mode=mode, dynamic=False, module_guards=False)
    labels = branched.tree.labels()

    def all_nodes(x: Tensor) -> list[Any]:
        if x.is_cuda and mode in CUDA_GRAPH_MODES:
            torch.compiler.cudagraph_mark_step_begin()  # one node's graph must not overwrite what the next one reads
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
    if session.get_providers()[0] not in wanted:
        raise RuntimeError(f"onnxruntime fell back to {session.get_providers()[0]}")
    return lambda x: session.run(None, {"input": x.numpy(force=True)})


def aot_inductor(branched: BranchedNetwork, x: Tensor, folder: Path) -> Run:
    path = branchnet.export(branched, x, folder / "branched.pt2", format="aoti", dynamic=False).model
    loaded: Run = torch._inductor.aoti_load_package(str(path))
    return loaded


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
