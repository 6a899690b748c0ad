"""Things that splitters get wrong: each trap has a network that falls into it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from branchnet.errors import SplitError
from branchnet.stages import candidate_locations, split
from tests.stages.checks import assert_evaluates_alike, assert_same_keys, assert_trains_alike, compose, run
from tests.stages.toys import Block

IMAGE = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def assert_faithful_everywhere(network, example):
    names = [place.name for place in candidate_locations(network, example)]
    assert names
    for locations in [names, *([name] for name in names)]:
        staged = split(network, example, locations=locations)
        assert_same_keys(network, staged)
        assert_evaluates_alike(network, staged, example)
        if staged.trainable:
            assert_trains_alike(network, staged, example)
    return staged


def test_in_place_relu_right_after_a_cut():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    assert_faithful_everywhere(network, IMAGE)
    staged = split(network, IMAGE, locations=["0"])
    cut = staged.stages[0](IMAGE)
    assert bool((cut[0] < 0).any())
    before = cut[0].clone()
    first, second = staged.head(*cut), staged.head(*cut)
    assert torch.equal(cut[0], before)
    assert torch.equal(first, second)


def test_in_place_dropout_only_writes_in_training():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5, inplace=True), nn.Conv2d(4, 4, 1))
    staged = split(network, IMAGE, locations=["0"]).train()
    cut = tuple(value.detach() for value in staged.stages[0](IMAGE))
    before = cut[0].clone()
    run(staged.head, cut)
    assert torch.equal(cut[0], before)


class TwoViews(nn.Module):
    """A view is overwritten after a place at which view and original are both alive."""

    def __init__(self):
        super().__init__()
        self.first, self.view, self.last = nn.Conv2d(4, 4, 1), nn.Identity(), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.first(x)
        part = self.view(x[:, :2])
        part.mul_(3.0)
        return self.last(x)


def test_overwritten_view_of_a_living_tensor_is_no_place_to_cut():
    names = [place.name for place in candidate_locations(TwoViews(), IMAGE)]
    assert names == ["first"]
    assert_evaluates_alike(network := TwoViews(), split(network, IMAGE, locations=["first"]), IMAGE)


class UsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.norm(self.conv(torch.relu(self.norm(self.conv(x))))))


def test_module_used_twice_has_two_places():
    staged = assert_faithful_everywhere(UsedTwice(), IMAGE)
    assert "norm@2" in [place.name for place in candidate_locations(UsedTwice(), IMAGE)]
    staged = split(UsedTwice(), IMAGE, locations=["norm", "norm@2"])
    assert staged.stages[0].conv is staged.stages[1].conv
    assert staged.costs.params == (156, 156)


class OneModuleAtTwoPlaces(nn.Module):
    """As in CoaT, whose blocks hold the position encoding that the network holds, too."""

    def __init__(self):
        super().__init__()
        self.position = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.ModuleDict({"position": self.position, "mix": Block()}) for _ in range(3))
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        for block in self.blocks:
            x = block["mix"](block["position"](x.movedim(1, -1)).movedim(-1, 1))
        return self.last(x)


def test_a_module_at_several_places_keeps_its_tensors():
    network = OneModuleAtTwoPlaces()
    before = [*network.parameters()]
    assert_faithful_everywhere(network, IMAGE)
    staged = split(network, IMAGE)
    kept = {id(p) for p in before}
    assert all(type(p) is nn.Parameter and id(p) in kept for p in (*network.parameters(), *staged.parameters()))


class SharedWeight(nn.Module):
    """One parameter under two names, used in two stages: tied embeddings."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, input_ids, mask=None):
        x = self.mix(self.embed(input_ids))
        return self.out(x if mask is None else x * mask[..., None])


def test_tied_embeddings_stay_tied():
    example = {"input_ids": torch.randint(0, 11, (2, 5)), "mask": torch.ones(2, 5)}
    staged = assert_faithful_everywhere(SharedWeight(), example)
    staged = copy.deepcopy(split(SharedWeight(), example, locations=["mix"]))
    assert staged.stages[0].embed.weight is staged.head.out.weight
    staged.double()
    assert staged.stages[0].embed.weight is staged.head.out.weight


class LooksAtValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        if x.sum() > 0:
            x = -x
        return self.last(x)


def test_control_flow_on_values_is_refused_with_the_line():
    with pytest.raises(SplitError, match=r"test_traps\.py:\d+") as error:
        split(LooksAtValues(), torch.randn(2, 4))
    assert "without children" in str(error.value)


def test_control_flow_inside_a_block_keeps_the_block_whole():
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)), LooksAtValues())
    staged = split(network, torch.randn(2, 4), locations=["0", "5"])
    assert staged.traced_by == "fx"
    for seed in range(4):
        assert_evaluates_alike(network, staged, torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)))


def test_stage_without_parameters():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    staged = split(network, IMAGE, locations=["0", "2"])
    assert staged.costs.params == (20, 0)
    assert_trains_alike(network, staged, IMAGE)


def test_batch_of_one_does_not_stop_training_of_batch_norm():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    staged = split(network, IMAGE[:1], locations=["0", "2"])
    assert staged.trainable
    assert_trains_alike(network, staged, IMAGE)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        copy.deepcopy(staged).train()(IMAGE[:1])


class Rotates(nn.Module):
    """A complex buffer, as in rotary embeddings."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("turn", torch.polar(torch.ones(2), torch.tensor([0.3, 1.2])))
        self.register_buffer("hidden", torch.ones(4), persistent=False)

    def forward(self, x):
        x = torch.view_as_complex(self.first(x).unflatten(-1, (2, 2)))
        return self.last(torch.view_as_real(x * self.turn).flatten(-2) * self.hidden)


def test_complex_and_hidden_buffers():
    staged = assert_faithful_everywhere(Rotates(), torch.randn(3, 4))
    assert "hidden" not in staged.original_state_dict()


class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.dropout(self.first(x), 0.5, self.training))


def test_functional_dropout_follows_the_mode():
    network = FunctionalDropout().eval()
    staged = split(network, torch.randn(2, 4), locations=["first"])
    assert_evaluates_alike(network, staged, torch.randn(2, 4))
    assert_trains_alike(network, staged, torch.randn(2, 4))
    assert not network.training and not network.first.training


class TrainsOtherwise(nn.Module):
    """Cannot be followed in training: a decision on values."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        if self.training and bool(x.sum() > 0):
            x = -x
        return self.last(x)


def test_network_that_can_only_be_evaluated_says_why():
    staged = split(TrainsOtherwise(), torch.randn(2, 4), locations=["first"])
    assert not staged.trainable
    assert "control flow" in staged.eval_only
    with pytest.raises(SplitError, match="control flow"):
        staged.train()


class AuxiliaryHead(nn.Module):
    """Returns more in training, from a tensor that is dead in evaluation."""

    def __init__(self):
        super().__init__()
        self.first, self.aux, self.second, self.last = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        early = self.first(x)
        result = self.last(torch.relu(self.second(early)))
        return (result, self.aux(early)) if self.training else result


def test_training_may_carry_more_than_evaluation():
    network = AuxiliaryHead()
    staged = split(network, torch.randn(2, 4), locations=["first", "second"])
    assert_evaluates_alike(network, staged, torch.randn(5, 4))
    assert_trains_alike(network, staged, torch.randn(5, 4))
    assert_same_keys(network, staged)


def test_splitting_leaves_the_network_alone():
    network = nn.Sequential(Block(), Block(), nn.Conv2d(4, 2, 1))
    network[1].eval()
    state = copy.deepcopy(network.state_dict())
    random_state = torch.get_rng_state()
    staged = split(network, IMAGE)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in network] == [True, False, True]
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    staged.eval()
    assert network.training
    assert staged.stages[0].get_parameter("0.conv.weight") is network[0].conv.weight
    assert all(type(m.__call__) is type(network.__call__) for m in network)


def test_meta_network_needs_no_memory():
    with torch.device("meta"):
        network = nn.Sequential(*(nn.Linear(20000, 20000) for _ in range(6)))
    staged = split(network, torch.empty(2, 20000, device="meta"), locations=["1", "3"])
    assert staged.costs.params == (2 * 20000 * 20001,) * 2
    assert staged.costs.flops == (2 * 2 * 20000**2,) * 2


def test_wrappers_are_looked_through():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), Block(), nn.Conv2d(4, 2, 1)).eval()
    wrapped = torch.compile(nn.DataParallel(network))
    staged = split(wrapped, IMAGE, locations=["1"])
    assert_same_keys(network, staged)
    prefixed = {f"module._orig_mod.{key}": value + 1 for key, value in network.state_dict().items()}
    staged = copy.deepcopy(staged)
    staged.load_original_state_dict(prefixed)
    assert torch.equal(staged.original_state_dict()["0.weight"], network[0].weight + 1)


def test_other_sizes_dtypes_and_layouts():
    network = nn.Sequential(nn.Conv2d(4, 4, 3), Block(), nn.Conv2d(4, 2, 1)).eval()
    staged = split(network, IMAGE, locations=["0", "1"])
    assert_evaluates_alike(network, staged, torch.randn(5, 4, 9, 7))
    double = copy.deepcopy(staged).double()
    assert_evaluates_alike(copy.deepcopy(network).double(), double, torch.randn(2, 4, 6, 6, dtype=torch.float64))
    last = copy.deepcopy(staged).to(memory_format=torch.channels_last)
    image = IMAGE.to(memory_format=torch.channels_last)
    assert_evaluates_alike(copy.deepcopy(network).to(memory_format=torch.channels_last), last, image)


def test_values_that_no_stage_changes_travel_through():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(4, 4, 1), Block(), Block()
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            early = self.a(x)
            return self.last(torch.cat([early, self.c(self.b(early))], 1))

    network = Skips()
    staged = assert_faithful_everywhere(network, IMAGE)
    staged = split(network, IMAGE, locations=["a", "b", "c"])
    assert [len(cut) for cut in staged.cuts] == [1, 2, 2]
    assert [[tensor.stage for tensor in cut] for cut in staged.cuts] == [[0], [0, 1], [0, 2]]
    compose(staged.eval(), IMAGE)
