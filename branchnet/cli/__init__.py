"""The `branchnet` command: results to stdout, logs and progress to stderr, one exit code for each kind of failure.

0 done, 2 wrong usage or a wrong file, 3 no tree fits the budget, 4 a bad checkpoint, 130 interrupted.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cyclopts import App, CycloptsError

from branchnet.errors import BranchnetError, BudgetError, CheckpointError
from branchnet.utils.version import __version__
from branchnet.utils.visible_text import visible

VERBS = {
    "demo": "The whole way on seven tasks of procedural scenes.",
    "run": "The whole way on your networks and images.",
    "split": "Cut networks into stages at the same places.",
    "affinity": "Compare networks at every location.",
    "search": "Find the best tree within a budget.",
    "group": "Divide tasks into groups, each with a network of its own.",
    "build": "Make the branched network, with donors' weights.",
    "distill": "Train it to give the single-task networks' outputs.",
    "train": "Train a branched network on labels.",
    "bench": "Time it against the single-task networks.",
    "report": "Costs and latencies as tables or as one page.",
    "export": "Write it for deployment.",
    "show": "Print the tree and costs of a saved network.",
    "validate": "Check YAML files, every problem at once.",
    "schema": "The JSON schema of the YAML files, for editors.",
    "checks": "Versions, devices, compiler, self-test: for bug reports.",
}


def make_app(*, listing: bool = False) -> App:
    """The command. Verbs are imported when they are used; `listing` says a line about each without importing any.

    Args:
        listing: say a line about each verb without importing any.

    Returns:
        The command.
    """
    app = App(
        name="branchnet",
        version=__version__,
        help="From N trained single-task networks to one branched network: which layers to share, decided and built.",
        result_action="return_value",
        suppress_keyboard_interrupt=False,  # main says how to go on
    )
    for position, (verb, line) in enumerate(VERBS.items()):
        more = {"help": line} if listing else {}
        app.command(f"branchnet.cli.commands.{verb}:{verb}", name=verb, sort_key=position, **more)
    app.register_install_completion_command(add_to_startup=False)  # no file of the user is changed
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: the words after `branchnet`; None for those of the process.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if arguments is None else arguments
    app = make_app(listing=not words or words[0] not in VERBS)
    try:
        with warnings_in_words(quiet=bool({"--quiet", "--quiet=true"} & set(words))):
            app(words, exit_on_error=False)
    except CycloptsError:
        return 2  # cyclopts has printed the error
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the finished steps", file=sys.stderr)
        return 130
    except BranchnetError as error:
        print(f"branchnet: {visible(str(error), lines=True)}", file=sys.stderr)
        return exit_code(error)
    except OSError as error:  # a file that cannot be read or written, a full disk
        print(f"branchnet: {visible(str(error), lines=True)}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def warnings_in_words(*, quiet: bool) -> Iterator[None]:
    """Print each warning once on stderr, as a sentence without a place in the code.

    Args:
        quiet: print none, as the user asked for silence on stderr.
    """
    told: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = visible(str(message), lines=True)
        if text not in told and not quiet:
            told.add(text)
            print(f"warning: {text}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def exit_code(error: BranchnetError) -> int:
    """Exit code for a failure.

    Args:
        error: what was raised.

    Returns:
        3 where no tree fits, 4 for a bad checkpoint, else 2.
    """
    if isinstance(error, BudgetError) and error.smallest is not None:
        return 3
    if isinstance(error, CheckpointError):
        return 4
    return 2
