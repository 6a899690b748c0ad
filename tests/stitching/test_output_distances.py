"""Distances between outputs against scikit-learn's R squared and scipy's divergence."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import rel_entr, softmax
from sklearn.metrics import r2_score

import branchnet
from branchnet.stitching import OutputDistance
from branchnet.stitching.output_distances import kind_of


def test_regression_is_one_minus_r_squared_weighted_by_variance():
    random = np.random.default_rng(0)
    own, found = random.normal(3, 2, (30, 4, 5, 6)), random.normal(size=(30, 4, 5, 6))
    distance = OutputDistance("regression")
    for rows in (slice(0, 7), slice(7, 30)):
        distance.add(torch.tensor(found[rows]), torch.tensor(own[rows]))
    flat = [np.moveaxis(values, 1, -1).reshape(-1, 4) for values in (own, found)]
    assert distance.value() == pytest.approx(1 - r2_score(*flat, multioutput="variance_weighted"))


def test_classification_is_the_divergence_over_that_of_the_mean_distribution():
    random = np.random.default_rng(0)
    own, found = random.normal(0, 2, (50, 6)), random.normal(size=(50, 6))
    distance = OutputDistance("classification")
    distance.add({"logits": torch.tensor(found)}, {"logits": torch.tensor(own)})
    p, q = softmax(own, 1), softmax(found, 1)
    assert distance.value() == pytest.approx(rel_entr(p, q).sum() / rel_entr(p, p.mean(0)).sum())


def test_direction_is_one_minus_the_cosine_over_that_of_the_best_constant_direction():
    random = np.random.default_rng(0)
    own, found = random.normal(0.5, 1, (20, 3, 4, 4)), random.normal(size=(20, 3, 4, 4))
    distance = OutputDistance("direction")
    for rows in (slice(0, 7), slice(7, 20)):
        distance.add(torch.tensor(3 * found[rows]), torch.tensor(own[rows]))
    wanted, rows = (
        (flat := np.moveaxis(values, 1, -1).reshape(-1, 3)) / np.linalg.norm(flat, axis=1, keepdims=True)
        for values in (own, found)
    )

    def error(answer: np.ndarray) -> float:
        return float(1 - (wanted @ (answer / np.linalg.norm(answer))).mean())

    best = minimize(error, np.ones(3)).fun
    assert distance.value() == pytest.approx((1 - (rows * wanted).sum(1)).mean() / best)
    assert distance.constant() == pytest.approx(best)


def test_directions_show_by_their_length():
    vectors = torch.nn.functional.normalize(torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    assert kind_of(vectors) == kind_of({"normals": vectors, "numbers": torch.ones(4)[:0].long()}) == "direction"
    for other in (
        1.01 * vectors,
        vectors[:, :1] / vectors[:, :1].abs(),
        torch.ones(4),
        {"a": vectors, "b": 2 * vectors},
    ):
        assert kind_of(other) == "regression"


def test_inputs_can_be_weighted_as_if_they_were_there_several_times():
    random = np.random.default_rng(0)
    own, found = random.normal(size=(6, 3)), random.normal(size=(6, 3))
    weights = [2, 0, 1, 1, 3, 0]
    for kind in ("regression", "classification", "direction"):
        once, repeated = OutputDistance(kind), OutputDistance(kind)
        once.add(torch.tensor(found), torch.tensor(own))
        repeated.add(
            torch.tensor(found).repeat_interleave(torch.tensor(weights), 0),
            torch.tensor(own).repeat_interleave(torch.tensor(weights), 0),
        )
        assert once.value(np.array(weights, dtype=float)) == pytest.approx(repeated.value())


def test_constant_outputs_and_other_forms():
    distance = OutputDistance()
    distance.add(torch.ones(4, 2), torch.ones(4, 2))
    assert distance.value() == 0
    distance.add(torch.zeros(1, 2), torch.ones(1, 2))
    assert distance.value() == 1
    with pytest.raises(branchnet.AffinityError, match=r"shapes \[\(4, 2\)\] and the network's own \[\(4, 3\)\]"):
        OutputDistance().add(torch.ones(4, 2), torch.ones(4, 3))


def test_masked_logits_count_where_they_are_possible():
    own = torch.tensor([[1.0, 0.0, -torch.inf], [0.0, 2.0, -torch.inf]])
    distance = OutputDistance("classification")
    distance.add(torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 0.0, -torch.inf]]), own)
    reduced = OutputDistance("classification")
    reduced.add(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), own[:, :2])
    assert distance.value() == pytest.approx(reduced.value())
    assert distance.value() > 0


def test_a_small_spread_around_a_large_offset_is_no_constant():
    random = np.random.default_rng(0)
    own = 3000 + 1e-3 * torch.tensor(random.normal(size=(100, 2)))
    distance = OutputDistance()
    distance.add(own + 1e-4 * torch.tensor(random.normal(size=(100, 2))), own)
    assert distance.value() == pytest.approx(0.01, rel=0.3)


def test_outputs_that_are_not_finite_lose_against_all_others_and_unusable_own_ones_are_refused():
    distance = OutputDistance()
    distance.add(torch.tensor([[torch.nan], [1.0]]), torch.tensor([[0.0], [1.0]]))
    assert distance.value() == np.inf
    with pytest.raises(branchnet.AffinityError, match="own output holds NaN"):
        OutputDistance().add(torch.tensor([[0.0]]), torch.tensor([[torch.nan]]))
    with pytest.raises(branchnet.AffinityError, match="two classes or more; compare one logit as 'regression'"):
        OutputDistance("classification").add(torch.zeros(3, 1), torch.zeros(3, 1))


@pytest.mark.parametrize("kind", ["regression", "classification"])
@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 4, 5)])
def test_prepared_outputs_and_other_batches_give_the_same_distance(kind, shape):
    """Own outputs are prepared once for several comparisons; batches of any sizes and orders in memory add up."""
    random = np.random.default_rng(0)
    own = torch.tensor(50 + random.normal(0, 2, shape))
    found = [own + torch.tensor(random.normal(0, scale, shape)) for scale in (0.5, 1.0)]
    whole = []
    for one in found:
        whole.append(OutputDistance(kind))
        whole[-1].add(one, own)
    parts = [OutputDistance(kind) for _ in found]
    for rows in (slice(0, 2), slice(2, 7)):
        prepared = parts[0].prepared(own[rows].clone())
        for one, distance in zip(found, parts, strict=True):
            given = one[rows]
            if given.dim() == 4:
                given = given.contiguous(memory_format=torch.channels_last)
            distance.add(given, prepared)
    weights = random.integers(0, 3, 7).astype(float)
    for one, other in zip(whole, parts, strict=True):
        assert other.value() == pytest.approx(one.value(), rel=1e-10)
        assert other.value(weights) == pytest.approx(one.value(weights), rel=1e-10)
        assert other.constant() == pytest.approx(one.constant(), rel=1e-10)
    same = OutputDistance(kind)
    same.add(own, same.prepared(own))
    assert same.value() == 0
