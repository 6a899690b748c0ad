"""What a specification says of live things: networks, a search and its affinities, the installed packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

from branchnet.clustering.budgets.budget import Budget
from branchnet.errors import SpecError
from branchnet.models.constructors import Constructor, constructor_of, split_name
from branchnet.specification.sections import InputSection, SearchSection, budget_text

if TYPE_CHECKING:
    from torch import nn

    from branchnet.affinity import Affinity
    from branchnet.clustering import SearchResult
    from branchnet.stages import Interface, StagedNetwork


def staged_networks(networks: Mapping[str, nn.Module], tasks: Sequence[str]) -> dict[str, StagedNetwork]:
    """Return those of the networks that are staged.

    Args:
        networks: plain or staged networks by task.
        tasks: the tasks of the tree.

    Raises:
        SpecError: networks of other tasks.
    """
    unknown = [task for task in networks if task not in tasks]
    if unknown:
        raise SpecError(f"networks are given for unknown tasks {unknown}; expected some of {list(tasks)}")
    # By attribute, not by class: reading a specification must not import torch.
    staged: dict[str, Any] = {task: net for task, net in networks.items() if hasattr(net, "head_cost")}
    return staged


def constructor(network: nn.Module) -> Constructor | None:
    """Return how a network, plain or staged, was made by name; None where it was not."""
    return network.constructor if hasattr(network, "head_cost") else constructor_of(network)  # type: ignore[return-value]


def search_section(
    result: SearchResult, affinity: Affinity | None, budget: Budget | str | None, seed: int | None
) -> SearchSection:
    """Describe how a tree was found; arguments as in `Architecture.from_search`."""
    budget = result.budget if budget is None else budget
    return SearchSection(
        budget=None if budget is None else budget_text(budget),
        objective=result.objective,
        measure=affinity.measure if affinity is not None else None,
        method=result.method,
        cost=result.cost,
        size=result.size,
        unit=result.unit,  # type: ignore[arg-type]
        lower_bound=result.lower_bound,
        proven=result.proven,
        probe_hash=affinity.probe_hash if affinity is not None else None,
        seed=seed,
    )


def input_sections(interface: Interface | None) -> InputSection | tuple[InputSection, ...] | None:
    """Describe what the networks take."""
    if interface is None:
        return None
    plain = interface.to_dict()
    sections = [InputSection(**tensor) for tensor in plain["tensors"]]
    if plain["form"] == "tensor":
        return sections[0]
    names = plain.get("names") or [None] * len(sections)
    return tuple(section.model_copy(update={"name": name}) for section, name in zip(sections, names, strict=True))


def versions(constructors: Mapping[str, Constructor | None]) -> dict[str, str]:
    """Return the versions of branchnet, torch, and the packages that make the networks."""
    families = {split_name(made.name)[0] for made in constructors.values() if made is not None}
    found = {}
    for package in sorted({"branchnet", "torch", *families}):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
