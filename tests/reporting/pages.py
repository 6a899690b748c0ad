"""Pages that hold everything, for any number of tasks, made of invented numbers."""

import numpy as np

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import SearchResult, Tree
from branchnet.clustering.certainty.tree_stability import compare_trees
from branchnet.inference.latency import Latency
from branchnet.reporting.comparison import ComparedNetwork, Comparison
from branchnet.reporting.costing import NetworkCosts, NodeCost
from branchnet.reporting.pages.page import Page
from branchnet.reporting.plots.front_plot import front_plot_data
from branchnet.reporting.plots.samples_plot import TaskSamples, samples_plot_data
from branchnet.reporting.summary import Report

HOSTILE = "<script>alert('x')</script>&\"$\\frac{1}{0}$"


def full_page(n_tasks, *, depth=4, seed=0):
    """A page with every section; one task has a hostile name."""
    generator = np.random.default_rng(seed)
    tasks = (HOSTILE, *(f"task_with_a_name_{i}" for i in range(1, n_tasks)))
    tree = random_tree(tasks, depth, generator)
    found = invented_report(tree)
    chosen = SearchResult(tree, 0.4, 60.0, 0.3, False, "local", HOSTILE, "mean-max", "params", 70.0)
    front = [
        chosen,
        SearchResult(Tree.shared(tasks, depth), 1.0, 20.0, 1.0, True, "exact", "", "mean-max", "params", np.inf),
        SearchResult(Tree.separate(tasks, depth), 0.0, 100.0, 0.0, True, "exact", "", "mean-max", "params", np.inf),
    ]
    return Page(
        title=f"{n_tasks} tasks {HOSTILE}",
        summary=HOSTILE,
        asked={"budget": "60% params", HOSTILE: HOSTILE},
        chosen=chosen,
        report=found,
        affinity=random_affinity(tasks, found.costs.locations, generator),
        front=front_plot_data(front, 100.0, chosen=chosen, random=[(50, 0.9), (70, 0.6)], budget=70.0),
        comparison=random_comparison(tasks, generator),
        samples=random_samples(tasks, generator),
        stability=compare_trees(tree, [tree, Tree.shared(tasks, depth)]),
        certainty=[HOSTILE],
        commands=[f"branchnet demo --out {HOSTILE}", "x" * 300],
    )


def random_tree(tasks, depth, generator):
    stages = [[list(tasks)]]
    for _ in range(depth - 1):
        halves = []
        for cluster in stages[-1]:
            cut = int(generator.integers(len(cluster)))
            halves += [part for part in (cluster[:cut], cluster[cut:]) if part]
        stages.append(halves)
    return Tree(tasks, stages)


def invented_report(tree):
    """Nodes of equal cost: counting 40 real networks would take long."""
    nodes = [
        NodeCost(f"nodes.{d}.{k}", d, cluster, cluster[0], 10 ** (d + 2), 10 ** (d + 4), 4096)
        for d, stage in enumerate(tree.partitions)
        for k, cluster in enumerate(stage)
    ]
    heads = [NodeCost(f"heads.{i}", tree.depth, (t,), t, 20, 40, 64) for i, t in enumerate(tree.tasks)]
    params, flops = (sum(getattr(node, name) for node in (*nodes, *heads)) for name in ("params", "flops"))
    locations = tuple(f"features.encoder.blocks.{d}" for d in range(tree.depth))
    costs = NetworkCosts(tree.tasks, locations, (*nodes, *heads), params, flops // 2, ("sort",), ((2, 8),))
    latency = {node.id: Latency((0.001, 0.002)) for node in costs.nodes}
    return Report(tree, costs, {"branched": Latency((0.1, 0.2))}, latency)


def random_affinity(tasks, locations, generator):
    features = generator.normal(size=(len(locations), len(tasks), 6)) + 1
    values = np.stack([np.corrcoef(f) for f in features])
    return Affinity(tasks, locations, values, standard_errors=0.05 * np.ones_like(values))


def random_comparison(tasks, generator):
    networks = [
        ComparedNetwork(
            name,
            {task: float(generator.uniform(0.5, 0.9)) for task in tasks},
            1000 - 200 * k,
            2000 - 300 * k,
            {way: Latency(tuple(generator.gamma(20, 0.002, 9))) for way in ("eager", "compiled")},
        )
        for k, name in enumerate(("separate", "branched", HOSTILE))
    ]
    return Comparison(tuple(networks), dict.fromkeys(tasks, "mIoU"), dict.fromkeys(tasks, False))


def random_samples(tasks, generator):
    labels = generator.integers(0, 3, (len(tasks), 4))
    dense = TaskSamples("segmentation", "classes", generator.integers(0, 5, (4, 16, 16)))
    texts = [TaskSamples(task, "label", row, {HOSTILE: row[::-1]}) for task, row in zip(tasks, labels, strict=True)]
    return samples_plot_data(generator.uniform(size=(4, 16, 16, 3)), [dense, *texts])
