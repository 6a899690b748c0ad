"""BERT with four text tasks: four classifiers on one small BERT, with a tree for 60% of the multiply-adds.

Random weights and random token numbers, because nothing is downloaded here: with trained networks, load their weights
and tokenize real sentences; nothing else changes. The networks take keyword arguments, so inputs are dictionaries.
"""

from __future__ import annotations

import tempfile

import torch

import branchnet

torch.manual_seed(0)
LABELS = {"topic": 6, "sentiment": 2, "toxicity": 2, "language": 10}
SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
networks = {
    task: branchnet.create(
        "transformers:bert", auto_class="AutoModelForSequenceClassification", num_labels=labels, vocab_size=500, **SMALL
    ).eval()
    for task, labels in LABELS.items()
}
tokens = torch.randint(0, 500, (64, 16))
sentences = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
one = {name: tensor[:2] for name, tensor in sentences.items()}

layers = ["bert.embeddings", *(f"bert.encoder.layer.{i}" for i in range(4))]
staged = branchnet.split_all(networks, one, locations=layers)
affinity = branchnet.rsa(staged, sentences)
found = branchnet.search(affinity, staged, "60% flops")
print(found.tree)

branched = branchnet.build(found.tree, staged, affinity=affinity, init="donor")
branchnet.distill(branched, networks, sentences, steps=20, batch_size=16, progress=False)
outputs = branched(one, tasks=["sentiment"])
print("only sentiment:", {task: tuple(output.logits.shape) for task, output in outputs.items()})

# The folder says how each network is made, so anyone can load it without this script.
with tempfile.TemporaryDirectory() as folder:
    branchnet.save(branched, folder)
    again = branchnet.load(folder)
same = all(torch.equal(again(one)[task].logits, branched(one)[task].logits) for task in LABELS)
print("loaded network gives the same logits:", same)
costs = branchnet.report(branched, one, latency=False).costs
params, flops = costs.params / costs.separate_params, costs.flops / costs.separate_flops
print(f"{params:.0%} of the parameters, {flops:.0%} of the FLOPs")
