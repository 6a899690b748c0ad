"""Methods that aggregate the gradients of tasks, as weightings that a training loop calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from branchnet.training.weighting.loss_weightings import ImpartialLossWeighting
from branchnet.training.weighting.node_aggregators import Aggregator, AggregatorFactory, NodeAggregators
from branchnet.training.weighting.per_node import fill_per_node
from branchnet.training.weighting.task_gradients import check_losses
from branchnet.training.weighting.weighting_base import Weighting


class Aggregate(Weighting):
    """Aggregates the gradients of the tasks at every node of a branched network, as `backward_per_node` does.

    Args:
        aggregator: as for `backward_per_node`. What a function from the number of rows made for a node is kept for the
            node's later matrices; what such aggregators remember outside of checkpoints starts again when training is
            resumed.

    Raises:
        TrainingError: nothing that can be called.

    >>> from branchnet.training import Aggregate, weighting_of
    >>> pair = branchnet.build(branchnet.Tree.shared(["depth", "edges"], 2),
    ...     {task: networks[task] for task in ("depth", "edges")}, example=images, locations=["layer1", "layer3"],
    ...     init="donor").train()
    >>> weighting = weighting_of(Aggregate(lambda rows: rows.mean(0)), pair.tasks, pair)
    >>> outputs = pair(images)
    >>> weighting.backward(pair, {task: outputs[task].square().mean() for task in outputs})
    >>> weighting.weights()
    {}
    """

    def __init__(self, aggregator: Aggregator | AggregatorFactory) -> None:
        super().__init__()
        self._of_nodes = NodeAggregators(aggregator)
        if isinstance(aggregator, nn.Module):
            self.aggregator = aggregator  # so that it moves with this module

    def backward(
        self,
        network: nn.Module,
        losses: Mapping[str, Tensor],
        backward: Callable[[Tensor], None] = Tensor.backward,
    ) -> None:
        """Fill `.grad`: a backward pass for each task.

        Args:
            network, losses, backward: as for `Weighting.backward`; the network is branched.

        Raises:
            TrainingError: as `backward_per_node`.
        """
        fill_per_node(network, losses, self._of_nodes, backward)


class ImpartialWeighting(Weighting):
    """IMTL: learned scales bring the losses to 1 (IMTL-L), and where tasks meet, the gradients of the scaled losses are
    aggregated so that the result's projections on all of them are equal (IMTL-G); "Towards Impartial Multi-task
    Learning", Liu et al. 2021. The paper's alternative of parameters in place of features is taken.

    Args:
        tasks: their names.
        aggregator: IMTL-G.
    """

    def __init__(self, tasks: Sequence[str], aggregator: Aggregator) -> None:
        super().__init__()
        self.scales = ImpartialLossWeighting(tasks)
        self.aggregate = Aggregate(aggregator)

    def backward(
        self,
        network: nn.Module,
        losses: Mapping[str, Tensor],
        backward: Callable[[Tensor], None] = Tensor.backward,
    ) -> None:
        """Fill `.grad`: a backward pass for each task.

        Args:
            network, losses, backward: as for `Weighting.backward`; the network is branched.

        Raises:
            TrainingError: as `backward_per_node`.
        """
        check_losses(losses, self.scales.tasks)
        scaled = {
            task: self.scales.scaled(loss[None], [self.scales.tasks.index(task)])[0] for task, loss in losses.items()
        }
        self.aggregate.backward(network, scaled, backward)

    def weights(self) -> dict[str, float]:
        """Return the scale of each task's loss in the last step.

        Returns:
            a number for each task.
        """
        return self.scales.weights()
