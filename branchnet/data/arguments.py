"""Checks of arguments that many functions take, so that each is refused in the same words."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from branchnet.errors import BranchnetError


def check_whole(error: type[BranchnetError], least: int | None = 1, **numbers: Any) -> None:
    """Refuse numbers that are not whole, as steps of a float or of text.

    Args:
        error: what is raised.
        least: the smallest number allowed; None for any.
        numbers: values by the names of the arguments.

    Raises:
        BranchnetError: of type `error`; the argument and its value are named.
    """
    bound = "" if least is None else f" of {least} or more"
    for name, value in numbers.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or (least is not None and value < least):
            raise error(f"{name}={value!r}; expected a whole number{bound}")


def check_by_task(networks: Any, error: type[BranchnetError], name: str = "networks") -> None:
    """Refuse networks that are not given by task, as a list of them.

    Args:
        networks: what was passed.
        error: what is raised.
        name: of the argument.

    Raises:
        BranchnetError: of type `error`; the type of what was passed is named.
    """
    if not isinstance(networks, Mapping):
        raise error(
            f"{name} is a {type(networks).__name__}; expected a mapping of task names to networks, such as "
            '{"depth": network}'
        )
