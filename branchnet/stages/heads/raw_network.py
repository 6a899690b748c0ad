"""Networks that return the raw outputs of their heads, and the decoding of these."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from branchnet.errors import SplitError
from branchnet.stages.heads import anchor_detectors, pyramid_heads, query_detectors
from branchnet.stages.heads.head_form import OWN, HeadForm, Size
from branchnet.stages.tracing.fx_tracer import unwrap
from branchnet.stages.tracing.trial import borrow

_FORMS = (OWN, *pyramid_heads.FORMS, *anchor_detectors.FORMS, *query_detectors.FORMS)


def raw_heads(network: nn.Module) -> nn.Module:
    """A network that returns raw tensors, in the same form in both modes, in place of decoded predictions.

    Heads that decode in evaluation mode (boxes from anchors, softmax, suppression) or return losses or other things in
    training mode can neither be distilled nor, in part, be traced. Known are, by their attributes, without importing
    their libraries: detection, segmentation, pose, rotated boxes and classification of YOLO networks, RT-DETR;
    torchvision's SSD, RetinaNet, FCOS, and Faster, Mask and Keypoint R-CNN, which here take a batch (B, 3, H, W) of
    values from 0 to 1, already of the right size; DETR-like networks of transformers; and every head that has the
    methods of `branchnet.stages.RawHead`. Networks without such a head are returned as they are.

    Args:
        network: any module; it is not changed. The result holds the same parameters under the same names.

    Returns:
        the network with raw outputs, in its mode.

    Raises:
        SplitError: several heads, or one of a known family with branches of unknown meaning.

    >>> class Head(nn.Linear):
    ...     def forward(self, x):
    ...         return super().forward(x) if self.training else super().forward(x).softmax(1)
    ...     def raw_outputs(self, x):
    ...         return super().forward(x)
    ...     def decode_outputs(self, raw, size):
    ...         return raw.softmax(1)
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Head(8, 3)).eval()
    >>> raw = branchnet.raw_heads(network)
    >>> x = torch.randn(2, 4)
    >>> raw(x).sum(1).allclose(torch.ones(2)), branchnet.decode(network, raw(x)).sum(1).allclose(torch.ones(2))
    (False, True)
    """
    network = unwrap(network)
    if find_head(network) is None:
        return network
    root = borrow(network)
    found = find_head(root)
    assert found is not None
    module, form = found
    module.forward = partial(form.raw, module)
    form.prepare(module)
    return root


def decode(network: nn.Module, raw: Any, *, size: Size = None) -> Any:
    """Make of raw outputs what the network itself returns in evaluation mode.

    Of YOLO networks these are the predictions alone, as a file that their own exporter wrote returns them: boxes and
    scores before suppression, (boxes, prototypes), or probabilities. Detectors of torchvision return their list of
    detections, with suppression.

    Args:
        network: the single-task network, as it was given to `raw_heads` or as that returned it.
        raw: its raw outputs, as the branched network returns them.
        size: height and width of the images, which torchvision's detectors need.

    Returns:
        the network's predictions; `raw` itself for networks without a head that decodes.

    Raises:
        SplitError: the images' size is needed.

    >>> class Head(nn.Linear):
    ...     def forward(self, x):
    ...         return super().forward(x) if self.training else super().forward(x).softmax(1)
    ...     def raw_outputs(self, x):
    ...         return super().forward(x)
    ...     def decode_outputs(self, raw, size):
    ...         return raw.softmax(1)
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Head(8, 3)).eval()
    >>> staged = branchnet.split(branchnet.raw_heads(network), torch.zeros(1, 4))
    >>> x = torch.randn(2, 4)
    >>> torch.equal(branchnet.decode(network, staged(x)), network(x))
    True
    """
    network = unwrap(network)
    found = find_head(network)
    if found is None:
        return raw
    module, form = found
    return form.decode(module, raw, size)


def check_heads(networks: Mapping[str, nn.Module]) -> None:
    """Refuse whole networks whose own forward no tracer can take.

    Raises:
        SplitError: names the networks, and the call that prepares them.
    """
    whole = []
    for task, network in networks.items():
        found = find_head(unwrap(network))
        if found is None or not found[1].whole:
            continue
        # `raw_heads` puts a forward into the instance; users may have written one into a class of theirs.
        own = type(found[0]).forward.__module__.startswith("torchvision.")
        if own and "forward" not in vars(found[0]):
            whole.append(f"{task!r} ({type(found[0]).__name__})")
    if whole:
        raise SplitError(
            f"the networks of {', '.join(whole)} return detections, whose number depends on values: they cannot be "
            "traced\nexpected networks with raw outputs: {task: branchnet.raw_heads(network) for task, network in "
            "networks.items()}; branchnet.decode makes detections of what these return"
        )


def find_head(network: nn.Module) -> tuple[nn.Module, HeadForm] | None:
    """The outermost module with raw outputs, and its form; None where there is none.

    Raises:
        SplitError: there are several.
    """
    found: list[tuple[nn.Module, HeadForm]] = []
    queue = [network]
    for module in queue:
        form = next((form for form in _FORMS if form.matches(module)), None)
        if form is None:
            queue += module.children()
        else:
            found.append((module, form))
    if len(found) > 1:
        names = ", ".join(type(module).__name__ for module, _ in found)
        raise SplitError(
            f"{type(network).__name__} has several heads that decode ({names}); expected one, or a network that has "
            "the methods raw_outputs and decode_outputs itself (branchnet.stages.RawHead)"
        )
    return found[0] if found else None
