"""The demo's problem: constant answers are fitted on labels, as the networks are judged by labels."""

from __future__ import annotations

import torch

from branchnet.data import scenes
from branchnet.pipeline.demo.scene_run import PROBE, QUICK, demo_problem
from branchnet.pipeline.demo.scene_tasks import TASKS
from branchnet.pipeline.measuring_steps import _constant
from branchnet.pipeline.problem import VALIDATION


def test_constant_answers_are_those_of_the_labels_set_aside() -> None:
    train, test = scenes(VALIDATION + 8, seed=1), scenes(PROBE + 60, seed=1, start=500)
    networks = {name: task.network() for name, task in TASKS.items()}
    scores, _ = _constant(demo_problem(networks, train, test, QUICK, seed=0))
    majority = train.labels["scene"][-VALIDATION:].bincount().argmax()
    assert scores["scene"] == 100 * float((test.labels["scene"][PROBE:] == majority).double().mean())
    mean = train.labels["edges"][-VALIDATION:].double().mean()
    error = (test.labels["edges"][PROBE:].double() - mean).square().mean().sqrt()
    torch.testing.assert_close(torch.tensor(scores["edges"]).double(), error, rtol=1e-4, atol=0)
