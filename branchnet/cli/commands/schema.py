"""`branchnet schema`: the JSON schema of the YAML files, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from branchnet.cli.options import Quiet


def schema(
    *,
    config: Annotated[
        bool, Parameter(negative=(), help="The schema of a run's config instead of an architecture's.")
    ] = False,
    out: Path | None = None,
    quiet: Quiet = False,
) -> None:
    """Print the JSON schema of an architecture; editors check and complete YAML files with it.

    Example: `branchnet schema --out branchnet.schema.json`

    Parameters
    ----------
    out
        Write it there instead of printing it.
    """
    from branchnet.cli.printing import say
    from branchnet.pipeline.config.run_config import RunConfig
    from branchnet.specification.architecture import json_schema
    from branchnet.utils.files import write_text

    found = RunConfig.model_json_schema() if config else json_schema()
    text = json.dumps(found, indent=2) + "\n"
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)
        say(f"wrote {out}", quiet=quiet)
