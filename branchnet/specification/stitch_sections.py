"""The stitches of a specification: which node or head has one in front, between which networks, and of what shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isnan
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from branchnet.errors import SpecError
from branchnet.specification.nested_tree import Section
from branchnet.utils.document_keys import Keys
from branchnet.utils.visible_text import invisible

if TYPE_CHECKING:
    from branchnet.clustering.trees.tree import Tree
    from branchnet.stitching.stitch import Stitch

MAX_CHANNELS = 2**20
MAX_TENSOR = 1000
MAX_DIMENSION = 7
_ID = re.compile(r"nodes\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})|heads\.(0|[1-9]\d{0,5})")

Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]


class MapSection(Section):
    """The affine map of one tensor of a cut."""

    tensor: int = Field(ge=0, le=MAX_TENSOR, description="Its number among the tensors of the cut.")
    channels: tuple[Channels, Channels] = Field(description="Channels that arrive, channels that are expected.")
    dimension: int = Field(ge=1, le=MAX_DIMENSION, description="The dimension that holds the channels.")
    rank: Channels | None = Field(default=None, description="Of a map in two factors; a full one names none.")

    @property
    def size(self) -> int:
        """Parameters of the map."""
        sources, targets = self.channels
        return targets + (sources * targets if self.rank is None else self.rank * (sources + targets))


class StitchSection(Section):
    """A stitching layer: affine maps of one network's features to those that another one's layers expect."""

    source: Name = Field(description="The task whose network's features arrive.")
    target: Name = Field(description="The task whose network's features the node expects.")
    method: Name | None = Field(default=None, description="How it was fitted: ridge, half-way, variance-matched.")
    r2: Annotated[float, Field(le=1)] | None = Field(
        default=None, description="Share of the expected features' variance that least squares explains."
    )
    maps: tuple[MapSection, ...] = Field(min_length=1, max_length=MAX_TENSOR)

    @classmethod
    def of(cls, stitch: Stitch) -> StitchSection:
        """Describe a stitch.

        Raises:
            SpecError: a stitch that was folded.
        """
        if stitch.folded:
            raise SpecError(
                f"the stitch from {stitch.source!r} to {stitch.target!r} was folded into the weights next to it; "
                "expected the network before folding: describe and save that one"
            )
        maps = tuple(
            MapSection(
                tensor=index,
                channels=affine.channels,
                dimension=affine.dimension,
                rank=affine.rank if len(affine.weights) > 1 else None,
            )
            for index, affine in stitch.affine_maps.items()
        )
        r2 = None if isnan(stitch.r2) else stitch.r2
        return cls(source=stitch.source, target=stitch.target, method=stitch.method or None, r2=r2, maps=maps)

    @property
    def size(self) -> int:
        """Parameters of the stitch."""
        return sum(each.size for each in self.maps)

    def problems(self) -> list[tuple[Keys, str]]:
        """List names that nobody sees, tensors out of order, and ranks above the channels."""
        problems: list[tuple[Keys, str]] = [
            ((key,), f"{name!r} holds {', '.join(found)}, which nobody sees (remove it)")
            for key, name in (("source", self.source), ("target", self.target), ("method", self.method or ""))
            if (found := invisible(name))
        ]
        before = -1
        for number, each in enumerate(self.maps):
            if each.tensor <= before:
                problems.append((("maps", number, "tensor"), f"{each.tensor} does not come after {before}"))
            if each.rank is not None and each.rank > min(each.channels):
                problems.append(
                    (("maps", number, "rank"), f"{each.rank} is wrong: expected at most {min(each.channels)}")
                )
            before = each.tensor
        return problems


def stitch_problems(stitches: Mapping[str, StitchSection], tree: Tree) -> list[tuple[Keys, str]]:
    """List what is wrong with the stitches of a tree: ids of no node or head that another node feeds, and their own.

    Args:
        stitches: by the id of the node or head.
        tree: the tree.
    """
    problems: list[tuple[Keys, str]] = []
    for name, stitch in stitches.items():
        stage, number = place(name)
        widths = (0, *tree.widths[1:])
        if name.startswith("heads."):
            known = number < len(tree.tasks)
        else:
            known = 0 < stage < len(widths) and number < widths[stage]
        if not known or _ID.fullmatch(name) is None:
            problems.append(
                ((name,), "unknown key: not a node after the first stage, nodes.<stage>.<k>, or a head, heads.<i>")
            )
        problems += [((name, *keys), text) for keys, text in stitch.problems()]
    return problems


def stitch_marks(stitches: Mapping[str, StitchSection], depth: int) -> dict[tuple[int, int], str]:
    """Say for a drawing of the tree which nodes, by stage and number, are stitched to what; heads stand at `depth`.

    Args:
        stitches: by the id of the node or head.
        depth: the number of stages.
    """
    places = {name: place(name) for name in stitches}
    return {
        (min(stage, depth), number): f"stitched to {stitches[name].source}'s features"
        for name, (stage, number) in places.items()
    }


def place(name: str) -> tuple[int, int]:
    """Say where in the network a node or head is: its stage (heads after all of them) and its number.

    Args:
        name: the id; text that is none comes last.
    """
    found = _ID.fullmatch(name)
    if found is None:
        return (10**7, 0)
    stage, number, head = found.groups()
    return (10**6, int(head)) if head is not None else (int(stage), int(number))
