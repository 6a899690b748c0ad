"""Three text networks of transformers, with three kinds of head, as one network that is called with `**batch`.

No tokenizer and no download: the networks are small, their weights random, and texts are random numbers of tokens. As
networks that were fine-tuned from the same weights with the first layers frozen, they have two layers in common.
Replace `networks` by yours, `AutoModelForTokenClassification.from_pretrained(...)`, and `batch` by what your tokenizer
returns. Adapters (LoRA) have to be merged into the weights first: `model.merge_and_unload()`.
"""

import torch

import branchnet

SIZES = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
HEADS = {
    "topic": ("AutoModelForSequenceClassification", {"num_labels": 5}),
    "names": ("AutoModelForTokenClassification", {"num_labels": 7}),
    "answer": ("AutoModelForQuestionAnswering", {}),
}


def texts(count: int, length: int) -> dict[str, torch.Tensor]:
    """Random texts, of which the last token is padding."""
    mask = torch.ones(count, length, dtype=torch.long)
    mask[:, -1] = 0
    return {"input_ids": torch.randint(200, (count, length)), "attention_mask": mask}


torch.manual_seed(0)
networks = {
    task: branchnet.create("transformers:bert", auto_class=kind, intermediate_size=64, **SIZES, **labels).eval()
    for task, (kind, labels) in HEADS.items()
}
first = networks["topic"].bert
for network in networks.values():  # the same first layers, as after fine-tuning with these frozen
    network.bert.embeddings.load_state_dict(first.embeddings.state_dict())
    for layer in (0, 1):
        network.bert.encoder.layer[layer].load_state_dict(first.encoder.layer[layer].state_dict())

places = [f"bert.encoder.layer.{layer}" for layer in range(4)]
staged = branchnet.split_all(networks, texts(2, 16), locations=places)
locations = staged["topic"].locations
tasks = list(networks)
frozen = locations.index("bert.encoder.layer.1") + 1
trees = {
    "the frozen layers shared": branchnet.Tree(
        tasks, [[tasks]] * frozen + [[[task] for task in tasks]] * (len(locations) - frozen)
    ),
    "everything shared": branchnet.Tree.shared(tasks, len(locations)),
}
separate = sum(weight.numel() for network in networks.values() for weight in network.parameters())
batch = texts(8, 29)  # another length and number than the networks were split with
errors = {}
for name, tree in trees.items():
    branched = branchnet.build(tree, staged, init="donor").eval()
    with torch.no_grad():
        outputs = branched(**batch)
        own = {task: network(**batch) for task, network in networks.items()}
    pairs = {
        "topic": (outputs["topic"].logits, own["topic"].logits),
        "names": (outputs["names"].logits, own["names"].logits),
        "answer": (outputs["answer"].start_logits, own["answer"].start_logits),
    }
    errors[name] = {task: float((ours - theirs).abs().max()) for task, (ours, theirs) in pairs.items()}
    size = sum(weight.numel() for weight in branched.parameters())
    print(f"{name}: {100 * size / separate:.0f}% of the parameters")
    print("  largest difference from the own networks:", {task: f"{off:.2g}" for task, off in errors[name].items()})
print("only what one task needs:", list(branched(**batch, tasks=["topic"])))
