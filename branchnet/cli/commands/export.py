"""`branchnet export`: a branched network as one file for deployment."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Device, DryRun, Dtype, OptionalConfig, Quiet
from branchnet.utils.progress import silence

if TYPE_CHECKING:
    from branchnet.builder import SharingNetwork
    from branchnet.deploy import Exported

Folder = Annotated[Path, Parameter(help="What `branchnet build` or `branchnet distill` wrote.")]
Format = Literal["pt2", "aoti", "onnx", "safetensors", "pte"]


@Parameter(name="*")
@dataclass(frozen=True)
class ExportOptions:
    """The options of `branchnet export`.

    Attributes:
        format: pt2 (torch.export, loaded by torch alone), aoti (compiled for this kind of device), onnx, safetensors,
            or pte (ExecuTorch, with a method for all tasks and for each); by default as the suffix of --out says.
        tasks: Only these tasks, with commas between.
        batch_size: Of the example that it is traced with; other sizes work, too, of pte files those up to it.
        int8: Quantise nodes to int8 where that costs the tasks little, for ONNX Runtime on this device; what is lost
            is measured on images of --config.
        max_loss: What a task may lose by --int8; 0 is equal to the float network, 1 as bad as a constant answer.
        out: The file; for --format onnx of tasks that are computed one at a time, the folder of their files.
    """

    config: OptionalConfig = None
    format: Format | None = None
    tasks: str | None = None
    batch_size: int = 2
    int8: bool = False
    max_loss: float = 0.01
    out: Path = Path("branched.pt2")
    device: Device = None
    dtype: Dtype = None
    as_json: AsJson = False
    quiet: Quiet = False
    dry_run: DryRun = False


def export(branched: Folder, *, options: ExportOptions = ExportOptions()) -> None:
    """Write the network in BRANCHED as one file for deployment; load it again, and check what it gives.

    Its specification and a model card are written next to it, except of int8 and ExecuTorch files. Tasks that are
    computed one at a time give an ExecuTorch file, or a folder with an ONNX file each.

    Example: `branchnet export distilled --out branched.pt2`, or
    `branchnet export distilled --config run.yaml --int8 --out branched.onnx`
    """
    from branchnet.cli.loading import placed
    from branchnet.cli.printing import print_plan
    from branchnet.cli.saved_networks import read_branched, read_saved_sharing
    from branchnet.deploy import export as export_network
    from branchnet.pipeline.plans.dry_run import Plan, batch_of, memory_of

    if options.int8:
        _quantize(branched, options)
        return
    sharing = read_saved_sharing(branched, options.config, device=options.device, dtype=options.dtype)
    if sharing is not None or options.format == "pte" or (options.format is None and options.out.suffix == ".pte"):
        _write_methods(branched, sharing, options)
        return
    network = read_branched(branched, options.config, device=options.device, dtype=options.dtype).eval()
    if options.dry_run:
        plan = Plan("export").step("trace, write, and check the file", memory=3 * memory_of({"": network}))
        print_plan(plan, [options.out], as_json=options.as_json)
        return
    example = placed(batch_of(network.interface.random(), options.batch_size), options.device, options.dtype)
    chosen = None if options.tasks is None else [task.strip() for task in options.tasks.split(",")]
    with silence() if options.quiet else nullcontext():
        exported = export_network(network, example, options.out, format=options.format, tasks=chosen)
    _print(exported, as_json=options.as_json)


def _write_methods(branched: Path, sharing: SharingNetwork | None, options: ExportOptions) -> None:
    """Write an ExecuTorch program, or ONNX files of tasks that are computed one at a time."""
    from branchnet.builder.network.surgery import keep_tasks
    from branchnet.cli.loading import placed
    from branchnet.cli.printing import print_json, print_plan, print_text
    from branchnet.cli.saved_networks import read_branched
    from branchnet.deploy import executorch_program, onnx_task_files
    from branchnet.errors import SpecError
    from branchnet.pipeline.plans.dry_run import Plan, batch_of, memory_of

    to_onnx = options.format == "onnx"
    if sharing is not None and not to_onnx and (options.format or options.out.suffix.removeprefix(".")) != "pte":
        raise SpecError(
            f"tasks of {branched} are computed one at a time; expected --format onnx --out FOLDER, or --out FILE.pte"
        )
    if to_onnx and options.out == ExportOptions.out:
        raise SpecError(f"--out is the default {options.out}; expected a folder for the ONNX files, such as models")
    if sharing is not None and options.tasks is not None:
        raise SpecError("--tasks with tasks that are computed one at a time; expected all: each has its file or method")
    network: Any = sharing or read_branched(branched, options.config, device=options.device, dtype=options.dtype).eval()
    if options.tasks is not None:
        network = keep_tasks(network, [task.strip() for task in options.tasks.split(",")])
    if options.dry_run:
        plan = Plan("export").step("trace, write, and check the file", memory=3 * memory_of({"": network}))
        print_plan(plan, [options.out], as_json=options.as_json)
        return
    example = placed(batch_of(network.interface.random(), options.batch_size), options.device, options.dtype)
    with silence() if options.quiet else nullcontext():
        if to_onnx:
            files = onnx_task_files(network, example, options.out)
            made: dict[str, Any] = {"models": {task: str(file) for task, file in files.items()}}
            said = [f"wrote {', '.join(map(str, files.values()))} and their weights, weights.bin"]
        else:
            most = options.batch_size if options.batch_size > 1 else None
            program = executorch_program(network, example, options.out, max_batch_size=most)
            methods = {name: list(outputs) for name, outputs in program.methods.items()}
            made = {"model": str(program.path), "methods": methods, "difference": program.difference}
            said = [f"wrote {program.path}", f"methods: {', '.join(methods)}"]
            said.append(f"run by ExecuTorch: differs by at most {program.difference:.1e} of an output's largest value")
    print_json(made) if options.as_json else print_text(*said)


def _quantize(branched: Path, options: ExportOptions) -> None:
    """Write the network as an ONNX file with int8 nodes, and print what each costs."""
    import torch

    from branchnet.builder.network.surgery import keep_tasks
    from branchnet.cli.loading import not_a_config, read_source
    from branchnet.cli.printing import print_json, print_plan, print_text
    from branchnet.cli.saved_networks import read_branched
    from branchnet.deploy import quantize
    from branchnet.errors import SpecError
    from branchnet.pipeline.plans.dry_run import Plan, memory_of

    if options.config is None or options.format not in (None, "onnx") or options.out.suffix != ".onnx":
        raise SpecError(
            f"--int8 with --config {options.config}, --out {options.out}; expected a config with images and a file "
            "that ends in .onnx: branchnet export FOLDER --config run.yaml --int8 --out branched.onnx"
        )
    network = read_branched(branched, options.config).eval()
    if options.dry_run:
        plan = Plan("export").step(
            "quantise every node, and measure what it loses", memory=6 * memory_of({"": network})
        )
        print_plan(plan, [options.out], as_json=options.as_json)
        return
    given = read_source(options.config)
    if given.config is None or given.images is None:
        raise not_a_config(options.config)
    chosen = network.tasks if options.tasks is None else [task.strip() for task in options.tasks.split(",")]
    network = keep_tasks(network, chosen)
    count = given.images.known_count
    probe = given.images.take(torch.linspace(0, count - 1, min(count, given.config.probe)).long()).inputs
    kinds = {task: kind for task, kind in given.config.kinds.items() if task in network.tasks}
    with silence() if options.quiet else nullcontext():
        made = quantize(network, probe, max_loss=options.max_loss, kinds=kinds)
    made.save(options.out)
    if options.as_json:
        print_json({"model": str(options.out), **made.to_dict()})
    else:
        print_text(f"wrote {options.out}", str(made))


def _print(exported: Exported, *, as_json: bool) -> None:
    from branchnet.cli.printing import print_json, print_text

    if as_json:
        descriptions = {"specification": str(exported.specification), "card": str(exported.card)}
        checked = {"batches": list(exported.batches), "difference": dict(exported.difference)}
        print_json({"model": str(exported.model), **descriptions, "outputs": list(exported.outputs), **checked})
        return
    worst = max(exported.difference.values(), default=0.0)
    batches = ", ".join(map(str, exported.batches))
    print_text(
        f"wrote {exported.model}, {exported.specification} and {exported.card}",
        f"outputs: {', '.join(exported.outputs)}",
        f"loaded again and run with batches of {batches}: differs by at most {worst:.1e} of an output's largest value",
    )
