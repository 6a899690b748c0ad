"""GradNorm: weights that give the gradients at a common node the larger norms, the slower their tasks learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from branchnet.builder import BranchedNetwork, Node
from branchnet.errors import TrainingError
from branchnet.training.weighting.buffer_adam import BufferAdam
from branchnet.training.weighting.per_node import branched_network
from branchnet.training.weighting.task_gradients import backward_through, check_losses, gradients_of
from branchnet.training.weighting.weighting_base import LossWeighting

SMALLEST_WEIGHT = 1e-3


class GradNormWeighting(LossWeighting):
    """Weights w with |w_i g_i| near the mean of those norms times r_i ** alpha, where r_i is task i's relative inverse
    training rate ("GradNorm: Gradient Normalization for Adaptive Loss Balancing", Chen et al. 2018, algorithm 1).

    The paper takes the gradients g at the last layer that all tasks share. Norms can only be compared on the same
    parameters, so in a tree they are taken at the deepest node that serves all tasks of a tree and is trained; where
    those tasks have no such node in common, at the deepest of each group that has one. The weights of a group's tasks
    sum to their number. A task that shares nothing has the weight 1.

    Args:
        tasks: their names.
        alpha: how strongly slow tasks are favoured; the paper's 1.5.
        rate: Adam's learning rate for w; the paper's 0.025.
    """

    first_losses: Tensor

    def __init__(self, tasks: Sequence[str], alpha: float = 1.5, rate: float = 0.025) -> None:
        super().__init__(tasks)
        self.alpha = alpha
        self.register_buffer("weight", torch.ones(len(self.tasks)))
        self.register_buffer("first_losses", torch.full((len(self.tasks),), torch.nan))
        self.adam = BufferAdam(len(self.tasks), rate)

    weight: Tensor

    def backward(
        self,
        network: nn.Module,
        losses: Mapping[str, Tensor],
        backward: Callable[[Tensor], None] = Tensor.backward,
    ) -> None:
        """Fill `.grad`: a backward pass of each task as far as the common node, and one of the weighted sum.

        Args:
            network, losses, backward: as for `Weighting.backward`; the network is branched.

        Raises:
            TrainingError: no loss, one of an unknown task, or a network without a node to compare gradients at.
        """
        check_losses(losses, self.tasks)
        nodes = common_nodes(branched_network(network))
        where = [self.tasks.index(task) for task in losses]
        self.current[where] = self.weight[where]
        weights = self.current[where]

        def compute(scale: Tensor) -> list[Tensor]:
            for node in nodes:
                self._balance(node, losses, scale)
            return list((weights * scale).to(scale).unbind())

        total = (weights * torch.stack([loss.detach() for loss in losses.values()])).sum()
        backward_through(compute, total, list(losses.values()), backward)

    def without_losses(self, network: nn.Module) -> None:
        """Learn from the gradients of other processes.

        Args:
            network: as for every `Weighting`.
        """
        for node in common_nodes(branched_network(network)):
            self._balance(node, {}, torch.ones((), device=self.weight.device))

    def _balance(self, node: Node, losses: Mapping[str, Tensor], scale: Tensor) -> None:
        """Take a step towards equal rates among the tasks of a node."""
        own = [task for task in losses if task in node.tasks and losses[task].requires_grad]
        where = [self.tasks.index(task) for task in own]
        inputs = [parameter for parameter in node.module.parameters() if parameter.requires_grad]
        now = [losses[task].detach() for task in own]
        norms = [_norm(gradients_of(losses[task], inputs, scale, retain_graph=True), scale) for task in own]
        both = torch.stack([value.to(self.weight) for value in (*now, *norms)]) if own else self.weight[:0]
        values, seen = self.spread(both[: len(own)], where)
        lengths, _ = self.spread(both[len(own) :], where)
        if not bool((torch.isfinite(lengths) & torch.isfinite(values)).all()) or int(seen.sum()) < 2:
            return
        self.first_losses.copy_(torch.where(seen & self.first_losses.isnan(), values, self.first_losses))
        ratios = torch.where(seen, values / self.first_losses, 0)
        if not (torch.isfinite(ratios).all() and ratios.sum() > 0):  # a loss of 0 at first, or all of them now
            return
        rates = (ratios * seen.sum() / ratios.sum()).clamp(min=0) ** self.alpha
        weighed = self.weight * lengths
        targets = torch.where(seen, weighed, 0).sum() / seen.sum() * rates
        self.adam.update(self.weight, torch.sign(weighed - targets) * lengths, seen)
        group = [self.tasks.index(task) for task in node.tasks if task in self.tasks]
        held = self.weight[group].clamp(min=SMALLEST_WEIGHT)
        self.weight[group] = held * len(group) / held.sum()


def common_nodes(network: BranchedNetwork) -> list[Node]:
    """Return the nodes at which gradients are compared: of each group of tasks, the deepest that serves all of it.

    Args:
        network: the network.

    Raises:
        TrainingError: no two tasks share a node that is trained.
    """
    found: dict[frozenset[str], Node] = {}
    for node in network.members():
        group = frozenset(node.tasks)
        trained = any(parameter.requires_grad for parameter in node.module.parameters())
        if len(group) > 1 and trained and not any(group < other for other in found):
            found[group] = node  # in the place of one before it that serves the same tasks
    if not found:
        raise TrainingError(
            "gradnorm compares the gradients of tasks at a node that they share; expected a trained node of two tasks "
            "or more"
        )
    return list(found.values())


def _norm(gradients: Sequence[Tensor | None], scale: Tensor) -> Tensor:
    """The norm of all of them together, without the factor."""
    norms = [gradient.norm() for gradient in gradients if gradient is not None]
    return torch.stack(norms).norm() / scale if norms else torch.zeros_like(scale)
