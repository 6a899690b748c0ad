"""A branched network as exporters understand it: plain arguments, and outputs that are tensors by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.call_inputs import Input
from branchnet.errors import BuildError
from branchnet.stages.heads.raw_network import decode
from branchnet.utils.installed_torch.torch_internals import pytree

_SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool, torch.Size)
_LEFT_OUT = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, *_SIZES)
"""What an output may hold next to its tensors: constants, which the exported file leaves out."""


class FlatOutputs(nn.Module):
    """A branched network with plain arguments whose outputs are tensors by name: what exporters understand.

    A task with several tensors gives `task.key` or `task.0`, `task.1`, ...

    Args:
        network: the network.
        names: the inputs' names, where it takes named ones.
        all_of: whether values that exporters cannot unpack are refused; otherwise they are left out.
        decode: single-task networks by task, by which the raw outputs of these tasks are decoded.
    """

    decoders: dict[str, nn.Module]

    def __init__(
        self,
        network: BranchedNetwork,
        names: Sequence[str] = (),
        *,
        all_of: bool = True,
        decode: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.all_of = all_of
        # Not as children: their weights are none of the file's. What decoding reads of them becomes constants.
        self.__dict__["decoders"] = dict(decode or {})

        def forward(*args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
            return self.outputs(kwargs or (args if len(args) > 1 else args[0]))

        if names:
            # torch.export asks for the dynamic shapes of named arguments, and cannot describe `**kwargs`.
            parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
            forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward

    def outputs(self, x: Input) -> dict[str, Tensor]:
        """Return every tensor of every task's output by its name.

        Raises:
            BuildError: two outputs of one name, a value that exporters cannot unpack, or a task without a tensor.
        """
        named = {}
        for task, output in self._decoded(x).items():
            for keys, value in pytree.tree_flatten_with_path(output)[0]:
                name = flat_name(task, keys)
                if name in named:
                    raise BuildError(f"two outputs are called {name!r}; expected different names; rename a task")
                if isinstance(value, Tensor):
                    named[name] = value
                elif self.all_of and not isinstance(value, _LEFT_OUT):
                    raise BuildError(
                        f"the output of {task!r} holds a {type(value).__name__}, which exporters cannot unpack; "
                        "expected tensors in tuples, lists or dicts, or a class registered with torch.utils._pytree"
                    )
            if self.all_of and not any(name == task or name.startswith(f"{task}.") for name in named):
                raise BuildError(f"the output of {task!r} holds no tensor; expected one; leave the task out of tasks=")
        return named

    def _decoded(self, x: Input) -> dict[str, Any]:
        outputs: dict[str, Any] = self.network(x)
        decoders: Mapping[str, nn.Module] = self.__dict__["decoders"]
        images = [leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor) and leaf.dim() > 3]
        size = (images[0].shape[-2], images[0].shape[-1]) if images else None
        for task in decoders:
            outputs[task] = decode(decoders[task], outputs[task], size=size)
        return outputs


def flat_name(task: str, keys: Sequence[Any]) -> str:
    """The name of one value of a task's output.

    Args:
        task: the task.
        keys: the path to the value, as torch.utils._pytree gives it.
    """
    return ".".join((task, *(str(_key(key)) for key in keys)))


def named_tensors(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return every tensor of outputs by task under its flat name.

    Args:
        outputs: by task.
    """
    return {
        flat_name(task, keys): value
        for task, output in outputs.items()
        for keys, value in pytree.tree_flatten_with_path(output)[0]
        if isinstance(value, Tensor)
    }


def restoring(network: BranchedNetwork, inputs: Any) -> Callable[[Mapping[str, Tensor], Sequence[str]], dict[str, Any]]:
    """Return a function that puts tensors by their flat names back into the form of each task's output.

    Args:
        network: the network; it is run once, and values that are no tensors are those of this run.
        inputs: what it is run on.
    """
    with torch.no_grad():
        outputs = network(inputs)
    forms = {task: pytree.tree_flatten_with_path(output) for task, output in outputs.items()}

    def restore(found: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Any]:
        return {
            task: pytree.tree_unflatten([found.get(flat_name(task, keys), value) for keys, value in leaves], form)
            for task, (leaves, form) in ((task, forms[task]) for task in tasks)
        }

    return restore


def _key(key: Any) -> Any:
    """The name or number in a step of a path through nested outputs."""
    return next(getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind))
