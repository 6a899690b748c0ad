"""Stitching losses against a computation in numpy, and properties that hold for all networks."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import branchnet
from branchnet.affinity.stitched.stitching_loss import CHOOSING
from branchnet.stitching.probe_division import divide_probe

TASKS = ("a", "b", "c")


def made(seed, outputs=3, width=5):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    ).double()


def split_at(network, location):
    return network[: location + 1], network[location + 1 :]


def by_hand(one, other, location, probe):
    """1 - loss of `other`'s rest on `one`'s features, all in numpy and plain modules."""
    before, (own_before, rest) = split_at(one, location)[0], split_at(other, location)
    x, y = before(probe).numpy(), own_before(probe).numpy()
    division = divide_probe(len(probe), len(probe))
    fitted = list(division.fitted)
    choosing = list(division.judged[::CHOOSING])
    judging = [number for number in division.judged if number not in choosing]
    centred, wanted = x[fitted] - x[fitted].mean(0), y[fitted] - y[fitted].mean(0)
    ridge = np.sqrt(1e-3 * centred.var(0).mean() * len(fitted)) * np.eye(x.shape[1])
    weight, *_ = np.linalg.lstsq(
        np.vstack([centred, ridge]), np.vstack([wanted, np.zeros((x.shape[1], y.shape[1]))]), rcond=None
    )
    scale = np.minimum(y[fitted].std(0) / (centred @ weight).std(0), 5)

    def loss(power, rows):
        scaled = weight * scale**power
        mapped = x[rows] @ scaled + y[fitted].mean(0) - x[fitted].mean(0) @ scaled
        found, own = rest(torch.from_numpy(mapped)).numpy(), other(probe[rows]).numpy()
        return np.square(found - own).sum() / np.square(own - own.mean(0)).sum()

    best = min((0, 0.5, 1), key=lambda power: loss(power, choosing))
    return 1 - loss(best, judging)


@torch.no_grad()
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6))
def test_losses_are_those_of_plain_modules_and_least_squares(seed):
    networks = {task: made(seed + number) for number, task in enumerate(TASKS)}
    torch.manual_seed(seed + 9)
    probe = torch.randn(120, 4).double()
    found = branchnet.stitch_affinity(networks, probe, locations=["1", "3"], bootstrap=0)
    assert (found.directed, found.measure, found.tasks) == (True, "stitch", TASKS)
    for d, location in enumerate((1, 3)):
        for i, one in enumerate(networks.values()):
            for j, other in enumerate(networks.values()):
                wanted = 1.0 if i == j else by_hand(one, other, location, probe)
                assert found.values[d, i, j] == pytest.approx(wanted, abs=1e-6)


def test_permuting_tasks_permutes_losses_and_equal_networks_lose_nothing():
    networks = {"a": made(0), "b": made(1), "same": copy.deepcopy(made(0))}
    torch.manual_seed(5)
    probe = torch.randn(100, 4).double()
    values = branchnet.stitch_affinity(networks, probe, locations=["1", "3"], bootstrap=0).values
    assert (values[:, 0, 2] == 1).all()
    assert (values[:, 2, 0] == 1).all()
    order = [2, 1, 0]
    turned = {list(networks)[k]: networks[list(networks)[k]] for k in order}
    again = branchnet.stitch_affinity(turned, probe, locations=["1", "3"], bootstrap=0).values
    np.testing.assert_allclose(again, values[:, order][:, :, order], rtol=1e-9)


def test_distances_of_classifiers_do_not_change_with_a_constant_added_to_all_logits():
    first, second = made(0, outputs=4), made(1, outputs=4)
    torch.manual_seed(5)
    probe = torch.randn(100, 4).double()
    kinds = {"a": "classification", "b": "classification"}
    before = branchnet.stitch_affinity({"a": first, "b": second}, probe, kinds=kinds, locations=["1"], bootstrap=0)
    with torch.no_grad():
        second[-1].bias.add_(7)
    after = branchnet.stitch_affinity({"a": first, "b": second}, probe, kinds=kinds, locations=["1"], bootstrap=0)
    np.testing.assert_allclose(after.values, before.values, rtol=1e-6)


def test_standard_errors_are_those_of_the_resamplings():
    networks = {"a": made(0), "b": made(1), "same": copy.deepcopy(made(0))}
    torch.manual_seed(5)
    found = branchnet.stitch_affinity(networks, torch.randn(200, 4).double(), locations=["1"], bootstrap=200)
    np.testing.assert_allclose(found.standard_errors, found.replicates().std(axis=0, ddof=1))
    spread = np.abs(found.replicates().mean(0) - found.values)
    assert (spread <= found.standard_errors + 1e-12).all()
    assert found.standard_errors[0, 0, 1] > 0
    assert found.standard_errors[0, 0, 2] == 0  # equal features: no stitch and no loss


def test_wrong_calls_are_refused():
    networks, probe = {"a": made(0), "b": made(1)}, torch.randn(40, 4).double()
    with pytest.raises(branchnet.AffinityError, match=r"unknown task 'x'; expected some of \['a', 'b'\]"):
        branchnet.stitch_affinity(networks, probe, kinds={"x": "classification"}, locations=["1"])
    with pytest.raises(branchnet.AffinityError, match="expected 'regression' or 'classification'"):
        branchnet.stitch_affinity(networks, probe, kinds={"a": "depth"}, locations=["1"])
    with pytest.raises(branchnet.AffinityError, match="task 'a' has several networks; expected one"):
        branchnet.stitch_affinity({"a": [made(0), made(2)], "b": made(1)}, probe, locations=["1"])
    with pytest.raises(branchnet.AffinityError, match=r"does not take \['cache'\]; expected locations"):
        branchnet.stitch_affinity(networks, probe, locations=["1"], cache="somewhere")
    with torch.no_grad():
        networks["a"][0].weight.fill_(float("nan"))
    with pytest.raises(branchnet.AffinityError, match="features hold NaN or infinity; expected finite numbers"):
        branchnet.stitch_affinity(networks, probe, locations=["1"])
