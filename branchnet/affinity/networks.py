"""The networks to compare: one or several per task, all cut at the same locations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import nn

from branchnet.data.call_forms import CallForm, Inputs
from branchnet.errors import AffinityError
from branchnet.stages.interface import call_form

Networks: TypeAlias = Mapping[str, "nn.Module | Sequence[nn.Module]"]


@dataclass(frozen=True)
class Member:
    """One staged network.

    Attributes:
        task: its task.
        seed: its place among the networks of its task.
        network: a StagedNetwork.
        label: how errors and logs name it.
    """

    task: str
    seed: int
    network: Any
    label: str

    @property
    def stages(self) -> nn.ModuleList:
        """The stages, from input to output."""
        stages: nn.ModuleList = self.network.stages
        return stages


@dataclass(frozen=True)
class Family:
    """All networks of an affinity, tasks in order, and the names of the locations they share."""

    members: tuple[Member, ...]
    locations: tuple[str, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, in order."""
        return tuple(dict.fromkeys(member.task for member in self.members))

    @property
    def identical(self) -> npt.NDArray[np.bool_]:
        """Which pairs of tasks have identical weights up to a location, (D, N, N); none of tasks with several."""
        from branchnet.stages import StagedNetwork, identical_prefixes

        found = np.zeros((len(self.locations), len(self.tasks), len(self.tasks)), np.bool_)
        networks = {member.task: member.network for member in self.members}
        if len(networks) == len(self.members) and all(isinstance(each, StagedNetwork) for each in networks.values()):
            for d, groups in enumerate(identical_prefixes(networks)):
                for group in groups:
                    members = np.array([self.tasks.index(task) for task in group])
                    found[d, members[:, None], members] = True
        return found

    @property
    def depths(self) -> dict[str, int]:
        """How many stages the tasks pass that leave the trunk early."""
        most = len(self.locations)
        found = {member.task: int(getattr(member.network, "depth", most)) for member in self.members}
        return {task: depth for task, depth in found.items() if depth < most}


def form_of(networks: Networks) -> CallForm:
    """What the first network takes.

    Raises:
        AffinityError: no network.
    """
    return call_form(_flatten(networks)[0][2])


def gather_networks(networks: Networks, example: Inputs, locations: int | Sequence[str] | None) -> Family:
    """Flatten the mapping and cut the networks that are not staged yet.

    Raises:
        AffinityError: no network, staged networks mixed with plain ones, or cut at different places.
        SplitError: plain networks that cannot be cut.
    """
    flat = _flatten(networks)
    staged = [is_staged(network) for _, _, network, _ in flat]
    if not all(staged) and any(staged):
        plain = flat[staged.index(False)][3]
        raise AffinityError(
            f"{plain} is not split while others are; expected plain networks only, or all of them split"
        )
    if all(staged):
        if locations is not None:
            raise AffinityError(
                f"locations is {locations!r} for networks that are split already; expected None: they have their own"
            )
        cut = [network for _, _, network, _ in flat]
    else:
        cut = _split(flat, example, locations)
    members = [Member(task, seed, network, label) for (task, seed, _, label), network in zip(flat, cut, strict=True)]
    names = tuple(members[0].network.locations)
    for member in members:
        if len(member.stages) != len(names):
            raise AffinityError(
                f"{member.label} has {len(member.stages)} stages, {members[0].label} {len(names)}; expected the same "
                "cuts: split them together with split_all"
            )
    return Family(tuple(members), names)


def _flatten(networks: Networks) -> list[tuple[str, int, nn.Module, str]]:
    if not isinstance(networks, Mapping) or not networks:
        raise AffinityError(
            f"networks is a {type(networks).__name__}; expected a mapping of at least one task name to its network, or "
            "to a list of networks of different seeds"
        )
    flat = []
    for task, entry in networks.items():
        several = [entry] if isinstance(entry, nn.Module) else list(entry)
        if not several or not all(isinstance(network, nn.Module) for network in several):
            raise AffinityError(
                f"task {task!r} has a {type(entry).__name__}; expected an nn.Module, or a non-empty sequence of them"
            )
        for seed, network in enumerate(several):
            label = f"task {task!r}" if len(several) == 1 else f"task {task!r}, network {seed}"
            flat.append((task, seed, network, label))
    return flat


def is_staged(network: nn.Module) -> bool:
    """Whether a network has stages and locations: a StagedNetwork, or one written by hand in the same form."""
    return isinstance(getattr(network, "stages", None), nn.ModuleList) and hasattr(network, "locations")


def _split(
    flat: Sequence[tuple[str, int, nn.Module, str]], example: Inputs, locations: int | Sequence[str] | None
) -> list[nn.Module]:
    from branchnet.stages import split_all

    named = {label: network for _, _, network, label in flat}
    return list(split_all(named, example, locations=locations).values())
