"""Warnings for public names that will go: they name the version of removal and the replacement."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def deprecated(version: str, replacement: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorate a function or method that warns whenever it is called, and works as before.

    A class warns by its decorated `__init__`.

    The note `Deprecated: ...` is added to its docstring.

    Args:
        version: the version in which the name will be removed, e.g. `"0.4.0"`.
        replacement: what to write instead, e.g. `"branchnet.plot(affinity)"`.

    Returns:
        the decorator.

    >>> import warnings
    >>> @deprecated("0.4.0", "branchnet.plot(affinity)")
    ... def draw(affinity):
    ...     return affinity
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     _ = draw(1)
    >>> print(caught[0].message)
    draw is deprecated and will be removed in 0.4.0; use branchnet.plot(affinity)
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        name = getattr(function, "__qualname__", repr(function))
        text = f"{name} is deprecated and will be removed in {version}; use {replacement}"

        @functools.wraps(function)
        def warned(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            # The level of the caller: Python shows DeprecationWarning only for code in `__main__` and in tests, and so
            # to those who can change the call.
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            return function(*args, **kwargs)

        warned.__doc__ = (
            f"{(function.__doc__ or '').rstrip()}\n\nDeprecated: will be removed in {version}; use {replacement}."
        )
        return warned

    return decorate
