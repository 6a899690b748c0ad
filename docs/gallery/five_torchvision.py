"""Five torchvision networks to one: five ResNet-18 that judge whole images, merged to 60% of their parameters.

Nothing is downloaded: the networks start from random weights and are trained here for a few steps on procedural scenes.
Yours are trained already; then the middle part starts at `split_all`.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, mse_loss

import branchnet
from branchnet.data import LAYOUTS, scenes
from branchnet.training import explained_variance

torch.manual_seed(0)
train, test = scenes(160, seed=0, size=32), scenes(40, seed=0, start=160, size=32)


def labels(found):
    """Five labels for each image, four of them numbers."""
    numbers = {
        "objects": found.labels["count"].reshape(-1, 1) / 4,
        "depth": found.labels["depth"].log().mean((1, 2, 3)).reshape(-1, 1),
        "edges": found.labels["edges"].mean((1, 2, 3)).reshape(-1, 1) * 10,
        "upward": found.labels["normals"][:, 1].mean((1, 2)).reshape(-1, 1) * 3,
    }
    return {"layout": found.labels["scene"], **numbers}


outputs = {"layout": len(LAYOUTS), "objects": 1, "depth": 1, "edges": 1, "upward": 1}
networks = {task: branchnet.create("torchvision:resnet18", num_classes=n) for task, n in outputs.items()}
for task, network in networks.items():
    loss = cross_entropy if task == "layout" else mse_loss
    branchnet.fit(network, train.images, labels(train)[task], loss, steps=30, batch_size=32, progress=False)

# Cut all five at the same places, and compare what they see in the same images.
staged = branchnet.split_all(networks, test.images[:1], locations=["layer1", "layer2", "layer3", "layer4"])
affinity = branchnet.rsa(staged, train.images[:100])
for location in affinity.locations:
    pairs = [row["affinity"] for row in affinity.rows() if row["location"] == location]
    print(f"{location}: affinities from {min(pairs):.3f} to {max(pairs):.3f}")

# The best tree of at most 60% of the parameters, proven; then the network, with donors' weights in place.
heads = {task: network.head_cost for task, network in staged.items()}
costs = staged["layout"].costs
found = branchnet.search(affinity, costs, "60% params", head_costs=heads, objective="mean-pair")
print(found.tree)
print(f"proven: {found.proven}; {found.size / 1e6:.1f} million parameters")
branched = branchnet.build(found.tree, staged, affinity=affinity)

# Without labels: the five networks say what is right.
with torch.no_grad():
    targets = {task: network.eval()(test.images) for task, network in networks.items()}
metrics = dict.fromkeys(outputs, explained_variance())
before = branchnet.evaluate(branched, test.images, targets, metrics)
branchnet.distill(branched, networks, train.images, steps=120, batch_size=32, progress=False)
after = branchnet.evaluate(branched, test.images, targets, metrics)
print("of the variance of each network's output on new images, the branched network explains:")
for task in outputs:
    print(f"  {task}: {before[task]:.0f}% before, {after[task]:.0f}% after distillation")

report = branchnet.report(branched, test.images[:1], networks=networks, repeats=10)
separate, merged = (report.latencies[name].median * 1e3 for name in ("separate", "branched"))
print(f"one image: {separate:.0f} ms for five networks, {merged:.0f} ms for one")
