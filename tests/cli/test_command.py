"""The command as a shell sees it: exit codes, streams, resuming, interruption, the ready example."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import branchnet
from branchnet import LatencyTable, Tree
from branchnet.cli import VERBS, main
from branchnet.data import scenes
from tests.cli.toys import Walker

EXAMPLE = Path(__file__).parents[2] / "tools" / "example"
# torchvision beside a CPU build of torch needs the operators that tests/conftest.py defines.
COMMAND = [
    sys.executable,
    "-c",
    "import sys; sys.path += [sys.argv.pop(1)]; import tests.conftest; from branchnet import cli; sys.exit(cli.main())",
    str(Path(__file__).parents[2]),
]
SINGLE = {"OMP_NUM_THREADS": "1"}
EAGER = {"CXX": "no-compiler"}  # compiling takes minutes


def branchnet_command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, env={**os.environ, **SINGLE}
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ready example beside a folder of images, made small."""
    folder = tmp_path_factory.mktemp("made") / "example"
    shutil.copytree(EXAMPLE, folder)
    (folder / "images").mkdir()
    for i, image in enumerate(scenes(24, size=40).images):
        pixels = (image.movedim(0, -1) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / "images" / f"{i:02}.png")
    change(folder, steps=2, images={**yaml.safe_load((folder / "run.yaml").read_text())["images"], "size": 32})
    return folder


@pytest.fixture
def example(made: Path, tmp_path: Path) -> Path:
    """A copy of the ready example."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def walker(example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Walker:
    """The command in a copy of the ready example, inside this process."""
    monkeypatch.delitem(sys.modules, "networks", raising=False)  # another test's module of factories
    return Walker(example, monkeypatch, capsys)


def change(folder: Path, **settings: object) -> None:
    config = yaml.safe_load((folder / "run.yaml").read_text())
    (folder / "run.yaml").write_text(yaml.safe_dump({**config, **settings}))


def test_help_and_wrong_usage_need_no_torch() -> None:
    code = (
        "import sys; from branchnet.cli import main; main(['--help']); code = main(['demmo']); "
        "sys.exit('loaded' if 'torch' in sys.modules or 'matplotlib' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert all(f" {verb} " in done.stdout for verb in VERBS)
    assert "demo" in done.stderr and "demmo" not in done.stdout


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("branchnet.cli.loading.read_config", interrupted)
    assert main(["run", "run.yaml"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_checks_passes_its_self_test(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checks", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["self-test"] == "passed" and told["torch"] == torch.__version__
    assert told["branchnet"] in (branchnet.__version__, "not installed")  # from a checkout
    assert main(["checks"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert all(word in table for word in ("passed", told["torch"], told["branchnet"]))


@dataclass(frozen=True)
class Demo:
    """`branchnet demo --quick`, interrupted when its first network was trained, and then the same command again."""

    folder: Path
    interrupted: int
    errors: str
    files: list[str]
    finished: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    environment = {**os.environ, **SINGLE, **EAGER}
    command = [*COMMAND, "demo", "--quick"]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    steps = folder / "branchnet-demo" / ".steps"
    deadline = time.monotonic() + 300
    while not (steps / "single-segmentation.safetensors.json").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    files = [path.name for path in steps.iterdir()]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    return Demo(folder, process.returncode, errors, files, finished)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_interrupted_demo_exits_130_leaves_nothing_half_written_and_goes_on(demo: Demo) -> None:
    assert demo.interrupted == 130, demo.errors
    assert demo.files and not any(name.startswith(".") for name in demo.files)
    assert demo.finished.returncode == 0, demo.finished.stderr
    assert "reused single-segmentation.safetensors" in demo.finished.stderr
    expected = {"architecture.yaml", "weights.safetensors", "affinity.npz", "metrics.json", "report.html"}
    result = demo.folder / "branchnet-demo"
    assert expected | {"samples.png"} <= {path.name for path in result.iterdir()}
    assert "7 tasks" in demo.finished.stdout
    loaded = branchnet.load(result)
    assert set(loaded(scenes(1).images)) == set(loaded.tasks)
    assert branchnet_command("show", "branchnet-demo", cwd=demo.folder).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_examples_of_all_verbs_work_one_after_another(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first, `branchnet demo`, finds the demo finished."""
    shutil.copytree(demo.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("CXX", EAGER["CXX"])
    for verb in VERBS:
        page = inspect.getdoc(getattr(importlib.import_module(f"branchnet.cli.commands.{verb}"), verb))
        (example,) = re.findall(r"^Example: `branchnet (.*)`$", page, re.MULTILINE)
        quick = ["--quick"] if verb == "demo" else []
        done = branchnet_command(*shlex.split(example), *quick, cwd=tmp_path)
        assert done.returncode == 0, (example, done.stderr)
        if verb == "demo":
            change(tmp_path / "branchnet-demo", steps=2, baselines=[])
    assert {"architecture.yaml", "weights.safetensors"} <= {path.name for path in (tmp_path / "distilled").iterdir()}
    assert {"report.html", "branched.pt2", "bench.json"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_the_example_runs_resumes_and_loads(example: Path) -> None:
    done = branchnet_command("run", "run.yaml", "--out", "result", "--compare", cwd=example)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (example / "result").iterdir()}
    assert {"architecture.yaml", "weights.safetensors", "affinity.npz", "metrics.json", "report.html"} <= made
    assert {"affinity.png", "tree.png", "front.png"} <= made
    metrics = json.loads((example / "result" / "metrics.json").read_text())
    networks = metrics["networks"]
    # Of the 35 trees four fit into 60%: all shared, and one task alone in the last stage. So two remain as random ones.
    references = {"before training", "without stitches", "constant"}
    assert set(networks) == {"separate", "branched", "shared", "random 1", "random 2"} | references
    assert networks["separate"]["metrics"] == pytest.approx(dict.fromkeys(("animals", "plants", "sharpness"), 100))
    assert networks["branched"]["params"] <= 0.6 * networks["separate"]["params"]
    again = branchnet_command("run", "run.yaml", "--out", "result", "--compare", cwd=example)
    assert again.returncode == 0
    assert "reused branched.safetensors" in again.stderr and "reused affinity.npz" in again.stderr
    assert json.loads((example / "result" / "metrics.json").read_text()) == metrics
    said = " ".join(done.stdout.split())
    assert "The branched network has" in said and "2 random trees" in said
    shown = branchnet_command("show", "result", cwd=example)
    assert shown.returncode == 0 and "pass the networks of animals" in shown.stdout
    Image.new("RGB", (40, 40), "red").save(example / "images" / "00.png")
    changed = branchnet_command("run", "run.yaml", "--out", "result", cwd=example)
    assert changed.returncode == 0 and "reused" not in changed.stderr


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"budgget": "10% params"}, 2, "did you mean budget"),
        ({"budget": "sixty"}, 2, "cannot read the budget 'sixty'"),
        ({"networks": {"a": {"factory": "nowhere:a"}, "b": {"factory": "networks:plants"}}}, 2, "nowhere"),
        ({"networks": {"a": {"factory": "networks:a"}, "b": {"factory": "networks:plants"}}}, 2, "no function 'a'"),
        ({"images": {"folder": "nothing"}}, 2, "nothing"),
        ({"donor": "moods"}, 2, "unknown task 'moods'; expected one of"),
        ({"objective": "mean-mx"}, 2, "unknown objective 'mean-mx'; expected one of"),
        ({"images": {}}, 2, "exactly one of folder, npz and factory"),
        ({"budget": None}, 2, "names no budget"),
        (
            {"networks": {"a": {"factory": "raising:network"}, "b": {"factory": "networks:plants"}}},
            2,
            "factory 'raising:network' raised RuntimeError: no such weights (",
        ),
        (
            {"networks": {"a": {"factory": "broken:network"}, "b": {"factory": "networks:plants"}}},
            2,
            "'broken:network': importing broken raised ZeroDivisionError: division by zero (",
        ),
        ({"images": {"factory": "raising:images"}}, 2, "factory 'raising:images' raised KeyError: 'photos' ("),
        ({"networks": {"a": {}, "b": {"factory": "networks:plants"}}}, 2, "needs either a factory or a constructor"),
        (
            {"networks": {"a": {"constructor": "os:system"}, "b": {"factory": "networks:plants"}}},
            2,
            "'os:system' is not a named constructor",
        ),
    ],
)
def test_what_is_wrong_with_a_config_is_said(
    walker: Walker, settings: dict[str, object], code: int, message: str
) -> None:
    change(walker.folder, **settings)
    (walker.folder / "raising.py").write_text(
        "def network():\n    raise RuntimeError('no such weights')\ndef images():\n    return {}['photos']\n"
    )
    (walker.folder / "broken.py").write_text("network = 1 / 0\n")
    assert walker("run run.yaml") == code, walker.err
    assert message in " ".join(walker.err.split())
    assert "Traceback" not in walker.err
    assert not (walker.folder / "run-branched").exists()


def test_a_budget_that_cannot_be_read_is_not_valid(walker: Walker) -> None:
    assert walker("validate run.yaml") == 0
    change(walker.folder, budget="sixty")
    assert walker("validate run.yaml") == 2
    assert re.search(r"run\.yaml:\d+:\d+: budget: cannot read the budget 'sixty'", " ".join(walker.err.split()))


def test_a_process_that_fails_has_the_exit_code_and_says_why_on_stderr(example: Path) -> None:
    """Through a new interpreter, as a shell starts it; the tests above and below call `main` in this one."""
    change(example, budget="10% params")
    done = branchnet_command("run", "run.yaml", cwd=example)
    assert done.returncode == 3 and "smallest" in done.stderr and "Traceback" not in done.stderr and not done.stdout


def test_results_do_not_go_into_a_file(walker: Walker) -> None:
    (walker.folder / "taken").write_text("mine")
    assert walker("run run.yaml --out taken") == 2
    assert "taken is or lies in a file" in " ".join(walker.err.split())
    assert (walker.folder / "taken").read_text() == "mine"


def test_weights_that_do_not_fit_exit_4(walker: Walker) -> None:
    save_file({"fc.weight": torch.zeros(3, 3)}, walker.folder / "w.safetensors")
    networks = {name: {"factory": f"networks:{name}"} for name in ("animals", "plants")}
    networks["plants"]["weights"] = "w.safetensors"
    change(walker.folder, networks=networks)
    assert walker("run run.yaml") == 4
    assert "fc.weight: expected (20, 512) float32, found (3, 3) float32" in walker.err


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_budget_in_milliseconds_is_measured_on_this_machine(example: Path) -> None:
    change(example, budget="1e-6 s", baselines=[])
    done = branchnet_command("run", "run.yaml", "--out", "result", cwd=example)
    assert done.returncode == 3 and "smallest" in done.stderr
    table = LatencyTable.from_dict(json.loads((example / "result" / ".steps" / "latency_table.json").read_text()))
    change(example, budget=f"{1.01 * table.predict(Tree.shared(table.tasks, len(table.locations)), stitched=True)} ms")
    done = branchnet_command("run", "run.yaml", "--out", "result", cwd=example)
    assert done.returncode == 0, done.stderr
    assert "reused latency_table.json" in done.stderr
    chosen = json.loads((example / "result" / "metrics.json").read_text())
    tree = Tree(table.tasks, chosen["trees"]["branched"])
    assert table.predict(tree, stitched=True) == pytest.approx(chosen["chosen"]["size"])
    assert chosen["budget"].endswith("ms")
