"""Outputs of different forms are found before anything is changed, and can be brought into one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import Tree
from branchnet.errors import TrainingError
from branchnet.training import Teachers

TASKS = ("a", "b")
IMAGES = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Detector(nn.Module):
    """Returns other things in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.maps = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Any:
        raw = self.maps(self.backbone(x))
        return {"raw": raw} if self.training else (raw.flatten(2), {"raw": raw})


def student(init: str = "donor") -> tuple[branchnet.BranchedNetwork, dict[str, nn.Module]]:
    torch.manual_seed(0)
    networks = {task: Detector().eval() for task in TASKS}
    staged = branchnet.split_all(networks, IMAGES[:2], locations=["backbone.2", "backbone.4"])
    return branchnet.build(Tree.shared(TASKS, 2), staged, init="donor"), networks


def raw_alone(output: Any) -> Tensor:
    return output["raw"] if isinstance(output, dict) else output[1]["raw"]


def test_both_forms_are_shown_and_nothing_is_changed() -> None:
    network, networks = student()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(
        TrainingError, match=r"task 'a': in training mode .* \{'raw': \(2, 2, 4, 4\)\} and .*\(2, 2, 16\)"
    ):
        branchnet.distill(network, networks, IMAGES, steps=2, batch_size=4, progress=False)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not network.training


def test_functions_bring_both_sides_into_one_form() -> None:
    network, networks = student()
    functions = dict.fromkeys(TASKS, raw_alone)
    history = branchnet.distill(
        network, networks, IMAGES, steps=3, batch_size=4, learning_rate=1e-3, outputs=functions, progress=False
    )
    # By hand: a student that returns the raw maps, and teachers that do.
    other, _ = student()
    teachers = Teachers(networks, IMAGES, outputs=functions, progress=False)
    again = branchnet.distill(other, teachers, IMAGES, steps=3, batch_size=4, learning_rate=1e-3, progress=False)
    assert history.losses == again.losses
    with torch.no_grad():
        expected = {task: networks[task](IMAGES)[1]["raw"] for task in TASKS}
    found = teachers.outputs(torch.arange(12), TASKS, torch.device("cpu"))
    for task in TASKS:
        torch.testing.assert_close(found[task], expected[task])


def test_functions_are_of_known_tasks_and_in_one_place() -> None:
    network, networks = student()
    with pytest.raises(TrainingError, match=r"outputs name \['c'\]"):
        branchnet.distill(network, networks, IMAGES, outputs={"c": raw_alone}, progress=False)
    teachers = Teachers(networks, IMAGES, progress=False)
    with pytest.raises(TrainingError, match=r"expected them in Teachers\(\.\.\., outputs=\)"):
        branchnet.distill(network, teachers, IMAGES, outputs={"a": raw_alone}, progress=False)


class Listing(nn.Module):
    """As many numbers as values say."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[None, x[:, 0] > 0.5]


def test_outputs_of_another_length_for_each_batch_are_refused() -> None:
    with pytest.raises(
        TrainingError, match=r"output of 'boxes' is \(1, \d, 2\) for one batch and \(1, \d, 2\) for anoth"
    ):
        Teachers({"boxes": Listing()}, torch.linspace(0, 1, 24).reshape(12, 2), batch_size=4, progress=False)


def test_a_run_stops_before_it_measures_and_its_plan_says_so() -> None:
    from branchnet.pipeline.config.run_config import RunOptions
    from branchnet.pipeline.plans.run_plan import plan_run
    from branchnet.pipeline.problem import make_problem

    torch.manual_seed(0)
    networks = {task: Detector().eval() for task in TASKS}
    images = torch.rand(40, 3, 8, 8)
    with pytest.raises(TrainingError, match="task 'a': in training mode"):
        branchnet.run(networks, images, "80% params", steps=2, compiled=False, quiet=True)
    options = RunOptions.checked(steps=2)
    plan = plan_run(make_problem(networks, images, "80% params", options, resumable=False))
    assert any("the run would stop: task 'a'" in note for note in plan.notes)
