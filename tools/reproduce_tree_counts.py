"""How many trees there are for N tasks and D stages (iterated Bell numbers), counted, and small ones enumerated."""

from __future__ import annotations

from published import Reproduction, Row, facts_json, run

from branchnet import count_trees, enumerate_trees

ENUMERATED = 3000


def reproduce() -> Reproduction:
    """All published counts by formula; those up to 3,000 also by listing the trees."""
    rows = []
    for depth, row in facts_json("tree_counts.json")["table_B_to_T"].items():
        for tasks, count in row.items():
            what = f"{tasks} tasks, {depth} stages"
            rows.append(Row(what, count, count_trees(int(tasks), int(depth))))
            if count <= ENUMERATED:
                names = [str(number) for number in range(int(tasks))]
                rows.append(Row(f"{what}, listed", count, len(set(enumerate_trees(names, int(depth))))))
    source = "iterated Bell numbers by their formula; zhanglijun95/TreeMTL prints some as its numbers of layouts"
    return Reproduction("How many trees there are", source, tuple(rows))


if __name__ == "__main__":
    run(__doc__, reproduce)
