"""Files of weights on the Hugging Face Hub: from the local cache, or downloaded where that was asked for."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from branchnet.errors import CheckpointError

PREFIX = "hf-hub:"
_FORM = re.compile(r"hf-hub:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:/(?P<file>[\w.+-]+(?:/[\w.+-]+)*))?")
_USUAL = "model.safetensors"


def is_hub_file(name: str) -> bool:
    """Whether a name is meant as a file on the Hub."""
    return name.startswith(PREFIX)


def hub_file(name: str, *, download: bool) -> Path:
    """Find a file of the Hub on this machine.

    Args:
        name: `hf-hub:OWNER/NAME` for `model.safetensors` of that repository, or `hf-hub:OWNER/NAME/FILE`.
        download: whether the network may be used; else the local cache alone is looked at.

    Returns:
        The file.

    Raises:
        CheckpointError: another form, huggingface_hub is not installed, a file that is not in the cache, or a download
            that failed.
    """
    found = _FORM.fullmatch(name)
    if found is None or ".." in name:
        raise CheckpointError(f"{name!r} names no file on the Hub; expected hf-hub:OWNER/NAME, or with /FILE after it")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise CheckpointError(f"{name!r}: huggingface_hub is not installed; expected it: pip install 'branchnet[hub]'")
    import huggingface_hub

    file = found["file"] or _USUAL
    try:
        return Path(huggingface_hub.hf_hub_download(found["repo"], file, local_files_only=not download))
    except Exception as error:  # of the connection, the server or the cache: there are many, of several packages
        remedy = "" if download else "; it is not in the local cache, and `download: true` in the config fetches it"
        raise CheckpointError(f"{name!r}: {file} was not found{remedy}: {error}") from error
