"""Networks of timm, with the size, mean and standard deviation of the images that they were trained on."""

from __future__ import annotations

import importlib
from typing import Any, TypedDict

from torch import nn

from branchnet.errors import SpecError
from branchnet.models.constructors import create, import_package, record_constructor


class ImageSettings(TypedDict):
    """How images are made ready for a network: `branchnet.data.load(folder, **settings)`.

    Attributes:
        size: height and width.
        mean: subtracted from each channel of an image in [0, 1].
        std: divides each channel afterwards.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def from_timm(model: str | nn.Module, *, pretrained: bool = False, **arguments: Any) -> tuple[nn.Module, ImageSettings]:
    """Make a network of timm by name, or take one that is there, and read off it what images it expects.

    Args:
        model: a name that timm has registered, with or without `timm:`, or a network that timm made.
        pretrained: whether timm shall fetch the weights that it publishes under this name; only then is anything
            downloaded.
        **arguments: of `timm.create_model`, such as `num_classes`; plain values only.

    Returns:
        The network, in training mode if it was made here, and the settings of its images, which
        `timm.data.resolve_model_data_config` gives. Files that are written of it hold its constructor, not its weights.

    Raises:
        SpecError: an unknown name (with the nearest known ones), an argument that is refused, arguments together with
            a network, a network of another library, weights that timm lacks or cannot fetch, or timm is not installed.

    >>> network, settings = branchnet.from_timm("mobilenetv3_small_050", num_classes=5)
    >>> settings["size"], settings["mean"]
    (224, (0.485, 0.456, 0.406))
    >>> network.eval()(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 5])
    """
    if isinstance(model, nn.Module):
        if pretrained or arguments:
            given = [*(["pretrained"] if pretrained else []), *arguments]
            raise SpecError(f"from_timm was given a network and {given}; expected a name, or the network alone")
        return model, image_settings(model)
    if not isinstance(model, str):
        raise SpecError(f"model is a {type(model).__name__}; expected a name of timm or a network that timm made")
    name = model.removeprefix("timm:")
    network = create(f"timm:{name}", **arguments)  # refuses what no file may name, whatever is fetched afterwards
    if pretrained:
        network = record_constructor(_fetched(name, arguments), f"timm:{name}", arguments)
    return network, image_settings(network)


def image_settings(network: nn.Module) -> ImageSettings:
    """Read what images a network of timm expects.

    Args:
        network: a network that timm made.

    Returns:
        Size, mean and standard deviation.

    Raises:
        SpecError: a network of another library, or timm is not installed.
    """
    if not is_of_timm(network):
        raise SpecError(f"the network is a {type(network).__qualname__} without timm's pretrained_cfg; expected timm's")
    import_package("timm", "vision")
    found = importlib.import_module("timm.data").resolve_model_data_config(network)
    return {"size": int(found["input_size"][-1]), "mean": tuple(found["mean"]), "std": tuple(found["std"])}


def is_of_timm(network: nn.Module) -> bool:
    """Whether timm made a network and says what images it expects."""
    return bool(getattr(network, "pretrained_cfg", None)) and type(network).__module__.startswith("timm.")


def _fetched(name: str, arguments: dict[str, Any]) -> nn.Module:
    timm = import_package("timm", "vision")
    try:
        network: nn.Module = timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:
        raise SpecError(f"timm:{name} cannot be made with its published weights: {error}") from error
    return network
