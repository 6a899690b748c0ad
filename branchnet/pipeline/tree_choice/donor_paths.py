"""What a task does at the end of a path of donors: networks of many trees have paths in common, which run once.

A tree and the donors of its nodes give each task a path: the donor of its node at every stage. Features, stitches and
losses depend on nothing else, so that trees are measured path by path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from branchnet.builder.stitches.probe_features import Batch, Cut, Kept, OwnFeatures
from branchnet.builder.stitches.stitch_fit import fit_stitches
from branchnet.stitching.channels import copied
from branchnet.stitching.output_distances import OutputDistance, OutputKind
from branchnet.stitching.stitch import Stitch

DonorPath: TypeAlias = tuple[str, ...]
"""The donor of each stage, from the first one on; with that of the head last where it is one stage longer."""


class PathLosses:
    """Losses of tasks at the ends of paths.

    Args:
        own: what the donors make of the inputs that stitches are fitted and chosen on.
        held_out: what they make of the inputs to measure on, all of them judged.
        kinds: how the outputs of some tasks are compared.
    """

    def __init__(self, own: OwnFeatures, held_out: OwnFeatures, kinds: Mapping[str, OutputKind]) -> None:
        self._kinds = kinds
        self._own, self._held_out = own, held_out
        self._stitches: dict[DonorPath, Stitch | None] = {}
        self._losses: dict[DonorPath, float] = {}
        self._kept = {id(own): Kept(), id(held_out): Kept()}

    def loss(self, path: DonorPath) -> float:
        """How far a task's outputs are from its own network's.

        Args:
            path: the donors of its path, its own one last, for the head.

        Returns:
            0 for equal outputs, 1 for those of a constant predictor.
        """
        if path not in self._losses:
            task = path[-1]
            distance = OutputDistance(self._kinds.get(task, "regression"))
            for batch in self._held_out.batches("judged"):
                head = self._held_out.networks[task].head
                found = head(*self._entering(self._held_out, batch, path))
                distance.add(found, self._held_out.own_output(batch, task, distance.kind))
            self._losses[path] = distance.value()
        return self._losses[path]

    def _after(self, own: OwnFeatures, batch: Batch, path: DonorPath) -> Cut:
        """The cut after the last stage of a path, which nothing may write into."""
        if len(set(path)) == 1:
            return own.cut(batch, path[0], len(path))
        kept, key = self._kept[id(own)], (batch.part, batch.number, path)
        found: Cut | None = kept.get(key)
        if found is None:
            stage: Any = own.networks[path[-1]].stages[len(path) - 1]
            found = kept.put(key, stage(*self._entering(own, batch, path)))
        return found

    def _entering(self, own: OwnFeatures, batch: Batch, path: DonorPath) -> Cut:
        """What the last stage or head of a path takes, through a stitch where the donor changes."""
        before = copied(self._after(own, batch, path[:-1]))
        stitch = self._stitch(path) if path[-2] != path[-1] else None
        return before if stitch is None else stitch(*before)

    def _stitch(self, path: DonorPath) -> Stitch | None:
        if path not in self._stitches:
            (self._stitches[path],) = fit_stitches(
                self._own,
                lambda batch: self._after(self._own, batch, path[:-1]),
                path[-2],
                [path[-1]],
                len(path) - 1,
                self._kinds,
            )
        return self._stitches[path]
