"""Deprecated names warn at the caller's line, name version and replacement, and work as before."""

from __future__ import annotations

import warnings

import pytest

from branchnet.utils.deprecation import deprecated


@deprecated("0.4.0", "new(x)")
def old(x: int, *, more: int = 0) -> int:
    """Add."""
    return x + more


class Holder:
    @deprecated("1.0", "Holder.other()")
    def method(self) -> str:
        return "done"


def test_it_warns_with_version_and_replacement_and_works_as_before() -> None:
    with pytest.warns(DeprecationWarning) as caught:
        assert old(1, more=2) == 3
    (warning,) = caught
    assert str(warning.message) == "old is deprecated and will be removed in 0.4.0; use new(x)"
    assert warning.filename == __file__


def test_methods_are_named_with_their_class() -> None:
    with pytest.warns(DeprecationWarning, match=r"^Holder\.method is deprecated .* 1\.0; use Holder\.other\(\)$"):
        assert Holder().method() == "done"


def test_name_and_documentation_stay_readable() -> None:
    assert old.__name__ == "old"
    assert old.__doc__ is not None
    assert old.__doc__.startswith("Add.")
    assert "removed in 0.4.0; use new(x)" in old.__doc__


def test_as_an_error_it_stops_the_call() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        with pytest.raises(DeprecationWarning, match=r"use new\(x\)"):
            old(1)
