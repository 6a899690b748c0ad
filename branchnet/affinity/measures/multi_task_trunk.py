"""A trunk with heads, as look-ahead probing runs it: any node with other weights, from any cut, side-effect free.

Nodes are numbered by stage and place; a shared trunk has one node per stage, a branched one as many as its tree says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from branchnet.affinity.features.isolation import device_of
from branchnet.affinity.networks import is_staged
from branchnet.data.call_forms import Inputs
from branchnet.errors import AffinityError
from branchnet.stages.graph.propagation import tensors_by_name
from branchnet.utils.random_state import start_generators

Weights: TypeAlias = Mapping[nn.Parameter, Tensor]
Cut: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class Trunk:
    """Stages and heads of a multi-task network.

    Attributes:
        tasks: N task names.
        locations: D names, the ends of the stages.
        nodes: the modules of every stage.
        clusters: `clusters[d][t]`, the node of stage d that serves task t.
        heads: one per task: cut -> output.
        depths: how many stages the tasks pass that leave the trunk early; their nodes there are empty.
    """

    tasks: tuple[str, ...]
    locations: tuple[str, ...]
    nodes: tuple[tuple[nn.Module, ...], ...]
    clusters: tuple[tuple[int, ...], ...]
    heads: tuple[Callable[..., Any], ...]
    depths: Mapping[str, int] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """D, the number of stages."""
        return len(self.nodes)

    def parameters(self, stage: int, node: int) -> list[nn.Parameter]:
        """Trainable parameters of one node."""
        return [parameter for parameter in self.nodes[stage][node].parameters() if parameter.requires_grad]

    def path_parameters(self, task: int) -> list[nn.Parameter]:
        """Trainable parameters on one task's path, each once."""
        found = [p for d in range(self.depth) for p in self.parameters(d, self.clusters[d][task])]
        return list(dict.fromkeys(found))

    def run(
        self,
        inputs: Inputs,
        tasks: Sequence[int],
        weights: Weights,
        seed: int,
        *,
        first: int = 0,
        cuts: Mapping[tuple[int, int], Cut] | None = None,
    ) -> dict[tuple[int, int], Cut]:
        """The cut after every node that `tasks` need, from stage `first` on.

        Args:
            inputs: the batch.
            tasks: numbers of the tasks.
            weights: values to use in place of parameters.
            seed: of dropout and other random layers.
            first: the first stage to run.
            cuts: those known before stage `first`.
        """
        known = dict(cuts or {})
        for stage in range(first, self.depth):
            for node in sorted({self.clusters[stage][task] for task in tasks}):
                member = next(task for task in tasks if self.clusters[stage][task] == node)
                # A seed for each node: dropout draws the same masks again wherever a look-ahead starts.
                module = self.nodes[stage][node]
                start_generators(seed + 1000 * stage + node, device_of(module))
                before: Inputs = inputs if stage == 0 else own_copy(known[stage - 1, self.clusters[stage - 1][member]])
                after = _stateless(module, before, weights)
                known[stage, node] = after if isinstance(after, tuple) else (after,)
        return known

    def output(self, task: int, cuts: Mapping[tuple[int, int], Cut], seed: int) -> Any:
        """What a task's head makes of the last cut."""
        start_generators(seed + 1000 * self.depth + task, device_of(self.nodes[-1][self.clusters[-1][task]]))
        cut = own_copy(cuts[self.depth - 1, self.clusters[-1][task]])
        head = self.heads[task]
        return _stateless(head, cut, {}) if isinstance(head, nn.Module) else head(*cut)


def trunk_of(model: nn.Module, heads: Mapping[str, Callable[..., Any]] | None) -> Trunk:
    """Read the stages and heads of a branched network, of a staged network with heads, or of any trunk with heads.

    Raises:
        AffinityError: heads missing, or given to a network that has its own.
    """
    if hasattr(model, "nodes") and hasattr(model, "tree"):
        return _branched(model, heads)
    if not heads:
        raise AffinityError("the model is a trunk without named heads; expected heads={task: callable}")
    staged: Any = model if is_staged(model) else None
    nodes = tuple((stage,) for stage in staged.stages) if staged is not None else ((model,),)
    locations = tuple(str(name) for name in staged.locations) if staged is not None else ("trunk",)
    clusters = tuple((0,) * len(heads) for _ in nodes)
    return Trunk(tuple(heads), locations, nodes, clusters, tuple(heads.values()))


def _branched(model: Any, heads: Mapping[str, Callable[..., Any]] | None) -> Trunk:
    if heads is not None:
        raise AffinityError("heads were given for a branched network; expected heads=None: it has its own")
    tasks = tuple(model.tasks)
    clusters = []
    for partition in model.tree.partitions:
        place = {task: node for node, group in enumerate(partition) for task in group}
        clusters.append(tuple(place[task] for task in tasks))
    nodes = tuple(tuple(stage) for stage in model.nodes)
    return Trunk(tasks, tuple(model.locations), nodes, tuple(clusters), tuple(model.heads), dict(model.tree.depths))


def own_copy(cut: Cut) -> Cut:
    """Several nodes or heads read one cut; one that works in place must not change it for the others."""
    return tuple(item.clone() if isinstance(item, Tensor) else item for item in cut)


def _stateless(module: nn.Module, batch: Inputs, weights: Weights) -> Any:
    """Call a module with other weights and with copies of its buffers."""
    buffers = {id(buffer): buffer.clone() for buffer in module.buffers()}
    values = {
        name: weights.get(tensor, tensor) if isinstance(tensor, nn.Parameter) else buffers[id(tensor)]
        for name, tensor in tensors_by_name(module).items()
    }
    args = batch if isinstance(batch, tuple) else () if isinstance(batch, dict) else (batch,)
    kwargs = batch if isinstance(batch, dict) else {}
    return torch.func.functional_call(module, values, args, kwargs, tie_weights=False)
