"""Private names of torch: named in one file, each found in the installed torch, and a clear error where one is not."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import branchnet
from branchnet.errors import BranchnetError, TorchVersionError
from branchnet.utils.installed_torch import torch_internals
from branchnet.utils.installed_torch.torch_internals import INSTANCE_ATTRIBUTES, INTERNALS, Internal

PACKAGE = Path(branchnet.__file__).parent
HOME = PACKAGE / "utils" / "installed_torch" / "torch_internals.py"
OF_OTHERS = {"_asdict": "named tuples have it by their documentation"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def own_names(trees: list[ast.Module]) -> set[str]:
    """Private names that the package itself gives: functions, classes, attributes and fields."""
    found: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # __slots__, object.__setattr__(self, "_name", ...)
    return found - set(INSTANCE_ATTRIBUTES)


def private_uses(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Private names of torch that are imported, reached from a module of torch, or read on any object."""
    of_torch = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            of_torch |= {str(a.asname) for a in node.names if a.asname and a.name.startswith("torch.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "torch":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            of_torch |= {alias.asname or alias.name for alias in node.names}
        else:
            continue
        yield from (
            f"line {node.lineno}: {name}"
            for name in names
            if name.partition(".")[0] == "torch" and any(map(is_private, name.split(".")))
        )
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            known = own | set(INSTANCE_ATTRIBUTES) | set(OF_OTHERS)
            if (isinstance(root, ast.Name) and root.id in of_torch) or node.attr not in known:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_no_other_file_names_private_parts_of_torch() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    own = own_names(list(trees.values()))
    found = [
        f"{path.relative_to(PACKAGE)}, {use}"
        for path, tree in trees.items()
        if path != HOME
        for use in private_uses(tree, own)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "from torch.utils._pytree import tree_map",
        "import torch._dynamo",
        "import torch.utils._pytree as pytree",
        "from torch.nn.modules.conv import _ConvNd",
        "import torch\nx = torch._inductor.config",
        "from torch import nn\nx = nn.modules.batchnorm._NormBase",
        "import torch.nn.functional as F\nF._pad(x)",
        "def f(module):\n    return module._backward_pre_hooks",
    ],
)
def test_each_way_to_name_one_is_seen(code: str) -> None:
    assert list(private_uses(ast.parse(code), set()))


def test_the_installed_torch_has_all_of_them() -> None:
    assert torch_internals.missing() == {}


def test_what_type_checkers_see_is_what_is_found() -> None:
    """The imports under TYPE_CHECKING and the table name the same things."""
    block = next(
        node
        for node in ast.parse(HOME.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen.items() <= {name: internal.name for name, internal in INTERNALS.items()}.items()
    declared = {ast.unparse(node.target) for node in block.body if isinstance(node, ast.AnnAssign)}
    assert set(seen) | declared == set(INTERNALS) == set(torch_internals.__all__) - {"missing"}


def test_the_listed_attributes_are_there() -> None:
    holders = [nn.Linear(1, 1), torch.zeros(1), torch.zeros(1).untyped_storage(), torch.compile(nn.Linear(1, 1))]
    assert [name for name in INSTANCE_ATTRIBUTES if not any(hasattr(each, name) for each in holders)] == []


@pytest.mark.parametrize("internal", [Internal("torch._gone", "x", "y"), Internal("torch", "ops.aten._gone.out", "y")])
def test_a_name_that_is_gone_is_said_with_the_versions_that_have_it(internal: Internal) -> None:
    with pytest.raises(TorchVersionError, match=rf"torch {torch.__version__.split('+')[0]}.*has no {internal.name}"):
        internal.find()
    with pytest.raises(BranchnetError, match=r"from 2\.\d+ to 2\.\d+"):
        internal.find()
    with pytest.raises(ImportError):
        internal.find()


def test_missing_names_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INTERNALS, "gone", Internal("torch.utils", "_gone", "a test"))
    assert list(torch_internals.missing()) == ["torch.utils._gone"]
    with pytest.raises(TorchVersionError, match="needs for a test"):
        torch_internals.gone  # noqa: B018
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        torch_internals.nothing_of_this_name  # noqa: B018


def test_compilers_are_imported_only_when_they_are_used() -> None:
    code = "import sys, branchnet.stages.splitting; print([m for m in ('torch._inductor',) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
