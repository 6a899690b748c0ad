"""The `branchnet` command: results to stdout, logs and progress to stderr, one exit code for each kind of failure.

0 done, 2 wrong usage or a wrong file, 3 no tree fits the budget, 4 a bad checkpoint, 130 interrupted.
"""

from __future__ import annotations

import sys

from cyclopts import App, CycloptsError

import branchnet
from branchnet.errors import BranchnetError, BudgetError, CheckpointError

app = App(
    name="branchnet",
    version=branchnet.__version__,
    help="From N trained single-task networks to one branched network: which layers to share, decided and built.",
    result_action="return_value",
)
app.command("branchnet.cli.demo:demo", name="demo", help="The whole way on seven tasks of procedural scenes.")
app.command("branchnet.cli.run:run", name="run", help="The whole way on your networks and images.")
app.command("branchnet.cli.show:show", name="show", help="Load a saved branched network; print its tree and costs.")
app.command("branchnet.cli.checks:checks", name="checks", help="Versions, devices, compiler: for bug reports.")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        app(arguments, exit_on_error=False)
    except CycloptsError:
        return 2  # cyclopts has printed the error
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the finished steps", file=sys.stderr)
        return 130
    except BranchnetError as error:
        print(f"branchnet: {error}", file=sys.stderr)
        return exit_code(error)
    return 0


def exit_code(error: BranchnetError) -> int:
    """Exit code for a failure."""
    if isinstance(error, BudgetError) and error.smallest is not None:
        return 3
    if isinstance(error, CheckpointError):
        return 4
    return 2
