"""The options that several verbs have in common, each with one explanation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Config = Annotated[Path, Parameter(help="YAML file with networks and images, as for `branchnet run`: trusted code.")]
OptionalConfig = Annotated[
    Path | None, Parameter(help="The config with the networks, where the file does not say how they are made.")
]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON for programs instead of tables.")]
Quiet = Annotated[bool, Parameter(negative=(), help="Print results only: no progress, no messages.")]
Seed = Annotated[int, Parameter(help="Decides everything that is random.")]
Device = Annotated[str | None, Parameter(help="Where networks run, e.g. `cuda`; by default on the CPU.")]
DtypeName = Literal["float32", "float64", "bfloat16", "float16"]
Dtype = Annotated[DtypeName | None, Parameter(help="Type of weights and inputs; by default as they are.")]
DryRun = Annotated[bool, Parameter(negative=(), help="Print what would be done, its memory and time; do none of it.")]
Flag = Annotated[bool, Parameter(negative=())]
