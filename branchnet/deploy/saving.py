"""A branched network as a folder: `architecture.yaml` says what it is, `weights.safetensors` holds its numbers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from torch import nn

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.grouped_networks import GroupedNetworks
from branchnet.builder.sharing_network import SharingNetwork
from branchnet.clustering import Sharing, Tree
from branchnet.deploy.checkpoint_metadata import joined_records, read_record, restore, separate_records, write_record
from branchnet.deploy.weight_files import (
    file_checksum,
    load_weights,
    read_metadata,
    save_weights,
    stored_tensors,
)
from branchnet.errors import CheckpointError, SpecError
from branchnet.specification.architecture import Architecture
from branchnet.specification.grouped.grouped_architecture import GroupedArchitecture, is_grouped
from branchnet.specification.grouped.sharing_architecture import SharingArchitecture, is_sharing
from branchnet.utils.files import atomic_write
from branchnet.utils.tensor_digest import checksum

ARCHITECTURE = "architecture.yaml"
WEIGHTS = "weights.safetensors"
RECORD = "branchnet"
"""The name in the weights' metadata under which the rest of the network's state stands."""


AnyNetwork: TypeAlias = BranchedNetwork | GroupedNetworks | SharingNetwork
AnyArchitecture: TypeAlias = Architecture | GroupedArchitecture | SharingArchitecture


def save(
    branched: AnyNetwork,
    directory: str | os.PathLike[str],
    *,
    architecture: AnyArchitecture | None = None,
) -> None:
    """Write `branched` into `directory`, made where it is missing; files of these names are replaced, with a
    warning where they are of other tasks or of another tree.

    Which nodes are frozen, which stages are recomputed, where `build` took the initial weights from, and a checksum of
    the tensors, is kept in the metadata of the weights' file.

    Args:
        branched: the network; or `GroupedNetworks`, with all of their tasks; or a `SharingNetwork`.
        directory: the folder.
        architecture: the specification to write, e.g. `Architecture.from_search(...)`, which also says how the tree was
            found; by default the network is described as it is. Stitches are written as the network has them.

    Raises:
        CheckpointError: not a branched network; a specification of another tree, or with its tasks in another order; or
            a file that cannot be written, as on a full disk: those that were there before are as they were.

    >>> import os, tempfile, torch, branchnet
    >>> tree, images = branchnet.Tree.shared(["depth", "edges"], 1), torch.rand(2, 3, 16, 16)
    >>> networks = {task: branchnet.create("branchnet:scene_network", outputs=1, width=2) for task in tree.tasks}
    >>> branched = branchnet.build(tree, networks, example=images, locations=["layer2"], init="donor")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     branchnet.save(branched, folder)
    ...     sorted(os.listdir(folder))
    ['architecture.yaml', 'weights.safetensors']
    """
    if not isinstance(branched, BranchedNetwork | GroupedNetworks | SharingNetwork):
        raise CheckpointError(
            f"the network is a {type(branched).__name__}; expected what branchnet.build returned; "
            "branchnet.deploy.save_weights(network, path) writes the weights of any module"
        )
    described = _described(branched, architecture)
    _warn_of_another(Path(directory) / ARCHITECTURE, described)
    sha256 = checksum(sorted(stored_tensors(branched).items()))
    records = [write_record(network, sha256=sha256) for network in _networks_of(branched)]
    metadata = {RECORD: joined_records(records) if isinstance(branched, GroupedNetworks) else records[0]}
    try:
        # Written before the weights take their place, and renamed after: both files are of one network, or as before.
        with atomic_write(Path(directory) / ARCHITECTURE) as written:
            described.save(written)
            save_weights(branched, Path(directory) / WEIGHTS, metadata=metadata)
    except OSError as error:
        raise CheckpointError(f"{Path(directory) / ARCHITECTURE} cannot be written: {error}") from error


def _warn_of_another(file: Path, described: AnyArchitecture) -> None:
    """Warn where the folder holds a network of other tasks or of another tree, or what cannot be read."""
    if not file.exists():
        return
    try:
        before = _shared(_read(file))
    except SpecError as error:
        warnings.warn(f"{file} is replaced; it could not be read: {str(error).splitlines()[0]}", stacklevel=3)
        return
    if before != (trees := _shared(described)):
        held, new = (" and ".join(", ".join(tree.tasks) for tree in each) for each in (before, trees))
        what = f"of {held}" if held != new else "with another tree"
        warnings.warn(
            f"{file.parent} held a network {what}, which is replaced; give each network a folder of its own",
            stacklevel=3,
        )


def _read(file: Path) -> AnyArchitecture:
    if is_sharing(file):
        return SharingArchitecture.load(file)
    return GroupedArchitecture.load(file) if is_grouped(file) else Architecture.load(file)


def _shared(described: AnyArchitecture) -> list[Tree | Sharing]:
    if isinstance(described, SharingArchitecture):
        return [described.task_sharing]
    if isinstance(described, Architecture):
        return [described.tree]
    return [group.architecture.tree for group in described.groups]


def _networks_of(network: AnyNetwork) -> tuple[BranchedNetwork, ...]:
    """The branched networks whose records are kept; of a sharing network the tasks' paths as one."""
    if isinstance(network, SharingNetwork):
        return (network.separate_paths(),)
    return network.branched_networks if isinstance(network, GroupedNetworks) else (network,)


def _described(network: AnyNetwork, architecture: AnyArchitecture | None) -> AnyArchitecture:
    """The specification to write, given or not: checked, and with the stitches that the network has."""
    if isinstance(network, SharingNetwork):
        described = SharingArchitecture.from_network(network)
        if architecture is not None and architecture != described:
            raise CheckpointError("the architecture is not the sharing network's own; expected architecture=None")
        return described
    if isinstance(network, BranchedNetwork):
        if architecture is not None and not isinstance(architecture, Architecture):
            raise CheckpointError("the architecture describes several networks; expected that of the one network")
        return _with_stitches(architecture or Architecture.from_network(network), network)
    if architecture is None:
        return GroupedArchitecture.from_networks(network)
    serving = GroupedArchitecture.from_networks(network)
    served = [set(group.serves) for group in serving.groups]
    if not isinstance(architecture, GroupedArchitecture) or [set(g.serves) for g in architecture.groups] != served:
        raise CheckpointError(f"the architecture is of other networks; expected one whose groups serve {served}")
    pairs = zip(architecture.groups, network.branched_networks, strict=True)
    each = [_with_stitches(group.architecture, one) for group, one in pairs]
    return GroupedArchitecture.of(each, [group.serves for group in serving.groups])


def _with_stitches(architecture: Architecture, branched: BranchedNetwork) -> Architecture:
    if architecture.tree != branched.tree:
        raise CheckpointError(
            f"the architecture describes another tree:\n{architecture.tree}\nexpected the network's:\n{branched.tree}"
        )
    if architecture.tree.tasks != branched.tree.tasks:
        raise CheckpointError(
            f"the architecture lists the tasks as {list(architecture.tree.tasks)}; expected {list(branched.tasks)}, "
            "the network's order: the weights of nodes and heads are in that order"
        )
    return architecture.model_copy(update={"stitches": Architecture.from_network(branched).stitches})


def load(directory: str | os.PathLike[str], networks: Mapping[str, nn.Module] | None = None) -> AnyNetwork:
    """Read the branched network that `save` wrote, in eval mode on the CPU, with its frozen nodes frozen.

    `initialisation` is that of the network that was saved; None where the file does not tell. Weights that were trained
    elsewhere may take the file's place: without branchnet's metadata they have no checksum to keep to.

    Args:
        directory: the folder.
        networks: single-task networks for the tasks without a named constructor; only their structure counts, and the
            transforms that `split_all` was given, which are not in the folder: staged networks with the same ones.

    Returns:
        the network; `GroupedNetworks` or a `SharingNetwork` where those were saved.

    Raises:
        SpecError: a specification that is not valid, or tasks whose networks must be passed.
        CheckpointError: weights that are missing, damaged or do not fit, or whose metadata tells of other nodes, of
            other transforms or of another checksum.

    >>> import tempfile, torch, branchnet
    >>> tree, images = branchnet.Tree.shared(["depth", "edges"], 1), torch.rand(2, 3, 16, 16)
    >>> networks = {task: branchnet.create("branchnet:scene_network", outputs=1, width=2) for task in tree.tasks}
    >>> branched = branchnet.build(tree, networks, example=images, locations=["layer2"], init="donor").eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     branchnet.save(branched, folder)
    ...     loaded = branchnet.load(folder)
    >>> torch.equal(loaded(images)["edges"], branched(images)["edges"])
    True
    """
    if not (Path(directory) / ARCHITECTURE).exists():
        raise CheckpointError(f"{Path(directory)} has no {ARCHITECTURE}; expected a folder that branchnet.save wrote")
    file = Path(directory) / ARCHITECTURE
    branched = _read(file).build(networks)
    branched.eval()
    weights = Path(directory) / WEIGHTS
    stored = read_metadata(weights).get(RECORD)
    load_weights(branched, weights)
    for network in _networks_of(branched):
        network.initialisation = None
    if stored is not None:
        _restore_records(branched, stored, weights)
    return branched


def _restore_records(branched: AnyNetwork, stored: str, weights: Path) -> None:
    """Give every network what its record says, after the checksum of all weights."""
    inner = _networks_of(branched)
    texts = separate_records(stored, len(inner)) if isinstance(branched, GroupedNetworks) else [stored]
    records = [read_record(text, network) for text, network in zip(texts, inner, strict=True)]
    sums = {record.sha256 for record in records} - {None}
    if sums and sums != {file_checksum(weights)}:
        raise CheckpointError(
            f"{weights} is damaged or was changed: its tensors do not have the checksum that was saved with them "
            f"(if the change is meant, write the tensors without the metadata {RECORD!r}: "
            "safetensors.torch.save_file(tensors, path))"
        )
    for record, network in zip(records, inner, strict=True):
        restore(record, network)
