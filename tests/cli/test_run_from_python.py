"""The same step gives the same from Python and from the command, whose defaults are those of the functions."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import branchnet
from branchnet import Affinity, Architecture, RunResult, Tree
from branchnet.cli.commands.search import SearchOptions
from branchnet.cli.loading import read_config
from branchnet.data import load_images
from branchnet.deploy import load_weights
from branchnet.errors import BranchnetError, BudgetError, DataError, SpecError
from branchnet.pipeline import RunConfig, held_out_rows
from branchnet.pipeline.config.run_config import RunOptions
from branchnet.pipeline.problem import make_problem
from branchnet.training import Metric
from tests.cli.toys import SIZE, TASKS, Walker, make_folder

QUICK = {"steps": 2, "batch_size": 8, "compiled": False, "quiet": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("run"))


@pytest.fixture
def walker(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Walker:
    return Walker(made, monkeypatch, capsys)


@pytest.fixture(scope="module")
def networks(made: Path) -> dict[str, nn.Module]:
    found = {}
    for task, kind in TASKS.items():
        found[task] = branchnet.create("branchnet:scene_network", outputs=1, kind=kind, width=4)
        load_weights(found[task], made / f"{task}.safetensors")
    return found


@pytest.fixture(scope="module")
def images(made: Path) -> torch.Tensor:
    return load_images(made / "images.npz", size=SIZE)


@pytest.fixture(scope="module")
def result(made: Path, networks: dict[str, nn.Module], images: torch.Tensor) -> RunResult:
    """A run from Python into a folder."""
    return branchnet.run(networks, images, "60% params", folder=made / "python", **QUICK)


def test_a_config_of_one_network_is_named(walker: Walker, made: Path) -> None:
    config = yaml.safe_load((made / "run.yaml").read_text())
    first = next(iter(config["networks"]))
    one = made / "one.yaml"
    one.write_text(yaml.safe_dump({**config, "networks": {first: config["networks"][first]}}))
    with pytest.raises(SpecError, match=r"one\.yaml:\d+:\d+: networks: has one entry; expected at least 2 entries"):
        read_config(one)
    one.write_text(yaml.safe_dump({**config, "networks": {}}))
    with pytest.raises(SpecError, match=r"networks: is empty; expected at least 2 entries"):
        read_config(one)
    one.write_text(yaml.safe_dump({**config, "networks": {first: config["networks"][first], "other": {"factory": 5}}}))
    with pytest.raises(SpecError) as refused:
        read_config(one)
    assert [problem.split(": ", 1)[1][:22] for problem in refused.value.problems] == ["networks.other.factory"]


def measured(found: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the clock."""
    found = json.loads(json.dumps(found))
    for network in found["networks"].values():
        del network["latency"]
    return found


def test_the_command_gives_the_tree_and_the_metrics_of_the_function(
    walker: Walker, result: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-compiler")
    monkeypatch.setattr("branchnet.pipeline.network_timing.compiler_problem", lambda device: "not here")
    assert walker("run run.yaml --out command --json --quiet") == 0, walker.err
    assert measured(json.loads(walker.out)) == measured(result.to_dict())
    assert Tree(result.tree.tasks, json.loads(walker.out)["trees"]["branched"]) == result.tree
    weights = [branchnet.deploy.read_weights(Path(f"{name}/weights.safetensors")) for name in ("command", "python")]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    assert {path.name for path in Path("command").iterdir()} == {path.name for path in Path("python").iterdir()}


def test_the_folder_is_read_back_and_the_result_holds_what_is_in_it(
    result: RunResult, networks: dict[str, nn.Module], images: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert result.folder is not None and result.tree == result.network.tree
    loaded = branchnet.load(result.folder)
    x = images[:3]
    with torch.no_grad():
        for task, output in result.network(x).items():
            torch.testing.assert_close(loaded(x)[task], output)
    assert Affinity.load(result.folder / "affinity.npz").values.tolist() == result.affinity.values.tolist()
    again = branchnet.run(networks, images, "60% params", folder=result.folder, **{**QUICK, "quiet": False})
    assert "reused branched.safetensors" in capsys.readouterr().err
    assert again.to_dict() == result.to_dict()


def test_without_a_folder_nothing_is_written_and_the_networks_stay_as_they_are(
    networks: dict[str, nn.Module],
    images: torch.Tensor,
    result: RunResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    modes = {task: [module.training for module in network.modules()] for task, network in networks.items()}
    before = {task: {k: v.clone() for k, v in net.state_dict().items()} for task, net in networks.items()}
    found = branchnet.run(networks, images, "60% params", baselines=[], **QUICK)
    assert found.folder is None and list(tmp_path.iterdir()) == []
    assert found.tree == result.tree and list(found.trees) == ["branched"]
    for task, network in networks.items():
        assert [module.training for module in network.modules()] == modes[task]
        assert all(torch.equal(before[task][name], tensor) for name, tensor in network.state_dict().items())
        assert all(parameter.requires_grad for parameter in network.parameters())


def test_metrics_are_taken_on_the_images_that_are_held_out(
    networks: dict[str, nn.Module], images: torch.Tensor
) -> None:
    """Mean squared error to the single-task networks, computed here on the rows that `held_out_rows` names."""
    squared = Metric(
        "mse",
        False,
        lambda output, target: torch.tensor([float((output - target).square().sum()), output.numel()]).double(),
        lambda total: float(total[0] / total[1]),
    )
    metrics = dict.fromkeys(networks, squared)
    found = branchnet.run(networks, images, "60% params", baselines=[], metrics=metrics, held_out=0.3, seed=3, **QUICK)
    train, test = held_out_rows(len(images), 0.3, seed=3)
    assert sorted(train + test) == list(range(len(images))) and len(test) == 12
    with torch.no_grad():
        outputs = found.network(images[test])
        for task, network in networks.items():
            error = (outputs[task] - network.eval()(images[test])).square().mean()
            assert found.comparison.networks[1].metrics[task] == pytest.approx(float(error), rel=1e-4)
            network.train()
    assert found.comparison.baseline.metrics == pytest.approx(dict.fromkeys(networks, 0.0), abs=1e-8)


def test_search_in_python_finds_the_tree_of_the_command(walker: Walker) -> None:
    assert walker("split run.yaml --locations 3 --quiet") == 0
    assert walker("affinity run.yaml split.yaml --quiet") == 0
    affinity, spec = Affinity.load("affinity.npz"), Architecture.load("split.yaml")
    heads = spec.head_costs
    trees = set()
    for budget in ("50% params", "70% params", "90% params"):
        assert walker(f"search affinity.npz split.yaml --json --quiet --budget {budget.replace(' ', '')}") == 0
        told = json.loads(walker.out)
        found = branchnet.search(affinity, spec.stage_costs, budget, head_costs=heads)
        assert (found.objective, found.cost) == (told["objective"], told["cost"])
        assert found.tree == Tree(spec.tasks, told["tree"])
        trees.add(found.tree)
    assert len(trees) > 1
    assert walker("search affinity.npz split.yaml --front --json") == 0
    front = branchnet.pareto_front(affinity, spec.stage_costs, head_costs=heads)
    assert [point.cost for point in front] == [told["cost"] for told in json.loads(walker.out)]


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: one.default for name, one in inspect.signature(function).parameters.items()}


def test_defaults_are_the_same_everywhere() -> None:
    options = {name: field.default for name, field in RunOptions.model_fields.items()}
    assert options.items() <= defaults(branchnet.run).items()
    assert RunOptions.model_fields.keys() <= RunConfig.model_fields.keys()
    command = {field.name: field.default for field in fields(SearchOptions)}
    python = defaults(branchnet.search)
    shared = command.keys() & python.keys()
    assert {"objective", "method", "shared_stages", "seed", "time_limit"} <= shared
    assert all(command[name] == python[name] for name in shared - {"budget"})
    assert defaults(branchnet.pareto_front)["objective"] == python["objective"] == "medoid"
    assert defaults(branchnet.clustering_cost)["objective"] == "mean-max"  # the paper's


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"held_out": 2.0}, SpecError, "held_out: 2.0"),
        ({"steps": -1, "probe": 1}, SpecError, "probe: 1.*\n.*steps: -1|steps: -1.*\n.*probe: 1"),
        ({"objective": "mean-mx"}, SpecError, "unknown objective 'mean-mx'; expected one of"),
        ({"donor": "moods"}, SpecError, "donor: unknown task 'moods'; expected one of edges, depth, count"),
        ({"kinds": {"edge": "regression"}}, SpecError, "kinds: unknown task 'edge'"),
        ({"kinds": {"edges": "classes"}}, SpecError, "'classes' of 'edges'"),
        ({"metrics": {"pose": None}}, SpecError, "metrics: unknown task 'pose'"),
        ({"networks": {}}, SpecError, "two tasks or more; given: none"),
        ({"networks": {"a": "resnet", "b": "resnet"}}, SpecError, "network of 'a' is a str"),
        ({"images": torch.rand(3, 3, 32, 32)}, DataError, "3 images are too few"),
        ({"images": 5}, DataError, "images: expected images"),
        ({"budget": "much"}, BudgetError, "'much'"),
        ({"budget": "1% params"}, BudgetError, "smallest"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    networks: dict[str, nn.Module],
    images: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    error: type[BranchnetError],
    message: str,
) -> None:
    def trained(*_: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("branchnet.pipeline.full_run.train_networks", trained)
    given = {"networks": networks, "images": images, "budget": "60% params", "folder": tmp_path / "new"} | changed
    with pytest.raises(error, match=message):
        branchnet.run(**given, **{k: v for k, v in QUICK.items() if k not in changed})
    assert not (tmp_path / "new").exists()


class Augmented(torch.utils.data.Dataset[torch.Tensor]):
    """The images with noise that is drawn at every reading."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index] + 0.5 * torch.randn(self.images.shape[1:])


def test_images_that_change_between_readings_are_refused(networks: dict[str, nn.Module], images: torch.Tensor) -> None:
    with pytest.raises(DataError, match="differ from one reading to the next"):
        branchnet.run(networks, Augmented(images), "60% params", **QUICK)


def test_affinities_of_another_seed_are_not_taken_up(
    networks: dict[str, nn.Module], images: torch.Tensor, tmp_path: Path
) -> None:
    """The seed decides which images are held out, and so the probe."""
    options = {**QUICK, "steps": 0, "baselines": [], "held_out": 0.5}
    first = branchnet.run(networks, images, "60% params", folder=tmp_path, seed=0, **options)
    second = branchnet.run(networks, images, "60% params", folder=tmp_path, seed=1, **options)
    alone = branchnet.run(networks, images, "60% params", seed=1, **options)
    assert second.affinity.probe_hash == alone.affinity.probe_hash != first.affinity.probe_hash


def test_a_task_whose_outputs_have_length_1_is_measured_by_directions(
    networks: dict[str, nn.Module], images: torch.Tensor
) -> None:
    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = branchnet.create("branchnet:scene_network", outputs=3, width=4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(self.network(x), dim=1)

    other = next(task for task, kind in TASKS.items() if kind == "dense")
    both = {other: networks[other], "normals": Turning().eval()}
    problem = make_problem(both, images, "80% params", RunOptions(), resumable=False)
    assert dict(problem.kinds) == {other: "regression", "normals": "direction"}
    assert problem.metrics["normals"].name == "explained direction %"
    assert [(task, metric.name) for task, metric in problem.further] == [("normals", "mean angle °")]
    stated = make_problem(both, images, "80% params", RunOptions(), kinds={"normals": "regression"}, resumable=False)
    assert stated.kinds["normals"] == "regression"
    with pytest.raises(SpecError, match="expected one of regression, classification, direction"):
        make_problem(both, images, "80% params", RunOptions(), kinds={"normals": "angle"})  # type: ignore[dict-item]
