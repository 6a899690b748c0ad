"""The tree that keeps to a latency on this machine, exported to ONNX.

Replace `networks` and `images` by yours; the batch that is measured is the one that you will serve. `compiled=False`
saves the compilation here: leave it out where the network will be compiled. Needs the extra `export`.
"""

import tempfile
from pathlib import Path

import onnxruntime
import torch

import branchnet
from branchnet.data import scenes
from branchnet.inference import compare_latency

torch.manual_seed(0)
images = scenes(64, size=64).images
outputs = {"depth": 1, "edges": 1, "normals": 3, "segmentation": 7}
networks = {task: branchnet.create("branchnet:scene_network", outputs=n).eval() for task, n in outputs.items()}

staged = branchnet.split_all(networks, images[:1])
table = branchnet.latency_table(staged, images[:1], compiled=False, repeats=5)
affinity = branchnet.rsa(staged, images, bootstrap=0)  # of untrained networks: it only makes the search possible
found = branchnet.search(affinity, table.costs, "75% latency", head_costs=table.head_costs)
branched = branchnet.build(found.tree, staged, affinity=affinity, init="donor").eval()

both = {"separate": branchnet.SeparateNetworks(networks), "branched": branched}
times = {name: 1e3 * latency.median for name, latency in compare_latency(both, images[:1], repeats=15).items()}
predicted = table.predict(found.tree)
print(found.tree)
print(f"predicted: {predicted:.2f} ms; measured: {times['branched']:.2f} ms, separate: {times['separate']:.2f} ms")

with tempfile.TemporaryDirectory() as folder:
    exported = branchnet.export(branched, images[:2], Path(folder) / "branched.onnx")
    session = onnxruntime.InferenceSession(str(exported.model), providers=["CPUExecutionProvider"])
    batch = images[:5]  # the batch size is free
    answers = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
names = [output.name for output in session.get_outputs()]
with torch.no_grad():
    expected = branched(batch)
errors = {name: float(abs(found - expected[name].numpy()).max()) for name, found in zip(names, answers, strict=True)}
print("largest difference of the ONNX file:", {name: f"{error:.1e}" for name, error in errors.items()})
