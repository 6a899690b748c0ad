"""Branched networks are called as their donors are: by name, by position, with texts of any length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, SeparateNetworks, Tree
from branchnet.errors import BuildError

VOCABULARY = 50


class TwoInputs(nn.Module):
    """Adds what two layers make of its two inputs; they cannot be exchanged unnoticed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        output: Tensor = self.last(torch.relu(self.one(left) - 2 * self.other(right)))
        return output


def branched_of(networks: dict[str, nn.Module], example: Any) -> BranchedNetwork:
    staged = branchnet.split_all(networks, example)
    depth = len(next(iter(staged.values())).locations)
    return branchnet.build(Tree.separate(tuple(networks), depth), staged, init="donor").eval()


def pair(example: Any) -> tuple[dict[str, nn.Module], BranchedNetwork]:
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {"a": TwoInputs().eval(), "b": TwoInputs().eval()}
    return networks, branched_of(networks, example)


LEFT, RIGHT = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["branched", "separate", "compiled"])
@pytest.mark.parametrize("tasks", [None, ["b"]])
def test_two_inputs_by_position_and_by_name_give_what_the_donors_give(kind: str, tasks: list[str] | None) -> None:
    networks, by_position = pair((LEFT, RIGHT))
    _, by_name = pair({"left": LEFT, "right": RIGHT})
    if kind == "separate":
        by_position = by_name = SeparateNetworks(networks)  # type: ignore[assignment]
    if kind == "compiled":
        by_position, by_name = (branchnet.CompiledNetwork(one) for one in (by_position, by_name))  # type: ignore[assignment]
        for one in (by_position, by_name):
            one._runner.run = lambda subset, modes, x, of=one.branched: of(x, subset)  # type: ignore[attr-defined]
    expected = {task: network(LEFT, RIGHT) for task, network in networks.items() if task in (tasks or networks)}
    calls = [
        by_position(LEFT, RIGHT, tasks=tasks),
        by_position((LEFT, RIGHT), tasks=tasks),
        by_position((LEFT, RIGHT), tasks),
        by_name(right=RIGHT, left=LEFT, tasks=tasks),
        by_name({"left": LEFT, "right": RIGHT}, tasks),
    ]
    for outputs in calls:
        assert list(outputs) == list(expected)
        for task, output in expected.items():
            torch.testing.assert_close(outputs[task], output)


def test_what_cannot_be_told_apart_is_refused() -> None:
    _, by_name = pair({"left": LEFT, "right": RIGHT})
    with pytest.raises(BuildError, match=r"expected network\(left=\.\.\., right=\.\.\.\) or one mapping"):
        by_name(LEFT, RIGHT)
    with pytest.raises(BuildError, match=r"by position and by name, \['right'\]"):
        by_name(LEFT, right=RIGHT)
    with pytest.raises(BuildError, match=r"no input was given; expected \(3, 4\) float32"):
        by_name()
    with pytest.raises(BuildError, match=r"names \['left', 'rigth'\].*'right' instead of 'rigth'"):
        by_name(left=LEFT, rigth=RIGHT)


def test_the_one_input_of_networks_has_any_usual_name() -> None:
    networks: dict[str, nn.Module] = {
        task: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval() for task in "ab"
    }
    branched = branched_of(networks, LEFT)
    for outputs in (branched(LEFT), branched(x=LEFT), branched(pixel_values=LEFT), branched(inputs=LEFT)):
        torch.testing.assert_close(outputs["b"], networks["b"](LEFT))
    with pytest.raises(BuildError, match="1 without names"):
        branched(depth=LEFT)


def test_transformers_are_called_with_batches_of_any_length() -> None:
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    heads = {"topic": "AutoModelForSequenceClassification", "words": "AutoModelForTokenClassification"}
    networks: dict[str, nn.Module] = {
        task: branchnet.create("transformers:bert", auto_class=head, vocab_size=VOCABULARY, **sizes).eval()
        for task, head in heads.items()
    }

    def batch(samples: int, length: int) -> dict[str, Tensor]:
        ids = torch.randint(VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(length))
        return {"input_ids": ids, "attention_mask": (torch.arange(length) < length - 1).long().expand(samples, -1)}

    branched = branched_of(networks, batch(2, 8))
    with torch.no_grad():
        for samples, length in ((2, 8), (3, 2), (5, 31)):
            texts = batch(samples, length)
            outputs = branched(**texts)
            for task, network in networks.items():
                torch.testing.assert_close(outputs[task].logits, network(**texts).logits)
    with pytest.raises(BuildError, match="labels"):
        branched(**batch(2, 8), labels=torch.zeros(2, dtype=torch.long))
