"""The fusion of experts: a weighted product over all cells of the map, and weights that do no harm."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jzi.locate.joint.fusion as fusion
import jzi.locate.joint.fusion_weights as fusion_weights
from jzi.errors import ConfigError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.joint.fusion import FLOOR, FusedExpert, Stacked, combine
from jzi.locate.joint.fusion_weights import fit_weights
from jzi.locate.posterior import Posterior
from jzi.locate.priors.prior import PriorExpert
from jzi.store.geometry.pyramid import Pyramid

AREA = Pyramid.around(48.2, 16.37, 160.0, levels=2)  # 16 x 16 cells of 10 m
CELLS = 256


class FixedExpert:
    """An expert with the same posterior for any photos, which are indices into it."""

    name, encoder = "fixed", None

    def __init__(self, posterior: Posterior, mask: np.ndarray | None = None, *, rules_out: bool = False) -> None:
        self.area, self.fixed, self.rules_out = AREA, posterior, rules_out
        self.cell_mask = np.ones(AREA.shape, bool) if mask is None else mask
        self.batches: list[int] = []

    def posterior(self, query: torch.Tensor, options: LocateOptions) -> Posterior:
        self.batches.append(len(query))
        parts = Posterior.concatenate([self.fixed.of(int(photo)) for photo in query[:, 0]])
        return parts.top(1) if options.estimate == "greedy" else parts

    def uncalibrated(self) -> None:
        return None


def from_grid(probability: np.ndarray, count: int = CELLS) -> Posterior:
    """The posterior of (photo, cell) probabilities, of which search reaches the `count` most probable."""
    row, col = np.divmod(np.arange(probability.shape[1]), AREA.shape[1])
    whole = Posterior.from_cells(AREA, row, col, probability)
    return replace(whole, residual=np.zeros(len(whole))).top(count)


def random_posterior(rng: np.random.Generator, photos: int, count: int, mask: np.ndarray, sharp: float) -> Posterior:
    """Random probabilities of which the `count` most probable are reached, 0 where there is no imagery."""
    logits = np.where(mask.ravel(), rng.normal(size=(photos, CELLS)) * sharp, -np.inf)
    weight = np.exp(logits - logits.max(1, keepdims=True))
    return from_grid(weight / weight.sum(1, keepdims=True), min(count, int(mask.sum())))


def dense_product(
    posteriors: list[Posterior], mask: np.ndarray, weights: list[float], floors: list[float]
) -> np.ndarray:
    """(photo, row, col) the formula of the module with an entry for every cell of the map."""
    total = np.zeros((len(posteriors[0]), *AREA.shape))
    for posterior, weight, floor in zip(posteriors, weights, floors, strict=True):
        if not weight:
            continue
        for photo in range(len(posterior)):
            grid = posterior.grid(photo)
            unreached = mask & (grid == 0)
            if unreached.any():
                grid[unreached] = posterior.residual[photo] / unreached.sum()
            with np.errstate(divide="ignore"):
                total[photo] += weight * np.log((1 - floor) * grid + floor / mask.sum())
    product = np.where(mask, np.exp(total - total[:, mask].max(1)[:, None, None]), 0.0)
    return product / product.sum((1, 2), keepdims=True)


def check_against_dense(fused: Posterior, dense: np.ndarray, mask: np.ndarray) -> None:
    for photo, grid in enumerate(dense):
        reached = fused.grid(photo) > 0
        np.testing.assert_allclose(fused.grid(photo)[reached], grid[reached], rtol=1e-9)
        assert fused.residual[photo] == pytest.approx(grid[mask & ~reached].sum(), abs=1e-9)


def half_nodata() -> np.ndarray:
    mask = np.ones(AREA.shape, bool)
    mask[:, 11:] = False
    return mask


@pytest.mark.parametrize("counts", [(CELLS, CELLS), (12, CELLS), (12, 5), (1, 1)])
@pytest.mark.parametrize("mask", [np.ones(AREA.shape, bool), half_nodata()], ids=["whole", "nodata"])
def test_the_product_is_that_of_the_formula_on_every_cell(counts: tuple[int, int], mask: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    posteriors = [random_posterior(rng, 5, count, mask, sharp) for count, sharp in zip(counts, (2.0, 3.0), strict=True)]
    experts = [FixedExpert(each, mask) for each in posteriors]
    fused = combine(experts, posteriors, [0.6, 1.3])
    check_against_dense(fused, dense_product(posteriors, mask, [0.6, 1.3], [FLOOR, FLOOR]), mask)


def test_the_union_of_the_experts_cells_is_reached_and_the_rest_stays_residual() -> None:
    one = Posterior.from_cells(AREA, np.array([2, 2]), np.array([3, 4]), np.array([0.6, 0.3]))
    two = Posterior.from_cells(AREA, np.array([2, 9]), np.array([4, 9]), np.array([0.5, 0.1]))
    fused = combine([FixedExpert(one), FixedExpert(two)], [one, two], [1.0, 1.0])
    positive = fused.probability[0] > 0
    cells = set(zip(fused.row[0][positive].tolist(), fused.col[0][positive].tolist(), strict=True))
    assert cells == {(2, 3), (2, 4), (9, 9)}
    mask = np.ones(AREA.shape, bool)
    dense = dense_product([one, two], mask, [1.0, 1.0], [FLOOR, FLOOR])
    check_against_dense(fused, dense, mask)
    assert fused.residual[0] > 1e-3
    assert (fused.row[0, 0], fused.col[0, 0]) == (2, 4)  # what both consider likely


@given(
    seed=st.integers(0, 2**32 - 1),
    photos=st.integers(1, 3),
    counts=st.lists(st.integers(1, CELLS), min_size=1, max_size=3),
    weights=st.lists(st.floats(0, 4), min_size=3, max_size=3),
    nodata=st.floats(0, 0.95),
    sharp=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
)
@settings(deadline=None, max_examples=60)
def test_probabilities_and_residual_sum_to_1(seed, photos, counts, weights, nodata, sharp) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(AREA.shape) >= nodata
    mask[0, 0] = True
    posteriors = [random_posterior(rng, photos, count, mask, sharp) for count in counts]
    experts = [FixedExpert(each, mask) for each in posteriors]
    fused = combine(experts, posteriors, weights[: len(counts)])
    assert np.isfinite(fused.probability).all() and (fused.probability >= 0).all()
    np.testing.assert_allclose(fused.probability.sum(1) + fused.residual, 1, atol=1e-9)
    assert (np.diff(fused.probability, axis=1) <= 0).all()  # the most probable first
    assert mask[fused.row[fused.probability > 0], fused.col[fused.probability > 0]].all()
    alone = combine(experts[:1], posteriors[:1], [1.0])
    for photo in range(photos):
        np.testing.assert_allclose(alone.grid(photo), posteriors[0].grid(photo), atol=1.01 * FLOOR)


def test_cells_beyond_the_maximum_number_become_residual(monkeypatch) -> None:
    monkeypatch.setattr(fusion, "MAX_CELLS", 7)
    posterior = random_posterior(np.random.default_rng(0), 2, CELLS, np.ones(AREA.shape, bool), 1.0)
    fused = combine([FixedExpert(posterior)], [posterior], [1.0])
    assert fused.probability.shape == (2, 7)
    np.testing.assert_allclose(fused.probability.sum(1) + fused.residual, 1)
    assert (fused.residual > 0.1).all()


def test_the_greedy_cell_is_the_most_probable_of_the_product() -> None:
    rng, mask = np.random.default_rng(1), np.ones(AREA.shape, bool)
    experts = [FixedExpert(random_posterior(rng, 6, CELLS, mask, 2.0)) for _ in range(2)]
    photos = torch.arange(6)[:, None]
    fused = FusedExpert(experts, [1.0, 1.0])
    greedy, whole = (fused.posterior(photos, LocateOptions(estimate)) for estimate in ("greedy", "map"))
    assert greedy.row.shape == (6, 1)
    assert (greedy.row[:, 0] == whole.row[:, 0]).all() and (greedy.col[:, 0] == whole.col[:, 0]).all()
    own = [expert.fixed for expert in experts]
    assert any((each.row[:, 0] != greedy.row[:, 0]).any() for each in own)


def test_many_photos_are_fused_in_parts(monkeypatch) -> None:
    """Evaluation asks for thousands of photos at once; their cells together would not fit in memory."""
    monkeypatch.setattr(fusion, "BATCH", 4)
    expert = FixedExpert(random_posterior(np.random.default_rng(1), 10, 9, np.ones(AREA.shape, bool), 2.0))
    fused = FusedExpert([expert], [0.7]).posterior(torch.arange(10)[:, None], LocateOptions("map"))
    assert expert.batches == [4, 4, 2]
    whole = combine([expert], [expert.fixed], [0.7])
    for photo in range(10):
        np.testing.assert_allclose(fused.grid(photo), whole.grid(photo), rtol=1e-12)


def test_a_prior_rules_cells_out_and_a_trained_expert_does_not() -> None:
    mask = half_nodata()
    posterior = random_posterior(np.random.default_rng(2), 3, 10, mask, 4.0)
    expert = FixedExpert(posterior, mask)
    weight = np.zeros(AREA.shape)
    weight[4:6, 9:13] = [[1.0, 1.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]]  # two columns have no imagery
    fused = PriorExpert(FusedExpert([expert], [1.0]), weight).posterior(torch.arange(3)[:, None], LocateOptions("map"))
    for photo in range(3):
        grid = fused.grid(photo)
        assert (grid[~((weight > 0) & mask)] == 0).all() and grid.sum() == pytest.approx(1)
    assert (fused.residual == 0).all()
    with pytest.raises(ConfigError, match="no cell with imagery"):
        PriorExpert(expert, np.where(mask, 0.0, 1.0))


# The fit of weights


def sampled(
    seed: int, weights: list[float], photos: int, sharp: tuple[float, ...]
) -> tuple[list[Posterior], np.ndarray, np.ndarray]:
    """Random posteriors of experts, and true cells that are drawn from their product with known weights."""
    rng, mask = np.random.default_rng(seed), np.ones(AREA.shape, bool)
    posteriors = [random_posterior(rng, photos, CELLS, mask, each) for each in sharp]
    product = dense_product(posteriors, mask, weights, [FLOOR] * len(weights)).reshape(photos, -1)
    key = (product.cumsum(1) > rng.random(photos)[:, None]).argmax(1)
    return posteriors, mask, key


def likelihood(posteriors: list[Posterior], mask: np.ndarray, key: np.ndarray, weights: list[float]) -> float:
    stacked = Stacked.of(posteriors, mask, [FLOOR] * len(posteriors))
    return float(stacked.log_likelihood(torch.tensor(weights, dtype=torch.float64), key).mean())


def test_the_weights_that_the_true_cells_were_drawn_with_are_recovered() -> None:
    posteriors, mask, key = sampled(0, [0.4, 1.1, 0.7], 1500, (2.0, 2.0, 1.5))
    fitted = fit_weights(["a", "b", "c"], posteriors, mask, key)
    assert fitted.used == ("a", "b", "c") and fitted.photos == 1500
    np.testing.assert_allclose(list(fitted.weights.values()), [0.4, 1.1, 0.7], atol=0.06)
    assert all(gain > 1.64 * error > 0 for gain, error in fitted.gains.values())


def test_the_fit_is_the_maximum_on_a_grid_of_weights() -> None:
    posteriors, mask, key = sampled(5, [0.3, 0.9], 200, (2.0, 2.0))
    fitted = fit_weights(["a", "b"], posteriors, mask, key)
    best = likelihood(posteriors, mask, key, list(fitted.weights.values()))
    steps, stacked = np.linspace(0, 1.6, 17), Stacked.of(posteriors, mask, [FLOOR] * 2)
    pairs = {pair: torch.tensor(pair, dtype=torch.float64) for pair in itertools.product(steps, steps)}
    grid = {pair: float(stacked.log_likelihood(weights, key).mean()) for pair, weights in pairs.items()}
    assert best >= max(grid.values()) - 1e-9
    np.testing.assert_allclose(list(fitted.weights.values()), max(grid, key=grid.__getitem__), atol=0.1)


def test_the_likelihood_of_the_fit_is_that_of_the_formula() -> None:
    mask = half_nodata()
    rng = np.random.default_rng(8)
    posteriors = [random_posterior(rng, 40, count, mask, 2.0) for count in (9, 30)]
    key = rng.choice(np.flatnonzero(mask), 40)
    dense = dense_product(posteriors, mask, [0.5, 0.8], [FLOOR] * 2).reshape(40, -1)
    reached = np.isin(key, posteriors[0].row[0] * 16 + posteriors[0].col[0])
    assert not reached.all()  # true cells in the residual count too
    expected = float(np.log(dense[np.arange(40), key]).mean())
    assert likelihood(posteriors, mask, key, [0.5, 0.8]) == pytest.approx(expected, rel=1e-9)


def test_a_useless_expert_is_dropped() -> None:
    (good,), mask, key = sampled(1, [1.0], 400, (3.0,))
    noise = random_posterior(np.random.default_rng(9), 400, CELLS, mask, 3.0)
    fitted = fit_weights(["noise", "good"], [noise, good], mask, key)
    assert fitted.used == ("good",) and fitted.weights["noise"] == 0.0
    assert fitted.weights["good"] == pytest.approx(1.0, abs=0.15)
    gain, error = fitted.gains["noise"]
    assert gain < 1.64 * error + 0.01


def test_of_two_copies_of_an_expert_one_is_kept() -> None:
    (good, other), mask, key = sampled(2, [0.8, 0.5], 600, (2.0, 2.0))
    fitted = fit_weights(["good", "copy", "other"], [good, good, other], mask, key)
    assert len(fitted.used) == 2 and "other" in fitted.used
    alone = fit_weights(["good", "other"], [good, other], mask, key)
    assert sorted(fitted.weights.values())[1:] == pytest.approx(sorted(alone.weights.values()), abs=1e-6)


def best_single(posteriors: list[Posterior], mask: np.ndarray, key: np.ndarray) -> float:
    fits = [fit_weights(["one"], [each], mask, key).weights["one"] for each in posteriors]
    return max(likelihood([each], mask, key, [weight]) for each, weight in zip(posteriors, fits, strict=True))


@given(seed=st.integers(0, 2**32 - 1), photos=st.integers(50, 60), experts=st.integers(2, 3))
@settings(deadline=None, max_examples=12)
def test_the_fusion_is_never_less_likely_than_the_best_single_expert(seed, photos, experts) -> None:
    rng, mask = np.random.default_rng(seed), np.ones(AREA.shape, bool)
    posteriors = []
    key = rng.integers(0, CELLS, photos)
    for _ in range(experts):
        hit = rng.random(photos) < rng.choice([0.1, 0.5])
        logits = rng.normal(size=(photos, CELLS)) * rng.choice([0.5, 3.0])
        logits[hit, key[hit]] += rng.choice([3.0, 12.0])
        weight = np.exp(logits)
        posteriors.append(from_grid(weight / weight.sum(1, keepdims=True)))
    fitted = fit_weights([str(number) for number in range(experts)], posteriors, mask, key)
    assert fitted.used
    fused = likelihood(posteriors, mask, key, list(fitted.weights.values()))
    assert fused >= best_single(posteriors, mask, key) - 1e-6


@pytest.mark.parametrize("photos", [1, 2, 20])
def test_few_photos_leave_weights_near_equal_and_drop_no_expert(photos: int) -> None:
    posteriors, mask, _ = sampled(4, [1.0, 1.0], photos, (2.0, 2.0))
    key = np.array([int(posteriors[0].grid(photo).argmax()) for photo in range(photos)])  # the first is always right
    fitted = fit_weights(["a", "b"], posteriors, mask, key)
    assert fitted.spread == 0.0 and np.isfinite(list(fitted.gains.values())).all()
    assert 0.5 < fitted.weights["a"] < 0.55 + 0.4 * photos**0.5 and fitted.weights["b"] < 0.5
    assert fitted.weights["b"] > 0 or photos > 2


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_experts_that_are_worse_than_chance_still_give_an_answer(names: list[str]) -> None:
    """A weight of 0 for all would leave nothing to fuse, and no most probable cell."""
    rng, mask = np.random.default_rng(6), np.ones(AREA.shape, bool)
    posteriors = [random_posterior(rng, 50, CELLS, mask, 3.0) for _ in names]
    key = np.array([int(posteriors[0].grid(photo).argmin()) for photo in range(50)])
    posteriors = [posteriors[0]] * len(names)
    fitted = fit_weights(names, posteriors, mask, key)
    used = max(fitted.used, key=fitted.weights.__getitem__)
    assert 0 < sum(fitted.weights.values()) < 0.1
    fused = combine([FixedExpert(posteriors[0])], posteriors[:1], [fitted.weights[used]])
    assert (fused.row[:, 0] == posteriors[0].row[:, 0]).all()


def test_true_cells_that_no_expert_reached_count_with_their_share_of_the_residual() -> None:
    posterior = Posterior.from_cells(AREA, np.array([[1], [1]]), np.array([[1], [1]]), np.array([[0.9], [0.9]]))
    mask, key = np.ones(AREA.shape, bool), np.array([200, 201])
    value = likelihood([posterior], mask, key, [1.0])
    assert value == pytest.approx(np.log((1 - FLOOR) * 0.1 / 255 + FLOOR / 256))
    photos = np.zeros((200, 1), int)
    many = Posterior.from_cells(AREA, photos + 1, photos + 1, photos + 0.9)
    fitted = fit_weights(["a"], [many], mask, np.full(200, 200))
    assert 0 < fitted.weights["a"] < 0.1  # it is wrong every time


@pytest.mark.parametrize("seed", [13, 22, 33, 36, 43, 44])
def test_an_expert_that_was_dropped_is_used_again_where_the_others_leave_it_something_to_say(seed: int) -> None:
    """Experts that share their errors, some of them with the opposite sign."""
    rng, photos, cells = np.random.default_rng(seed), 30, 64
    mask = np.arange(CELLS).reshape(AREA.shape) < cells
    key = rng.integers(0, cells, photos)
    basis = rng.normal(size=(3, photos, cells))
    basis[0, np.arange(photos), key] += 2
    posteriors = []
    for _ in range(4):
        logits = np.full((photos, CELLS), -np.inf)
        logits[:, :cells] = np.tensordot(rng.normal(size=3) * 1.5, basis, 1) + rng.normal(size=(photos, cells)) * 0.3
        weight = np.exp(logits - logits.max(1, keepdims=True))
        posteriors.append(from_grid(weight / weight.sum(1, keepdims=True), cells))
    stacked = Stacked.of(posteriors, mask, [FLOOR] * 4)
    weights = fusion_weights._maximise(stacked, key, prior=0.0)
    best = stacked.log_likelihood(weights, key).mean()
    assert (weights >= 0).all() and (weights > 0).any()
    for expert in range(4):
        more = weights.clone()
        more[expert] += 1e-3
        assert stacked.log_likelihood(more, key).mean() <= best + 1e-7
