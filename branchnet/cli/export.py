"""`branchnet export`: a branched network as one file for deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from branchnet.cli.options import DryRun, Dtype, OptionalConfig, Quiet

Folder = Annotated[Path, Parameter(help="What `branchnet build` or `branchnet distill` wrote.")]


def export(
    branched: Folder,
    *,
    config: OptionalConfig = None,
    format: str | None = None,
    out: Path = Path("branched.onnx"),
    dtype: Dtype = None,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Write the network in BRANCHED as one file that runs without branchnet.

    Example: `branchnet export distilled --out branched.onnx`

    Parameters
    ----------
    format
        By default as the suffix of --out says.
    out
        The file, .onnx or .pt2.
    """
    import branchnet
    from branchnet.cli.given import placed, read_branched
    from branchnet.cli.plans import Plan, memory_of
    from branchnet.cli.printing import say

    network = read_branched(branched, config, dtype=dtype)
    if dry_run:
        size = memory_of({"": network})
        Plan("export").step("trace and write", memory=2 * size).show(as_json=False, writes=[out])
        return
    example = placed(network.interface.random(), None, dtype)
    branchnet.export(network, example, out, **({} if format is None else {"format": format}))
    say(f"wrote {out}", quiet=quiet)
