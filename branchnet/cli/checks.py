"""`branchnet checks`: what to paste into a bug report."""

from __future__ import annotations

import importlib.metadata
import platform

from rich.console import Console
from rich.table import Table

PACKAGES = ("branchnet", "torch", "torchvision", "timm", "transformers", "numpy", "scipy", "fvcore", "pydantic")


def checks() -> None:
    """Print versions, devices, the compiler's state and the result of a self-test."""
    import torch

    from branchnet.builder import compiler_problem

    table = Table("what", "found")
    table.add_row("python", platform.python_version())
    table.add_row("platform", platform.platform())
    for package in PACKAGES:
        table.add_row(package, _version(package))
    table.add_row("threads", str(torch.get_num_threads()))
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    table.add_row("GPUs", ", ".join(devices) or "none")
    table.add_row("torch.compile", compiler_problem() or "works")
    table.add_row("self-test", _self_test())
    Console().print(table)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _self_test() -> str:
    """Split two small networks, build the separate tree, and compare its outputs with the networks'."""
    import torch

    import branchnet

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 64, 64, generator=generator)
    networks = {name: branchnet.create("branchnet:scene_network", outputs=3).eval() for name in "ab"}
    staged = branchnet.split_all(networks, x)
    tree = branchnet.Tree.separate(("a", "b"), len(staged["a"].locations))
    with torch.no_grad():
        outputs = branchnet.build(tree, staged)(x)
        exact = all(torch.equal(outputs[name], networks[name](x)) for name in "ab")
    return "passed" if exact else "FAILED: a separate tree does not reproduce its networks"
