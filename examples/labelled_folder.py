"""From a folder of images and a table of labels to single-task networks, a tree, and a branched network.

The folder is written here from rendered scenes: `photos/0.png` and so on, `depth/0.png` with millimetres in 16 bits,
and `labels.csv` with the layout of each scene, of which every fifth is unknown. Replace `write_folder` by your own
folder, and `data.yaml` by what says where your labels are.
"""

import tempfile
from pathlib import Path

import torch
from PIL import Image

import branchnet
from branchnet import training
from branchnet.data import LabelledTable, scenes

DESCRIPTION = """
images: photos
table: labels.csv
split_column: split
tasks:
  scene: {kind: classification, column: scene, classes: 6}
  depth: {kind: depth, folder: depth, scale: 0.001, missing: 0, unit: m}
"""


def write_folder(folder: Path, count: int) -> None:
    """Write images and labels as somebody might have them."""
    made = scenes(count, size=32)
    rows = ["image,split,scene"]
    for kind in ("photos", "depth"):
        (folder / kind).mkdir()
    for number in range(count):
        pixels = (255 * made.images[number]).byte().movedim(0, -1)
        millimetres = (1000 * made.labels["depth"][number, 0]).to(torch.uint16)
        Image.fromarray(pixels.numpy()).save(folder / "photos" / f"{number}.png")
        Image.fromarray(millimetres.numpy()).save(folder / "depth" / f"{number}.png")
        scene = "" if number % 5 == 0 else int(made.labels["scene"][number])
        rows.append(f"{number}.png,{'train' if number % 4 else 'test'},{scene}")
    (folder / "labels.csv").write_text("\n".join(rows))
    (folder / "data.yaml").write_text(DESCRIPTION)


torch.manual_seed(0)
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    write_folder(folder, 256)
    train, test = (LabelledTable(folder / "data.yaml", split) for split in ("train", "test"))
    losses, metrics = training.standard_losses(train), training.standard_metrics(train)
    networks = {
        "scene": branchnet.create("branchnet:scene_network", outputs=6, kind="image", width=8),
        "depth": branchnet.create("branchnet:scene_network", outputs=1, width=8),
    }
    for task, network in networks.items():
        own = [(image, labels[task]) for image, labels in train]  # None where a label is missing
        branchnet.fit(network, own, losses[task], steps=120, batch_size=32, learning_rate=3e-3)

    images = torch.stack([image for image, _ in train])
    staged = branchnet.split_all(networks, images[:1])
    affinity = branchnet.rsa(staged, images)
    found = branchnet.search(affinity, staged, "80% params")
    branched = branchnet.build(found.tree, staged, affinity=affinity, probe=images)
    branchnet.fit(branched, train, losses, steps=80, batch_size=32, learning_rate=1e-3)
    scores = {
        "separate": branchnet.evaluate(branchnet.SeparateNetworks(networks), test, None, metrics),
        "branched": branchnet.evaluate(branched, test, None, metrics),
        "constant": branchnet.constant_scores(train, test, metrics),
    }
print(found.tree)
for name, by_task in scores.items():
    print(f"{name:>9}:", ", ".join(f"{metrics[task].name} of {task} {by_task[task]:.3g}" for task in networks))
