"""Stitching losses against a computation in numpy, and properties that hold for all networks."""

import copy
import re
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import branchnet
from branchnet.affinity.probes import read_probe
from branchnet.affinity.stitched.stitching_loss import CHOOSING
from branchnet.builder.stitches.top_down_fit import stitch_donors
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
    with pytest.raises(branchnet.AffinityError, match="expected one of regression, classification, direction"):
        branchnet.stitch_affinity(networks, probe, kinds={"a": "depth"}, locations=["1"])
    with pytest.raises(branchnet.AffinityError, match="task 'a' has several networks; expected one"):
        branchnet.stitch_affinity({"a": [made(0), made(2)], "b": made(1)}, probe, locations=["1"])
    with pytest.raises(branchnet.AffinityError, match=r"does not take \['tensors'\]; expected locations"):
        branchnet.stitch_affinity(networks, probe, locations=["1"], tensors="mean")
    with torch.no_grad():
        networks["a"][0].weight.fill_(float("nan"))
    with pytest.raises(branchnet.AffinityError, match="features hold NaN or infinity; expected finite numbers"):
        branchnet.stitch_affinity(networks, probe, locations=["1"])


def half_square(output, labels):
    return (output - labels).square().mean() / 2


def labelled(seed=0):
    networks = {task: made(seed + number) for number, task in enumerate(TASKS)}
    torch.manual_seed(seed + 9)
    probe = torch.randn(120, 4).double()
    with torch.no_grad():
        labels = {task: networks[task](probe) + 0.1 * torch.randn(120, 3) for task in ("a", "b")}
    return networks, probe, labels


def test_losses_of_the_user_are_those_of_the_built_network():
    """Of a network with one stitch: its loss, less the own network's, by what a constant answer has more."""
    networks, probe, labels = labelled()
    losses = dict.fromkeys(labels, half_square)
    found = branchnet.stitch_affinity(networks, probe, losses=losses, labels=labels, locations=["1"], bootstrap=20)
    plain = branchnet.stitch_affinity(networks, probe, locations=["1"], bootstrap=20)
    np.testing.assert_array_equal(found.values[0, :2, 2], plain.values[0, :2, 2])
    staged = branchnet.split_all(networks, probe[:2], locations=["1"])
    tree = branchnet.Tree(TASKS, [[list(TASKS)]])
    judged = list(divide_probe(120, 120).judged)
    measuring = [number for place, number in enumerate(judged) if place % CHOOSING]
    shared = branchnet.build(tree, staged, init="donor", donors=[["a"]])
    stitch_donors(shared, staged, read_probe(probe, 32), corrected=False)
    with torch.no_grad():
        output, own = shared.eval()(probe)["b"], networks["b"](probe)
    constant = own[judged].mean(0).expand(120, 3)
    loss, best = (float(half_square(one[measuring], labels["b"][measuring])) for one in (output, own))
    scale = float(half_square(constant[judged], labels["b"][judged]) - half_square(own[judged], labels["b"][judged]))
    assert found.values[0, 0, 1] == pytest.approx(1 - max(0, loss - best) / scale, abs=0.02)
    assert found.standard_errors[0, 0, 1] > 0


def test_losses_and_labels_that_do_not_fit_are_refused():
    networks, probe, labels = labelled()
    measure = partial(branchnet.stitch_affinity, networks, probe, locations=["1"])
    with pytest.raises(branchnet.AffinityError, match=r"tasks \['a'\] have a loss or labels alone"):
        measure(losses=dict.fromkeys("ab", half_square), labels={"b": labels["b"]})
    with pytest.raises(branchnet.AffinityError, match=r"losses names the unknown task 'x'; expected some of \['a'"):
        measure(losses={"x": half_square}, labels={"x": labels["b"]})
    with pytest.raises(branchnet.AffinityError, match="task 'b' has 7 labels; expected 120, one for each input"):
        measure(losses={"b": half_square}, labels={"b": labels["b"][:7]})
    with pytest.raises(branchnet.AffinityError, match=r"for a constant answer .*expected a lower one for the own"):
        measure(losses={"b": lambda output, labels: -half_square(output, labels)}, labels={"b": labels["b"]})
    with pytest.raises(branchnet.AffinityError, match=r"the loss of task 'b' is of shape \(1, 3\); expected a scalar"):
        measure(losses={"b": lambda output, labels: output - labels}, labels={"b": labels["b"]})


def test_the_cache_runs_only_pairs_with_new_networks(tmp_path, caplog):
    networks, probe, labels = labelled()
    losses = dict.fromkeys(labels, half_square)

    def rests(tasks, **options):
        chosen = {task: networks[task] for task in tasks}
        with caplog.at_level("INFO"):
            caplog.clear()
            found = branchnet.stitch_affinity(chosen, probe, locations=["1", "3"], cache=tmp_path, **options)
        assert np.array_equal(
            found.values, branchnet.stitch_affinity(chosen, probe, locations=["1", "3"], **options).values
        )
        (text,) = re.findall(r"and (\d+) rests", caplog.records[0].message)
        return int(text)

    assert rests("ab") == 4
    assert rests("ab") == 0
    assert rests("abc") == 8
    assert rests("abc", kinds={"c": "classification"}) == 4
    assert rests("abc", bootstrap=7) == 12
    given = {"losses": losses, "labels": labels}
    assert rests("abc", **given) == 8
    assert rests("abc", losses={"a": losses["a"]}, labels={"a": labels["a"] + 1e-9}) == 4
    with torch.no_grad():
        networks["a"][-1].bias.add_(1)  # the features of a's network are as before
    assert rests("abc") == 4
    with pytest.raises(branchnet.AffinityError, match="with a cache, expected a plain function"):
        rests("abc", losses={"a": nn.MSELoss()}, labels={"a": labels["a"]})


def test_inputs_without_a_label_do_not_count():
    networks, probe, labels = labelled()
    unknown = torch.rand(120, generator=torch.Generator().manual_seed(3)) < 0.6
    options = {"locations": ["1"], "bootstrap": 5}
    missing = {task: label.masked_fill(unknown[:, None], torch.nan) for task, label in labels.items()}
    found = branchnet.stitch_affinity(
        networks, probe, losses=dict.fromkeys(labels, half_square), labels=missing, **options
    )

    # A loss that is 0 for whatever output where nothing is known adds nothing to sums: means differ by shares of known
    # labels alone, which all networks have in common that are judged by the same task.
    def marked(output, label):
        return half_square(output, label[:, :3]) * label[:, 3:].mean()

    known = {task: torch.cat([label, (~unknown)[:, None].to(label)], 1) for task, label in labels.items()}
    other = branchnet.stitch_affinity(networks, probe, losses=dict.fromkeys(labels, marked), labels=known, **options)
    for task, others in ((0, [1, 2]), (1, [0, 2])):
        one, same = 1 - found.values[0, others, task], 1 - other.values[0, others, task]
        share = one.sum() / same.sum()
        assert one == pytest.approx(share * same, rel=1e-6, abs=1e-9) and 0.5 < share < 2
    nothing = {task: torch.full_like(label, torch.nan) for task, label in labels.items()}
    with pytest.raises(branchnet.AffinityError, match="'a' is NaN for its own network on every input that judges"):
        branchnet.stitch_affinity(networks, probe, losses=dict.fromkeys(labels, half_square), labels=nothing, **options)


def test_a_loss_that_no_constant_answer_has_is_refused():
    networks, probe, labels = labelled()
    with pytest.raises(
        branchnet.AffinityError,
        match="for a constant answer nan; expected a lower one for the own network, both finite",
    ):
        branchnet.stitch_affinity(
            networks,
            probe,
            losses={"a": undefined_for_constants()},
            labels={"a": labels["a"]},
            locations=["1"],
            bootstrap=0,
        )


def undefined_for_constants():
    """Half the squared error, and NaN for an output that was given before: a constant answer is the same every time."""
    seen = []

    def loss(output, label):
        again = any(torch.equal(output, other) for other in seen)
        seen.append(output.clone())
        return torch.tensor(torch.nan) if again else half_square(output, label)

    return loss
