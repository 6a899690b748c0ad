"""From a specification back to the branched network: the same outputs, or an error that says which network to pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from branchnet.affinity import Affinity
from branchnet.builder import BranchedNetwork, build
from branchnet.clustering import Tree, search
from branchnet.errors import BranchnetError, BuildError, SpecError
from branchnet.models.constructors import create
from branchnet.specification.architecture import Architecture
from branchnet.stages import split_all

LOCATIONS = ["layer1", "layer3", "layer4"]
TASKS = ("edges", "no", "shape")


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    dense = {task: create("branchnet:scene_network", outputs=1, width=4).eval() for task in TASKS[:2]}
    return {**dense, "shape": create("branchnet:scene_network", outputs=5, kind="image", width=4).eval()}


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def branched(networks: dict[str, nn.Module], image: torch.Tensor) -> BranchedNetwork:
    tree = Tree(TASKS, [[TASKS], [("edges",), ("no", "shape")], [("edges",), ("no",), ("shape",)]])
    values = np.zeros((3, 3, 3))
    values[:, 2] = 1.0  # the third task is the medoid of every cluster that it is in
    return build(
        tree, split_all(networks, image, locations=LOCATIONS), affinity=Affinity(TASKS, LOCATIONS, values), init="donor"
    )


def test_a_network_described_saved_and_built_computes_the_same(
    branched: BranchedNetwork, networks: dict[str, nn.Module], image: torch.Tensor, tmp_path: Path
) -> None:
    Architecture.from_network(branched).save(tmp_path / "x.yaml")
    rebuilt = Architecture.load(tmp_path / "x.yaml").build(networks)
    assert rebuilt.tree == branched.tree
    assert rebuilt.donors == branched.donors == (("shape",), ("edges", "shape"), ("edges", "no", "shape"))
    for task, output in branched(image).items():
        torch.testing.assert_close(rebuilt(image)[task], output, rtol=0, atol=0)


def test_a_network_built_from_constructors_takes_the_same_weights(
    branched: BranchedNetwork, image: torch.Tensor
) -> None:
    fresh = Architecture.from_network(branched).build().eval()
    fresh.load_state_dict(branched.state_dict())
    for task, output in branched(image).items():
        torch.testing.assert_close(fresh(image)[task], output, rtol=0, atol=0)
    assert Architecture.from_network(fresh) == Architecture.from_network(branched)


def test_a_network_without_a_constructor_must_be_passed(
    branched: BranchedNetwork, networks: dict[str, nn.Module]
) -> None:
    described = Architecture.from_network(branched)
    content = described.model_dump(by_alias=True, mode="json")
    del content["networks"]["no"]
    architecture = Architecture.create(**content)
    with pytest.raises(SpecError, match="'no' have no named constructor; expected their networks"):
        architecture.build()
    assert architecture.build({"no": networks["no"]}).tasks == TASKS


def test_other_networks_than_described_are_refused(branched: BranchedNetwork) -> None:
    wider = create("branchnet:scene_network", outputs=1, width=8)
    with pytest.raises(BuildError, match=r"(?s)edges: layer1 has \d+ parameters, expected"):
        Architecture.from_network(branched).build(dict.fromkeys(TASKS, wider))


def test_staged_networks_are_taken_as_they_are(networks: dict[str, nn.Module], image: torch.Tensor) -> None:
    staged = split_all(networks, image, locations=LOCATIONS, transforms={"no": nn.AvgPool2d(3, 1, 1)})
    tree = Tree.separate(TASKS, 3)
    rebuilt = Architecture.from_network(build(tree, staged, init="donor")).build(staged)
    for task, output in build(tree, staged, init="donor")(image).items():
        torch.testing.assert_close(rebuilt(image)[task], output, rtol=0, atol=0)
    with pytest.raises(SpecError, match="expected all of them staged, or none"):
        Architecture.from_network(rebuilt).build({"no": staged["no"]})


def test_an_unknown_task_is_refused(branched: BranchedNetwork, networks: dict[str, nn.Module]) -> None:
    with pytest.raises(SpecError, match=r"passed for unknown tasks \['depth'\]"):
        Architecture.from_network(branched).build({"depth": networks["no"]})


def test_without_inputs_an_example_is_needed(branched: BranchedNetwork, image: torch.Tensor) -> None:
    content = Architecture.from_network(branched).model_dump(by_alias=True, mode="json")
    architecture = Architecture.create(**{**content, "input": None})
    with pytest.raises(SpecError, match="or inputs as example="):
        architecture.build()
    assert architecture.build(example=image).tasks == TASKS


def test_from_search_with_staged_networks_describes_everything(
    networks: dict[str, nn.Module], image: torch.Tensor
) -> None:
    staged = split_all(networks, image, locations=LOCATIONS)
    values = np.stack([np.eye(3) + 0.5 * (1 - np.eye(3))] * 3)
    affinity = Affinity(TASKS, LOCATIONS, values)
    costs = staged["no"].costs
    heads = {task: network.head_cost for task, network in staged.items()}
    result = search(affinity, costs, "80% params", head_costs=heads)
    found = Architecture.from_search(result, networks=staged, affinity=affinity)
    assert found == Architecture.from_network(
        build(result.tree, staged, affinity=affinity, init="donor"), search=found.search
    )


class TokenNetwork(nn.Module):
    """Takes token numbers and a mask by keyword."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 4)
        self.linear = nn.Linear(4, outputs)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.linear(self.embedding(tokens)) * mask[..., None]


def test_keyword_inputs_survive() -> None:
    example = {"tokens": torch.tensor([[1, 49, 3]]), "mask": torch.ones(1, 3)}
    networks = {"a": TokenNetwork(2).eval(), "b": TokenNetwork(3).eval()}
    branched = build(Tree.shared(("a", "b"), 1), split_all(networks, example, locations=["embedding"]), init="donor")
    rebuilt = Architecture.from_network(branched).build(networks)
    assert rebuilt.interface == branched.interface
    for task, output in branched(example).items():
        torch.testing.assert_close(rebuilt(example)[task], output, rtol=0, atol=0)


@pytest.mark.slow
def test_a_transformer_survives() -> None:
    pytest.importorskip("transformers")
    size = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    example = {"input_ids": torch.tensor([[1, 49, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    auto_class = "AutoModelForSequenceClassification"
    networks = {
        task: create("transformers:bert", auto_class=auto_class, num_labels=labels, vocab_size=50, **size).eval()
        for task, labels in (("a", 2), ("b", 3))
    }
    branched = build(Tree.shared(("a", "b"), 1), split_all(networks, example, locations=1), init="donor")
    rebuilt = Architecture.from_network(branched).build().eval()
    rebuilt.load_state_dict(branched.state_dict())
    for task, output in branched(example).items():
        torch.testing.assert_close(rebuilt(example)[task]["logits"], output["logits"], rtol=0, atol=0)


@pytest.mark.parametrize("shape", [[1, 4, 32, 32], [1, 3, 32], [1, 3, 0, 0]])
def test_an_input_that_does_not_fit_the_networks_is_an_error_of_ours(shape: list[int]) -> None:
    networks = {task: {"constructor": "branchnet:scene_network", "arguments": {"outputs": 1}} for task in "ab"}
    spec = Architecture.create(
        tasks=("a", "b"),
        input={"shape": tuple(shape), "dtype": "float32"},
        networks=networks,
        locations=("layer1",),
        tree=({"until": "layer1", "branches": ("a", "b")},),
    )
    with pytest.raises(BranchnetError, match=r"example|input"):
        spec.build()
