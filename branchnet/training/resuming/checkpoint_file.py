"""Nested dictionaries and lists of tensors and plain values in one safetensors file, which runs no code when read.

The tensors lie in it by number; a small JSON text among its metadata says where each belongs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor

_TENSOR = "tensor"
"""The only entry of what stands for a tensor; other mappings are lists of pairs, since their keys may be numbers."""


def write_nested(content: Any, path: Path) -> None:
    """Write nested content.

    Args:
        content: dictionaries, lists and tuples of tensors, texts, numbers, booleans and None.
        path: the file.
    """
    tensors: dict[str, Tensor] = {}
    form = _form(content, tensors)
    save_file(tensors, path, metadata={"content": json.dumps(form)})


def read_nested(path: Path) -> Any:
    """Read what `write_nested` wrote; tuples come back as lists. Files of torch.save are read, too, without code.

    Args:
        path: the file.

    Returns:
        the content, tensors on the CPU.

    Raises:
        Exception: of many kinds, for files that are damaged or something else.
    """
    # Into memory: tensors that lie in a mapped file would crash the process when somebody cuts it.
    data = path.read_bytes()
    if data[:2] == b"PK":  # a zip archive, as torch.save writes
        return torch.load(path, map_location="cpu", weights_only=True)
    tensors = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return _content(json.loads(header["__metadata__"]["content"]), tensors)


def _form(content: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(content, Tensor):
        name = str(len(tensors))
        tensors[name] = content.detach().cpu().contiguous().clone()  # parameters may share their memory
        return {_TENSOR: name}
    if isinstance(content, Mapping):
        return {"pairs": [[key, _form(value, tensors)] for key, value in content.items()]}
    if isinstance(content, list | tuple):
        return [_form(value, tensors) for value in content]
    return content


def _content(form: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(form, dict):
        if _TENSOR in form:
            return tensors[form[_TENSOR]]
        return {key: _content(value, tensors) for key, value in form["pairs"]}
    return [_content(value, tensors) for value in form] if isinstance(form, list) else form
