"""`branchnet export`: a branched network as one file for deployment."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Device, DryRun, Dtype, OptionalConfig, Quiet
from branchnet.utils.progress import silence

Folder = Annotated[Path, Parameter(help="What `branchnet build` or `branchnet distill` wrote.")]
Format = Literal["pt2", "aoti", "onnx", "safetensors"]


def export(
    branched: Folder,
    *,
    config: OptionalConfig = None,
    format: Format | None = None,
    tasks: str | None = None,
    batch_size: int = 2,
    out: Path = Path("branched.pt2"),
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Write the network in BRANCHED as one file for deployment; load it again, and check what it gives.

    Its specification and a model card are written beside it.

    Example: `branchnet export distilled --out branched.pt2`

    Parameters
    ----------
    format
        pt2 (torch.export, loaded by torch alone), aoti (compiled for this kind of device), onnx, or safetensors; by
        default as the suffix of --out says.
    tasks
        Only these tasks, with commas between.
    batch_size
        Of the example that it is traced with; other sizes work, too.
    out
        The file.
    """
    import branchnet
    from branchnet.cli.loading import placed, read_branched
    from branchnet.cli.printing import print_json, print_text
    from branchnet.pipeline.dry_run import Plan, batch_of, memory_of

    network = read_branched(branched, config, device=device, dtype=dtype).eval()
    if dry_run:
        plan = Plan("export").step("trace, write, and check the file", memory=3 * memory_of({"": network}))
        plan.show(as_json=as_json, writes=[out])
        return
    example = placed(batch_of(network.interface.random(), batch_size), device, dtype)
    chosen = None if tasks is None else [task.strip() for task in tasks.split(",")]
    with silence() if quiet else nullcontext():
        exported = branchnet.export(network, example, out, format=format, tasks=chosen)
    if as_json:
        beside = {"specification": str(exported.specification), "card": str(exported.card)}
        checked = {"batches": list(exported.batches), "difference": dict(exported.difference)}
        print_json({"model": str(exported.model), **beside, "outputs": list(exported.outputs), **checked})
        return
    worst = max(exported.difference.values(), default=0.0)
    batches = ", ".join(map(str, exported.batches))
    print_text(
        f"wrote {exported.model}, {exported.specification} and {exported.card}",
        f"outputs: {', '.join(exported.outputs)}",
        f"loaded again and run with batches of {batches}: differs by at most {worst:.1e} of an output's largest value",
    )
