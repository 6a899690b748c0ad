"""What the licences of single-task networks mean for a network that contains their weights.

Licences are identified as the Hub does, e.g. `apache-2.0`. This reads identifiers, not licences: it finds combinations
that are known to be a problem and says so; that it finds none is no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from branchnet.errors import SpecError

_PERMISSIVE = re.compile(
    r"afl-3\.0|apache-2\.0|artistic-2\.0|bsd(-[23]-clause(-clear)?)?|bsl-1\.0|cc0-1\.0|cc-by-[234]\.0|"
    r"cdla-permissive-[12]\.0|isc|mit|ncsa|odc-by|pddl|postgresql|unlicense|wtfpl|zlib"
)
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_COPYLEFT = re.compile(r"(a?gpl)(-|$)")
_NON_COMMERCIAL = re.compile(r"(^|-)(nc|noncommercial|non-commercial|research)(-|$)|^fair-noncommercial")
_NO_DERIVATIVES = re.compile(r"-nd(-|$)")
_SHARE_ALIKE = re.compile(r"-sa(-|$)")


def licence_identifier(text: str) -> str:
    """Check an identifier.

    Args:
        text: e.g. `"Apache-2.0"`.

    Returns:
        It in lower case, as the Hub writes it.

    Raises:
        SpecError: text that is no identifier.

    >>> from branchnet.deploy.hub.licences import licence_identifier
    >>> licence_identifier("Apache-2.0")
    'apache-2.0'
    """
    if not _IDENTIFIER.fullmatch(text.lower()):
        raise SpecError(f"{text!r} is no licence identifier; expected one as the Hub writes them, e.g. 'apache-2.0'")
    return text.lower()


def licence_conflicts(licences: Mapping[str, str | None], result: str | None = None) -> list[str]:
    """Find what the licences of the networks forbid, ask for, or leave open.

    Args:
        licences: of each task's network, None where it is unknown.
        result: the licence that the branched network shall have, where it is decided.

    Returns:
        A sentence for each problem, empty where the identifiers show none.

    >>> from branchnet.deploy.hub.licences import licence_conflicts
    >>> licence_conflicts({"depth": "apache-2.0", "edges": "mit"}, "apache-2.0")
    []
    >>> licence_conflicts({"depth": "cc-by-nc-4.0", "edges": "mit"}, "mit")
    ["depth (cc-by-nc-4.0): non-commercial use only, and so is the whole network's; 'mit' allows more"]
    """
    known = {task: licence for task, licence in licences.items() if licence is not None}
    copyleft = {task: licence for task, licence in known.items() if _COPYLEFT.match(licence)}
    return [
        *_unknown(licences),
        *_restrictions(known, result),
        *_copyleft_with_others(copyleft, known),
        *_share_alike(known, copyleft, result),
    ]


def _unknown(licences: Mapping[str, str | None]) -> list[str]:
    unknown = [task for task, licence in licences.items() if licence in (None, "unknown", "other", "unlicensed")]
    if not unknown:
        return []
    return [f"{', '.join(unknown)}: the licence is not known; without one, weights may not be passed on"]


def _restrictions(known: Mapping[str, str], result: str | None) -> list[str]:
    found = []
    for task, licence in known.items():
        if _NO_DERIVATIVES.search(licence):
            found.append(f"{task} ({licence}): no derivatives may be passed on, and a branched network is one")
        if _NON_COMMERCIAL.search(licence):
            allows = f"; {result!r} allows more" if result is not None and not _NON_COMMERCIAL.search(result) else ""
            found.append(f"{task} ({licence}): non-commercial use only, and so is the whole network's{allows}")
        elif _is_other(licence):
            found.append(f"{task} ({licence}): terms of its own, which have to be read and passed on")
    return found


def _is_other(licence: str) -> bool:
    known = _PERMISSIVE.fullmatch(licence) or licence in ("unknown", "other", "unlicensed")
    return not (known or any(form.search(licence) for form in (_COPYLEFT, _NO_DERIVATIVES, _SHARE_ALIKE)))


def _copyleft_with_others(copyleft: Mapping[str, str], known: Mapping[str, str]) -> list[str]:
    """GPL and AGPL allow no further restrictions, and their versions do not mix."""
    found = []
    for task, licence in copyleft.items():
        restricted = [
            f"{other} ({theirs})"
            for other, theirs in known.items()
            if _NON_COMMERCIAL.search(theirs) or _is_other(theirs) or _NO_DERIVATIVES.search(theirs)
        ]
        if licence == "gpl-2.0":
            restricted += [
                f"{o} ({t})" for o, t in known.items() if t == "apache-2.0" or (o in copyleft and t != licence)
            ]
        if restricted:
            found.append(
                f"{task} ({licence}) cannot be combined with {', '.join(restricted)}: it allows no further terms"
            )
    return found


def _share_alike(known: Mapping[str, str], copyleft: Mapping[str, str], result: str | None) -> list[str]:
    """Licences under which what contains the weights has to be, too."""
    bound = {**copyleft} | {task: licence for task, licence in known.items() if _SHARE_ALIKE.search(licence)}
    asked = set(bound.values())
    strictest = {"agpl-3.0"} if "agpl-3.0" in asked and asked <= {"agpl-3.0", "gpl-3.0", "lgpl-3.0"} else asked
    whose = ", ".join(f"{task} ({licence})" for task, licence in bound.items())
    if len(strictest) > 1:
        return [f"{whose}: each asks for its own licence for the whole network"]
    if strictest and result is not None and result not in strictest:
        return [f"{whose}: the whole network has to be under {strictest.pop()!r}, not {result!r}"]
    return []
