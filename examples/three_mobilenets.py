"""Three trained MobileNetV2 become one network, with images but without labels.

Replace `networks` by your own trained networks of one architecture and `photos` by images of the kind that they will
see: `branchnet.data.load("folder", size=224, mean=..., std=...)`. The three below are small, and trained here for some
seconds on scenes that are rendered on the spot, so their numbers say how it goes, not how well it can go.
"""

import torch
from torch.nn.functional import cross_entropy

import branchnet
from branchnet.data import scenes
from branchnet.training import cohen_kappa

torch.manual_seed(0)
made = scenes(288, size=48)
few = made.labels["count"].median()
labels = {
    "layout": made.labels["scene"],
    "crowded": (made.labels["count"][:, 0] > few).long(),
    "spheres": (made.labels["segmentation"] == 5).flatten(1).any(1).long(),
}
networks = {
    task: branchnet.create("torchvision:mobilenet_v2", num_classes=int(answers.max()) + 1, width_mult=0.35)
    for task, answers in labels.items()
}
for task, network in networks.items():  # leave this out: yours are trained
    branchnet.fit(network, (made.images, labels[task]), cross_entropy, steps=30, batch_size=32, learning_rate=3e-3)

# From here on no label is used.
photos, others = made.images[:224], made.images[224:]
kinds = dict.fromkeys(networks, "classification")
staged = branchnet.split_all(networks, photos[:1], locations=4)
losses = branchnet.stitch_affinity(staged, photos, kinds=kinds)
found = branchnet.search(losses, staged, "70% params", objective="medoid")
branched = branchnet.build(found.tree, staged, affinity=losses, probe=photos, kinds=kinds)
branchnet.distill(branched, networks, photos, steps=20, batch_size=32, scope="stitches", kinds=kinds)

with torch.no_grad():
    own = branchnet.SeparateNetworks(networks)(others)
    kept = branchnet.evaluate(branched, others, own, dict.fromkeys(networks, cohen_kappa()))
size = sum(weight.numel() for weight in branched.parameters())
separate = sum(weight.numel() for network in networks.values() for weight in network.parameters())
print(found.tree)
print(f"parameters: {100 * size / separate:.0f}% of three networks")
rounded = {task: f"{share:.0f}%" for task, share in kept.items()}
print("decisions kept beyond chance, on other images (100%: all, 0%: a constant answer):", rounded)
