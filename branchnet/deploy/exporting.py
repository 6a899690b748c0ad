"""Exporting a branched network as one file that runs elsewhere, checked against the network before it is left behind.

Next to `model.pt2` (or `.onnx`, `.safetensors`) are `model.yaml`, the specification, and `model.md`, the model card.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.grouped_networks import GroupedNetworks, as_one_network
from branchnet.builder.network.surgery import keep_tasks
from branchnet.deploy.flat_outputs import FlatOutputs
from branchnet.deploy.format_writers import WRITERS, Dynamic, WriterOptions, batch_size, free_sizes
from branchnet.deploy.hub.licences import licence_conflicts
from branchnet.deploy.hub.source_models import SourceModel, source_models, source_section
from branchnet.deploy.model_card import model_card
from branchnet.deploy.onnx_files.onnx_notes import check_labels, metadata_of
from branchnet.errors import BuildError, SplitError
from branchnet.inference.compilation import check_sizes, first_stages
from branchnet.inference.inference_transforms import Fold, prepare
from branchnet.inference.torch_compile import device_of, first_line, map_input
from branchnet.stages import Example, call, flat_example
from branchnet.stages.heads.raw_network import find_head
from branchnet.utils.files import write_text

Format = Literal["pt2", "aoti", "onnx", "safetensors"]
SUFFIXES: dict[str, str] = {"pt2": ".pt2", "aoti": ".pt2", "onnx": ".onnx", "safetensors": ".safetensors"}
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""By the outputs' type, how far an exported output may be off, as a share of the largest value of that output.

Room for other runtimes, which order and fuse sums differently: a unit in the last place is 1.2e-7 in float32 and 8e-3
in bfloat16.
"""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        model: the exported file.
        specification: the architecture as YAML.
        card: the model card, Markdown.
        outputs: names of the outputs: a task's name, or `task.key` where a task has several tensors.
        difference: by output the largest difference to the network, as a share of the output's largest value.
        batches: the batch sizes that were compared.
    """

    model: Path
    specification: Path
    card: Path
    outputs: tuple[str, ...]
    difference: Mapping[str, float]
    batches: tuple[int, ...]


def export(
    branched: BranchedNetwork | GroupedNetworks,
    example: Example,
    path: str | os.PathLike[str],
    *,
    format: Format | None = None,
    tasks: Sequence[str] | None = None,
    dynamic: Dynamic = True,
    fold: Fold = "exact",
    decode: Mapping[str, nn.Module] | None = None,
    sources: Mapping[str, SourceModel | str | os.PathLike[str]] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    opset: int | None = None,
) -> Exported:
    """Write `branched` as one file for deployment, with its specification and a model card next to it.

    The file is loaded again and run at several batch sizes; only if it gives the network's outputs all three files are
    put in place, each complete, the model last. Calling what was loaded gives a dict of tensors by output name.

    Args:
        branched: the network, in evaluation mode; of `GroupedNetworks` what serves, without auxiliary tasks.
        example: inputs; everything but the batch size is fixed by them.
        path: the file to write, with the format's suffix.
        format: `"pt2"`, a torch.export program that torch alone loads; `"aoti"`, an AOTInductor package compiled for
            this machine's kind of device, which torch loads without any Python code of the network; `"onnx"` (needs
            `pip install branchnet[export]`); `"safetensors"`, weights to be loaded into the network that the
            specification describes. By default what the suffix says; `.pt2` is taken for `"pt2"`.
        tasks: the tasks to export, all by default; nodes that no such task needs are left out.
        dynamic: whether the batch size may differ from the example's; `"sizes"`: heights and widths of images, and
            lengths of sequences of integers (tokens, masks), too, where the networks' code allows it.
        fold: `"exact"` folds stitches into the layers next to them where that is exact, see
            `branchnet.inference.prepare`; the specification keeps them, and so do weights in safetensors. None keeps
            them in the model, too.
        decode: single-task networks by task, as they were given to `branchnet.raw_heads`: the file decodes the raw
            outputs of these tasks as `branchnet.decode` does. It holds no suppression.
        sources: by task the model that its network was, see `CardFields`; the card then lists their licences, and
            conflicts of these are warned of.
        labels: of an ONNX file: by task the names of its classes, in the order of
            dimension 1, which its metadata then hold.
        preprocessing: of an ONNX file: what inputs must have gone through, e.g. `{"size": 224, "mean": [0.5], "std":
            [0.5]}`, for the metadata.
        opset: of an ONNX file: the version of its operators, from 18 on; lower ones where onnx's converter can give
            them. None for what torch's exporter prefers.

    Returns:
        the files, the names of the outputs, and how far they are off.

    Raises:
        BuildError: an example and a path in the wrong order, a format, suffix or task that is unknown, decoding that
            no file can hold, a network in training mode or that cannot be exported, or one whose exported outputs
            differ; nothing is left behind.
        SpecError: sources of unknown tasks, or a licence that is no identifier.

    >>> import tempfile, torch, branchnet
    >>> networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)) for task in ("a", "b")}
    >>> x = torch.rand(2, 4)
    >>> tree = branchnet.Tree.shared(["a", "b"], 1)
    >>> branched = branchnet.build(tree, networks, example=x, locations=["0"], init="donor")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = branchnet.export(branched.eval(), x, f"{folder}/model.pt2")
    ...     outputs = torch.export.load(exported.model).module()(x)  # needs torch alone
    >>> list(outputs)
    ['a', 'b']
    """
    from branchnet.specification.architecture import Architecture  # a model alone is written without pydantic

    _check_order(example, path)
    branched = as_one_network(branched)
    target = Path(path)
    chosen = _checked_format(format, target)
    if branched.training:
        raise BuildError("the network is in training mode; expected evaluation mode; call branched.eval() first")
    if not all(tensor.numel() for tensor in flat_example(example)):
        raise BuildError("the example has no samples; expected at least one, as the network will get them")
    network = branched if tasks is None else keep_tasks(branched, tasks)
    metadata = metadata_of(network.tasks, labels, preprocessing)
    if chosen != "onnx" and (metadata or opset is not None):
        raise BuildError(f"labels, preprocessing and opset are of ONNX files; expected none with format={chosen!r}")
    decoders = _checked_decoders(decode or {}, network, chosen)
    models = source_models(branched.tasks, sources) if sources else {}
    conflicts = licence_conflicts({task: model.license for task, model in models.items()})
    for conflict in conflicts:
        warnings.warn(f"licences: {conflict}", stacklevel=2)
    target.parent.mkdir(parents=True, exist_ok=True)
    specification, card = target.with_suffix(".yaml"), target.with_suffix(".md")
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.stem}-"))
    try:
        deployed = prepare(network, fold=None if chosen == "safetensors" else fold, example=example)
        written = write_model(
            folder / target.name,
            deployed,
            example,
            chosen,
            dynamic=dynamic,
            original=network,
            decode=decoders,
            opset=opset,
            metadata=metadata,
        )
        check_labels(labels or {}, written.outputs)
        Architecture.from_network(network).save(folder / specification.name)
        text = model_card(
            deployed,
            example,
            name=target.stem,
            format=chosen,
            file=target.name,
            dynamic=dynamic,
            outputs=written.outputs,
            difference=written.difference,
            tolerance=max((TOLERANCES.get(value.dtype, 0.0) for value in written.outputs.values()), default=0.0),
            batches=written.batches,
            sources=source_section(models, conflicts) if models else (),
        )
        write_text(folder / card.name, text)
        for final in (specification, card, target):
            _put(folder / final.name, final)
    finally:
        shutil.rmtree(folder)
    return Exported(target, specification, card, tuple(written.outputs), written.difference, written.batches)


def _check_order(example: Any, path: Any) -> None:
    if isinstance(example, str | os.PathLike) or not isinstance(path, str | os.PathLike):
        raise BuildError(
            f"the example is a {type(example).__name__} and the path a {type(path).__name__}; expected "
            "export(network, example, path) with an example of tensors and the name of a file"
        )


def _put(written: Path, final: Path) -> None:
    with written.open("rb+") as file:
        os.fsync(file.fileno())
    written.replace(final)


def _checked_format(format: str | None, target: Path) -> str:
    chosen = format or next((name for name, suffix in SUFFIXES.items() if suffix == target.suffix), None)
    if chosen not in SUFFIXES:
        raise BuildError(f"unknown format={format!r} for path {target.name!r}; expected one of {', '.join(SUFFIXES)}")
    if target.suffix != SUFFIXES[chosen]:
        raise BuildError(
            f"the path of a {chosen!r} file is {str(target)!r}; expected one that ends in {SUFFIXES[chosen]!r}"
        )
    return chosen


def _checked_decoders(decode: Mapping[str, nn.Module], network: BranchedNetwork, format: str) -> dict[str, nn.Module]:
    """What decodes which of the network's tasks."""
    if unknown := sorted(set(decode) - set(network.tasks)):
        raise BuildError(f"decode names {unknown}; expected some of the exported tasks {list(network.tasks)}")
    if decode and format == "safetensors":
        raise BuildError("weights in safetensors decode nothing; expected decode=None, or the format pt2 or onnx")
    for task, one in decode.items():
        found = find_head(one)
        if found is not None and found[1].whole:
            raise BuildError(
                f"what {task!r} ({type(found[0]).__name__}) decodes is as long as its values say, which no exported "
                "file can hold; expected decode= without it: the file then gives raw outputs for branchnet.decode"
            )
    return dict(decode)


@dataclass(frozen=True)
class Written:
    """What `write_model` compared.

    Attributes:
        outputs: the network's, at the last batch size.
        difference: by output, relative to its largest value.
        batches: the batch sizes.
        run: the function that was loaded from the file.
    """

    outputs: Mapping[str, Tensor]
    difference: Mapping[str, float]
    batches: tuple[int, ...]
    run: Callable[[Example], Mapping[str, Tensor]]


def write_model(
    path: Path,
    network: BranchedNetwork,
    example: Example,
    format: str,
    *,
    dynamic: Dynamic,
    original: BranchedNetwork | None = None,
    decode: Mapping[str, nn.Module] | None = None,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Written:
    """Write the model alone, load it and compare with the original; `export` explains the arguments and the errors."""
    batch = batch_size(example)
    if dynamic and format != "safetensors":
        _check_batch_sizes(network, example)
    # Size 1, at which programs are specialised most easily, the size of the example, and one that none has seen.
    batches = tuple(sorted({1, batch, batch + 2})) if dynamic else (batch,)
    examples = [resized(example, size) for size in batches]
    if dynamic == "sizes":
        examples += [map_input(_larger, example), map_input(_shorter, example)]
    # Traced at size 1, torch.export would take the batch for a constant.
    traced_with = resized(example, max(2, batch)) if dynamic else example
    names, all_of = list(example) if isinstance(example, Mapping) else (), format != "safetensors"
    flat = FlatOutputs(network, names, all_of=all_of, decode=decode)
    compared_with = FlatOutputs(network if original is None else original, names, all_of=all_of, decode=decode)
    with torch.no_grad(), _without_tf32(device_of(network)):
        expected = [call(compared_with, each) for each in examples]
        try:
            with _without_the_warning_on_leaves():
                run = WRITERS[format](flat, traced_with, path, WriterOptions(dynamic, opset, metadata or {}))
            found = [run(each) for each in examples]
        except BuildError:
            raise
        except Exception as error:  # exporters raise errors of many kinds, none of them documented
            raise BuildError(f"{format} export failed: {type(error).__name__}: {first_line(error)}") from error
    return Written(expected[len(batches) - 1], compared_outputs(expected, found), batches, run)


def _check_batch_sizes(network: BranchedNetwork, example: Example) -> None:
    """Refuse a file for any batch size of a network that allows some: nothing in the file would check it."""
    first, form = first_stages(network), map_input(lambda tensor: tensor.to("meta"), example)
    size = 0
    try:
        for size in (*range(1, 129), *(2**k for k in range(8, 17))):
            check_sizes(first, resized(form, size))
    except SplitError as error:
        raise BuildError(
            f"the file would be called with any batch size, and the network refuses {size}: {error}; pass "
            "dynamic=False for files of one batch size"
        ) from error


@contextmanager
def _without_tf32(device: str) -> Iterator[None]:
    """Convolutions and products of GPUs in float32 proper, as other runtimes compute them: TF32 keeps three digits.

    What the caller set for single operators stands: torch cannot say then what holds for all.
    """
    cudnn = torch.backends.cudnn
    try:
        before = (cudnn.allow_tf32, torch.get_float32_matmul_precision())
    except RuntimeError:
        device = "cpu"
    if device != "cuda":
        yield
        return
    try:
        cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@contextmanager
def _without_the_warning_on_leaves() -> Iterator[None]:
    """Silence torch's warning about its own code when it copies an exported program; users cannot act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        yield


def compared_outputs(
    expected: Sequence[Mapping[str, Tensor]], found: Sequence[Mapping[str, Tensor]]
) -> dict[str, float]:
    """The largest relative difference of every output.

    Args:
        expected: the network's outputs by name, for each of several inputs.
        found: those of what was exported.

    Raises:
        BuildError: other names, shapes or types, or values that differ by more than the tolerance.
    """
    difference: dict[str, float] = {}
    for right, other in zip(expected, found, strict=True):
        if list(right) != list(other):
            raise BuildError(f"the exported file has the outputs {list(other)}; expected {list(right)}")
        for name, value in right.items():
            exported = other[name].to(value.device)
            if exported.shape != value.shape or exported.dtype != value.dtype:
                forms = f"{tuple(exported.shape)} {exported.dtype}; expected {tuple(value.shape)} {value.dtype}"
                raise BuildError(f"the exported output {name!r} is {forms}")
            difference[name] = max(difference.get(name, 0.0), _apart(value.double(), exported.double()))
            # Outputs that are no floats (masks, classes) must be equal.
            if not difference[name] <= TOLERANCES.get(value.dtype, 0.0):
                raise BuildError(
                    f"the exported output {name!r} differs from the network's by {difference[name]:.2e} of its largest "
                    f"value; expected at most {TOLERANCES.get(value.dtype, 0.0):.0e}"
                )
    return difference


def _apart(wanted: Tensor, found: Tensor) -> float:
    """Largest difference by the largest finite value; infinite where NaN or infinity stands in one of the two alone."""
    apart = (found - wanted).abs()
    apart[(found == wanted) | (found.isnan() & wanted.isnan())] = 0.0
    largest = apart.nan_to_num(nan=math.inf).max().item() if apart.numel() else 0.0
    numbers = wanted[wanted.isfinite()].abs()
    scale = numbers.max().item() if numbers.numel() else 0.0
    return largest / scale if scale else largest


def resized(example: Example, size: int) -> Any:
    """The example with its samples repeated or left out until there are `size`.

    Args:
        example: inputs.
        size: the batch size.
    """
    batch = batch_size(example)
    if size == batch:
        return example

    def resized(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != batch:
            return tensor
        return tensor[torch.arange(size, device=tensor.device) % batch]

    return map_input(resized, example)


def _larger(tensor: Tensor) -> Tensor:
    """Inputs of the next larger size that the same power of two divides, as networks that halve sizes need."""
    for dim in free_sizes(tensor):
        size = tensor.shape[dim]
        index = torch.arange(size + (size & -size), device=tensor.device) % size
        tensor = tensor.index_select(dim, index)
    return tensor


def _shorter(tensor: Tensor) -> Tensor:
    """Sequences of half the length; images as they are."""
    for dim in () if tensor.is_floating_point() else free_sizes(tensor):
        tensor = tensor.narrow(dim, 0, (tensor.shape[dim] + 1) // 2)
    return tensor
