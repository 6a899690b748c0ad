"""Training what is not one branched network: grouped networks, and tasks that are computed one at a time.

Grouped networks share nothing: each is trained by itself, with every task of its set. The paths of a sharing network
are trained together: every batch goes through each task's own path, and what several paths share gets all gradients.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from branchnet.builder import GroupedNetworks, SharingNetwork
from branchnet.data.samples import read_samples
from branchnet.errors import TrainingError
from branchnet.stages.interface import call_form
from branchnet.training.optimization.groups import trained_tasks
from branchnet.training.optimization.history import History
from branchnet.training.teachers import Teachers

Train = TypeVar("Train", bound=Callable[..., History])


@dataclass(frozen=True)
class GroupedHistory(History):
    """What training grouped networks reported.

    Under a task's name is what the network that serves it reported; what another one did with it as an auxiliary task
    is under `<task> in network <k>`.

    Attributes:
        losses, before, after, constant, judged_on, measurements, learning_rate, tolerance: see `History`.
        seconds: the sum over the networks.
        resumed_at: the smallest step of any network.
        kept_step: the smallest step of any network; None without held-out samples.
        networks: what each network reported.
    """

    networks: tuple[History, ...] = ()


def takes_grouped_and_sharing(train: Train) -> Train:
    """Let a training function take `GroupedNetworks`, of which each is trained, and a `SharingNetwork`'s paths.

    Args:
        train: a function of a network, with `checkpoint=` and `description=`.
    """
    signature = inspect.signature(train)
    first = next(iter(signature.parameters))

    @wraps(train)
    def train_any(*args: Any, **kwargs: Any) -> History:
        grouped = args[0] if args else kwargs.get(first)
        if not isinstance(grouped, GroupedNetworks | SharingNetwork):
            return train(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if isinstance(grouped, SharingNetwork):
            check_paths(bound.arguments)
            try:
                return train(**{**bound.arguments, first: grouped.separate_paths()})
            finally:
                grouped.eval()
        _check_all(grouped, bound.arguments)
        arguments = _teachers_once(grouped, bound.arguments)
        try:
            histories = [
                train(**{**arguments, first: network, **own})
                for network, own in zip(grouped.networks, _own_arguments(grouped, arguments), strict=True)
            ]
        finally:
            grouped.eval()
        return _joined(grouped, histories)

    return cast("Train", train_any)


def check_paths(arguments: Mapping[str, Any]) -> None:
    """Refuse what asks a node which tasks share it: the paths' nodes are of one task each."""
    refused = {
        "divide_rate": bool(arguments.get("divide_rate")),
        "learning_rate": callable(arguments.get("learning_rate")),
        "scope": arguments.get("scope") in ("first-private-stage", "stitches"),
        "match": arguments.get("match") in ("features", "both"),
    }
    if found := [name for name, wrong in refused.items() if wrong]:
        raise TrainingError(
            f"{found[0]}={arguments[found[0]]!r} needs nested sharing; expected training of tasks that are computed "
            "one at a time without it"
        )


def _check_all(grouped: GroupedNetworks, arguments: Mapping[str, Any]) -> None:
    """Refuse a task that something is missing for before the first network is trained."""
    tasks = dict.fromkeys(task for network in grouped.branched_networks for task in trained_tasks(network))
    train = arguments.get("train")
    if arguments.get("labels") is None and isinstance(train, tuple) and len(train) == 2:
        arguments = {**arguments, "labels": train[1]}
    for name, what in (("labels", "labels"), ("losses", "a loss"), ("networks", "a single-task network")):
        given = arguments.get(name)
        known = given.networks if isinstance(given, Teachers) else given
        if isinstance(known, Mapping) and (missing := [task for task in tasks if task not in known]):
            raise TrainingError(f"tasks {missing} have not got {what}; expected one for each of {list(tasks)}")


def _own_arguments(grouped: GroupedNetworks, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What differs from network to network."""
    count, checkpoint = len(grouped.networks), arguments["checkpoint"]
    for number in range(count):
        file = None if checkpoint is None else Path(checkpoint)
        yield {
            "checkpoint": None if file is None else file.with_name(f"{file.stem}-{number}{file.suffix}"),
            "description": f"{arguments['description']} {number + 1}/{count}",
        }


def _teachers_once(grouped: GroupedNetworks, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Run teachers once for all networks."""
    teachers = arguments.get("networks")
    if not isinstance(teachers, Mapping):
        return dict(arguments)
    images = read_samples(arguments["images"], call_form(grouped))
    tasks = {task for network in grouped.branched_networks for task in network.tasks}
    used = {task: network for task, network in teachers.items() if task in tasks}
    kinds = {task: kind for task, kind in (arguments["kinds"] or {}).items() if task in used}
    outputs = {task: function for task, function in (arguments["outputs"] or {}).items() if task in used}
    made = Teachers(
        used,
        images,
        progress=arguments["progress"],
        kinds=kinds,
        temperature=arguments["temperature"],
        outputs=outputs,
    )
    return {**arguments, "images": images, "networks": made, "kinds": None, "outputs": None}


def _joined(grouped: GroupedNetworks, histories: list[History]) -> GroupedHistory:
    def named(k: int, values: Mapping[str, Any]) -> dict[str, Any]:
        return {t if grouped.serving.get(t) == k else f"{t} in network {k}": value for t, value in values.items()}

    def gathered(name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for k, history in enumerate(histories):
            found |= named(k, getattr(history, name))
        return {task: found[task] for task in [*(t for t in grouped.tasks if t in found), *found]}

    steps = [history.kept_step for history in histories if history.kept_step is not None]
    return GroupedHistory(
        gathered("losses"),
        sum(history.seconds for history in histories),
        min(history.resumed_at for history in histories),
        gathered("before"),
        gathered("after"),
        min(steps) if len(steps) == len(histories) else None,
        gathered("constant"),
        histories[0].judged_on,
        tolerance=gathered("tolerance"),
        networks=tuple(histories),
    )
