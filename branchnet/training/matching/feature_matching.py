"""Features as targets beside outputs: what a branch's tasks share is led to what their own networks have there.

After "FitNets: Hints for Thin Deep Nets" (Romero et al. 2015, equation 3): a linear adapter for each task, thrown away
after training, leads from the student's features to the teacher's, so that dimensions may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.builder import BranchedNetwork, Node
from branchnet.errors import TrainingError
from branchnet.stages import StagedNetwork, call
from branchnet.stitching.output_distances import float_leaves
from branchnet.utils.modes import evaluation_mode


class FeatureMatching(nn.Module):
    """The distance of features at the last node that each task shares from those of its own network, as a loss.

    Args:
        branched: what is trained.
        networks: for each task its own network, staged.
        inputs: some, for the form and the spread of the features.
        tasks: those that are trained.

    Attributes:
        adapters: the linear maps, by the number of the task.

    Raises:
        TrainingError: networks that are not staged, nothing that is shared, or features of different size.
    """

    def __init__(
        self, branched: BranchedNetwork, networks: Mapping[str, nn.Module], inputs: Any, tasks: tuple[str, ...]
    ) -> None:
        super().__init__()
        if plain := [task for task in tasks if not isinstance(networks[task], StagedNetwork)]:
            raise TrainingError(
                f"the networks of {plain} are not divided into stages; expected those that split_all returned, to "
                "match features"
            )
        shared = [node for node in branched.members() if len(node.tasks) > 1]
        last = {task: [node for node in shared if task in node.tasks] for task in tasks}
        self.at: dict[str, Node] = {task: nodes[-1] for task, nodes in last.items() if nodes}
        if not self.at:
            raise TrainingError("the network shares no node; expected one that does, to match features")
        self.networks = {task: networks[task] for task in self.at}
        self.numbers = {task: str(number) for number, task in enumerate(self.at)}
        self.scales: dict[str, float] = {}
        self.adapters = nn.ModuleDict()
        with torch.no_grad(), evaluation_mode(branched), self.watching(branched, tuple(self.at)) as seen:
            branched(inputs, list(self.at))
            for task in self.at:
                own, wanted = seen[task], self._wanted(task, inputs)
                if own.shape[2:] != wanted.shape[2:] and own.dim() != 3:
                    raise TrainingError(
                        f"features of {task!r} at {self.at[task].id} are {tuple(own.shape)} and its own network's "
                        f"{tuple(wanted.shape)}; expected equal sizes"
                    )
                adapter = nn.Linear(_last(own).shape[-1], _last(wanted).shape[-1])
                if adapter.in_features == adapter.out_features:
                    nn.init.eye_(adapter.weight)
                nn.init.zeros_(adapter.bias)
                self.adapters[self.numbers[task]] = adapter.to(wanted)
                self.scales[task] = float(_last(wanted).reshape(-1, adapter.out_features).var(0, correction=0).mean())

    @contextmanager
    def watching(self, branched: BranchedNetwork, tasks: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
        """Keep the features of these tasks while the branched network runs.

        Args:
            branched: the network.
            tasks: whose features are wanted.

        Yields:
            the features by task, after each run.
        """
        seen: dict[str, Tensor] = {}
        wanted = [task for task in tasks if task in self.at]
        nodes = {id(self.at[task].module): self.at[task].module for task in wanted}
        handles = []
        for key, module in nodes.items():
            names = [task for task in wanted if id(self.at[task].module) == key]

            def keep(module: nn.Module, args: Any, output: Any, names: list[str] = names) -> None:
                seen.update(dict.fromkeys(names, float_leaves(output)[0]))

            handles.append(module.register_forward_hook(keep))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, task: str, found: Tensor, inputs: Any) -> Tensor:
        """The squared error of the adapted features by the variance of the own network's.

        Args:
            task: which.
            found: its features in the branched network.
            inputs: what they were computed from.

        Returns:
            a scalar.
        """
        wanted = _last(self._wanted(task, inputs)).float()
        adapted: Tensor = self.adapters[self.numbers[task]](_last(found).to(wanted))
        return (adapted - wanted).square().mean() / max(self.scales[task], 1e-12)

    def _wanted(self, task: str, inputs: Any) -> Tensor:
        network, depth = self.networks[task], self.at[task].stage
        assert isinstance(network, StagedNetwork)
        with torch.no_grad(), evaluation_mode(network):
            cut = call(network.stages[0], inputs)
            for stage in list(network.stages)[1 : depth + 1]:
                cut = stage(*cut)
        return float_leaves(cut)[0]


def _last(features: Tensor) -> Tensor:
    """Channels last: (B, C, ...) becomes (B, ..., C); tokens (B, T, C) are so already."""
    return features if features.dim() == 3 else features.movedim(1, -1)
