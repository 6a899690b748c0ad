"""Five torchvision networks to one: five ResNet-18 with different classifiers, merged to 60% of their parameters.

Nothing is downloaded, so the weights are random and nothing here is a result: this shows the way. Load your weights
with `load_state_dict`, take your own images, and distil for a thousand steps and more.
"""

from __future__ import annotations

import torch

import branchnet
from branchnet.data import scenes

torch.manual_seed(0)
CLASSES = {"objects": 20, "places": 10, "weather": 4, "time of day": 3, "season": 4}
networks = {task: branchnet.create("torchvision:resnet18", num_classes=n).eval() for task, n in CLASSES.items()}
images = scenes(64, seed=0, size=32).images

# Cut all five at the same places, and compare what they see in the same images.
staged = branchnet.split_all(networks, images[:1], locations=["layer1", "layer2", "layer3", "layer4"])
affinity = branchnet.rsa(staged, images)
for location in affinity.locations:
    pairs = [row["affinity"] for row in affinity.rows() if row["location"] == location]
    print(f"{location}: affinities from {min(pairs):.3f} to {max(pairs):.3f}")

# The best tree of at most 60% of the parameters, proven; then the network, with donors' weights in place.
found = branchnet.search(affinity, staged, "60% params")
print(found.tree)
print(f"proven: {found.proven}; {found.size / 1e6:.1f} million parameters")
branched = branchnet.build(found.tree, staged, affinity=affinity, init="donor")

# Without labels: the five networks say what is right. Ten steps only start it.
history = branchnet.distill(branched, networks, images, steps=10, batch_size=16, progress=False)
print("steps of distillation:", len(history.losses["objects"]))

# Only what is asked for is run.
print("outputs:", {task: tuple(output.shape) for task, output in branched(images[:2], tasks=["weather"]).items()})

# What it costs, by stage, branch and task: `branchnet.report(branched, images[:1], networks=networks).save_html(...)`.
costs = branchnet.report(branched, images[:1], latency=False).costs
print(f"{costs.params / costs.separate_params:.0%} of the parameters of five networks")
