"""A branched network in Lightning's Trainer, with labels that are partly missing.

Replace `samples` by your data set: `(input, {task: label})`, None where a label is missing (Lightning's own collation
cannot stack None; `branchnet.data.collation.collate` can, and so can NaN in labels of floats, as below). Needs the
extra `train`.
"""

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

import branchnet
from branchnet import training
from branchnet.data import scenes

torch.manual_seed(0)
data = scenes(192, size=32)
tasks = ["depth", "scene"]
networks = {
    "depth": branchnet.create("branchnet:scene_network", outputs=1, width=8),
    "scene": branchnet.create("branchnet:scene_network", outputs=6, kind="image", width=8),
}
tree = branchnet.Tree(tasks, [[tasks], [["depth"], ["scene"]]])
network = branchnet.build(tree, networks, example=data.images[:1], locations=["layer1", "layer3"], init="donor")

depth = data.labels["depth"].clone()
depth[::3] = torch.nan  # every third image has no depth
samples = [
    (image, {"depth": depth[number], "scene": data.labels["scene"][number]}) for number, image in enumerate(data.images)
]
metrics = {"depth": training.rmse("m"), "scene": training.accuracy()}
module = training.LightningBranched(
    network,
    {"depth": training.squared_loss, "scene": training.class_loss()},
    learning_rate=lambda node: 1e-2 if node.is_head else 3e-3,
    weights="uncertainty",
    metrics=metrics,
)
trainer = pl.Trainer(
    max_epochs=30, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
)
trainer.fit(module, DataLoader(samples[:128], 32, shuffle=True), DataLoader(samples[128:], 32))
found = {task: float(trainer.callback_metrics[f"validation/metric/{task}"]) for task in tasks}
constant = branchnet.constant_scores(samples[:128], samples[128:], metrics)
for task in tasks:
    print(f"{task}: {metrics[task].name} {found[task]:.3g}, a constant answer {constant[task]:.3g}")
