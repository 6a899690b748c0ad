"""The verbs one after another on the files that the previous one wrote, with networks of a few thousand parameters."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import branchnet
from branchnet import Affinity, Architecture
from branchnet.cli import VERBS, main
from branchnet.data import scenes
from branchnet.specification import GroupedArchitecture
from branchnet.specification.grouped.grouped_architecture import is_grouped
from tests.cli.toys import SIZE, TASKS, Walker, make_folder, walk

LINES = (
    "split run.yaml --locations 3",
    "affinity run.yaml split.yaml",
    "search affinity.npz split.yaml --budget 80%",
    "build architecture.yaml --config run.yaml",
    "distill branched run.yaml --steps 2",
)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after split, affinity, search, build and distill."""
    folder = make_folder(tmp_path_factory.mktemp("walk"))
    walk(folder, [line.replace("80%", "80%params") for line in LINES])
    return folder


@pytest.fixture
def walker(walked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Walker:
    """The command in a copy of the walked folder."""
    shutil.copytree(walked, tmp_path, dirs_exist_ok=True)
    return Walker(tmp_path, monkeypatch, capsys)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def trained(folder: Path) -> dict[str, torch.nn.Module]:
    networks = {}
    for task, kind in TASKS.items():
        networks[task] = branchnet.create("branchnet:scene_network", outputs=1, kind=kind, width=4).eval()
        branchnet.deploy.load_weights(networks[task], folder / f"{task}.safetensors")
    return networks


def test_every_verb_has_help_with_an_example_and_needs_no_torch() -> None:
    code = (
        "import sys; from branchnet.cli import VERBS, main\n"
        "for verb in VERBS: print(f'<{verb}>'); assert main([verb, '--help']) == 0\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'scipy', 'pydantic')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        page = done.stdout.split(f"<{verb}>")[1].split("\n<")[0]
        assert f"Example: branchnet {verb}" in page


def test_split_counts_the_parameters_of_the_networks(walker: Walker) -> None:
    assert walker("split run.yaml --locations layer1,layer3 --json --out other.yaml") == 0
    told = json.loads(walker.out)
    assert told["locations"] == ["layer1", "layer3"]
    stages = sum(cost["params"] for cost in told["costs"]["stages"].values())
    for task, network in trained(walker.folder).items():
        count = sum(parameter.numel() for parameter in network.parameters())
        assert stages + told["costs"]["heads"][task]["params"] == count
    assert Architecture.load("other.yaml").tree == branchnet.Tree.separate(list(TASKS), 2)


def test_the_separate_tree_of_split_builds_to_the_networks_themselves(walker: Walker) -> None:
    assert walker("build split.yaml --config run.yaml --out separate") == 0
    x = scenes(3, size=SIZE, seed=5).images
    outputs = branchnet.load("separate")(x)
    for task, network in trained(walker.folder).items():
        torch.testing.assert_close(outputs[task], network(x), rtol=0, atol=0)


def test_candidates_are_listed_and_nothing_is_written(walker: Walker) -> None:
    before = files(walker.folder)
    assert walker("split run.yaml --candidates --json") == 0
    assert {"layer1", "layer2", "layer3", "layer4"} <= {place["location"] for place in json.loads(walker.out)}
    assert files(walker.folder) == before


def test_affinity_writes_what_it_prints(walker: Walker) -> None:
    assert walker("affinity run.yaml split.yaml --measure cka --probe 12 --bootstrap 0 --json --out cka.npz") == 0
    assert json.loads(walker.out) == Affinity.load("cka.npz").rows()
    assert Affinity.load("cka.npz").measure.startswith("cka")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_affinity_in_another_type_ranks_alike(walker: Walker, dtype: str) -> None:
    assert walker(f"affinity run.yaml split.yaml --dtype {dtype} --bootstrap 0 --out {dtype}.npz") == 0
    difference = abs(Affinity.load(f"{dtype}.npz").values - Affinity.load("affinity.npz").values).max()
    assert difference < {"float64": 1e-4, "bfloat16": 0.05}[dtype]


def test_search_finds_what_trying_all_trees_finds(walker: Walker) -> None:
    assert walker("search affinity.npz split.yaml --budget 80%params --objective mean-max --json") == 0
    found, affinity, spec = json.loads(walker.out), Affinity.load("affinity.npz"), Architecture.load("split.yaml")
    params, heads = spec.stage_costs.params, sum(cost.params for cost in spec.head_costs.values())
    trees = list(branchnet.enumerate_trees(list(TASKS), 3))
    size = {tree: sum(w * p for w, p in zip(tree.widths, params, strict=True)) + heads for tree in trees}
    within = [tree for tree in trees if size[tree] <= 0.8 * max(size.values())]
    best = min(branchnet.clustering_cost(tree, affinity, objective="mean-max") for tree in within)
    assert found["cost"] == pytest.approx(best, rel=1e-12) and found["proven"]
    assert walker("search affinity.npz split.yaml --front --objective mean-max --json") == 0
    front = json.loads(walker.out)
    costs = [point["cost"] for point in front]
    assert costs == sorted(costs, reverse=True) and costs[-1] == 0 and len(front[0]["tree"][-1]) == 1


def test_search_keeps_how_networks_are_made(walker: Walker) -> None:
    spec = Architecture.load("architecture.yaml")
    assert spec.input == Architecture.load("split.yaml").input
    assert [made.name for made in spec.constructors.values()] == ["branchnet:scene_network"] * 3
    assert spec.search.budget == "80%params" and spec.search.measure == "rsa"


def test_group_divides_whole_networks(walker: Walker) -> None:
    assert walker("group affinity.npz split.yaml --groups 2 --json --out groups.yaml") == 0
    told = json.loads(walker.out)
    assert len(told["groups"]) <= 2
    assert all(task in group for task, group in told["served_by"].items())
    assert told["files"] == ["groups.yaml"]
    trees = trees_in("groups.yaml")
    assert all(len(set(tree.widths)) == 1 for tree in trees)
    assert {frozenset(cluster) for tree in trees for cluster in tree.partitions[0]} == set(
        map(frozenset, told["groups"])
    )
    assert walker("build groups.yaml --config run.yaml --out groups") == 0, walker.err


def test_group_writes_the_networks_with_their_auxiliary_tasks(walker: Walker) -> None:
    first, second, third = TASKS
    found = Affinity.load("affinity.npz")
    values = np.zeros_like(found.values)
    values[:, 0, 1] = values[:, 1, 0] = 1.0
    values[:, 1, 2] = 0.5  # the second task helps the third, too
    dataclasses.replace(found, values=values, samples=None, standard_errors=None, directed=True).save("effects.npz")
    assert walker("group effects.npz split.yaml --groups 2 --json --out groups.yaml") == 0, walker.err
    told = json.loads(walker.out)
    assert {tree.tasks for tree in trees_in("groups.yaml")} == {(first, second), (second, third)}
    assert told["served_by"][third] == sorted((second, third)) and told["served_by"][second] == sorted((first, second))
    assert walker("build groups.yaml --config run.yaml --out groups --quiet") == 0, walker.err
    assert {network.tasks for network in branchnet.load("groups").networks} == {(first, second), (second, third)}
    assert walker("group effects.npz split.yaml --groups 1 --json --out whole.yaml") == 0, walker.err
    assert json.loads(walker.out)["files"] == ["whole.yaml"]
    assert Architecture.load("whole.yaml").tree == branchnet.Tree.shared(tuple(TASKS), 3)


def test_group_by_measured_groups(walker: Walker) -> None:
    first, second, third = TASKS
    rows = [
        (first, {first: 1.0}), (second, {second: 1.0}), (third, {third: 1.0}),
        ("good", {first: 0.8, second: 0.7}), ("bad", {second: 1.4, third: 1.2}), ("worse", {first: 1.5, third: 1.3}),
    ]  # fmt: skip
    lines = [f"{name},{task},{loss}" for name, losses in rows for task, loss in losses.items()]
    Path("groups.csv").write_text("\n".join(["group,task,loss", *lines, ""]))
    assert walker("group groups.csv split.yaml --groups 2 --json --out measured.yaml") == 0, walker.err
    told = json.loads(walker.out)
    assert sorted(told["groups"]) == sorted([sorted([first, second]), [third]])
    assert told["score"] == pytest.approx((0.2 + 0.3) / 3, abs=0.1)
    (tree,) = trees_in("measured.yaml")
    assert tree == branchnet.Tree.grouped([[first, second], [third]], 3)
    assert walker("group groups.csv split.yaml --groups 2 --out measured.yaml") == 0 and "explain" in walker.out
    assert walker("group groups.csv split.yaml --location layer1") == 2 and "share all stages" in walker.err
    Path("groups.csv").write_text("\n".join(["group,task,loss", *lines[:2], ""]))
    assert walker("group groups.csv split.yaml") != 0 and "three measured groups" in walker.err
    assert walker("group missing.csv split.yaml") == 2 and "missing.csv is not a file" in walker.err


def trees_in(file: str) -> list[branchnet.Tree]:
    if is_grouped(file):
        return [group.architecture.tree for group in GroupedArchitecture.load(file).groups]
    return [Architecture.load(file).tree]


@pytest.mark.slow
def test_networks_of_groups_go_all_the_way(walker: Walker) -> None:
    first, second, third = TASKS
    found = Affinity.load("affinity.npz")
    values = np.zeros_like(found.values)
    values[:, 0, 1] = values[:, 1, 0] = 1.0
    values[:, 1, 2] = 0.5
    dataclasses.replace(found, values=values, samples=None, standard_errors=None, directed=True).save("effects.npz")
    assert walker("group effects.npz split.yaml --groups 2 --out overlap.yaml --quiet") == 0, walker.err
    assert walker("validate overlap.yaml") == 0 and "2 networks for 3 tasks is valid" in walker.out
    assert walker("build overlap.yaml --config run.yaml --out overlap --quiet") == 0, walker.err
    built = branchnet.load("overlap")
    assert {network.tasks for network in built.networks} == {(first, second), (second, third)}
    heads = [list(head.parameters())[-1] for network in built.networks for head in network.heads]
    with torch.no_grad():  # far off, so that the first steps are better than none
        for bias in heads:
            bias.add_(100)
    branchnet.save(built, "overlap")
    assert walker("distill overlap run.yaml --steps 2 --out overlap-trained --quiet") == 0, walker.err
    trained = branchnet.load("overlap-trained")
    found_heads = [list(head.parameters())[-1] for network in trained.networks for head in network.heads]
    assert not any(torch.equal(a, b) for a, b in zip(heads, found_heads, strict=True))
    assert sorted(path.name for path in Path("overlap-trained").iterdir()) == [
        "architecture.yaml",
        "weights.safetensors",
    ]
    assert walker("show overlap-trained") == 0 and f"serves {third}" in walker.out and "fits" in walker.out
    assert walker("report overlap-trained --no-latency --out overlap.html --json") == 0, walker.err
    assert json.loads(walker.out)["tasks"] == list(trained.tasks)
    assert walker("export overlap-trained --out served.pt2 --json") == 0, walker.err
    assert json.loads(walker.out)["outputs"] == list(trained.tasks)
    assert walker("search affinity.npz overlap.yaml --budget 80%params") == 2
    assert "describes 2 networks; expected the architecture of one" in walker.err
    assert walker(f"distill overlap run.yaml --steps 1 --only {first} --out nowhere") == 2
    assert "holds several networks" in walker.err


def test_distill_trains_what_build_wrote(walker: Walker) -> None:
    """A head with a bias that is far off, which the first steps make better whatever else they do."""
    network = branchnet.load("branched")
    last = list(dict(network.named_parameters()))[-1]
    assert last.startswith(f"heads.{list(TASKS).index('count')}.") and last.endswith("bias")
    with torch.no_grad():
        network.get_parameter(last).add_(100)
    branchnet.save(network, "off")
    config = yaml.safe_load(Path("run.yaml").read_text())
    Path("fast.yaml").write_text(yaml.safe_dump({**config, "learning_rate": 0.1}))
    assert walker("distill off fast.yaml --steps 2 --json --out again") == 0
    told = json.loads(walker.out)
    assert set(told) == {"separate", "before", "distilled"}
    assert told["separate"]["metrics"] == pytest.approx(dict.fromkeys(TASKS, 100))
    assert told["distilled"]["metrics"]["count"] > told["before"]["metrics"]["count"]
    before, after = (branchnet.deploy.read_weights(Path(f"{name}/weights.safetensors")) for name in ("off", "again"))
    assert before.keys() == after.keys() and not torch.equal(before[last], after[last])
    assert not list(walker.folder.rglob("*unfinished*"))


def test_distill_keeps_the_network_where_training_only_hurts(walker: Walker) -> None:
    """Networks with random weights: what build wrote is as good as the networks that give the weights can make it."""
    before, after = (
        branchnet.deploy.read_weights(Path(f"{name}/weights.safetensors")) for name in ("branched", "distilled")
    )
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_bench_times_both(walker: Walker) -> None:
    assert walker("bench distilled --no-compiled --repeats 4 --batch-size 2 --json --out bench.json") == 0
    told = json.loads(walker.out)
    assert told == json.loads(Path("bench.json").read_text())
    assert {name: len(times) for name, times in told["seconds"]["eager"].items()} == {"separate": 4, "branched": 4}


def test_stages_are_timed_and_make_milliseconds_a_budget(walker: Walker) -> None:
    assert walker("bench split.yaml --config run.yaml --stages --no-compiled --repeats 2 --out latency.json") == 0
    assert "head of count" in walker.out
    table = json.loads(Path("latency.json").read_text())
    assert len(table["unfused"]) == 3 and set(table["heads"]) == set(TASKS)
    # In place of times that vary: a millisecond for each copy of a stage and each head, 12 for separate networks.
    table |= {"unfused": [[[0.001 * width] for width in (1, 2, 3)]] * 3, "heads": {task: [0.001] for task in TASKS}}
    Path("known.json").write_text(json.dumps(table))
    assert walker("search affinity.npz split.yaml --latency known.json --budget 60%latency --json") == 0, walker.err
    found = json.loads(walker.out)
    assert found["unit"] == "latency" and found["size"] == pytest.approx(7)
    assert walker("search affinity.npz split.yaml --budget 4ms") == 2 and "--latency FILE" in walker.err
    assert walker("search affinity.npz split.yaml --latency run.yaml --budget 4ms") == 2
    assert "run.yaml is not a latency table" in walker.err


def test_export_gives_what_the_network_gives(walker: Walker) -> None:
    assert walker("export distilled --tasks depth,count --out net.pt2") == 0
    assert {"net.pt2", "net.yaml", "net.md"} <= set(files(walker.folder)) and "outputs: depth, count" in walker.out
    x = scenes(3, size=SIZE, seed=9).images
    wanted = branchnet.load("distilled")(x, tasks=["depth", "count"])
    found = torch.export.load("net.pt2").module()(x)
    for task, output in wanted.items():
        torch.testing.assert_close(found[task], output, rtol=1e-4, atol=1e-5)


def test_export_writes_int8_where_that_costs_little(walker: Walker) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    assert (
        walker("export distilled --config run.yaml --int8 --tasks depth,count --out net.onnx --max-loss 0.02 --json")
        == 0
    )
    told = json.loads(walker.out)
    assert max(told["losses"].values()) <= 0.02 and set(told["losses"]) == {"depth", "count"}
    assert Path("net.onnx").stat().st_size == told["bytes"]["quantised"] < told["bytes"]["float"]
    x = scenes(40, size=SIZE, seed=9).images
    with torch.no_grad():
        wanted = branchnet.load("distilled")(x, tasks=["depth"])["depth"]
    found = branchnet.deploy.load_onnx("net.onnx")(x, tasks=["depth"])["depth"]
    assert float((found - wanted).square().mean() / wanted.var()) < 0.1
    assert walker("export distilled --int8 --out net.onnx") == 2 and "expected a config with images" in walker.err


@pytest.mark.parametrize("suffix", ["html", "md", "csv", "json"])
def test_report_in_every_form(walker: Walker, suffix: str) -> None:
    assert walker(f"report distilled --affinity affinity.npz --no-latency --json --out r.{suffix}") == 0
    count = sum(parameter.numel() for parameter in branchnet.load("distilled").parameters())
    assert json.loads(walker.out)["params"] == count
    text = Path(f"r.{suffix}").read_text()
    assert "layer4" in text or "layer3" in text
    if suffix == "html":
        assert "branchnet report distilled --affinity affinity.npz --out r.html --no-latency" in text
        assert all(f'id="{part}"' in text for part in ("tree", "costs", "affinity", "front", "certainty", "commands"))


def test_show_and_validate_read_folders_and_files(walker: Walker) -> None:
    for given in ("distilled", "architecture.yaml"):
        assert walker(f"show {given} --json") == 0
        told = json.loads(walker.out)
        assert told["params"]["branched"] < told["params"]["separate"]
    assert walker("validate run.yaml split.yaml distilled --build --json") == 0
    assert [one["valid"] for one in json.loads(walker.out)] == [True] * 3


def test_schemas_name_the_fields(walker: Walker) -> None:
    assert walker("schema") == 0
    assert {"tasks", "tree", "locations"} <= set(json.loads(walker.out)["properties"])
    assert walker("schema --config --out config.json") == 0
    assert {"networks", "images", "budget"} <= set(json.loads(Path("config.json").read_text())["properties"])


@pytest.mark.parametrize(
    "line",
    [
        "split run.yaml --out new",
        "affinity run.yaml split.yaml --out new.npz",
        "search affinity.npz split.yaml --out new",
        "build architecture.yaml --config run.yaml --out new",
        "distill branched run.yaml --out new",
        "bench distilled --out new",
        "run run.yaml --out new",
    ],
)
def test_a_dry_run_says_memory_and_writes_nothing(walker: Walker, line: str) -> None:
    before = files(walker.folder)
    assert walker(f"{line} --dry-run --json") == 0
    plan = json.loads(walker.out)
    assert plan["bytes"] > 0 and plan["seconds"] >= 0 and "new" in plan["writes"][0]
    assert files(walker.folder) == before


def test_results_go_to_stdout_messages_to_stderr_and_quiet_has_none(walker: Walker) -> None:
    assert walker("search affinity.npz split.yaml --budget 80%params") == 0
    assert "stages" in walker.out and "wrote" not in walker.out and "wrote architecture.yaml" in walker.err
    assert walker("distill branched run.yaml --steps 1 --quiet --json") == 0
    assert walker.err == "" and json.loads(walker.out)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("split nothing.yaml", 2, "nothing.yaml: No such file"),
        ("split run.yaml --locations layer9", 2, "layer9"),
        ("split branched", 2, "branched is a folder; expected a config, such as branched/run.yaml"),
        ("run branched", 2, "branched is a folder"),
        ("split run.yaml --device nowhere", 2, "--device nowhere: this machine has no such device"),
        ("affinity run.yaml nothing.yaml", 2, "nothing.yaml: No such file"),
        ("affinity run.yaml split.yaml --probe 2", 2, "--probe: 2 is wrong"),
        ("affinity run.yaml split.yaml --measure rsb", 2, "rsb"),
        ("affinity run.yaml split.yaml --out a.txt", 2, "ends in .npz"),
        ("affinity split.yaml split.yaml", 2, "holds no images"),
        ("search nothing.npz split.yaml", 2, "nothing.npz is not a file"),
        ("search run.yaml split.yaml", 2, "not an affinity file"),
        ("search affinity.npz split.yaml --budget 1%params", 3, "smallest"),
        ("search affinity.npz split.yaml --budget much", 2, "cannot read the budget 'much'"),
        ("search affinity.npz split.yaml --objective worst", 2, "worst"),
        ("search affinity.npz other.yaml", 2, "tasks are a, b"),
        ("group affinity.npz split.yaml --groups 0", 3, "at least 1"),
        ("group affinity.npz split.yaml --location layer9", 2, "unknown location 'layer9'; expected one of"),
        ("build nothing.yaml", 2, "nothing.yaml"),
        ("build other.yaml", 2, "no named constructor"),
        ("build architecture.yaml --config two.yaml", 2, "count is missing"),
        ("build architecture.yaml --out run.yaml", 2, "run.yaml is or lies in a file"),
        ("distill nothing run.yaml", 2, "nothing"),
        ("distill architecture.yaml run.yaml", 4, "is not a saved network"),
        ("distill branched split.yaml", 2, "split.yaml holds no images"),
        ("bench branched --repeats 0", 2, "at least 1"),
        ("bench nothing", 2, "nothing"),
        ("export branched --out net.txt", 2, "expected one of pt2"),
        ("export branched --tasks depht --out net.pt2", 2, "depht"),
        ("report branched --out r.pdf", 2, ".html, .md, .csv or .json"),
        ("report broken", 4, "weights.safetensors"),
        ("show nothing", 2, "nothing"),
        (
            "show weightless",
            4,
            "holds no weights.safetensors; expected a folder that `branchnet build` wrote",
        ),
        ("validate", 2, "no file was given"),
        ("validate wrong.yaml run.yaml", 2, "wrong.yaml:2:1"),
        ("run two.yaml", 2, "names no budget"),
        ("run small.yaml --dry-run", 3, "no tree fits"),
        ("search affinity.npz run.yaml", 2, "is a config; expected an architecture"),
        ("search split.yaml split.yaml", 2, "split.yaml is not an affinity file"),
        ("schema --out run.yaml/x", 2, "run.yaml"),
    ],
)
def test_what_is_wrong_is_said(walker: Walker, line: str, code: int, message: str) -> None:
    made = "schema_version: 1\ntasks: [a, b]\nlocations: [x]\ntree: [{until: x, branches: [a, b]}]\n"
    Path("other.yaml").write_text(made)
    Path("wrong.yaml").write_text("schema_version: 1\ntaskss: [a]\n")
    config = Path("run.yaml").read_text().splitlines()
    Path("two.yaml").write_text("\n".join(line for line in config if "count" not in line and "budget" not in line))
    small = yaml.safe_load(Path("run.yaml").read_text()) | {"budget": "1% params"}
    Path("small.yaml").write_text(yaml.safe_dump(small))
    shutil.copytree("branched", "broken")
    Path("broken/weights.safetensors").write_bytes(b"no weights")
    shutil.copytree("branched", "weightless")
    Path("weightless/weights.safetensors").unlink()
    assert walker(line) == code, walker.err
    said = " ".join(walker.err.replace("│", " ").split())
    assert any(part in said for part in message.split("|")), said
    assert not walker.out or line.startswith("validate")


def test_completion_knows_the_verbs_and_changes_no_startup_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text("mine\n")
    assert main(["--install-completion", "--shell", "bash", "--output", str(tmp_path / "done.sh")]) == 0
    script = (tmp_path / "done.sh").read_text()
    assert all(verb in script for verb in VERBS) and "--dry-run" in script
    assert (tmp_path / ".bashrc").read_text() == "mine\n"


@pytest.mark.parametrize("word", [("serch", "search"), ("distil", "distill"), ("affinty", "affinity")])
def test_a_misspelt_verb_is_corrected(word: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word[0]]) == 2
    assert f'Did you mean "{word[1]}"?' in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_split_and_a_search_in_flops_name_what_is_counted_as_nothing(walker: Walker) -> None:
    split = yaml.safe_load(Path("split.yaml").read_text())
    next(iter(split["costs"]["stages"].values()))["uncounted"] = ["_fft_r2c"]
    Path("split.yaml").write_text(yaml.safe_dump(split))
    named = "Operators without a formula, counted as nothing: _fft_r2c."
    assert walker("search affinity.npz split.yaml --budget 80%flops --out by_flops.yaml") == 0
    assert named in walker.out
    assert walker("search affinity.npz split.yaml --budget 80%flops --out by_flops.yaml --json") == 0
    assert json.loads(walker.out)["uncounted"] == ["_fft_r2c"]
    assert walker("search affinity.npz split.yaml --budget 80%params --out by_params.yaml") == 0
    assert named not in walker.out
    assert Architecture.load("by_flops.yaml").stage_costs.uncounted == ("_fft_r2c",)


def test_search_reads_measured_pairs(walker: Walker) -> None:
    tasks, spec = list(TASKS), Architecture.load("split.yaml")
    changes = {(0, 1): (1.0, 4.0, 5.0), (1, 0): (1.0, 2.0, 3.0)}  # all others lose
    lines = ["task_a,task_b,task_measured,branch_point,rel_perf_percent"]
    for task, partner in itertools.permutations(range(3), 2):
        for point, change in enumerate(changes.get((task, partner), (-1.0, -2.0, -6.0)), start=1):
            lines.append(f"{tasks[task]},{tasks[partner]},{tasks[task]},{point},{change}")
    Path("pairs.csv").write_text("\n".join(lines) + "\n")
    assert walker("search pairs.csv split.yaml --budget 100%params --json --out chosen.yaml") == 0, walker.err
    found = json.loads(walker.out)
    assert found["objective"] == "expected-performance" and found["cost"] == pytest.approx(-(5 + 3) / 2 / 3)
    chosen = Architecture.load("chosen.yaml")
    assert chosen.locations == spec.locations
    assert {frozenset(cluster) for cluster in chosen.tree.partitions[-1]} == {
        frozenset(tasks[:2]),
        frozenset(tasks[2:]),
    }
    assert walker("search pairs.csv split.yaml --front --json") == 0, walker.err
    Path("pairs.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert walker("search pairs.csv split.yaml") == 2 and "is missing; expected a row for each" in walker.err
