"""Counts on a small network, against numbers derived by hand and against fvcore."""

import dataclasses

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

import branchnet
from branchnet.clustering import Tree
from branchnet.reporting import Page
from branchnet.reporting.costing import network_costs
from tests.reporting.toys import EXAMPLE, TASKS, Toy, toy_branched, toy_networks

BATCH, PIXELS = 2, 64
FIRST_PARAMS = 3 * 4 * 9 + 4
FIRST_FLOPS = BATCH * PIXELS * 4 * 3 * 9
SECOND_PARAMS = 4 * 6 * 9 + 2 * 6
SECOND_FLOPS = BATCH * PIXELS * 6 * 4 * 9 + 2 * BATCH * PIXELS * 6
HEAD_PARAMS = [6 * classes + classes for classes in (2, 3, 4)]
HEAD_FLOPS = [BATCH * 6 * classes for classes in (2, 3, 4)]


@pytest.fixture(scope="module")
def costs():
    return network_costs(toy_branched(), EXAMPLE)


def test_nodes_by_hand(costs):
    found = [(n.id, n.stage, n.tasks, n.params, n.flops) for n in costs.nodes]
    assert found == [
        ("nodes.0.0", 0, TASKS, FIRST_PARAMS, FIRST_FLOPS),
        ("nodes.1.0", 1, ("a", "c"), SECOND_PARAMS, SECOND_FLOPS),
        ("nodes.1.1", 1, ("b",), SECOND_PARAMS, SECOND_FLOPS),
        *((f"heads.{i}", 2, (t,), HEAD_PARAMS[i], HEAD_FLOPS[i]) for i, t in enumerate(TASKS)),
    ]


def test_activations_by_hand(costs):
    # First stage: the convolution's and the rectifier's results, 4 channels in float32 each.
    assert costs.nodes[0].activation_bytes == 2 * BATCH * PIXELS * 4 * 4
    assert costs.activation_bytes == sum(node.activation_bytes for node in costs.nodes)


def test_totals_count_shared_nodes_once(costs):
    assert costs.params == FIRST_PARAMS + 2 * SECOND_PARAMS + sum(HEAD_PARAMS)
    assert costs.flops == FIRST_FLOPS + 2 * SECOND_FLOPS + sum(HEAD_FLOPS)
    assert [(t.name, t.nodes, t.params) for t in costs.per_stage()] == [
        ("first", 1, FIRST_PARAMS),
        ("second", 2, 2 * SECOND_PARAMS),
        ("heads", 3, sum(HEAD_PARAMS)),
    ]
    assert sum(total.params for total in costs.per_branch()) == costs.params
    assert sum(total.flops for total in costs.per_branch()) == costs.flops


def test_branches_follow_the_tasks(costs):
    branches = {total.tasks: (total.name, total.params) for total in costs.per_branch()}
    assert branches[("b",)] == ("nodes.1.1 to heads.1", SECOND_PARAMS + HEAD_PARAMS[1])
    assert branches[("a",)] == ("heads.0 to heads.0", HEAD_PARAMS[0])
    assert branches[TASKS] == ("nodes.0.0 to nodes.0.0", FIRST_PARAMS)


def test_one_task_costs_what_its_network_costs(costs):
    for total, network in zip(costs.per_task(), toy_networks().values(), strict=True):
        assert total.params == sum(p.numel() for p in network.parameters())
        counted = FlopCountAnalysis(network, EXAMPLE).unsupported_ops_warnings(False)
        assert total.flops == counted.total()
    assert costs.separate_params == 3 * (FIRST_PARAMS + SECOND_PARAMS) + sum(HEAD_PARAMS)
    assert costs.exclusive_params("a") == HEAD_PARAMS[0]
    assert costs.exclusive_params("b") == HEAD_PARAMS[1] + SECOND_PARAMS


def test_cross_check_counts_no_normalisation(costs):
    assert costs.reference_flops == costs.flops - 2 * (2 * BATCH * PIXELS * 6)
    assert any(note.startswith("Cross-check") for note in costs.notes())


def test_a_difference_above_five_percent_warns(costs):
    doubted = dataclasses.replace(costs, reference_flops=int(costs.flops * 0.94))
    assert any(note.startswith("Warning: torch.utils.flop_counter") for note in doubted.notes())


class Spectral(nn.Module):
    """A linear layer whose result is transformed: fvcore has no formula for that."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.out = nn.Linear(8, 1)

    def forward(self, x):
        return self.out(torch.fft.fft(self.embed(x)).real)


def test_operators_without_a_formula_are_named():
    networks = {"a": Spectral().eval(), "b": Spectral().eval()}
    staged = branchnet.split_all(networks, torch.ones(3, 4), locations=["embed"])
    branched = branchnet.build(Tree.shared(("a", "b"), 1), staged, init="donor")
    report = branchnet.report(branched, torch.ones(3, 4), latency=False)
    costs = report.costs
    assert costs.flops == 3 * (4 * 8 + 2 * 8)
    assert any("_fft_r2c" in operator or "_fft_c2c" in operator for operator in costs.uncounted)
    affinity = branchnet.Affinity(["a", "b"], ["embed"], np.array([[[1.0, 0.5], [0.5, 1.0]]]))
    with pytest.warns(UserWarning, match="fft"):
        found = branchnet.search(affinity, staged, "90% flops")
    assert found.uncounted == costs.uncounted
    asked = Page(title="searched", chosen=found).to_html()
    assert "counted as nothing" in asked and all(operator in asked for operator in costs.uncounted)
    page = Page(title="costs", report=report).to_html()
    for text in (str(report), "\n".join(costs.notes()), report.to_markdown(), page):
        assert "Operators without a formula, counted as nothing" in text
        assert all(operator in text for operator in costs.uncounted)


class Recurrent(nn.Module):
    """An LSTM, which torch's counter has no formula for."""

    def __init__(self):
        super().__init__()
        self.embed, self.layer, self.out = nn.Linear(4, 16), nn.LSTM(16, 64, batch_first=True), nn.Linear(64, 1)

    def forward(self, x):
        return self.out(self.layer(self.embed(x))[0])


def test_the_cross_check_leaves_out_what_torchs_counter_does_not_know():
    networks = {"a": Recurrent().eval(), "b": Recurrent().eval(), "c": Recurrent().eval()}
    steps = torch.ones(2, 50, 4)
    staged = branchnet.split_all(networks, steps, locations=["embed", "layer"])
    costs = network_costs(branchnet.build(Tree.shared(tuple("abc"), 2), staged, init="donor"), steps)
    embedding, recurrent, head = 100 * 4 * 16, 100 * 4 * 64 * (16 + 64), 100 * 64
    assert costs.flops == embedding + recurrent + 3 * head
    assert costs.separate_flops == 3 * (embedding + recurrent + head)
    assert (costs.reference_flops, costs.only_here) == (embedding + 3 * head, {"mkldnn_rnn_layer": recurrent})
    assert costs.uncounted == ()
    assert any(note.startswith("Cross-check") and "mkldnn_rnn_layer" in note for note in costs.notes())


def test_counting_leaves_modes_and_statistics_alone():
    branched = toy_branched().train()
    branched.nodes[0].eval()
    modes = [module.training for module in branched.modules()]
    before = {name: value.clone() for name, value in branched.state_dict().items()}
    network_costs(branched, EXAMPLE)
    assert [module.training for module in branched.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in branched.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in branched.modules())


class Attentive(nn.Module):
    """One transformer layer, whose fast path hides its products from counters."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
        self.out = nn.Linear(8, 1)

    def forward(self, x):
        return self.out(self.layer(self.embed(x)))


def test_attention_by_hand():
    networks = {"a": Attentive().eval(), "b": Attentive().eval()}
    tokens = torch.ones(3, 5, 4)
    staged = branchnet.split_all(networks, tokens, locations=["embed", "layer"])
    costs = network_costs(branchnet.build(Tree.shared(("a", "b"), 2), staged, init="donor"), tokens)
    batch, length, width, hidden = 3, 5, 8, 16
    rows = batch * length
    projections = rows * width * (3 * width + width)
    products = 2 * batch * length * length * width
    mixing = 2 * rows * width * hidden
    normalisations = 2 * 5 * rows * width
    assert costs.per_stage()[1].flops == projections + products + mixing + normalisations
    assert costs.reference_flops == costs.flops - normalisations


def test_tied_parameters_are_counted_once():
    branched = toy_branched()
    first, second = (node.get_submodule("second.0") for node in branched.nodes[1])
    second.weight = first.weight
    costs = network_costs(branched, EXAMPLE)
    assert sum(node.params for node in costs.nodes) - costs.params == first.weight.numel()
    assert any(note.startswith("Nodes share parameters") for note in costs.notes())


def test_toy_is_what_the_numbers_say():
    assert sum(p.numel() for p in Toy(2).parameters()) == FIRST_PARAMS + SECOND_PARAMS + HEAD_PARAMS[0]
