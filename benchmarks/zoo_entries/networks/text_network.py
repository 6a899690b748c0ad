"""The networks of slovnet for Russian: convolutions over word vectors, then what a task needs.

Modules have the names that slovnet's archives give their arrays. Two parts of slovnet are left out: padding, since all
sentences of a batch have one length here, and the search for the best sequence of named entities, which follows the
scores. On 390 sentences the published networks give what slovnet 0.6.0 gives: every decision, and scores to 2e-5 of 44
(named entities), 5e-5 of 61 (morphology), 2e-4 of 194 (governors) and 1e-3 of 1218 (relations).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from zoo_entries.formats.slovnet_files import Weights

WIDTHS = (256, 128, 64)
FEATURES = WIDTHS[-1]
WORD_WIDTH = 300


class Encoder(nn.Module):
    """Word vectors and the shapes of words to features."""

    def __init__(self, shapes: int, shape_width: int) -> None:
        super().__init__()
        self.shape = nn.Embedding(shapes, shape_width)
        widths = (WORD_WIDTH + shape_width, *WIDTHS)
        self.layers = nn.Sequential(*map(layer, widths[:-1], widths[1:]))

    def forward(self, words: Tensor, shapes: Tensor) -> Tensor:
        """(B, T, 300) and int64 (B, T) to (B, T, 64)."""
        x = torch.cat([words, self.shape(shapes)], 2)
        return self.layers(x.transpose(1, 2)).transpose(1, 2)


def layer(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv1d(inputs, outputs, 3, padding=1)
    return nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU(), norm=nn.BatchNorm1d(outputs)))


def projection(outputs: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict(proj=nn.Linear(FEATURES, outputs))


class Tagger(nn.Module):
    """Words to scores of their tags."""

    def __init__(self, encoder: Encoder, tags: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(projection(tags))

    def forward(self, words: Tensor, shapes: Tensor) -> Tensor:
        """(B, T, 300) and int64 (B, T) to (B, tags, T)."""
        return self.head(self.encoder(words, shapes)).transpose(1, 2)


class Pairs(nn.Module):
    """What two words are compared by of which one governs the other; a sentence is governed by its root."""

    def __init__(self, width: int, relations: int) -> None:
        super().__init__()
        self.head = nn.Sequential(projection(width) | {"relu": nn.ReLU()})
        self.tail = nn.Sequential(projection(width) | {"relu": nn.ReLU()})
        self.root = nn.Parameter(torch.zeros(FEATURES))
        self.kernel = nn.Parameter(torch.zeros(width, relations * width))

    def with_root(self, x: Tensor) -> Tensor:
        """(B, T, 64) to (B, 1 + T, 64)."""
        return torch.cat([self.root.expand(x.shape[0], 1, FEATURES), x], 1)


class Governors(Pairs):
    """Features to scores of what governs each word: the root or another word."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 64) to (B, 1 + T, T)."""
        both = self.with_root(x)
        scores = self.head(both) @ self.kernel @ self.tail(both).transpose(1, 2)
        return scores[:, 1:].transpose(1, 2)


class Relations(Pairs):
    """Features to scores of each word's relation to what governs it."""

    def forward(self, x: Tensor, governors: Tensor) -> Tensor:
        """(B, T, 64) and int64 (B, T) to (B, relations, T)."""
        governing = self.with_root(x).gather(1, governors.unsqueeze(2).expand(-1, -1, FEATURES))
        scores = (self.head(governing) @ self.kernel).unflatten(2, (-1, self.kernel.shape[0]))
        return (scores @ self.tail(x).unsqueeze(3)).squeeze(3).transpose(1, 2)


class Parser(nn.Module):
    """Words to scores of what governs them, and of their relation to the governor of the highest score."""

    def __init__(self, encoder: Encoder, width: int, relations: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = Governors(width, 1)
        self.rel = Relations(width, relations)

    def forward(self, words: Tensor, shapes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, 300) and int64 (B, T) to (B, 1 + T, T) and (B, relations, T)."""
        x = self.encoder(words, shapes)
        governors = self.head(x)
        return governors, self.rel(x, governors.argmax(1))


def with_weights(weights: Weights) -> Tagger | Parser:
    """The network that has the arrays of a slovnet archive."""
    encoder = Encoder(*weights["emb.shape.weight"].shape)
    network: Tagger | Parser
    if "rel.kernel" in weights:
        width, all_relations = weights["rel.kernel"].shape
        network = Parser(encoder, width, all_relations // width)
    else:
        network = Tagger(encoder, len(weights["head.proj.bias"]))
    network.load_state_dict(state_of(weights))
    return network.eval()


def state_of(weights: Weights) -> Weights:
    """The arrays as PyTorch names and lays them."""
    state = {}
    for name, values in weights.items():
        module, kind = name.replace("emb.shape", "encoder.shape").rsplit(".", 1)
        if kind == "mean":
            kind = "running_mean"
        elif kind == "std":
            kind, values = "running_var", values**2 - nn.BatchNorm1d(1).eps
        elif kind == "weight" and module.endswith("proj"):
            values = values.T
        if kind != "transitions":  # of neighbouring tags
            state[f"{module}.{kind}"] = values
    return state
