"""Branched networks as folders with a model card, on disk and on the Hugging Face Hub.

The conventions are those of huggingface_hub's `PyTorchModelHubMixin`, as functions: a network stays a plain module.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.grouped_networks import GroupedNetworks
from branchnet.builder.sharing_network import SharingNetwork
from branchnet.deploy.hub.hub_card import CardFields, hub_card
from branchnet.deploy.hub.source_models import HUB_ID
from branchnet.deploy.saving import ARCHITECTURE, WEIGHTS, load, save
from branchnet.errors import CheckpointError
from branchnet.specification.architecture import Architecture
from branchnet.specification.grouped.grouped_architecture import GroupedArchitecture
from branchnet.utils.files import write_text

CARD = "README.md"


def save_pretrained(
    branched: BranchedNetwork | GroupedNetworks,
    folder: str | os.PathLike[str],
    *,
    architecture: Architecture | GroupedArchitecture | None = None,
    card: CardFields | None = None,
) -> None:
    """Write a folder as `branchnet.save` does, with a model card (README.md) that the Hub reads.

    A card that is there already is kept, as huggingface_hub keeps it, with a warning where it would be written
    differently. Conflicts of the licences of source models stand on the card and are warned of.

    Args:
        branched: the network.
        folder: where to write, made where it is missing.
        architecture: see `branchnet.save`.
        card: what the card says beyond the network itself.

    Raises:
        SpecError: fields of the card that are not valid: unknown tasks, licences, metrics.
        CheckpointError: as `branchnet.save`.

    >>> import os, tempfile
    >>> tree, images = branchnet.Tree.shared(["depth", "edges"], 1), torch.rand(2, 3, 16, 16)
    >>> networks = {task: branchnet.create("branchnet:scene_network", outputs=1, width=2) for task in tree.tasks}
    >>> branched = branchnet.build(tree, networks, example=images, locations=["layer2"], init="donor").eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     branchnet.deploy.save_pretrained(branched, folder, card=branchnet.deploy.CardFields(license="mit"))
    ...     loaded = branchnet.deploy.from_pretrained(folder)
    ...     sorted(os.listdir(folder))
    ['README.md', 'architecture.yaml', 'weights.safetensors']
    >>> torch.equal(loaded(images)["edges"], branched(images)["edges"])
    True
    """
    if not isinstance(branched, BranchedNetwork | GroupedNetworks):
        raise CheckpointError(f"the network is a {type(branched).__name__}; expected what branchnet.build returned")
    target = Path(folder)
    text, conflicts = hub_card(branched, card or CardFields(), target.resolve().name)
    for conflict in conflicts:
        warnings.warn(f"licences: {conflict}", stacklevel=2)
    save(branched, target, architecture=architecture)
    if (target / CARD).exists():
        if (target / CARD).read_text(encoding="utf-8") != text:
            warnings.warn(f"{target / CARD} is kept as it is; delete it to have it written again", stacklevel=2)
        return
    try:
        write_text(target / CARD, text)
    except OSError as error:
        raise CheckpointError(f"{target / CARD} cannot be written: {error}") from error


def from_pretrained(
    folder_or_id: str | os.PathLike[str],
    networks: Mapping[str, nn.Module] | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> BranchedNetwork | GroupedNetworks | SharingNetwork:
    """Read a branched network from a folder, or from the Hub where there is no folder of that name.

    Two files are downloaded, the specification and the weights; neither runs code, see `branchnet.load`.

    Args:
        folder_or_id: a folder that `save_pretrained` or `branchnet.save` wrote, or `OWNER/NAME` on the Hub.
        networks: see `branchnet.load`.
        revision: branch, tag or commit.
        token: for repositories that are not public.
        cache_dir: where downloads are kept.
        force_download: download again what is kept.
        local_files_only: take what is kept, and download nothing.

    Returns:
        as `branchnet.load`: in eval mode, on the CPU.

    Raises:
        CheckpointError: neither a folder nor an id on the Hub, huggingface_hub is not installed, a download that
            failed, or as `branchnet.load`.
        SpecError: as `branchnet.load`.
    """
    if Path(folder_or_id).is_dir():
        return load(folder_or_id, networks)
    name = os.fspath(folder_or_id)
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"{name!r} is neither a folder nor an id on the Hub; expected a folder or 'OWNER/NAME'")
    hub = _hub()
    try:
        folder = hub.snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            allow_patterns=[ARCHITECTURE, WEIGHTS],
        )
    except Exception as error:  # of the connection, the server or the cache: there are many, of several packages
        raise CheckpointError(f"{name!r} is no folder, and was not found on the Hub: {error}") from error
    return load(folder, networks)


def push_to_hub(
    branched: BranchedNetwork | GroupedNetworks,
    repo_id: str,
    *,
    architecture: Architecture | GroupedArchitecture | None = None,
    card: CardFields | None = None,
    commit_message: str = "Push model using branchnet.",
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
) -> str:
    """Upload a branched network to the Hub, in one commit; the repository is made where it is missing.

    Args:
        branched: the network.
        repo_id: `OWNER/NAME`, or `NAME` for one of your own.
        architecture: see `branchnet.save`.
        card: see `save_pretrained`.
        commit_message: of the commit.
        private: whether a repository that is made is private; by default as the owner has set it.
        token: by default that of `hf auth login`.
        branch: by default the main one.
        create_pr: open a pull request instead of committing to the branch.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: huggingface_hub is not installed, or the Hub refused something: nothing was committed.
        SpecError: as `save_pretrained`.
    """
    hub = _hub()
    with tempfile.TemporaryDirectory(prefix="branchnet-") as temporary:
        folder = Path(temporary) / repo_id.rpartition("/")[2]
        save_pretrained(branched, folder, architecture=architecture, card=card)
        try:
            api = hub.HfApi(token=token)
            full_id = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
            if api.file_exists(full_id, CARD, revision=branch):
                warnings.warn(f"{full_id} has a {CARD} already, which is kept", stacklevel=2)
                (folder / CARD).unlink()
            commit = api.upload_folder(
                repo_id=full_id,
                repo_type="model",
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
            )
        except Exception as error:  # of the connection or the server: there are many, of several packages
            raise CheckpointError(f"{repo_id!r} was not uploaded to the Hub: {error}") from error
    return str(commit)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise CheckpointError(
            "huggingface_hub is not installed; expected it for the Hub: pip install 'branchnet[hub]'"
        ) from error
    return huggingface_hub
