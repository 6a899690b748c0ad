"""The constant predictor: for each task the one best answer whatever the input, the least that must be beaten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from branchnet.builder.network.task_names import wanted_tasks
from branchnet.data.call_forms import Inputs
from branchnet.data.collation import length
from branchnet.data.samples import Source
from branchnet.pipeline.config.run_config import Kind
from branchnet.pipeline.problem import donor_outputs


class ConstantPredictor(nn.Module):
    """Answers every input alike; called like a branched network.

    Args:
        answers: for each task the answer for one input, (C, ...) or a number.

    Attributes:
        tasks: the tasks, in the order given.
    """

    takes_inputs_as_one = True

    def __init__(self, answers: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.tasks = tuple(answers)
        for number, answer in enumerate(answers.values()):
            self.register_buffer(f"answer_{number}", answer)

    def forward(self, x: Inputs, tasks: Sequence[str] | None = None) -> dict[str, Any]:
        """Repeat the answers.

        Args:
            x: what a single-task network takes.
            tasks: the tasks wanted, all by default.

        Returns:
            outputs by task, one for each input.

        Raises:
            BuildError: an unknown task.
        """
        count = length(x)
        answers = {task: getattr(self, f"answer_{number}") for number, task in enumerate(self.tasks)}
        return {task: answers[task].expand(count, *answers[task].shape) for task in wanted_tasks(tasks, self.tasks)}


def constant_predictor(
    networks: Mapping[str, nn.Module], inputs: Source, kinds: Mapping[str, Kind], batch_size: int
) -> ConstantPredictor:
    """The mean of each network's outputs for each channel; of classifiers, the logarithm of the mean distribution.

    Args:
        networks: the single-task networks.
        inputs: K samples that nothing is measured on.
        kinds: the kind of each task.
        batch_size: samples run at once.

    Returns:
        the predictor.
    """
    answers = {}
    for task, outputs in donor_outputs(networks, inputs, batch_size).items():
        values = outputs.double()
        others = [dimension for dimension in range(values.dim()) if dimension != 1]
        if kinds.get(task) == "classification":
            mean = values.softmax(1).mean(others, keepdim=True).clamp_min(1e-12).log()
        else:
            mean = values.mean(others, keepdim=True) if values.dim() > 1 else values.mean(0, keepdim=True)
        answers[task] = mean.expand(1, *outputs.shape[1:])[0].to(outputs.dtype)
    return ConstantPredictor(answers)
