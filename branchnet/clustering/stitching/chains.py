"""Trees as chains: where the weights of each task begin, and whose features they are fed.

A donor keeps its branch (see `kept_donors`). So every task t has a start s_t in 0..D: the first stage whose node, on
the path of t, has donor t. From there on all nodes of the path are its own, down to its head; s_t = 0 is a whole
network of its own and s_t = D only a head. Where s_t > 0 it hangs off the donor a_t of the node of stage s_t - 1 on its
path, and since that node is a_t's, s_{a_t} < s_t.

- Trees give chains: nodes of a stage have distinct donors (each lies in its own cluster), and a task with s_t <= d is
  the donor of exactly one node of stage d. So the width of stage d is the number of tasks with s_t <= d.
- Chains give trees: given starts, at least one of them 0, and hosts with s_{a_t} < s_t, a task before its start shares
  the nodes of its host, whose start is earlier; these clusters are nested and hold their donors.

The cost, sum over tasks with s_t > 0 of `pairs[s_t - 1, a_t, t]`, and the size, a function of the widths, see nothing
else of the tree, and a_t may be any task with s_a < s_t. So the best tree is a facility location problem: a task that
has started is an open place, and every task is served by the best place that opened before its own start.

Without that rule a node's donor could be some task whose own weights are used again only deeper down; such trees may
lose less (with losses of 0 for a -> b and a -> t at location 0 and b -> a at location 1, and 1 elsewhere), but need
more stitches than their widths say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Chains:
    """A tree with its donors.

    Attributes:
        starts: (N,), s_t in 0..D.
        hosts: (N,), a_t; the task itself where s_t is 0.
    """

    starts: Ints
    hosts: Ints

    def labels(self, depth: int) -> Ints:
        """For each stage the donor of each task's node, (D, N), which serves as its cluster number."""
        labels = np.empty((depth, len(self.starts)), np.int64)
        for task in np.argsort(self.starts, kind="stable"):
            start = self.starts[task]
            labels[:start, task] = labels[:start, self.hosts[task]]
            labels[start:, task] = task
        return labels


def chains_of(pairs: Floats, starts: Ints, slack: float = 0.0) -> Chains:
    """These starts with the best hosts; of hosts that differ by no more than the slack in all, the first.

    Args:
        pairs: (D, N, N) losses by location, donor and task.
        starts: (N,), at least one of them 0.
        slack: by how much the cost may be above the least.
    """
    hosts = np.arange(len(starts))
    for task in np.flatnonzero(starts > 0):
        open_ = np.flatnonzero(starts < starts[task])
        losses = pairs[starts[task] - 1, open_, task]
        place = int(np.flatnonzero(losses <= losses.min() + slack)[0])
        slack -= float(losses[place] - losses.min())
        hosts[task] = open_[place]
    return Chains(starts, hosts)


def chain_costs(pairs: Floats, starts: Ints) -> Floats:
    """Cost of many chains with their best hosts, (B,), from starts (B, N)."""
    n = pairs.shape[1]
    by_task = pairs.transpose(2, 0, 1)
    offered = by_task[np.arange(n), np.maximum(starts - 1, 0)]
    offered = np.where(starts[:, None, :] < starts[:, :, None], offered, np.inf)
    return np.asarray(np.where(starts > 0, offered.min(axis=2), 0.0).sum(axis=1))


def widths_of(starts: Ints, depth: int) -> Ints:
    """Widths of many chains, (B, D), from starts (B, N)."""
    return np.asarray((starts[:, :, None] <= np.arange(depth)).sum(axis=1))
