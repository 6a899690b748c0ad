"""What is said of networks whose structures part early, and to whom: counted by hand on networks of three layers."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

import branchnet
from branchnet import Affinity, Architecture, BudgetError, SplitError, Tree
from branchnet.cli import main
from branchnet.pipeline.config.run_config import RunOptions
from branchnet.pipeline.plans.run_plan import plan_run
from branchnet.pipeline.problem import make_problem
from branchnet.reporting import Page
from branchnet.stages import FirstDifference, StagedNetwork, split_all

IMAGE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
TASKS = ("a", "b")
STEM, BODY, HEAD = 3 * 4 + 4, 4 * 64 + 64, 64 * 2 + 2


def network(second: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), second, nn.Conv2d(4, 64, 1), nn.Conv2d(64, 2, 1)).eval()


def split_two(*second: nn.Module) -> dict[str, StagedNetwork]:
    return split_all({task: network(layer) for task, layer in zip(TASKS, second, strict=True)}, IMAGE)


def difference(*second: nn.Module) -> FirstDifference:
    found = split_two(*second)["b"].first_difference
    assert found is not None
    return found


def test_it_is_none_where_nothing_differs() -> None:
    assert split_two(nn.ReLU(), nn.ReLU())["a"].first_difference is None
    assert branchnet.split(network(nn.ReLU()), IMAGE).first_difference is None


def test_both_sides_and_the_share_before_them_are_named() -> None:
    found = difference(nn.ReLU(), nn.Tanh())
    assert found.shareable == pytest.approx(STEM / (STEM + BODY + HEAD)) and found.limits
    assert found.sides == {"a": "1 = ReLU() -> (2, 4, 4, 4)", "b": "1 = Tanh() -> (2, 4, 4, 4)"}
    assert f"{100 * found.shareable:.3g}% of the parameters can be shared" in str(found)


def test_late_differences_limit_nothing() -> None:
    networks = {task: network(nn.ReLU()) for task in TASKS}
    networks["b"][3] = nn.Conv2d(64, 3, 1)
    found = split_all(networks, IMAGE)["a"].first_difference
    total = 2 * (STEM + BODY) + HEAD + 64 * 3 + 3
    assert found is not None and found.shareable == pytest.approx(2 * (STEM + BODY) / total) and not found.limits


def test_what_little_is_common_inside_a_module_is_one_stage() -> None:
    def nested(activation: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), activation), nn.Conv2d(4, 999, 1), nn.Conv2d(999, 9, 3))

    staged = split_all({"a": nested(nn.ReLU()).eval(), "b": nested(nn.Tanh()).eval()}, IMAGE)
    assert staged["a"].locations == ("0.0",) and sum(staged["a"].costs.params) == STEM


def test_the_users_own_locations_do_not_count_as_a_difference() -> None:
    networks = {task: network(nn.ReLU()) for task in TASKS}
    assert split_all(networks, IMAGE, locations=["0"])["a"].first_difference is None


@pytest.mark.parametrize("frozen", [FrozenBatchNorm2d, type("MyFrozenBatchNorm2d", (FrozenBatchNorm2d,), {})])
def test_frozen_batchnorm_is_named_in_words(frozen: Callable[[int], nn.Module]) -> None:
    text = str(difference(nn.BatchNorm2d(4), frozen(4)))
    assert "frozen BatchNorm (fixed statistics and weights, held as buffers) against BatchNorm (trained)" in text
    assert "b: 1 = frozen BatchNorm, " in text and "a: 1 = BatchNorm2d(4" in text


class Powered(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x.abs().pow(self.p).sqrt()


class Whole(nn.Module):
    """A setting that its text does not show, in a module that torch.fx cannot enter."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.relu = scale, nn.Softmin(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x) * self.scale if bool(torch.tensor(True)) else x


@pytest.mark.parametrize(("kind", "name"), [(Powered, "p"), (Whole, "scale")])
def test_settings_that_no_text_shows_are_named(kind: Callable[[float], nn.Module], name: str) -> None:
    assert difference(kind(1.0), kind(2.0)).reason == f"in the setting {name}"


def test_a_side_branch_is_not_taken_for_the_difference() -> None:
    class Auxiliary(nn.Module):
        def __init__(self, last: nn.Module) -> None:
            super().__init__()
            self.stem, self.side, self.body, self.last = (
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(4, 1, 1),
                nn.Conv2d(4, 8, 1),
                last,
            )

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.stem(x)
            return self.side(x), self.last(self.body(x))

    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 5, 1)).eval()
    found = split_all({"a": Auxiliary(nn.Conv2d(8, 2, 1)).eval(), "b": plain}, IMAGE)["a"].first_difference
    assert found is not None
    assert found.sides["a"].startswith("last = ") and found.sides["b"].startswith("2 = ")


def test_nothing_in_common_is_refused_with_both_sides() -> None:
    with pytest.raises(SplitError, match=r"0% of the parameters can be shared") as error:
        split_all({"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 5, 1)}, IMAGE)
    assert "a: conv2d in the network itself -> (2, 4, 4, 4)" in str(error.value)
    assert "in the setting out_channels" in str(error.value)


def affinity_of(staged: dict[str, StagedNetwork]) -> Affinity:
    depth = len(staged["a"].locations)
    return Affinity(TASKS, staged["a"].locations, np.stack([np.array([[1.0, 0.5], [0.5, 1.0]])] * depth))


def test_searches_say_it_where_it_limits_and_nowhere_else() -> None:
    limited, free = split_two(nn.ReLU(), nn.Tanh()), split_two(nn.ReLU(), nn.ReLU())
    text = str(limited["a"].first_difference)
    for costs in (limited, limited["a"].costs):
        with pytest.warns(UserWarning, match="of the parameters can be shared") as caught:
            result = branchnet.search(affinity_of(limited), costs, "100% params")
        assert str(caught[0].message) == text == str(result.first_difference)
        with pytest.warns(UserWarning), pytest.raises(BudgetError, match="no tree fits") as error:
            branchnet.search(affinity_of(limited), costs, "1% params")
        assert text in str(error.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert branchnet.search(affinity_of(free), free, "100% params").first_difference is None


def test_reports_and_pages_say_it() -> None:
    staged = split_two(nn.ReLU(), nn.Tanh())
    text = str(staged["a"].first_difference)
    branched = branchnet.build(Tree.shared(TASKS, len(staged["a"].stages)), staged)
    report = branchnet.report(branched, IMAGE, latency=False)
    assert text in str(report) and text in report.to_dict()["notes"]
    html = Page(title="one", report=report).to_html()
    assert "a: 1 = ReLU()" in html and "b: 1 = Tanh()" in html
    free = split_two(nn.ReLU(), nn.ReLU())
    silent = branchnet.report(branchnet.build(Tree.shared(TASKS, len(free["a"].stages)), free), IMAGE, latency=False)
    assert "can be shared" not in str(silent)


def test_specifications_keep_it(tmp_path: Path) -> None:
    staged = split_two(nn.ReLU(), nn.Tanh())
    tree = Tree.separate(TASKS, len(staged["a"].stages))
    written = Architecture.from_tree(tree, networks=staged)
    written.save(tmp_path / "x.yaml")
    read = Architecture.load(tmp_path / "x.yaml")
    assert read == written and read.stage_costs is not None
    assert read.stage_costs.first_difference == staged["a"].first_difference


def test_a_run_says_it_in_its_plan() -> None:
    networks = {task: network(layer) for task, layer in zip(TASKS, (nn.ReLU(), nn.Tanh()), strict=True)}
    plan = plan_run(make_problem(networks, torch.rand(20, 3, 4, 4), "100% params", RunOptions(), resumable=False))
    assert plan.notes == (str(split_all(networks, IMAGE[:1])["a"].first_difference),)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config of two networks that part at their first activation."""
    if not pytest.importorskip("timm").is_model("test_resnet"):
        pytest.skip("this timm has no small networks for tests")
    arguments = {"one": {"num_classes": 2}, "other": {"num_classes": 2, "act_layer": "silu"}}
    made = {task: {"constructor": "timm:test_resnet", "arguments": given} for task, given in arguments.items()}
    images = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    config = {"networks": made, "images": {"npz": "images.npz", "size": 32}, "budget": "100% params", "steps": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_say_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(line: str) -> str:
        capsys.readouterr()
        assert main(line.split()) == 0
        return capsys.readouterr().out

    for text in (said("split run.yaml"), said("run run.yaml --dry-run")):
        assert "of the parameters can be shared; then the structures differ" in text
        assert re.search(r"one: \S+ = ReLU\(.*\) -> .*\n *other: \S+ = SiLU\(", text)
    spec = Architecture.load(folder / "split.yaml")
    assert spec.stage_costs is not None
    text = str(spec.stage_costs.first_difference)
    assert json.loads(said("run run.yaml --dry-run --json"))["notes"][0] == text
    Affinity(spec.tasks, spec.locations, np.stack([np.eye(2)] * len(spec.locations))).save(folder / "affinity.npz")
    search = "search affinity.npz split.yaml --budget 100%params"
    assert text in said(search) and json.loads(said(f"{search} --json"))["first_difference"] == text
