"""A new task joins a network that is in use; the old tasks' outputs stay bit for bit what they were.

Replace `deployed` by `branchnet.load("folder")` and `newcomer` by the new task's own trained network of the same
architecture; `images` need no labels. Here all networks are trained for some seconds on rendered scenes.
"""

import torch
from torch.nn.functional import mse_loss

import branchnet
from branchnet.builder import add_task
from branchnet.data import scenes
from branchnet.training import explained_variance

torch.manual_seed(0)
data, test = scenes(256, size=32), scenes(64, size=32, start=256)
images = data.images
networks = {}
for task, channels in {"depth": 1, "edges": 1, "normals": 3}.items():
    networks[task] = branchnet.create("branchnet:scene_network", outputs=channels, width=8)
    branchnet.fit(networks[task], (images, data.labels[task]), mse_loss, steps=40, batch_size=32, learning_rate=3e-3)
newcomer = networks.pop("normals")

tree = branchnet.Tree.grouped([["depth"], ["edges"]], depth=3)
deployed = branchnet.build(tree, networks, example=images[:1], locations=["layer1", "layer2", "layer3"], init="donor")
with torch.no_grad():
    before, own = deployed(test.images), {"normals": newcomer.eval()(test.images)}

grown = {}
for until in ("layer1", "layer2", "layer3"):  # the last location that the new task shares with depth
    grown[until] = add_task(deployed, "normals", newcomer, beside="depth", until=until, stitch=True, probe=images)
sizes = {name: sum(weight.numel() for weight in network.parameters()) for name, network in grown.items()}
size = sum(weight.numel() for weight in deployed.parameters())
alone = sum(weight.numel() for weight in newcomer.parameters())
kept = {}
for until, network in grown.items():
    with torch.no_grad():
        after = network(test.images)
    same = all(torch.equal(after[task], before[task]) for task in deployed.tasks)
    kept[until] = branchnet.evaluate(network, test.images, own, {"normals": explained_variance()})["normals"]
    print(
        f"shared until {until}: {100 * (sizes[until] - size) / alone:.0f}% of a network of its own; of that one's "
        f"outputs explained {kept[until]:.0f}% (0: a constant); old outputs the same: {same}"
    )
chosen = grown["layer2"]
chosen.freeze("depth", "edges")  # and stay so in training: branchnet.distill(chosen, {"normals": newcomer}, images)
