"""`branchnet checks`: what to paste into a bug report."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform

from rich.console import Console
from rich.table import Table

from branchnet.cli.options import AsJson

PACKAGES = (
    "branchnet",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "onnx",
    "onnxruntime",
    "numpy",
    "scipy",
    "scikit-learn",
    "networkx",
    "fvcore",
    "pydantic",
    "safetensors",
    "cyclopts",
)


def checks(*, as_json: AsJson = False) -> None:
    """Print versions, devices, the compiler's state and the result of a self-test: paste it into a bug report.

    Example: `branchnet checks`
    """
    import torch

    from branchnet.cli.printing import print_json
    from branchnet.inference import compiler_problem
    from branchnet.utils.installed_torch.torch_internals import missing

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: _version(package) for package in PACKAGES},
        "threads": str(torch.get_num_threads()),
        "GPUs": ", ".join(devices) or "none",
        "torch.compile": compiler_problem() or "works",
        "private names of torch": "; ".join(missing().values()) or "all found",
        "self-test": _self_test(),
    }
    if as_json:
        print_json(found)
        return
    table = Table("what", "found")
    for what, value in found.items():
        table.add_row(what, value)
    Console().print(table)


def _version(package: str) -> str:
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    if package == "torchvision":  # a build for another device than torch's is installed without a word
        try:
            importlib.import_module(package)
        except (ImportError, OSError, RuntimeError) as error:
            return f"{version}, cannot be imported: {error}"
    return version


def _self_test() -> str:
    """Split two small networks, build the separate tree, and compare its outputs with the networks'."""
    import torch

    from branchnet.builder import build
    from branchnet.clustering import Tree
    from branchnet.models import create
    from branchnet.stages import split_all

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 64, 64, generator=generator)
    networks = {name: create("branchnet:scene_network", outputs=3).eval() for name in "ab"}
    staged = split_all(networks, x)
    tree = Tree.separate(("a", "b"), len(staged["a"].locations))
    with torch.no_grad():
        outputs = build(tree, staged, init="donor")(x)
        exact = all(torch.equal(outputs[name], networks[name](x)) for name in "ab")
    return "passed" if exact else "FAILED: a separate tree does not reproduce its networks"
