"""How images are resized and normalised: as the config says, else as timm or torchvision say of the networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from branchnet.data.images import stored_size
from branchnet.errors import SpecError
from branchnet.models.timm_networks import image_settings, is_of_timm
from branchnet.pipeline.config.run_config import RunConfig

Field = Literal["size", "mean", "std"]
FIELDS: tuple[Field, ...] = ("size", "mean", "std")
_DEFAULTS: Mapping[Field, Any] = {"size": 224, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class Preprocessing:
    """What is done to every image.

    Attributes:
        size: height and width.
        mean: subtracted from each channel of an image in [0, 1].
        std: divides each channel afterwards.
        sources: where each of the three is from.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sources: Mapping[str, str]

    @property
    def note(self) -> str:
        """What is done, and on whose word; empty where nothing but the config decides."""
        if all(source in ("the config", "the default") for source in self.sources.values()):
            return ""
        parts = (f"{name} {_shown(getattr(self, name))} ({self.sources[name]})" for name in FIELDS)
        return f"images: {', '.join(parts)}"


def enlarged(config: RunConfig, folder: Path, done: Preprocessing) -> str:
    """Say that images are made larger though nobody asked for a size; empty where that is not so.

    Args:
        config: the config.
        folder: where it lies.
        done: what is done to every image.
    """
    wanted = config.images
    source = None if wanted is None else wanted.folder or wanted.npz
    if source is None or done.sources["size"] != "the default":
        return ""
    height, width = stored_size(folder / source)
    if min(height, width) >= done.size:
        return ""
    return (
        f"images: the first one has {height} x {width} pixels and is enlarged to {done.size} x {done.size}; where the "
        "networks were trained on others, name their `size` under `images`"
    )


def preprocessing(config: RunConfig, networks: Mapping[str, nn.Module]) -> Preprocessing:
    """Decide how images are resized and normalised.

    What stands in `images` or with a network counts; else what the networks say; else 224 pixels in [0, 1].

    Args:
        config: the config.
        networks: the networks by task, which may offer their own.

    Returns:
        The preprocessing, which all networks have in common.

    Raises:
        SpecError: networks that want different images.
    """
    offers = {task: offered(config.networks[task].constructor, network) for task, network in networks.items()}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in FIELDS:
        stated = {} if config.images is None else {"images": getattr(config.images, name)}
        stated |= {f"networks: {task}": getattr(network, name) for task, network in config.networks.items()}
        stated = {place: value for place, value in stated.items() if value is not None}
        own = {f"networks: {task}": offer[name] for task, (offer, _) in offers.items() if name in offer}
        whole = len(own) == len(networks)  # where some networks say nothing, nobody knows what they want
        chosen, source = (stated, "the config") if stated else (own if whole else {}, "")
        values[name] = _common(name, chosen) if chosen else _DEFAULTS[name]
        said = sorted({library for offer, library in offers.values() if name in offer})
        sources[name] = source or (f"from {' and '.join(said)}" if chosen else "the default")
    return Preprocessing(**values, sources=sources)


def offered(constructor: str | None, network: nn.Module) -> tuple[dict[str, Any], str]:
    """What timm's configuration or torchvision's default weights say of a network's images.

    Args:
        constructor: the name of the network's constructor, or None.
        network: the network.

    Returns:
        `size`, `mean` and `std` as far as they are known, and the library that says so.
    """
    if is_of_timm(network):
        return dict(image_settings(network)), "timm"
    if constructor is not None and constructor.startswith("torchvision:"):
        return _of_torchvision(constructor.removeprefix("torchvision:")), "torchvision"
    return {}, ""


def _of_torchvision(name: str) -> dict[str, Any]:
    """Of the default weights; those of detection and of video have transforms of other kinds."""
    from torchvision.models import get_model_weights

    weights = getattr(get_model_weights(name), "DEFAULT", None)
    presets = getattr(weights, "transforms", None)
    found = None if presets is None else presets()
    names = {"size": ("crop_size", "resize_size"), "mean": ("mean",), "std": ("std",)}
    values: dict[str, Any] = {}
    for field, attributes in names.items():
        value = next((getattr(found, one) for one in attributes if hasattr(found, one)), None)
        if isinstance(value, list | tuple) and field == "size":
            value = value[0] if len(value) == 1 else None
        if value is not None:
            values[field] = value if field == "size" else tuple(value)
    return values


def _common(name: str, values: Mapping[str, Any]) -> Any:
    """The one value that all places have."""
    first, value = next(iter(values.items()))
    for place, other in values.items():
        if other != value:
            raise SpecError(
                f"{first}: {name} is {_shown(value)}, and {place}: {name} {_shown(other)}; all networks see the same "
                f"images: expected one {name} for all, under `images:` (in Python, split_all(..., transforms=) gives a "
                "network preprocessing of its own)"
            )
    return value


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
