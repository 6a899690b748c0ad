"""Branched networks with stitches: exact where the networks are reparametrisations of each other, sane elsewhere."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import branchnet
from branchnet.builder import add_task
from branchnet.stitching.probe_division import divide_probe


def affine_twin(network, linear, following):
    """A network of equal function whose features after layer `linear` are an affine map of the other's."""
    twin = copy.deepcopy(network).double()
    before, after = twin[linear], twin[following]
    channels = before.weight.shape[0]
    mixing = torch.eye(channels).double() + 0.3 * torch.randn(channels, channels).double() / channels**0.5
    shift = torch.randn(channels).double()
    inverse = torch.linalg.inv(mixing)
    with torch.no_grad():
        flat = before.weight.flatten(1)
        before.weight.copy_((mixing @ flat).reshape(before.weight.shape))
        before.bias.copy_(mixing @ before.bias + shift)
        kernel = after.weight.movedim(1, -1) @ inverse
        after.weight.copy_(kernel.movedim(-1, 1))
        after.bias.sub_(
            torch.einsum("oi...,i->o", after.weight, shift)
            if after.weight.dim() == 2
            else after.weight.sum((2, 3)) @ shift
        )
    return twin


def convolutional(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
        nn.Conv2d(width, 5, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(5 * 4 * 4, 2),
    )


def vectors(width):
    return nn.Sequential(
        nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Linear(width, 7), nn.Tanh(), nn.Linear(7, 2)
    )


KINDS = {
    "images": (convolutional, lambda: torch.randn(120, 3, 8, 8).double()),
    "vectors": (vectors, lambda: torch.randn(600, 6).double()),
    "tokens": (vectors, lambda: torch.randn(60, 9, 6).double()),
}


@pytest.mark.filterwarnings("ignore:the probe looks like noise")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_affine_reparametrisations_are_undone_on_any_tree(kind, seed):
    torch.manual_seed(seed)
    make, inputs = KINDS[kind]
    first = make(4).double().eval()
    networks = {"a": first, "b": affine_twin(first, 2, 3).eval(), "c": affine_twin(first, 2, 3).eval()}
    probe = inputs()
    staged = branchnet.split_all(networks, probe[:2], locations=["2", "4"])
    tree = branchnet.random_tree(list("abc"), 2, seed=seed)
    branched = branchnet.build(tree, staged, init="stitch", probe=probe).eval()
    found = branched(probe)
    for task, network in networks.items():
        torch.testing.assert_close(network(probe), first(probe))
        torch.testing.assert_close(found[task], network(probe), rtol=1e-5, atol=1e-5)
    for (parent, child), stitch in branched.stitches.items():
        assert stitch.source == branched.member(parent).donor != stitch.target == branched.member(child).donor
        assert stitch.r2 > 1 - 1e-6


def test_a_stitch_says_what_it_is():
    torch.manual_seed(0)
    first = vectors(4).double().eval()
    networks = {"a": first, "b": affine_twin(first, 2, 3).eval()}
    probe = torch.randn(600, 6).double()
    staged = branchnet.split_all(networks, probe[:2], locations=["2", "4"])
    tree = branchnet.Tree(["a", "b"], [[["a", "b"]], [["a"], ["b"]]])
    branched = branchnet.build(tree, staged, init="stitch", probe=probe).eval()
    assert torch.equal(branched(probe)["a"], staged["a"](probe))  # the donor's own path has no stitch
    ((edge, stitch),) = branched.stitches.items()
    assert edge == ("nodes.0.0", "nodes.1.1")
    assert (stitch.source, stitch.target, stitch.rank, stitch.folded) == ("a", "b", 4, False)
    assert stitch.size == 4 * 4 + 4


def small(outputs, seed, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, outputs),
    ).eval()


def smooth(count, seed=0):
    """Images in which neighbouring pixels are similar."""
    torch.manual_seed(seed)
    return nn.functional.interpolate(torch.rand(count, 3, 4, 4), size=(16, 16), mode="bilinear")


def test_a_chain_with_one_donor_has_no_stitch_and_is_bit_exact():
    networks = {task: small(outputs, seed) for seed, (task, outputs) in enumerate({"a": 2, "b": 3}.items())}
    probe = smooth(40)
    staged = branchnet.split_all(networks, probe[:2], locations=["2", "5"])
    branched = branchnet.build(branchnet.Tree.separate(["a", "b"], 2), staged, init="stitch", probe=probe).eval()
    assert not branched.stitches
    for task, network in networks.items():
        assert torch.equal(branched(probe)[task], network(probe))


def test_stitches_bring_outputs_nearer_than_donors_weights_alone():
    networks = {task: small(outputs, seed) for seed, (task, outputs) in enumerate({"a": 2, "b": 3, "c": 2}.items())}
    probe, others = smooth(200), smooth(100, seed=1)
    staged = branchnet.split_all(networks, probe[:2], locations=["2", "5"])
    tree = branchnet.Tree(list("abc"), [[list("abc")], [["a", "b"], ["c"]]])
    stitched = branchnet.build(tree, staged, probe=probe).eval()
    assert list(stitched.stitches) == [("nodes.0.0", "nodes.1.1"), ("nodes.1.0", "heads.1")]
    plain = branchnet.build(tree, staged, init="donor").eval()
    for task in ("b", "c"):
        own = networks[task](others)
        error = [(network(others)[task] - own).square().mean().item() for network in (stitched, plain)]
        assert error[0] < 0.5 * error[1]
    with pytest.warns(UserWarning, match=r"2 nodes or heads get features of another network"):
        branchnet.build(tree, staged)


def test_networks_and_random_state_are_left_as_they_were_whatever_their_mode():
    networks = {task: small(2, seed).train() for seed, task in enumerate("ab")}
    states = {task: copy.deepcopy(network.state_dict()) for task, network in networks.items()}
    probe = smooth(40)
    staged = branchnet.split_all(networks, probe[:2], locations=["2", "5"])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    branchnet.build(branchnet.Tree.shared(["a", "b"], 2), staged, init="stitch", probe=probe)
    assert torch.equal(torch.get_rng_state(), before)
    for task, network in networks.items():
        assert network.training
        for name, value in network.state_dict().items():
            assert torch.equal(value, states[task][name]), name


def test_few_inputs_and_noise_are_named():
    networks = {task: small(2, seed) for seed, task in enumerate("ab")}
    staged = branchnet.split_all(networks, smooth(2), locations=["2", "5"])
    tree = branchnet.Tree.shared(["a", "b"], 2)
    with pytest.warns(UserWarning, match="the probe has 10 inputs; expected 20 or more"):
        branchnet.build(tree, staged, init="stitch", probe=smooth(10))
    with pytest.warns(UserWarning, match="looks like noise"):
        branchnet.build(tree, staged, init="stitch", probe=torch.randn(40, 3, 16, 16))
    with pytest.raises(branchnet.BuildError, match=r"init='stitch' fits maps .* expected probe="):
        branchnet.build(tree, staged, init="stitch")


def test_a_task_is_added_through_one_stitch_and_the_others_stay_bit_exact():
    networks = {task: small(2, seed) for seed, task in enumerate("ab")}
    probe, others = smooth(120), smooth(60, seed=1)
    staged = branchnet.split_all(networks, probe[:2], locations=["2", "5"])
    branched = branchnet.build(branchnet.Tree.separate(["a", "b"], 2), staged, init="stitch", probe=probe).eval()
    new = small(3, seed=7)
    grown = add_task(branched, "c", new, beside="a", until="2", stitch=True, probe=probe).eval()
    assert list(grown.stitches) == [("nodes.0.0", "nodes.1.2")]
    for task in "ab":
        assert torch.equal(grown(others)[task], branched(others)[task])
    plain = branched.add_task("c", new, beside="a", until="2").eval()
    error = [(network(others)["c"] - new(others)).square().mean().item() for network in (grown, plain)]
    assert error[0] < 0.5 * error[1]
    with pytest.raises(branchnet.BuildError, match=r"stitch=True .* expected probe="):
        add_task(branched, "c", new, beside="a", until="2", stitch=True)


def test_kinds_are_those_of_the_tasks_also_when_one_is_added():
    networks = {task: small(2, seed) for seed, task in enumerate("ab")}
    probe = smooth(60)
    staged = branchnet.split_all(networks, probe[:2], locations=["2", "5"])
    tree = branchnet.Tree.shared(["a", "b"], 2)
    for kinds, message in (
        ({"x": "regression"}, r"kinds names the unknown task 'x'; expected some of \['a', 'b'\]"),
        ({"a": "depth"}, "the kind of 'a' is 'depth'; expected one of"),
    ):
        with pytest.raises(branchnet.BuildError, match=message):
            branchnet.build(tree, staged, init="stitch", probe=probe, kinds=kinds)
    branched = branchnet.build(tree, staged, init="stitch", probe=probe).eval()
    add = partial(add_task, branched, "c", small(1, seed=7), beside="a", until="2", stitch=True, probe=probe)
    assert add(kinds={"c": "regression"}).stitches
    with pytest.raises(branchnet.AffinityError, match="with two classes or more"):
        add(kinds={"c": "classification"})


def test_the_share_explained_is_that_on_inputs_that_were_not_fitted_on():
    torch.manual_seed(0)
    networks = {task: vectors(12).double().eval() for task in "ab"}
    probe = torch.randn(48, 6).double()
    staged = branchnet.split_all(networks, probe[:2], locations=["1", "4"])
    tree = branchnet.Tree(["a", "b"], [[["a", "b"]], [["a"], ["b"]]])
    stitch = branchnet.build(tree, staged, init="stitch", probe=probe).stitches["nodes.0.0", "nodes.1.1"]
    division = divide_probe(48, 48)
    with torch.no_grad():
        x, y = (networks[task][:2](probe).numpy() for task in "ab")
    fitted, judged = list(division.fitted), list(division.judged)
    centred, wanted = x[fitted] - x[fitted].mean(0), y[fitted] - y[fitted].mean(0)
    ridge = np.sqrt(1e-3 * centred.var(0).mean() * len(fitted)) * np.eye(12)
    weight, *_ = np.linalg.lstsq(np.vstack([centred, ridge]), np.vstack([wanted, np.zeros((12, 12))]), rcond=None)
    mapped = (x[judged] - x[fitted].mean(0)) @ weight + y[fitted].mean(0)
    missing = np.square(mapped - y[judged]).sum() / np.square(y[judged] - y[judged].mean(0)).sum()
    assert stitch.r2 == pytest.approx(1 - missing, abs=1e-6)
    inside = 1 - np.square(centred @ weight - wanted).sum() / np.square(wanted).sum()
    assert inside > stitch.r2 + 0.05


class SequenceFirst(nn.Module):
    """Features (T, B, C), as recurrent layers have them."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.squash, self.outer = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)

    def forward(self, x):
        return self.outer(self.squash(self.inner(x.transpose(0, 1)))).transpose(0, 1)


def test_features_whose_first_dimension_is_not_the_inputs_are_mapped():
    networks = {"a": SequenceFirst(0).eval(), "b": SequenceFirst(1).eval()}
    probe, others = torch.randn(150, 5, 4), torch.randn(80, 5, 4)
    staged = branchnet.split_all(networks, probe[:2], locations=["squash"])
    branched = branchnet.build(branchnet.Tree.shared(["a", "b"], 1), staged, init="stitch", probe=probe).eval()
    ((_, stitch),) = branched.stitches.items()
    assert stitch.maps["0"].dimension == 2
    own = networks["b"](others)
    assert (branched(others)["b"] - own).var() < 0.3 * own.var()
    losses = branchnet.stitch_affinity(staged, probe, bootstrap=0)
    assert 0 < losses.values[0, 0, 1] < 1


def test_constant_probes_and_too_few_positions_are_named():
    networks = {task: vectors(40).eval() for task in "ab"}
    staged = branchnet.split_all(networks, torch.randn(2, 6), locations=["2"])
    tree = branchnet.Tree.shared(["a", "b"], 1)
    with pytest.warns(UserWarning, match="are constant over the probe, so that nothing can be learnt"):
        branchnet.build(tree, staged, init="stitch", probe=torch.ones(60, 6))
    with pytest.warns(UserWarning, match="have 40 channels and the probe gives 45 positions"):
        branchnet.build(tree, staged, init="stitch", probe=torch.randn(60, 6))


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


def test_stitched_features_that_the_rest_cannot_take_are_refused():
    networks = {}
    for seed, task in enumerate("ab"):
        torch.manual_seed(seed)
        networks[task] = nn.Sequential(nn.Linear(4, 6), nn.Softplus(), Root(), nn.Linear(6, 2)).eval()
    probe = 5 * torch.randn(200, 4)
    staged = branchnet.split_all(networks, probe[:2], locations=["1"])
    with pytest.raises(branchnet.BuildError, match="gives NaN or infinity on the stitched features"):
        branchnet.build(branchnet.Tree.shared(["a", "b"], 1), staged, init="stitch", probe=probe)


class Skipping(nn.Module):
    """Where it is cut there are two maps of features, a mask and a number."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, 3, stride=2, padding=1)
        self.squash, self.up, self.last = nn.Tanh(), nn.ConvTranspose2d(4, 5, 2, stride=2), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        wide = self.first(x).sigmoid()
        mask = x[:, :1] > 0.5
        deep = self.squash(self.second(wide))
        return self.last((wide + self.up(deep)) * mask + x.shape[2] / 100)


def test_every_tensor_of_a_cut_gets_its_own_map_and_masks_and_sizes_stay():
    networks = {"a": Skipping(0).eval(), "b": Skipping(1).eval()}
    probe = smooth(60)
    staged = branchnet.split_all(networks, probe[:2], locations=["squash"])
    branched = branchnet.build(branchnet.Tree.shared(["a", "b"], 1), staged, init="stitch", probe=probe).eval()
    ((_, stitch),) = branched.stitches.items()
    with torch.no_grad():
        cut = staged["a"].stages[0](probe)
        mapped, wanted = stitch(*cut), staged["b"].stages[0](probe)
    features = [n for n, value in enumerate(cut) if isinstance(value, torch.Tensor) and value.shape[1] in (4, 5)]
    assert [int(name) for name in stitch.maps] == features and len(features) == 2 < len(cut)
    for number, (before, after, own) in enumerate(zip(cut, mapped, wanted, strict=True)):
        if number not in features:
            assert before is after and not (isinstance(before, torch.Tensor) and before.is_floating_point())
            continue
        assert (after - own).var() < 0.7 * (before - own).var()


def test_permuting_tasks_changes_no_output():
    networks = {task: small(outputs, seed) for seed, (task, outputs) in enumerate({"a": 2, "b": 3, "c": 2}.items())}
    probe, others = smooth(120), smooth(10, seed=1)
    found = []
    for order in (list("abc"), list("cab")):
        staged = branchnet.split_all({task: networks[task] for task in order}, probe[:2], locations=["2", "5"])
        affinity = branchnet.stitch_affinity(staged, probe, bootstrap=0)
        tree = branchnet.Tree(order, [[order], [["a", "b"], ["c"]]])
        branched = branchnet.build(tree, staged, affinity=affinity, probe=probe).eval()
        found.append(branched(others))
        assert {(s.source, s.target) for s in branched.stitches.values()}
    for task in "abc":
        torch.testing.assert_close(found[0][task], found[1][task], rtol=1e-3, atol=1e-4)
