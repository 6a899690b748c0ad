"""The exact method's estimates of its work and memory, against what it really compares and holds."""

from dataclasses import fields, is_dataclass

import numpy as np
import pytest

from branchnet.clustering import Constraints
from branchnet.clustering.exact.dynamic_program import width_table, work
from branchnet.clustering.search_problem import make_problem
from tests.clustering.toys import Counting, random_affinity


def held_bytes(thing: object) -> int:
    """Bytes of all arrays inside nested lists and dataclasses."""
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, list):
        return sum(map(held_bytes, thing))
    return sum(held_bytes(getattr(thing, f.name)) for f in fields(thing)) if is_dataclass(thing) else 0


@pytest.mark.parametrize(("n", "depth"), [(1, 1), (2, 3), (5, 1), (6, 2), (7, 4), (9, 3)])
def test_work_and_memory_are_what_is_compared_and_held(n: int, depth: int) -> None:
    problem = make_problem(random_affinity(n, depth, 0), [1.0] * depth, "params")
    deadline = Counting()
    table = width_table(problem.losses, problem.rules, deadline)
    compared, held = work(n, depth)
    assert compared == deadline.announced == deadline.counted
    assert held == held_bytes(table) - table.widths.nbytes - table.costs.nbytes


def test_stages_that_must_be_shared_are_no_work() -> None:
    problem = make_problem(random_affinity(6, 4, 0), [1.0] * 4, "params", constraints=Constraints(shared_stages=2))
    deadline = Counting()
    table = width_table(problem.losses, problem.rules, deadline)
    assert deadline.counted == deadline.announced == work(6, 2)[0]
    assert table.widths[:, :2].max() == 1
    assert table.widths.shape == (21, 4)  # the non-decreasing pairs of widths 1..6
