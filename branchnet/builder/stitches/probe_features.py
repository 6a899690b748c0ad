"""What networks make of a probe, kept between the steps of stitching as far as memory allows.

Stitches are fitted from the top down, and each step needs the features before one stage: of the donors' own networks,
and those that arrive in the branched one. They go on from where the last step ended. What does not fit into memory is
computed again from the inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from branchnet.affinity.probes import Probe, on_device
from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.node import Node
from branchnet.data.collation import gather, length
from branchnet.stages import StagedNetwork, call
from branchnet.stitching.channels import copied
from branchnet.stitching.fitting import feature_dimensions, inputs_needed
from branchnet.stitching.output_distances import OutputKind, OwnOutput
from branchnet.stitching.probe_division import ProbeDivision, chosen_inputs
from branchnet.utils.installed_torch.torch_internals import pytree

Part: TypeAlias = Literal["fitted", "judged"]
Cut: TypeAlias = tuple[Any, ...]
KEPT_BYTES = 512 * 2**20
"""Of features so much is kept."""


@dataclass(frozen=True)
class Batch:
    """Some inputs of a probe.

    Attributes:
        part: whether they are fitted or judged on.
        number: of the batch within that part.
        inputs: the inputs, which nothing may write into.
    """

    part: Part
    number: int
    inputs: Any

    def __len__(self) -> int:
        """How many inputs there are."""
        return length(self.inputs)


class Kept:
    """Values by key, as many as fit into memory."""

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}
        self._free = KEPT_BYTES

    def get(self, key: Any) -> Any:
        """The value of a key; None where it is not kept."""
        return self._values.get(key)

    def put(self, key: Any, value: Any) -> Any:
        """Keep a value if there is room, and return it."""
        size = sum(leaf.nbytes for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor | OwnOutput))
        if size <= self._free and key not in self._values:
            self._values[key] = value
            self._free -= size
        return value


class OwnFeatures:
    """What the donors' own networks make of a probe.

    Args:
        networks: the donors by task.
        probe: inputs of all networks.
        device: where the networks are.
        division: which inputs to fit on, and which to judge on; it may be set later.
    """

    def __init__(
        self,
        networks: Mapping[str, StagedNetwork],
        probe: Probe,
        device: torch.device,
        division: ProbeDivision | None = None,
    ) -> None:
        self.networks, self.probe, self.device = networks, probe, device
        self.division = ProbeDivision((), ()) if division is None else division
        self._kept = Kept()
        self._looked: dict[str, tuple[list[Cut], list[Cut]]] = {}

    def dimensions(self, donor: str, stage: int) -> dict[int, int]:
        """Where the cut before a stage of a donor's network, or before its head, has its channels.

        Args:
            donor: the donor.
            stage: the number of the stage; of the head that of all stages.

        Returns:
            for the number of each tensor of features the dimension.
        """
        cuts, of_one = self._look(donor)
        stages = self.networks[donor].stages
        return feature_dimensions(cuts[stage - 1], of_one[stage - 1], stages[stage - 1], self.rest(donor, stage)[0])

    def inputs_needed(self, donor: str, stage: int) -> int:
        """How many inputs a map to that cut needs."""
        cuts, _ = self._look(donor)
        return inputs_needed(cuts[stage - 1], length(self.probe.example), self.dimensions(donor, stage))

    def _look(self, donor: str) -> tuple[list[Cut], list[Cut]]:
        """The cuts after all stages, of the probe's example and of one input."""
        if donor not in self._looked:
            found = []
            for inputs in (self.probe.example, gather(self.probe.example, slice(0, 1))):
                value, cuts = on_device(inputs, self.device), []
                for number, stage in enumerate(self.networks[donor].stages):
                    value = stage(*copied(value)) if number else call(stage, value)
                    cuts.append(value)
                found.append(cuts)
            self._looked[donor] = (found[0], found[1])
        return self._looked[donor]

    def batches(self, part: Part, most: int | None = None) -> Iterator[Batch]:
        """Go through the inputs.

        Args:
            part: which ones.
            most: about how many are enough, evenly spread; all by default.

        Yields:
            them in batches.
        """
        numbers = self.division.fitted if part == "fitted" else self.division.judged
        every = 1 if most is None else max(1, len(numbers) // most)
        for number, inputs in enumerate(chosen_inputs(self.probe.batches("stitching"), numbers)):
            if number % every == 0:
                yield Batch(part, number, inputs)

    def cut(self, batch: Batch, donor: str, stage: int) -> Cut:
        """The cut before a stage, 1 or later, of a donor's network, which nothing may write into."""
        known = range(stage, 0, -1)
        start = next((d for d in known if self._kept.get(self._key(batch, donor, d)) is not None), 0)
        stages = self.networks[donor].stages[start:stage]
        if start == stage:
            found: Cut = self._kept.get(self._key(batch, donor, stage))
            return found
        if start:
            value = run(stages, copied(self._kept.get(self._key(batch, donor, start))))
        else:
            value = run(stages, on_device(batch.inputs, self.device), first=True)
        kept: Cut = self._kept.put(self._key(batch, donor, stage), value)
        return kept

    def output(self, batch: Batch, donor: str) -> Any:
        """A donor's own output, which nothing may write into."""
        key = self._key(batch, donor, None)
        found = self._kept.get(key)
        if found is None:
            network = self.networks[donor]
            found = self._kept.put(key, network.head(*copied(self.cut(batch, donor, len(network.stages)))))
        return found

    def own_output(self, batch: Batch, donor: str, kind: OutputKind) -> OwnOutput:
        """The same, prepared for comparisons with it."""
        key = (*self._key(batch, donor, None), kind)
        found: OwnOutput | None = self._kept.get(key)
        return self._kept.put(key, OwnOutput.of(self.output(batch, donor), kind)) if found is None else found

    def rest(self, donor: str, stage: int) -> list[nn.Module]:
        """The donor's stages from one on, and its head."""
        network = self.networks[donor]
        return [*network.stages[stage : network.depth], network.head]

    @staticmethod
    def _key(batch: Batch, donor: str, stage: int | None) -> tuple[Any, ...]:
        return batch.part, batch.number, donor, stage


class ArrivingFeatures:
    """What the nodes of a branched network make of the probe. Nodes must not change once they have been asked for.

    Args:
        branched: the network.
        own: what the donors' own networks make of it.
    """

    def __init__(self, branched: BranchedNetwork, own: OwnFeatures) -> None:
        self.branched, self.own = branched, own
        self._kept = Kept()
        self._same: dict[str, bool] = {}
        self._members = {node.id: node for node in branched.members()}

    def after(self, batch: Batch, name: str) -> Cut:
        """The cut after a node, which nothing may write into.

        Args:
            batch: the inputs.
            name: id of the node.
        """
        node = self._members[name]
        if self._is_own(name):
            return self.own.cut(batch, node.donor, node.stage + 1)
        key = (batch.part, batch.number, name)
        found: Cut | None = self._kept.get(key)
        if found is not None:
            return found
        module = self.branched.member(name).module  # that of now: a stitch may have been put in front
        if parent := self.branched.parent_of(node):
            value = module(*copied(self.after(batch, parent)))
        else:
            value = call(module, on_device(batch.inputs, self.own.device))
        kept: Cut = self._kept.put(key, value)
        return kept

    def _is_own(self, name: str) -> bool:
        """Whether a node's features are those of its donor's own network."""
        if name not in self._same:
            node, parent = self._members[name], self.branched.parent_of(self._members[name])
            above = not parent or (self._members[parent].donor == node.donor and self._is_own(parent))
            self._same[name] = above and node.donor in self.own.networks and self._is_copy(node)
        return self._same[name]

    def _is_copy(self, node: Node) -> bool:
        original = self.own.networks[node.donor].stages[node.stage].state_dict()
        state = self.branched.member(node.id).module.state_dict()
        return state.keys() == original.keys() and all(
            torch.equal(value, original[key]) for key, value in state.items()
        )


class BelowStitches(nn.Module):
    """The nodes and heads below stitches as a network of its own: from the cuts before them to the tasks' outputs.

    Args:
        branched: the network.
        nodes: those nodes and heads, from input to output.
    """

    def __init__(self, branched: BranchedNetwork, nodes: Sequence[Node]) -> None:
        super().__init__()
        self._nodes = list(nodes)
        self._parents = {node.id: branched.parent_of(node) for node in nodes}
        self.inner = nn.ModuleList(node.module for node in nodes)
        inside = {node.id for node in nodes}
        self.before = tuple(dict.fromkeys(name for name in self._parents.values() if name not in inside))

    def forward(self, cuts: Mapping[str, Cut]) -> dict[str, Any]:
        """Run the nodes and heads.

        Args:
            cuts: the cuts after the nodes of `before`, by id.

        Returns:
            outputs by task.
        """
        values = dict(cuts)
        outputs = {}
        for node in self._nodes:
            value = node.module(*copied(values[self._parents[node.id]]))
            if node.is_head:
                outputs[node.tasks[0]] = value
            else:
                values[node.id] = value
        return outputs


class Chain(nn.Module):
    """Stages one after another, from the cut before the first to the cut after the last.

    Args:
        stages: the stages, which are not copied.
    """

    def __init__(self, stages: Iterable[nn.Module]) -> None:
        super().__init__()
        self.inner = nn.ModuleList(stages)

    def forward(self, *cut: Any) -> Cut:
        """Run the stages.

        Args:
            *cut: what the first one takes, which is not written into.

        Returns:
            what the last one returns.
        """
        after: Cut = run(self.inner, copied(cut))
        return after


def run(modules: Sequence[nn.Module] | nn.ModuleList, value: Any, *, first: bool = False) -> Any:
    """Run stages one after another.

    Args:
        modules: stages, or stages and a head.
        value: the cut before them, or the inputs of the network.
        first: whether `value` is the inputs of the network.

    Returns:
        the cut after them, or the head's output.
    """
    for module in modules:
        value = call(module, value) if first else module(*value)
        first = False
    return value
