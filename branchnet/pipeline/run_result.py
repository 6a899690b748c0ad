"""What a run gives: the network, how it was found, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from branchnet.affinity import Affinity
from branchnet.builder import BranchedNetwork
from branchnet.clustering import Advice, Budget, SearchResult, Stability, Tree, advise
from branchnet.reporting import Comparison, MeasuredTree, Report
from branchnet.reporting.conclusion import task_lines, verdict


@dataclass(frozen=True, eq=False)
class RunResult:
    """What `branchnet.run` found, built and measured.

    Attributes:
        tree: which tasks share which stage in the branched network.
        network: the branched network, distilled and in eval mode.
        comparison: the separate networks, the branched one and the baselines: size, latency, every task's metric.
        report: what the branched network costs.
        folder: where the results were written, or None.
        budget: the size that was allowed.
        affinity: how well each pair of tasks could share each stage.
        search: the chosen tree with its cost, its bound, and whether it is proven best.
        front: the trees that no other tree beats in both parameters and cost.
        stability: how often the search by RSA proposes the same tree on bootstrap replicates of the probe.
        trees: the trees that were built and trained, the chosen one (`"branched"`) first.
        measured: the proposed trees, and what each did with stitching layers, without training.
        proposer: who proposed the tree that was chosen.
        losses: the stitching losses as an affinity; None with `measure="rsa"`.
        threads: threads that the CPU used.

    >>> import branchnet
    >>> from branchnet.data import scenes
    >>> tasks = ("depth", "edges")
    >>> networks = {task: branchnet.create("branchnet:scene_network", outputs=1, width=4) for task in tasks}
    >>> images = scenes(30, size=32).images
    >>> result = branchnet.run(networks, images, "80% params", steps=2, compiled=False, quiet=True)
    >>> isinstance(result, branchnet.RunResult), result.tree.tasks, result.to_dict()["budget"]
    (True, ('depth', 'edges'), '80% params')
    """

    tree: Tree
    network: BranchedNetwork
    comparison: Comparison
    report: Report
    folder: Path | None
    budget: Budget
    affinity: Affinity
    search: SearchResult
    front: tuple[SearchResult, ...]
    stability: Stability
    trees: Mapping[str, Tree]
    measured: tuple[MeasuredTree, ...] = ()
    proposer: str = ""
    losses: Affinity | None = None
    threads: int = field(default_factory=torch.get_num_threads)

    def __str__(self) -> str:
        """The tree, how sure its choice is, what was gained and lost, and every task's metric."""
        return "\n".join([str(self.tree), self.certainty, verdict(self.comparison), *task_lines(self.comparison)])

    @property
    def certainty(self) -> str:
        """How the tree was chosen, and how sure RSA is of the one that it proposes, in a few words."""
        share = f"{100 * self.stability.same_tree:.0f}% of bootstrap replicates"
        if not self.measured:
            return f"the same tree in {share}"
        return f"{self.search.why}; RSA proposes its own tree again in {share}"

    @property
    def advice(self) -> Advice:
        """What the stitching losses, or without them the affinities, can and cannot tell about the tree."""
        if self.losses is not None:
            return advise(self.tree, self.losses, objective="medoid")
        return advise(self.tree, self.affinity, objective=self.search.objective)

    @property
    def further(self) -> dict[str, dict[str, float]]:
        """Further metrics, by label (the task and the name of the metric) and network."""
        return {
            f"{task}: {name}": dict(values)
            for task, metrics in self.comparison.further.items()
            for name, values in metrics.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything that was measured, as JSON values; latencies in seconds."""
        chosen, comparison = self.search, self.comparison
        return {
            "budget": str(self.budget),
            "objective": chosen.objective,
            "chosen": {
                "cost": chosen.cost,
                "size": chosen.size,
                "lower_bound": chosen.lower_bound,
                "proven": chosen.proven,
                "method": chosen.method,
            },
            "trees": {name: [list(map(list, stage)) for stage in tree.partitions] for name, tree in self.trees.items()},
            "proposed_by": self.proposer,
            "measured_trees": [tree.to_dict() for tree in self.measured],
            "same_tree_in_replicates": self.stability.same_tree,
            "metrics": dict(comparison.metric_names),
            "samples": dict(comparison.samples),
            "networks": {
                network.name: {
                    "params": network.params,
                    "flops": network.flops,
                    "latency": {
                        how: asdict(latency) | {"median": latency.median} for how, latency in network.latency.items()
                    },
                    "metrics": dict(network.metrics),
                    "further": {label: values[network.name] for label, values in self.further.items()},
                    "changes": {task: change.to_dict() for task, change in comparison.changes(network).items()},
                    "delta": comparison.delta(network),
                }
                for network in comparison.networks
            },
            "threads": self.threads,
            "torch": torch.__version__,
        }
