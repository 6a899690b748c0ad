"""Devices that users name: whether this machine has them, and whether branchnet can compute there."""

from __future__ import annotations

import torch

from branchnet.errors import DataError

WITHOUT_FLOAT64 = frozenset(["mps"])
"""Kinds of devices without float64 numbers, in which similarities, stitches and statistics are accumulated."""

MPS_REMEDY = (
    "Apple's MPS has no float64 numbers, in which branchnet accumulates; expected 'cpu' or 'cuda': build and train "
    "there, and move the finished network, branched.to('mps')"
)


def usable_device(device: str | torch.device, where: str = "device") -> torch.device:
    """Check a device before anything is moved there.

    Args:
        device: its name.
        where: what named it, for the message.

    Returns:
        The device.

    Raises:
        DataError: no device, one that this machine does not have, or one that branchnet cannot compute on.

    >>> from branchnet.utils.installed_torch.devices import usable_device
    >>> usable_device("cpu")
    device(type='cpu')
    """
    try:
        place = torch.device(device)
        if place.type not in WITHOUT_FLOAT64:
            return torch.empty(0, device=place).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{where} {device}: this machine has no such device ({reason})") from error
    raise DataError(f"{where} {device}: {MPS_REMEDY}")
