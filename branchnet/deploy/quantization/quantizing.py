"""The entry point: which nodes of a branched network take int8, decided by what that costs every task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, get_args

import torch

from branchnet.builder import BranchedNetwork, GroupedNetworks
from branchnet.builder.network.grouped_networks import as_one_network
from branchnet.builder.network.task_names import wanted_tasks
from branchnet.data.collation import gather, joined, length
from branchnet.data.samples import Source, read_samples
from branchnet.deploy.format_writers import Dynamic
from branchnet.deploy.onnx_files.onnx_network import OnnxNetwork, import_onnxruntime
from branchnet.deploy.quantization.mode_choice import Goal, best_modes, modes_within, too_large, verified_modes
from branchnet.deploy.quantization.model_bench import ModelBench
from branchnet.deploy.quantization.node_quantizer import Mode
from branchnet.deploy.quantization.quantized import NodeCost, Quantized
from branchnet.errors import BuildError
from branchnet.inference import compare_latency
from branchnet.inference.latency import Latency
from branchnet.inference.torch_compile import device_of
from branchnet.stages.interface import call_form
from branchnet.stitching.output_distances import OutputKind

DEFAULT_LOSS = 0.01
FEWEST_INPUTS = 8
ROUNDS = 20
BATCH = 16


def quantize(
    network: BranchedNetwork | GroupedNetworks,
    probe: Source,
    *,
    max_loss: float | Mapping[str, float] | None = None,
    max_bytes: int | None = None,
    goal: Goal = "latency",
    kinds: Mapping[str, OutputKind] | None = None,
    dynamic: Dynamic = True,
) -> Quantized:
    """Quantise the nodes of a branched network to int8 where that costs the tasks little, without labels.

    Each node and head is float, has int8 weights (a quarter of the file, computed in float), or computes in int8 by
    ONNX Runtime's static quantisation: a scale for each channel of the weights, ranges of activations from every other
    input of the probe. The remaining inputs show what each task loses when one node alone is quantised, and an integer
    programme picks the options with the best sum under the limits. The whole network is then measured as
    well, and where a task loses more than its limit, nodes are taken back until none does; so are all that compute in
    int8 where that makes the whole network slower on this device.

    Args:
        network: the network, in evaluation mode, on the CPU, in float32.
        probe: inputs without labels, as `branchnet.rsa` takes them; 100 or more of the kind that will come. The float
            network's outputs for half of them are held in memory.
        max_loss: what a task may lose, one number or one by task: 0 is equal to the float network, 1 as bad as a
            constant answer (`kinds`). By default 0.01, with `max_bytes` no limit.
        max_bytes: of the file: then the sum of the tasks' losses is minimised, and `goal` unused.
        goal: what is minimised under `max_loss`: the `"latency"` of a call on one input, measured node by node in
            turns, and where that is equal the bytes; or the `"bytes"` of the file alone.
        kinds: how outputs are compared: `"classification"` by the KL divergence, `"direction"` by the angle, else
            `"regression"` by the share of variance that is not explained, see `branchnet.stitch_affinity`.
        dynamic: what may differ from the probe's size in calls, see `branchnet.export`.

    Returns:
        what runs it, with the calling convention of the network, and what each node costs each task; its `choose`
        takes other limits without measuring the nodes again.

    Raises:
        BuildError: a network in training mode, on another device or in another type, one that cannot be exported,
            unknown tasks or kinds, fewer than eight inputs, or ONNX Runtime missing.
        BudgetError: no choice fits `max_bytes` under `max_loss`.
        AffinityError: outputs that cannot be compared as `kinds` says.

    >>> import torch, branchnet
    >>> networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Linear(64, 1)) for task in ("a", "b")}
    >>> x = torch.rand(64, 4)
    >>> tree = branchnet.Tree.shared(["a", "b"], 1)
    >>> branched = branchnet.build(tree, networks, example=x[:2], locations=["0"], init="donor").eval()
    >>> small = branchnet.quantize(branched, x, max_loss=0.05, goal="bytes")
    >>> max(small.losses.values()) <= 0.05, list(small(x, tasks=["b"]))
    (True, ['b'])
    """
    import_onnxruntime()
    one = _checked(network, max_loss, max_bytes, goal, kinds or {})
    bench = ModelBench.of(one, *_halves(one, probe), kinds or {}, dynamic)
    return _choose(bench, tuple(bench.node_costs()), max_loss, max_bytes, goal)


def _choose(
    bench: ModelBench,
    costs: tuple[NodeCost, ...],
    max_loss: float | Mapping[str, float] | None = None,
    max_bytes: int | None = None,
    goal: Goal = "latency",
) -> Quantized:
    """Choose, measure the whole, and take back."""
    one = _checked(bench.branched, max_loss, max_bytes, goal, {})
    limits = _limits(one.tasks, max_loss, math.inf if max_bytes is not None else DEFAULT_LOSS)
    if max_bytes is None:
        modes = best_modes(costs, bench, limits, goal)
    else:
        modes = modes_within(max_bytes, costs, bench, limits)
    modes, losses, taken_back = verified_modes(modes, costs, bench, limits)
    made, found = _timed(bench, modes)
    if goal == "latency" and max_bytes is None and found["int8"].median > found["float"].median:
        computed = [node for node, mode in modes.items() if mode == "int8"]
        stored: dict[str, Mode] = {node: "weights" if node in computed else mode for node, mode in modes.items()}
        modes, losses, further = verified_modes(stored, costs, bench, limits)
        taken_back = tuple(dict.fromkeys((*taken_back, *computed, *further)))
        made, found = _timed(bench, modes)
    content = bench.quantizer.write(modes)
    if max_bytes is not None and len(content) > max_bytes:
        raise too_large(max_bytes, len(content))
    return Quantized(
        tasks=one.tasks,
        modes=modes,
        costs=costs,
        losses=losses,
        taken_back=taken_back,
        file_bytes=len(content),
        float_bytes=len(bench.float_content),
        latency=found["int8"],
        float_latency=found["float"],
        content=content,
        _network=made,
        _choose=partial(_choose, bench, costs),
    )


def _timed(bench: ModelBench, modes: Mapping[str, Mode]) -> tuple[OnnxNetwork, dict[str, Latency]]:
    """The network in these modes, and how long it and the float model take, in turns."""
    made = bench.network(bench.quantizer.write(modes))
    return made, compare_latency({"float": bench.reference, "int8": made}, bench.one_input, repeats=ROUNDS)


def _checked(
    network: BranchedNetwork | GroupedNetworks, max_loss: Any, max_bytes: Any, goal: str, kinds: Mapping[str, Any]
) -> BranchedNetwork:
    one = as_one_network(network)
    if one.training:
        raise BuildError("the network is in training mode; expected evaluation mode; call network.eval() first")
    types = {tensor.dtype for tensor in one.parameters() if tensor.is_floating_point()}
    if device_of(one) != "cpu" or types - {torch.float32}:
        found = f"on {device_of(one)}, in {', '.join(sorted(map(str, types)))}"
        raise BuildError(f"the network is {found}; expected it on the CPU in torch.float32: network.cpu().float()")
    if goal not in get_args(Goal):
        raise BuildError(f"goal={goal!r}; expected one of {', '.join(get_args(Goal))}")
    if unknown := sorted(set(kinds.values()) - set(get_args(OutputKind))):
        raise BuildError(f"unknown kinds {unknown}; expected some of {', '.join(get_args(OutputKind))}")
    by_task = max_loss if isinstance(max_loss, Mapping) else {}
    wanted_tasks([*kinds, *by_task] or None, one.tasks)
    for value in (*by_task.values(), *([] if isinstance(max_loss, Mapping) or max_loss is None else [max_loss])):
        if not value >= 0:
            raise BuildError(f"max_loss={value!r}; expected a number of 0 or more")
    if max_bytes is not None and max_bytes < 1:
        raise BuildError(f"max_bytes={max_bytes!r}; expected a number of bytes above 0")
    return one


def _limits(tasks: Sequence[str], max_loss: float | Mapping[str, float] | None, default: float) -> dict[str, float]:
    if isinstance(max_loss, Mapping):
        return {task: max_loss.get(task, default) for task in tasks}
    return dict.fromkeys(tasks, default if max_loss is None else max_loss)


def _halves(network: BranchedNetwork, probe: Source) -> tuple[list[Any], list[Any]]:
    """Batches of every other input, and of the remaining ones."""
    inputs = joined([batch.inputs for batch in read_samples(probe, call_form(network)).batches(BATCH)])
    count = length(inputs)
    if count < FEWEST_INPUTS:
        raise BuildError(f"the probe has {count} inputs; expected {FEWEST_INPUTS} or more, better 100")
    halves = (torch.arange(start, count, 2) for start in (0, 1))
    first, second = ([gather(inputs, rows) for rows in half.split(BATCH) if len(rows)] for half in halves)
    return first, second
