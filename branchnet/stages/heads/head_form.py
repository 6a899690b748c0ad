"""What raw outputs of a head are: the protocol, and tools for running a head's own code on given tensors.

A head's *raw* outputs are what its last layers give. *Decoding* is what its code does with them afterwards: anchors,
boxes, softmax, suppression.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

Size: TypeAlias = "tuple[int, int] | None"
"""Height and width of the images that a network was run on, where they are known."""


@runtime_checkable
class RawHead(Protocol):
    """A head, or a whole network, that says itself what its raw outputs are.

    Give a class of your own these two methods, and `raw_heads` and `decode` use them. The network's own forward must
    return what the head returns.

    >>> class Classifier(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(4, 3)
    ...     def forward(self, x):
    ...         return self.raw_outputs(x) if self.training else self.raw_outputs(x).softmax(1)
    ...     def raw_outputs(self, x):
    ...         return self.layer(x)
    ...     def decode_outputs(self, raw, size):
    ...         return raw.softmax(1)
    >>> network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Classifier()).eval()
    >>> x = torch.randn(2, 4)
    >>> torch.equal(branchnet.decode(network, branchnet.raw_heads(network)(x)), network(x))
    True
    """

    def raw_outputs(self, *inputs: Any) -> Any:
        """Run the last layers.

        Args:
            *inputs: what `forward` takes.

        Returns:
            their tensors, in the same form in training and evaluation mode.
        """

    def decode_outputs(self, raw: Any, size: Size) -> Any:
        """Make predictions of raw outputs.

        Args:
            raw: what `raw_outputs` returned.
            size: height and width of the images; None where the caller did not say.

        Returns:
            what `forward` returns in evaluation mode.
        """


@dataclass(frozen=True)
class HeadForm:
    """How the heads of one family are recognised by their attributes, run and decoded.

    Attributes:
        matches: whether a module is such a head.
        raw: from the module and what its forward takes to its raw outputs.
        decode: from the module, raw outputs and the images' size to what its forward returns in evaluation mode.
        whole: whether the module is a whole network whose forward no tracer can take.
        prepare: what is changed in the borrowed module besides its forward.
    """

    matches: Callable[[nn.Module], bool]
    raw: Callable[..., Any]
    decode: Callable[[nn.Module, Any, Size], Any]
    whole: bool = False
    prepare: Callable[[nn.Module], None] = lambda module: None


def _own_raw(module: Any, *inputs: Any) -> Any:
    return module.raw_outputs(*inputs)


def _own_decode(module: Any, raw: Any, size: Size) -> Any:
    return module.decode_outputs(raw, size)


OWN = HeadForm(lambda module: isinstance(module, RawHead), _own_raw, _own_decode)
"""Modules that say it themselves."""


class Given(nn.Module):
    """Returns a value, whatever it is called with: in the place of layers whose outputs are known."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the value."""
        return self.value

    def __deepcopy__(self, memo: dict[int, Any]) -> Given:
        return self  # tensors with gradients cannot be copied


def given_levels(values: Sequence[Tensor]) -> nn.ModuleList:
    """One `Given` for each level of a pyramid."""
    return nn.ModuleList(map(Given, values))


def with_modules(module: nn.Module, replaced: Mapping[str, nn.Module]) -> Any:
    """A shallow copy of a module with other children, in evaluation mode and with its class's own forward."""
    clone = copy.copy(module)
    clone.__dict__["_modules"] = {**module._modules, **replaced}
    clone.__dict__.pop("forward", None)
    clone.training = False
    return clone
