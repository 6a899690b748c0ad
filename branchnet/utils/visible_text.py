"""Names shown so that nothing in them is hidden, moves the cursor, or turns the direction of reading."""

from __future__ import annotations

import re
import unicodedata

# What Unicode calls default ignorable and what is no format character: fillers, joiners and variation selectors.
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff]"
)
_INVISIBLE = ("Cf", "Zl", "Zp")
_CONTROL = ("Cc", "Cs")
_SUSPECTS = re.compile("[^ -~]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def invisible(text: str) -> list[str]:
    """Find the characters that nobody sees, or that turn the direction of reading.

    Args:
        text: any text; emoji whose parts are joined by an invisible character hold some, too.

    Returns:
        Each that occurs, once, by the number that Unicode gives it, e.g. `U+202E`.
    """
    found = filter(_is_invisible, _SUSPECTS.findall(text))
    return [f"U+{ord(character):04X}" for character in dict.fromkeys(found)]


def visible(text: str, *, lines: bool = False) -> str:
    r"""Write control characters and invisible ones as JSON does.

    Args:
        text: any text.
        lines: whether it may have several lines.

    Returns:
        The text with those characters as `\n`, `\u001b` and so on.

    >>> from branchnet.utils.visible_text import visible
    >>> print(visible("depth\x1b[31m\u202egnp"))
    depth\u001b[31m\u202egnp
    """
    return _SUSPECTS.sub(lambda found: found[0] if lines and found[0] == "\n" else _shown(found[0]), text)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _CONTROL and not _is_invisible(character):
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    code = "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
    return _SHORT.get(character, code)


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE or _IGNORABLE.match(character) is not None
