"""A branched network in Lightning's training loop. This module needs Lightning; it is imported on first use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.builder import BranchedNetwork
from branchnet.errors import TrainingError
from branchnet.training.frameworks.foreign_batches import batch_size, combined, read_batches, trained_losses
from branchnet.training.judging.foreign_metrics import AnyMetric, read_metric
from branchnet.training.judging.metric import Accumulation
from branchnet.training.optimization.groups import Rate
from branchnet.training.optimization.run_settings import OptimizerFactory
from branchnet.training.optimization.schedules import Schedule, share_of
from branchnet.training.task_losses import Batches, Loss
from branchnet.training.weighting.weighting_base import Weighting
from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators

define_torchvision_operators()  # Lightning imports torchvision where it is installed
try:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
except ImportError as error:
    raise TrainingError("LightningBranched needs Lightning: pip install 'branchnet[train]'") from error


class LightningBranched(LightningModule):
    """A branched network and the losses of its tasks, for `lightning.pytorch.Trainer`.

    Batches are (inputs, {task: labels}), or {task: batch} as Lightning's `CombinedLoader` gives of a loader for each
    task. Labels may be missing, as in `branchnet.fit`: a label that a sample lacks is None, or in floating-point labels
    NaN throughout; its task's loss is the mean over the others, and a task without any in a batch is not run. A batch
    without any label is skipped. Under DDP use the strategy `ddp_find_unused_parameters_true` where a batch may lack a
    task.

    `build` leaves networks in evaluation mode, which Lightning would keep: training begins by putting the network into
    training mode, but for frozen nodes, and ends with evaluation mode. Accumulated batches count the same, however many
    labels each has.

    Logged are `train/loss` and `train/loss/TASK` at each step, and of validation `validation/loss`, the mean over
    tasks, `validation/loss/TASK` and `validation/metric/TASK`, each over all samples with a label.

    Args:
        network: the branched network; it is trained in place.
        losses: for each task a function of (output, labels) to a scalar. The parameters of losses that are modules are
            trained, too, without weight decay.
        weights: of the tasks' losses; see `branchnet.training.weighting_of`.
        learning_rate: peak rate, or a function from a node (`branchnet.builder.Node`) to its peak rate.
        optimizer: from parameter groups to an optimiser; AdamW by default. There is a group for each node and head, by
            its id, so that `LearningRateMonitor` shows each.
        schedule: `"cosine"` (after a warm-up over 5% of the steps), `"constant"`, or a function of (step, steps) to the
            share of the peak rate; the steps are those of the Trainer.
        metrics: for each task a metric that is measured in validation: ours, or an object of torchmetrics.

    Attributes:
        network: the branched network.

    Raises:
        TrainingError: Lightning is not installed; a network that is not branched or can only be evaluated, a loss that
            is missing, weights or metrics that name unknown tasks, a rate that is none.

    >>> import torch, branchnet
    >>> tree = branchnet.Tree.shared(["depth", "edges"], 1)
    >>> networks = {task: branchnet.create("branchnet:scene_network", outputs=1, width=2) for task in tree.tasks}
    >>> images = torch.rand(8, 3, 16, 16)
    >>> branched = branchnet.build(tree, networks, example=images[:2], locations=["layer2"], init="donor")
    >>> module = branchnet.training.LightningBranched(branched, dict.fromkeys(tree.tasks, torch.nn.L1Loss()))
    >>> sorted(module(images, tasks=["depth"]))
    ['depth']
    """

    network: BranchedNetwork

    def __init__(
        self,
        network: BranchedNetwork,
        losses: Mapping[str, Loss],
        *,
        weights: Any = None,
        learning_rate: Rate = 1e-3,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule = "cosine",
        metrics: Mapping[str, AnyMetric] | None = None,
    ) -> None:
        super().__init__()
        of_tasks = trained_losses(network, losses, "LightningBranched")
        self.network = network
        self.of_tasks = of_tasks
        self.loss_modules = nn.ModuleList(module for held in of_tasks.modules.values() for module in held)
        self.weighting: Weighting | None = None
        if weights is not None:
            from branchnet.training.weighting.named_weightings import weighting_of

            self.weighting = weighting_of(weights, of_tasks.tasks, network)
        self.learning_rate, self.optimizer, self.schedule = learning_rate, optimizer, schedule
        self.metrics = {task: read_metric(metric) for task, metric in (metrics or {}).items()}
        if unknown := [task for task in self.metrics if task not in of_tasks.tasks]:
            raise TrainingError(f"metrics name {unknown}; expected some of {list(of_tasks.tasks)}")
        share_of(schedule)
        self._groups()
        self._last_batch: Batches | None = None
        self._sums: Tensor | None = None
        self._running: dict[str, Accumulation] = {}

    def forward(self, x: Any, tasks: Sequence[str] | None = None) -> dict[str, Any]:
        """Compute the outputs of `tasks`, all by default.

        Args:
            x: as for the network.
            tasks: the tasks wanted.

        Returns:
            outputs by task.
        """
        outputs: dict[str, Any] = self.network(x, tasks)
        return outputs

    def on_fit_start(self) -> None:
        """Put the network into training mode."""
        self.network.train()

    def on_fit_end(self) -> None:
        """Put the network into evaluation mode."""
        self.network.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Compute the scalar to minimise.

        Args:
            batch: inputs and labels.
            batch_idx: its number.

        Returns:
            the scalar; None of a batch without labels.
        """
        read = read_batches(batch, self.network)
        if self.weighting is not None:
            self.weighting.begin_step(self.trainer.fit_loop.total_batch_idx)
        losses = self.of_tasks.losses(read)
        self._last_batch = read if losses else None
        if not losses:
            return None
        numbers = {f"train/loss/{task}": loss.detach() for task, loss in losses.items()}
        numbers["train/loss"] = torch.stack(list(numbers.values())).sum()
        self.log_dict(numbers, batch_size=batch_size(read))
        return combined(self.weighting, self.network, losses)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and let the weighting see what it did to the losses.

        Args:
            *args: as for every `LightningModule`.
            **kwargs: the same.
        """
        super().optimizer_step(*args, **kwargs)
        if self.weighting is not None and self.weighting.needs_losses_again and self._last_batch is not None:
            batch = self._last_batch
            with self.trainer.precision_plugin.forward_context():
                self.weighting.after_step(lambda: self.of_tasks.losses(batch))

    def on_validation_epoch_start(self) -> None:
        """Begin to add up losses and metrics."""
        self._sums = torch.zeros(2, len(self.of_tasks.tasks), dtype=torch.float64, device=self.device)
        self._running = {task: metric.accumulation() for task, metric in self.metrics.items()}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to losses and metrics.

        Args:
            batch: inputs and labels.
            batch_idx: its number.
            dataloader_idx: the number of its loader; all count together.
        """
        assert self._sums is not None
        judged = self.of_tasks.judged(read_batches(batch, self.network), self.of_tasks.tasks)
        for task, (output, labels, count) in judged.items():
            loss = self.of_tasks.loss(task, output, labels).double()
            self._sums[:, self.of_tasks.tasks.index(task)] += torch.stack([loss * count, torch.full_like(loss, count)])
            if task in self._running:
                self._running[task].update(output, labels)

    def on_validation_epoch_end(self) -> None:
        """Log losses and metrics over all samples, those of other processes included."""
        assert self._sums is not None
        totals = self.trainer.strategy.reduce(self._sums, reduce_op="sum")
        seen = {
            task: total / count
            for task, total, count in zip(self.of_tasks.tasks, *totals.unbind(), strict=True)
            if count > 0
        }
        numbers = {f"validation/loss/{task}": loss.float() for task, loss in seen.items()}
        if numbers:
            numbers["validation/loss"] = torch.stack(list(numbers.values())).mean()
        if not self.trainer.sanity_checking:
            for task, running in self._running.items():
                running.gather()
                numbers[f"validation/metric/{task}"] = torch.tensor(running.result(), device=self.device)
        self.log_dict(numbers)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Compute the outputs of all tasks.

        Args:
            batch: inputs; labels with them are not read.
            batch_idx: its number.
            dataloader_idx: the number of its loader.

        Returns:
            outputs by task.
        """
        read = read_batches(batch, self.network)
        if isinstance(read, Mapping):
            raise TrainingError("predict was given a batch for each task; expected inputs, or (inputs, labels)")
        found: dict[str, Any] = self(read.inputs)
        return found

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make the optimiser, with a group for each node, and the schedule of its rates.

        Returns:
            both, in Lightning's form.

        Raises:
            TrainingError: a schedule over a number of steps that the Trainer does not know.
        """
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise TrainingError("the schedule needs the number of steps; expected Trainer(max_steps=) or max_epochs=")
        optimizer = (self.optimizer or torch.optim.AdamW)(self._groups())
        share = share_of(self.schedule)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def _groups(self) -> list[dict[str, Any]]:
        names = [node.id for node in self.network.members()]
        groups = self.of_tasks.groups(self.learning_rate)
        names += [f"loss of {task}" for task in self.of_tasks.tasks]
        found = [
            {"name": name, "params": list(one.parameters), "lr": one.learning_rate, "weight_decay": one.weight_decay}
            for name, one in zip(names, groups, strict=True)
            if one.parameters
        ]
        own = [] if self.weighting is None else [p for p in self.weighting.parameters() if p.requires_grad]
        if own:
            rate = 1e-3 if callable(self.learning_rate) else self.learning_rate
            found.append({"name": "weighting", "params": own, "lr": rate, "weight_decay": 0.0})
        return found
