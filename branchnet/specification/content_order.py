"""The order in which a specification's content is written: equal content gives equal bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from branchnet.specification.stitch_sections import place

if TYPE_CHECKING:
    from branchnet.specification.architecture import Architecture


def in_file_order(architecture: Architecture) -> dict[str, Any]:
    """Return the plain content in the file's order, whatever order its mappings were given in."""
    content = architecture.model_dump(by_alias=True, exclude_defaults=True, mode="json")
    content = {"schema_version": architecture.schema_version, **content}
    for section, order in (("networks", architecture.tasks), ("versions", sorted(architecture.versions))):
        if section in content:
            content[section] = {key: content[section][key] for key in order if key in content[section]}
    if "stitches" in content:
        content["stitches"] = {name: content["stitches"][name] for name in sorted(architecture.stitches, key=place)}
    for network in content.get("networks", {}).values():
        network.update(_sorted(network))
    if "costs" in content:
        stages, heads = content["costs"]["stages"], content["costs"].get("heads", {})
        difference = content["costs"].get("first_difference")
        content["costs"] = {"stages": {name: stages[name] for name in architecture.locations}}
        content["costs"] |= {"heads": {task: heads[task] for task in architecture.tasks}} if heads else {}
        content["costs"] |= {"first_difference": difference} if difference else {}
    return content


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
