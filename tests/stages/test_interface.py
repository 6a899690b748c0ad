import pytest
import torch
from torch import nn

from branchnet.errors import CheckpointError, SplitError
from branchnet.stages import Interface, candidate_locations, split
from tests.stages.toys import Block


@pytest.mark.parametrize(
    "example",
    [
        torch.randn(4, 3, 5),
        (torch.randn(4, 3), torch.tensor([2, 7, 7, 3])),
        {"ids": torch.randint(3, 9, (4, 6)), "mask": torch.ones(4, 6, dtype=torch.bool), "scale": torch.tensor(2.0)},
    ],
)
def test_an_interface_makes_examples_like_the_one_it_was_read_off(example):
    interface = Interface.of(example)
    again = Interface.from_dict(interface.to_dict())
    assert again == interface
    assert Interface.of(interface.random(seed=3)).form == interface.form
    tensors = {"tensor": lambda e: [e], "tuple": list, "dict": lambda e: list(e.values())}[interface.form]
    for mine, given in zip(tensors(interface.random(batch=9)), tensors(example), strict=True):
        assert mine.dtype == given.dtype
        assert mine.shape == ((9, *given.shape[1:]) if given.dim() else ())
        if not given.is_floating_point():
            assert given.min() <= mine.min() and mine.max() <= given.max()
    for one, two in zip(tensors(interface.random(seed=5)), tensors(interface.random(seed=5)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("example", [None, (), {"x": 3}, [torch.ones(1), "y"]])
def test_anything_else_is_no_example(example):
    with pytest.raises(SplitError, match="tensor"):
        Interface.of(example)


def network():
    return nn.Sequential(nn.Conv2d(4, 4, 3), Block(), Block(), nn.Conv2d(4, 2, 1))


IMAGE = torch.randn(2, 4, 8, 8)


def test_names_are_checked():
    with pytest.raises(SplitError, match=r"'1\.con' is not a place.*did you mean 1\.conv"):
        split(network(), IMAGE, locations=["1.con"])
    with pytest.raises(SplitError, match="'0' is not after '1'"):
        split(network(), IMAGE, locations=["1", "0"])
    with pytest.raises(SplitError, match="None, a number or a list"):
        split(network(), IMAGE, locations="1")
    with pytest.raises(SplitError, match="between 1 and"):
        split(network(), IMAGE, locations=0)
    with pytest.raises(SplitError, match="no place"):
        split(nn.Linear(3, 3), torch.randn(2, 3))


def test_residual_blocks_are_preferred_to_their_insides():
    assert [place.name for place in candidate_locations(network(), IMAGE)][:3] == ["0", "1.conv", "1.norm"]
    assert split(network(), IMAGE, locations=2).locations == ("1", "2")


def test_states_are_checked_when_loaded():
    staged = split(network(), IMAGE)
    state = staged.original_state_dict()
    state["extra"] = state.pop("0.weight")
    with pytest.raises(CheckpointError, match=r"missing \['0.weight'\], unknown \['extra'\]"):
        staged.load_original_state_dict(state)
    state["0.weight"] = torch.zeros(1)
    del state["extra"]
    with pytest.raises(CheckpointError, match="size mismatch"):
        staged.load_original_state_dict(state)


def test_unused_parameters_are_kept():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.spare = network(), nn.Linear(3, 3)
            self.token = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.body(x)

    original = Unused()
    staged = split(original, IMAGE)
    assert set(staged.original_state_dict()) == set(original.state_dict())
    assert staged.head_cost.params == 10
    original.load_state_dict(staged.original_state_dict())


@pytest.mark.parametrize(
    ("given", "form"),
    [
        (torch.zeros(2, 3, 16, 16), "(2, 3, 16, 16) float32"),
        (torch.zeros(2, 16, 16, 4), "(2, 16, 16, 4) float32"),
        (torch.zeros(2, 4, 16, 16, dtype=torch.float64), "(2, 4, 16, 16) float64"),
    ],
)
def test_a_staged_network_names_inputs_that_it_cannot_run(given, form):
    staged = split(network(), torch.zeros(1, 4, 16, 16), locations=["1"])
    with pytest.raises(SplitError) as caught:
        staged(given)
    assert f"inputs of shape {form}; expected (1, 4, 16, 16) float32, with any batch size" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)
