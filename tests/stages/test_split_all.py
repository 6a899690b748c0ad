import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from branchnet.errors import SplitError
from branchnet.stages import split, split_all
from tests.stages.checks import assert_evaluates_alike, assert_same, assert_same_keys, assert_trains_alike

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def layer(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2, self.layer3 = layer(3, 8), layer(8, 16), layer(16, 32)

    def forward(self, x):
        first = self.layer1(x)
        second = self.layer2(first)
        return first, second, self.layer3(second)


class Classifier(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer1, self.layer2, self.layer3 = layer(3, 8), layer(8, 16), layer(16, 32)
        self.fc = nn.Linear(32, classes)

    def forward(self, x):
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Dense(nn.Module):
    """A U-Net style decoder over a wrapped encoder; sizes come from the input."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"encoder": Encoder()})
        self.lateral, self.top, self.out = nn.Conv2d(8, 4, 1), nn.Conv2d(32, 4, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        size = x.shape[-2:]
        first, _, last = self.backbone["encoder"](x)
        up = nn.functional.interpolate(self.top(last), size=first.shape[-2:]) + self.lateral(first)
        return {"out": nn.functional.interpolate(self.out(up), size=size)}


class Interleaved(nn.Module):
    """Runs its own layers between those of the encoder."""

    def __init__(self):
        super().__init__()
        self.e = Encoder()
        self.sides = nn.ModuleList(nn.Conv2d(n, 2, 1) for n in (8, 16, 32))

    def forward(self, x):
        results = []
        for k, side in enumerate(self.sides):
            x = getattr(self.e, f"layer{k + 1}")(x)
            results.append(side(x).mean((2, 3)))
        return torch.cat(results, 1)


def networks():
    torch.manual_seed(0)
    return {"a": Classifier(5), "b": Classifier(3), "dense": Dense(), "sides": Interleaved()}


@pytest.fixture(scope="module")
def split_networks():
    originals = networks()
    return originals, split_all(originals, IMAGE)


def test_whole_encoder_is_shared(split_networks):
    _, staged = split_networks
    for network in staged.values():
        assert network.locations == ("layer1", "layer2", "layer3")
        assert network.costs == staged["a"].costs
        assert [[(t.shape, t.dtype, t.stage) for t in cut] for cut in network.cuts] == [
            [(t.shape, t.dtype, t.stage) for t in cut] for cut in staged["a"].cuts
        ]
    assert staged["dense"].own_locations[0] == "backbone.encoder.layer1"
    assert sum(staged["a"].costs.params) == sum(p.numel() for p in Encoder().parameters())


@pytest.mark.parametrize("task", networks())
def test_every_network_keeps_its_outputs(split_networks, task):
    originals, staged = split_networks
    assert_same_keys(originals[task], staged[task])
    for size in (32, 48):
        example = torch.randn(3, 3, size, size)
        assert_evaluates_alike(originals[task], staged[task], example)
        assert_trains_alike(originals[task], staged[task], example)


def encoder(network):
    return {Dense: lambda: network.backbone["encoder"], Interleaved: lambda: network.e}.get(
        type(network), lambda: network
    )()


def test_stages_of_one_network_run_in_another(split_networks):
    """As the network itself does when it has the weights of those whose stages ran."""
    originals, staged = split_networks
    with torch.no_grad():
        cut = staged["a"].eval().stages[0](IMAGE)
        for stage in staged["dense"].eval().stages[1:]:
            cut = stage(*cut)
        for task, network in staged.items():
            mixed = copy.deepcopy(originals[task]).eval()
            for layer, source in (("layer1", "a"), ("layer2", "dense"), ("layer3", "dense")):
                weights = getattr(encoder(originals[source]), layer).state_dict()
                getattr(encoder(mixed), layer).load_state_dict(weights)
            assert_same(mixed(IMAGE), network.eval().head(*cut))


def test_a_cut_carries_what_some_head_needs_but_not_the_input(split_networks):
    _, staged = split_networks
    shapes = [tensor.shape for tensor in staged["a"].cuts[-1]]
    assert (2, 8, 16, 16) in shapes
    assert (2, 3, 32, 32) not in shapes


def test_first_difference_is_shown():
    other = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 1))
    with pytest.raises(SplitError) as error:
        split_all({"left": Classifier(2), "right": other}, IMAGE)
    text = str(error.value)
    assert "left: layer1.0" in text and "right: 0" in text
    assert "kernel_size=(3, 3)" in text and "kernel_size=(5, 5)" in text


def test_settings_that_change_the_result_are_a_difference():
    def chain(stride, slope):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(slope), nn.Conv2d(8, 8, 3, stride, 1), nn.Conv2d(8, 1, 1)
        )

    staged = split_all({"a": chain(1, 0.1), "b": chain(2, 0.1), "c": chain(1, 0.1)}, IMAGE)
    assert staged["a"].own_locations[-1] in {"0", "1"}
    staged = split_all({"a": chain(1, 0.1), "b": chain(1, 0.2)}, IMAGE)
    assert staged["a"].own_locations == ("0",)


class Normalise(nn.Module):
    def __init__(self, mean, scale):
        super().__init__()
        self.mean, self.scale = mean, scale

    def forward(self, x):
        return (x - self.mean) / self.scale


def test_preprocessing_becomes_part_of_stage_0():
    torch.manual_seed(0)
    originals = {"a": Classifier(2), "b": Classifier(4), "c": Classifier(3)}
    transforms = {"a": Normalise(0.5, 0.2), "b": nn.AvgPool2d(1)}
    staged = split_all(originals, IMAGE, transforms=transforms)
    assert staged["a"].locations == ("layer1", "layer2", "layer3")
    for task, network in originals.items():
        transform = transforms.get(task, nn.Identity())
        with torch.no_grad():
            assert torch.equal(staged[task].eval()(IMAGE), network.eval()(transform(IMAGE)))


@pytest.mark.parametrize("locations", [None, 2])
def test_preprocessing_is_no_stage_of_its_own(locations):
    """Places are chosen as they are without it."""
    networks = {
        task: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), head).eval()
        for task, head in (("a", nn.Linear(576, 2)), ("b", nn.Linear(576, 3)))
    }
    image = torch.rand(2, 3, 16, 16)
    plain = split_all(networks, image, locations=locations)["a"].locations
    for transform in (Normalise(0.5, 0.2), nn.Sequential(nn.AvgPool2d(1), Normalise(0.5, 0.2))):
        for transforms in ({"a": transform}, {"b": transform}, {"a": transform, "b": nn.AvgPool2d(1)}):
            assert split_all(networks, image, locations=locations, transforms=transforms)["a"].locations == plain


def test_preprocessing_to_another_size_cannot_share_stage_0():
    with pytest.raises(SplitError, match="cannot share stage 0"):
        split_all({"a": Classifier(2), "b": Classifier(4)}, IMAGE, transforms={"b": nn.AvgPool2d(2)})


def test_unknown_task_in_transforms():
    with pytest.raises(SplitError, match="'c'"):
        split_all({"a": Classifier(2)}, IMAGE, transforms={"c": nn.Identity()})


def test_networks_without_tasks_are_refused():
    with pytest.raises(SplitError, match="networks is a list; expected a mapping of task names to networks"):
        split_all([nn.Linear(2, 2)], torch.rand(1, 2))


class EachInTurn(nn.Module):
    """Runs whatever it holds."""

    def __init__(self, *steps: nn.Module) -> None:
        super().__init__()
        for number, step in enumerate(steps):
            self.add_module(f"step{number}", step)

    def forward(self, x):
        for step in self.children():
            x = step(x)
        return x


def test_a_transform_is_no_step_of_a_sequence():
    """It is held by the structure that is followed, which a sequence runs from end to end."""

    def steps():
        return nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(3), nn.Tanh()

    originals = {task: nn.Sequential(*steps()).eval() for task in "ab"}
    for network in originals.values():
        network(IMAGE)
    transforms = {"b": Normalise(0.5, 0.2)}
    staged = split_all(originals, IMAGE, locations=["0"], transforms=transforms)
    with torch.no_grad():
        assert torch.equal(staged["a"](IMAGE), originals["a"](IMAGE))
        assert torch.equal(staged["b"](IMAGE), originals["b"](transforms["b"](IMAGE)))
    assert type(originals["b"]) is nn.Sequential and len(originals["b"]) == 4
    loose = {task: EachInTurn(*steps()).eval() for task in "ab"}
    for network in loose.values():
        network(IMAGE)
    with pytest.raises(SplitError, match="EachInTurn runs all modules that it holds, a transform among them; expected"):
        split_all(loose, IMAGE, locations=["step0"], transforms=transforms)


def test_outputs_in_a_dataclass():
    staged = split(Deciding().eval(), torch.rand(2, 4), locations=["body"])
    x = torch.rand(3, 4)
    found, expected = staged(x), Deciding.same(staged, x)
    assert type(found) is Decision and torch.equal(found.scores, expected.scores) and found.names == expected.names


@dataclass
class Decision:
    scores: torch.Tensor
    names: tuple[str, ...]


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return Decision(self.out(self.body(x)), ("yes", "no"))

    @staticmethod
    def same(staged, x):
        network = Deciding().eval()
        network.load_state_dict(staged.original_state_dict())
        return network(x)


class Backwards(nn.Sequential):
    def __iter__(self):
        return iter(reversed(list(self._modules.values())))


def test_a_sequence_with_an_order_of_its_own_keeps_it():
    originals = {task: Backwards(nn.Tanh(), nn.Linear(3, 3), nn.Linear(4, 3)).eval() for task in "ab"}
    x = torch.rand(2, 4)
    staged = split_all(originals, x, locations=["2"], transforms={"a": nn.Identity()})
    with torch.no_grad():
        assert all(torch.equal(staged[task](x), network(x)) for task, network in originals.items())


class Columns(nn.Module):
    """An LSTM down the columns of an image: within it, columns of all samples lie in one dimension."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        columns = self.conv(x).permute(0, 3, 2, 1)
        described = self.mix(self.lstm(columns.flatten(0, 1))[0][:, -1])
        return self.head(described.unflatten(0, columns.shape[:2]).mean(1))


@pytest.mark.parametrize("locations", [None, 1])
def test_places_without_the_samples_first_are_not_chosen_but_can_be_named(locations):
    network = Columns().eval()
    assert split(network, IMAGE, locations=locations).locations == ("conv",)
    assert split(network, IMAGE, locations=["conv", "lstm"]).locations == ("conv", "lstm")
