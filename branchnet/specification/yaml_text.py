"""Writing YAML text that every YAML reader understands in the same way, byte for byte equal for equal data."""

from __future__ import annotations

import re
from typing import Any

import yaml

from branchnet.specification.strict_yaml import plain_value

_SAFE = re.compile(r"[A-Za-z_][\w./() +-]*", re.ASCII)
_PROSE = re.compile(r"[!-~]+( [!-~]+)*")
_LETTERS_READ_AS_TRUTH = ("y", "n")


def dump_yaml(data: Any) -> str:
    """Write plain data as YAML: keys in their order, innermost collections on one line, no anchors.

    Text is quoted wherever some version of YAML would read it as anything else.

    Args:
        data: None, booleans, numbers, text, lists and dictionaries of them.

    Returns:
        the text, with a line break at the end.
    """
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return str(text)


def needs_quotes(text: str) -> bool:
    """Return whether some reader could take this text, unquoted, for anything but text."""
    if not _SAFE.fullmatch(text) or text.endswith(" ") or text.lower() in _LETTERS_READ_AS_TRUTH:
        return True
    try:
        return bool(plain_value(text) != text)
    except ValueError:
        return True


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """Write lists of scalars on one line."""
        node = super().represent_sequence(tag, sequence, flow_style)
        node.flow_style = all(isinstance(item, yaml.ScalarNode) for item in node.value)
        return node

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        """Write mappings of scalars on one line."""
        node = super().represent_mapping(tag, mapping, flow_style)
        node.flow_style = all(isinstance(item, yaml.ScalarNode) for _, item in node.value)
        return node

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists inside mappings, as people write them."""
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = ">" if len(text) > 80 and _PROSE.fullmatch(text) else '"' if needs_quotes(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
