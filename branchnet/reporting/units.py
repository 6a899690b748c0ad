"""Numbers as people read them."""

from __future__ import annotations

import math


def si(number: float, digits: int = 3) -> str:
    """Return `number` with an SI prefix and `digits` significant digits: 11176512 is `"11.2 M"`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # Rounded first: 999,999 is 1 M, not 1000 k.
        if abs(float(f"{number:.{digits}g}")) >= factor:
            return f"{_digits(number / factor, digits)} {prefix}"
    return _plain(number, digits)


def binary(size: float) -> str:
    """Return `size` in bytes as KiB, MiB or GiB."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(size) >= factor:
            return f"{_digits(size / factor, 3)} {unit}"
    return f"{size:.0f} B"


def milliseconds(seconds: float) -> str:
    """Return `seconds` in milliseconds with three significant digits."""
    return f"{_digits(seconds * 1e3, 3)} ms"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def percent(share: float) -> str:
    """Return `share` (1 = all) in percent with one decimal."""
    return f"{100 * share:.1f} %"


def signed(number: float, digits: int = 2) -> str:
    """Return `number` with its sign and a true minus."""
    return f"{number:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def significant(number: float, digits: int = 3) -> str:
    """Return `number` with its sign, a true minus and `digits` significant digits."""
    return f"{number:+.{digits}g}".replace("-", "\N{MINUS SIGN}")


def _plain(number: float, digits: int) -> str:
    """`digits` significant digits without an exponent; whole numbers without a fraction."""
    return str(int(number)) if number == int(number) else _digits(number, digits)


def _digits(number: float, digits: int) -> str:
    rounded = float(f"{number:.{digits}g}")
    if rounded == 0:
        return "0"
    return f"{rounded:.{max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)}f}"
