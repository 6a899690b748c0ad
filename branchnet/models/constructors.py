"""Networks made by name: the only way in which a file may say how a network is built.

A named constructor is `FAMILY:NAME`, with plain arguments (numbers, strings, booleans, lists, mappings):

- `torchvision:resnet18`: a name of torchvision's `get_model` registry;
- `timm:convnext_tiny`: a name that timm has registered (never `hf-hub:` or `local-dir:`);
- `transformers:bert`: a model type of transformers' `AutoConfig.for_model`, built by `AutoModel.from_config`, or by
  another auto class of `AUTO_CLASSES` given as the argument `auto_class`;
- `branchnet:scene_network`: a function listed in `branchnet.models.MODELS`.

Files are untrusted input. So there is no attribute path (`torchvision.datasets.utils:os.system` is inside torchvision),
and no argument may name weights, a file, a web address, a repository or a kernel to fetch: see `check_arguments`.
Every network comes with fresh random weights.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from branchnet.errors import SpecError
from branchnet.utils.document_keys import Keys, show_keys

if TYPE_CHECKING:
    from torch import nn

AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageClassification",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForQuestionAnswering",
    "AutoModelForSemanticSegmentation",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
)
"""The auto classes of transformers that `auto_class` may name."""

# Whole words of argument names: `checkpoint_path`, `cache_dir`, `hub_kwargs`, `pretrained_cfg`, but not `directional`.
_REFUSED_WORDS = re.compile(
    r"(^|_)(auth|cache|checkpoints?|dir|directory|download|file|filename|files|folder|hub|kernels|paths?|pretrained|"
    r"remote|repo|repository|revision|ur[il]s?|weights)(_|$)"
)
_REFUSED_NAMES = frozenset(
    ["auto_map", "backbone", "custom_pipelines", "kernel_config", "quantization_config", "token", "use_timm_backbone"]
)
# Arguments that a refused word occurs in although they only set numbers.
_HARMLESS_NAMES = frozenset(["drop_path", "drop_path_rate", "init_weights"])
# Neither a slash nor a colon: no path, no address, no `package:function`.
_PLAIN_STRING = re.compile(r"[\w .+-]*")
# Their configuration names a network of timm freely, `hf-hub:` included.
_FETCHING_MODEL_TYPES = frozenset(["timm_backbone", "timm_wrapper"])
_RECORD = "_branchnet_constructor"


@dataclass(frozen=True)
class Constructor:
    """How a network is made: the name of a constructor and its arguments.

    Attributes:
        name: `FAMILY:NAME`, e.g. `"torchvision:resnet18"`.
        arguments: plain values only: None, booleans, finite numbers, strings, lists and mappings with string keys.

    Raises:
        SpecError: an unknown name, or an argument that is refused.

    >>> constructor = branchnet.Constructor("branchnet:scene_network", {"outputs": 4, "kind": "image", "width": 4})
    >>> constructor.create()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 4])
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        split_name(self.name)
        found = check_arguments(self.arguments)
        problems = [f"{self.name}: argument {show_keys(keys)}: {problem}" for keys, problem in found]
        if problems:
            raise SpecError(problems)
        object.__setattr__(self, "arguments", _plain(self.arguments))

    def create(self) -> nn.Module:
        """Make the network, with fresh random weights.

        Returns:
            The network, in training mode.

        Raises:
            SpecError: as the function `create`.
        """
        return create(self.name, **self.arguments)


def create(name: str, /, **arguments: Any) -> nn.Module:
    """Make the network that a named constructor describes, with fresh random weights, and remember how.

    Args:
        name: `FAMILY:NAME`, with the families `torchvision`, `timm`, `transformers` and `branchnet`.
        **arguments: of the constructor: numbers, strings, booleans, lists and mappings.

    Returns:
        The network, in training mode; files that are written of it hold its constructor.

    Raises:
        SpecError: an unknown name (with the nearest known ones), an argument that is refused, arguments that the
            constructor cannot use, or a package that is not installed (with the extra that brings it).

    >>> network = branchnet.create("branchnet:scene_network", outputs=1, width=4)
    >>> network(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 1, 32, 32])
    >>> branchnet.create("branchnet:scene_netwrk", outputs=1)
    Traceback (most recent call last):
    branchnet.errors.SpecError: 'branchnet:scene_netwrk': branchnet has no network 'scene_netwrk', did you mean ...
    """
    constructor = Constructor(name, arguments)
    family, model = split_name(name)
    network = _FAMILIES[family](model, copy.deepcopy(dict(constructor.arguments)))
    return record_constructor(network, name, arguments)


def record_constructor(network: nn.Module, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Remember how a network was made, in the network itself.

    Args:
        network: the network.
        name: of its constructor.
        arguments: of its constructor.

    Returns:
        the same network.
    """
    # Past `nn.Module.__setattr__`, and not in the state: `state_dict()` stays that of the plain network.
    network.__dict__[_RECORD] = (Constructor(name, arguments), _fingerprint(network))
    return network


def constructor_of(module: nn.Module) -> Constructor | None:
    """Find out how a network was made.

    Args:
        module: any module.

    Returns:
        The constructor that made it; None where none did or the structure has been changed since.
    """
    constructor, fingerprint = module.__dict__.get(_RECORD, (None, None))
    return constructor if constructor is not None and fingerprint == _fingerprint(module) else None


def split_name(name: str) -> tuple[str, str]:
    """Split `FAMILY:NAME`.

    Args:
        name: name of a constructor.

    Returns:
        Family and name.

    Raises:
        SpecError: a name of another form, or an unknown family.
    """
    family, colon, model = name.partition(":")
    if family not in _FAMILIES or not re.fullmatch(r"[A-Za-z0-9_.-]+", model):
        families = ", ".join(f"{known}:NAME" for known in _FAMILIES)
        hint = _did_you_mean(family, _FAMILIES) if colon else ""
        raise SpecError(f"{name!r} is not a named constructor{hint}; expected one of {families}")
    return family, model


def check_arguments(arguments: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
    """Yield place and problem of every argument that no specification may carry.

    Refused are names that speak of weights, files, addresses, repositories or kernels, strings that could be one of
    those, and values that are not plain.
    """
    yield from _check_mapping(arguments, ())


def _check_mapping(mapping: Mapping[Any, Any], keys: Keys) -> Iterator[tuple[Keys, str]]:
    for key, value in mapping.items():
        inside = (*keys, str(key))
        if not isinstance(key, str):
            yield inside, f"the name {key!r} is not a string (quote it)"
        elif problem := _refused_name(key, value):
            yield inside, problem
        else:
            yield from _check_value(value, inside)


def _refused_name(name: str, value: Any) -> str | None:
    lowered = name.lower()
    if lowered in _HARMLESS_NAMES:
        return None
    if lowered.endswith("implementation") and value not in (None, "eager", "sdpa"):
        return f"{value!r} may be fetched as code from a repository; expected 'eager' or 'sdpa'"
    if name.startswith("_") or lowered in _REFUSED_NAMES or _REFUSED_WORDS.search(lowered):
        return "refused: a specification names no weights, files, addresses or code (load weights separately)"
    return None


def _check_value(value: Any, keys: Keys) -> Iterator[tuple[Keys, str]]:
    if isinstance(value, Mapping):
        yield from _check_mapping(value, keys)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _check_value(item, (*keys, index))
    elif isinstance(value, str):
        if not _PLAIN_STRING.fullmatch(value) or ".." in value:
            yield (
                keys,
                f"{value!r} could name a file, an address or code; expected letters, digits, spaces and _ . + - only",
            )
    elif isinstance(value, float) and not math.isfinite(value):
        yield keys, f"{value} is not finite; expected a finite number"
    elif value is not None and not isinstance(value, bool | int | float):
        yield (
            keys,
            f"{type(value).__name__} is not a plain value; expected numbers, strings, booleans, lists, mappings",
        )


def _plain(value: Any) -> Any:
    """Copy a checked value, with lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _from_torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    models = import_package("torchvision.models", "vision")
    _require_known(f"torchvision:{name}", name, models.list_models())
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    without_weights = {key: None for key in ("weights", "weights_backbone") if key in parameters}
    return _call(f"torchvision:{name}", lambda: models.get_model(name, **without_weights, **arguments), arguments)


def _from_timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    timm = import_package("timm", "vision")
    _require_known(f"timm:{name}", name.partition(".")[0], timm.list_models())
    return _call(f"timm:{name}", lambda: timm.create_model(name, pretrained=False, **arguments), arguments)


def _from_transformers(name: str, arguments: dict[str, Any]) -> nn.Module:
    transformers = import_package("transformers", "text")
    types = set(transformers.CONFIG_MAPPING.keys()) - _FETCHING_MODEL_TYPES
    _require_known(f"transformers:{name}", name, types)
    auto_class = arguments.pop("auto_class", "AutoModel")
    if auto_class not in AUTO_CLASSES:
        hint = _did_you_mean(str(auto_class), AUTO_CLASSES)
        raise SpecError(f"transformers:{name}: unknown auto_class {auto_class!r}{hint}; expected one of {AUTO_CLASSES}")

    def make() -> nn.Module:
        config = transformers.AutoConfig.for_model(name, **arguments)
        _refuse_fetching_modules(f"transformers:{name}", config)
        network: nn.Module = getattr(transformers, auto_class).from_config(config, trust_remote_code=False)
        return network

    return _call(f"transformers:{name}", make, arguments)


def _from_branchnet(name: str, arguments: dict[str, Any]) -> nn.Module:
    from branchnet.models.own_networks import MODELS

    _require_known(f"branchnet:{name}", name, MODELS)
    return _call(f"branchnet:{name}", lambda: MODELS[name](**arguments), arguments)


_FAMILIES: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "transformers": _from_transformers,
    "branchnet": _from_branchnet,
}


def _refuse_fetching_modules(name: str, config: Any) -> None:
    """Refuse a configuration that holds one whose model looks its modules up elsewhere."""
    for attribute, inner in vars(config).items():
        if hasattr(inner, "model_type"):
            if inner.model_type in _FETCHING_MODEL_TYPES:
                raise SpecError(
                    f"{name}: {attribute} is a {inner.model_type!r}, whose modules are named freely (not allowed)"
                )
            _refuse_fetching_modules(name, inner)


def import_package(package: str, extra: str) -> Any:
    """Import an optional package.

    Args:
        package: a package or a module of it.
        extra: the extra of branchnet that brings it.

    Raises:
        SpecError: it is not installed, or does not fit this build of torch.
    """
    from branchnet.utils.installed_torch.torchvision_operators import import_with_torchvision

    top = package.partition(".")[0]
    try:
        return import_with_torchvision(package)
    except ModuleNotFoundError as error:
        raise SpecError(f"{top} is not installed (pip install 'branchnet[{extra}]')") from error
    except RuntimeError as error:
        hint = ""
        if "torchvision::" in str(error):
            hint = " (take it from the index that torch is from: for CPUs the one that pytorch.org names)"
        raise SpecError(f"{top} cannot be imported with this build of torch: {error}{hint}") from error


def _require_known(full_name: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        family = full_name.partition(":")[0]
        raise SpecError(f"{full_name!r}: {family} has no network {name!r}{_did_you_mean(name, known)}")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f", did you mean {' or '.join(map(repr, near))}?" if near else ""


def _call(name: str, make: Callable[[], nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """Make the network; whatever its constructor raises over its arguments becomes a SpecError."""
    try:
        return make()
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(f"{name} cannot be made with {dict(arguments)}: {error}") from error


def _fingerprint(module: nn.Module) -> str:
    """Digest of the module types and the names and shapes of parameters and buffers."""
    lines = [f"{name} {type(child).__module__}.{type(child).__qualname__}" for name, child in module.named_modules()]
    lines += [f"{name} {tuple(value.shape)}" for name, value in module.named_parameters(remove_duplicate=False)]
    lines += [f"{name} {tuple(value.shape)}" for name, value in module.named_buffers(remove_duplicate=False)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
