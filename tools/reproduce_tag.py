"""The task groups that TAG (Fifty et al. 2021) finds from its published affinities, for one to four networks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from published import Reproduction, Row, facts_rows, run

from branchnet.clustering import group_by_affinity


def effects(measure: str) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Tasks and the effect of task i on task j; the published tables are written the other way round."""
    if measure == "hoa":
        entries = {(row["trained_with"], row["task"]): -float(row["value"]) for row in facts_rows("tag_hoa_pairs.csv")}
    else:
        entries = {
            (row["from_task"], row["onto_task"]): float(row["value"])
            for row in facts_rows("tag_affinity.csv")
            if row["measure"].lower() == measure
        }
    tasks = list(dict.fromkeys(task for task, _ in entries))
    return tasks, np.array([[entries[i, j] for j in tasks] for i in tasks])


def groups_text(groups: object) -> str:
    """Groups in one order."""
    return "; ".join(sorted(", ".join(sorted(group)) for group in groups))  # type: ignore[attr-defined]


def reproduce() -> Reproduction:
    """Score and groups for every measure and number of networks."""
    rows = []
    for published in facts_rows("tag_oracle.csv"):
        measure, networks = published["measure"], int(published["splits"])
        tasks, matrix = effects(measure)
        found = group_by_affinity(matrix, networks, tasks=tasks)
        what = f"{measure}, at most {networks} network(s)"
        sign = -1 if measure == "hoa" else 1
        rows.append(Row(f"{what}: score", sign * float(published["optimum"]), found.score, 1e-10))
        wanted = groups_text(group.split("|") for group in published["groups_minimal"].split(" ; "))
        rows.append(Row(f"{what}: groups", wanted, groups_text(found.groups)))
    return Reproduction(
        "Task groups by inter-task affinity (TAG, Fifty et al. 2021)",
        "google-research/tag, published affinities on Taskonomy; optimum by their search over all groups",
        tuple(rows),
    )


if __name__ == "__main__":
    run(__doc__, reproduce)
