"""Networks of timm as one branched network, each with the images that it was trained on.

The networks have random weights, so that nothing is downloaded: whatever is printed about similarity means nothing
here. Replace them by your own, `branchnet.from_timm(my_model)`, or ask for the published weights by `pretrained=True`;
replace `photos` by `branchnet.data.load("folder", **settings)`, which takes size, mean and std from the model.
"""

import torch

import branchnet
from branchnet.data import scenes

torch.manual_seed(0)
classes = {"animals": 12, "plants": 20}
networks = {}
for task, count in classes.items():
    network, settings = branchnet.from_timm("mobilenetv3_small_050", num_classes=count)  # pretrained=True: published
    networks[task] = network.eval()
print("images:", settings)

mean, std = (torch.tensor(settings[name])[:, None, None] for name in ("mean", "std"))
photos = (scenes(48, size=64).images - mean) / std
staged = branchnet.split_all(networks, photos[:1])
print("stages end at", ", ".join(staged["animals"].locations))

affinity = branchnet.rsa(staged, photos, bootstrap=0)
found = branchnet.search(affinity, staged, "75% params")
branched = branchnet.build(found.tree, staged, affinity=affinity, probe=photos)
with torch.no_grad():
    outputs = branched(photos)
    own = {task: network(photos) for task, network in networks.items()}
print(branchnet.report(branched, photos[:1], networks=networks))
for task in networks:
    off = (outputs[task] - own[task]).pow(2).mean() / own[task].var(0, unbiased=False).mean()
    print(f"{task}: error against its own network {off:.3f} (0: the same outputs, 1: as bad as a constant)")
