"""The losses of refinement, against a restatement in plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from jzi.refine.outputs import RefinerOutput, pool_mask
from jzi.train.refine.refine_losses import (
    TAU,
    LossWeights,
    PairTruth,
    RefinerLosses,
    decoder_loss,
    matching_loss,
    refiner_losses,
    rerank_loss,
    retrieval_loss,
)
from jzi.train.refine.refine_targets import false_negatives, heading_target, level_weights, place_target

N, P, SIDES, ROLLS, SIGMA = 3, 16, (4, 8), 4, 1.3


def cosines(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture
def place() -> Tensor:
    return torch.tensor([[5.2, 11.7], [0.3, 0.4], [15.9, 8.0]])


@pytest.fixture
def mask() -> Tensor:
    mask = torch.ones(N, P, P, dtype=torch.bool)
    mask[1, :, 8:] = False
    return mask


@pytest.fixture
def log_heading() -> Tensor:
    prior = torch.zeros(N, ROLLS)
    prior[0, 2] = -math.inf
    prior[1, 1] = -0.7
    return prior


# Plain loops


def plain_gaussian(place: Tensor, mask: Tensor) -> np.ndarray:
    values = np.zeros((P, P))
    for row in range(P):
        for col in range(P):
            if mask[row, col]:
                u, v = place.tolist()
                values[row, col] = math.exp(-((col + 0.5 - u) ** 2 + (row + 0.5 - v) ** 2) / (2 * SIGMA**2))
    return values


def plain_weights(place: Tensor, mask: Tensor, side: int) -> np.ndarray:
    values, step = plain_gaussian(place, mask), P // side
    pooled = np.zeros((side, side))
    for row in range(side):
        for col in range(side):
            peak = max(values[row * step + i, col * step + j] for i in range(step) for j in range(step))
            pooled[row, col] = peak if peak > 1e-2 else 0.0
    return pooled / pooled.sum()


def plain_heading(heading: float, allowed: list[bool]) -> list[float]:
    weights = []
    for roll in range(ROLLS):
        away = abs((heading - 360 * roll / ROLLS + 180) % 360 - 180) / (360 / ROLLS)
        weights.append(max(0.0, 1 - away) if allowed[roll] and not math.isnan(heading) else 0.0)
    return [weight / sum(weights) if sum(weights) else 0.0 for weight in weights]


def plain_places(scores: dict, weights: dict, rolls: list[float]) -> float:
    """Cross-entropy: scores by (window, roll, row, col), weights by (window, row, col)."""
    total = sum(math.exp(score) for score in scores.values())
    loss = 0.0
    for (window, row, col), weight in weights.items():
        if not weight:
            continue
        if sum(rolls):
            for roll, share in enumerate(rolls):
                if share:
                    loss -= weight * share * math.log(math.exp(scores[window, roll, row, col]) / total)
        else:
            shares = [math.exp(scores[window, r, row, col]) for r in range(ROLLS) if (window, r, row, col) in scores]
            loss -= weight * math.log(sum(shares) / total)
    return loss


def plain_scores(cosine: Tensor, mask: Tensor, prior: Tensor, window: int = 0) -> dict:
    """Of one photo and one window, (R, L, L)."""
    side = cosine.shape[-1]
    step = P // side
    scores = {}
    for roll in range(ROLLS):
        for row in range(side):
            for col in range(side):
                covered = mask[row * step : (row + 1) * step, col * step : (col + 1) * step].any()
                if covered and prior[roll] > -math.inf:
                    scores[window, roll, row, col] = float(cosine[roll, row, col]) / TAU + float(prior[roll])
    return scores


def plain_targets(weights: np.ndarray, window: int = 0) -> dict:
    return {(window, row, col): float(value) for (row, col), value in np.ndenumerate(weights)}


HEADINGS = torch.tensor([100.0, math.nan, 350.0])


def plain_matching(levels: list[Tensor], place: Tensor, mask: Tensor, prior: Tensor, photos: int = N) -> list[float]:
    """Of each photo, summed over levels."""
    losses = []
    for n in range(photos):
        rolls = plain_heading(float(HEADINGS[n]), (prior[n] > -math.inf).tolist())
        loss = 0.0
        for level in levels:
            weights = plain_weights(place[n], mask[n], level.shape[-1])
            loss += plain_places(plain_scores(level[n], mask[n], prior[n]), plain_targets(weights), rolls)
        losses.append(loss)
    return losses


# Claims


def test_the_loss_of_the_decoder_is_that_of_plain_loops(place: Tensor, mask: Tensor) -> None:
    logits = cosines(N, P, P).masked_fill(~mask, -math.inf)
    expected = 0.0
    for n in range(N):
        target = plain_gaussian(place[n], mask[n])
        target /= target.sum()
        total = sum(math.exp(value) for value in logits[n].flatten().tolist())
        for (row, col), weight in np.ndenumerate(target):
            if weight:
                expected -= weight * math.log(math.exp(float(logits[n, row, col])) / total) / N
    assert float(decoder_loss(logits, place_target(place, mask, SIGMA))) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_the_matching_is_that_of_plain_loops(place: Tensor, mask: Tensor, log_heading: Tensor) -> None:
    levels = [cosines(N, ROLLS, side, side, seed=side) for side in SIDES]
    weights = [level_weights(place, mask, SIGMA, side) for side in SIDES]
    rolls = heading_target(HEADINGS, ROLLS, log_heading)
    loss = matching_loss(levels, [pool_mask(mask, side) for side in SIDES], weights, rolls, log_heading)
    assert float(loss) == pytest.approx(np.mean(plain_matching(levels, place, mask, log_heading)), rel=1e-5)


def test_with_one_roll_the_loss_of_the_matching_is_the_papers(place: Tensor, mask: Tensor) -> None:
    level, weight = cosines(N, 1, 4, 4), level_weights(place, mask, SIGMA, 4)
    prior, rolls = torch.zeros(N, 1), torch.ones(N, 1)
    log_share = (level[:, 0] / TAU).masked_fill(~pool_mask(mask, 4), -math.inf).flatten(1).log_softmax(-1)
    expected = -(weight.flatten(1) * log_share).nan_to_num(0.0).sum(-1).mean()
    assert float(matching_loss([level], [pool_mask(mask, 4)], [weight], rolls, prior)) == pytest.approx(
        float(expected), rel=1e-5
    )


def own_windows(weight: Tensor) -> Tensor:
    """(n, m, L, L) weights in the photos' own windows."""
    return torch.eye(len(weight))[:, :, None, None] * weight[:, None]


def test_the_loss_of_reranking_is_that_of_plain_loops(place: Tensor, mask: Tensor, log_heading: Tensor) -> None:
    cosine, side = cosines(N, N, ROLLS, 4, 4), 4
    weight = level_weights(place, mask, SIGMA, side)
    excluded = torch.zeros(N, N, dtype=torch.bool)
    excluded[0, 2] = True
    allowed = pool_mask(mask, side)[None] & ~excluded[:, :, None, None]
    expected = []
    for n in range(N):
        scores: dict = {}
        for m in range(N):
            if not excluded[n, m]:
                scores |= plain_scores(cosine[n, m], mask[m], log_heading[n], m)
        rolls = plain_heading(float(HEADINGS[n]), (log_heading[n] > -math.inf).tolist())
        expected.append(plain_places(scores, plain_targets(weight[n].numpy(), n), rolls))
    rolls = heading_target(HEADINGS, ROLLS, log_heading)
    loss = rerank_loss(cosine, allowed, own_windows(weight), rolls, log_heading)
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)


def test_reranking_one_photo_is_the_coarsest_level_of_the_matching(place: Tensor, mask: Tensor) -> None:
    level, prior = cosines(1, ROLLS, 4, 4), torch.zeros(1, ROLLS)
    weight = level_weights(place[:1], mask[:1], SIGMA, 4)
    rolls = heading_target(HEADINGS[:1], ROLLS)
    matching = matching_loss([level], [pool_mask(mask[:1], 4)], [weight], rolls, prior)
    rerank = rerank_loss(level[None], pool_mask(mask[:1], 4)[None], weight[None], rolls, prior)
    assert float(rerank) == float(matching)


def test_the_order_of_the_batch_changes_nothing(place: Tensor, mask: Tensor, log_heading: Tensor) -> None:
    order = torch.tensor([2, 0, 1])
    cosine, weight = cosines(N, N, ROLLS, 4, 4), level_weights(place, mask, SIGMA, 4)
    rolls, allowed = heading_target(HEADINGS, ROLLS, log_heading), pool_mask(mask, 4)
    one = rerank_loss(cosine, allowed[None].expand(N, -1, -1, -1), own_windows(weight), rolls, log_heading)
    other = rerank_loss(
        cosine[order][:, order],
        allowed[order][None].expand(N, -1, -1, -1),
        own_windows(weight[order]),
        rolls[order],
        log_heading[order],
    )
    assert float(one) == pytest.approx(float(other), rel=1e-6)
    query, reference = (torch.nn.functional.normalize(cosines(N, 8, seed=seed), dim=-1) for seed in (1, 2))
    excluded, scale = torch.zeros(N, N, dtype=torch.bool), torch.tensor(10.0)
    one = retrieval_loss(query, reference, scale, excluded, 0.1)
    assert float(one) == pytest.approx(float(retrieval_loss(query[order], reference[order], scale, excluded, 0.1)))


def test_a_window_that_shows_the_place_too_contributes_nothing_once_masked(place: Tensor, mask: Tensor) -> None:
    weight, prior = level_weights(place, mask, SIGMA, 4), torch.zeros(N, ROLLS)
    rolls = heading_target(HEADINGS, ROLLS)
    excluded = torch.zeros(N, N, dtype=torch.bool)
    excluded[0, 1] = True
    allowed = pool_mask(mask, 4)[None] & ~excluded[:, :, None, None]
    cosine = cosines(N, N, ROLLS, 4, 4).requires_grad_()
    loss = rerank_loss(cosine, allowed, own_windows(weight), rolls, prior)
    loss.backward()
    assert cosine.grad is not None
    assert not cosine.grad[0, 1].any()
    assert cosine.grad[0, 2].any()
    changed = cosine.detach().clone()
    changed[0, 1] = 1.0
    assert float(rerank_loss(changed, allowed, own_windows(weight), rolls, prior)) == float(loss.detach())
    query, reference = (torch.nn.functional.normalize(cosines(N, 8, seed=seed), dim=-1) for seed in (1, 2))
    query.requires_grad_()
    retrieval_loss(query[:2], reference[:2], torch.tensor(10.0), torch.ones(2, 2, dtype=torch.bool), 0.1).backward()
    assert query.grad is not None and not query.grad.any()  # nothing is left to compare


def test_windows_that_show_a_place_are_found_by_its_position() -> None:
    place = torch.tensor([[[0.0, 0.1], [0.49, -0.49]], [[0.51, 0.0], [0.3, -0.6]]])
    assert false_negatives(place).tolist() == [[True, True], [False, False]]


def test_no_loss_or_gradient_is_nan_where_the_prior_excludes_the_heading(place: Tensor, mask: Tensor) -> None:
    prior = torch.full((N, ROLLS), -math.inf)
    prior[:, 2] = 0.0  # 180 degrees only
    level = cosines(N, ROLLS, 4, 4).requires_grad_()
    rolls = heading_target(torch.tensor([0.0, 180.0, math.nan]), ROLLS, prior)
    assert rolls.sum(-1).tolist() == [0.0, 1.0, 0.0]
    loss = matching_loss([level], [pool_mask(mask, 4)], [level_weights(place, mask, SIGMA, 4)], rolls, prior)
    loss.backward()
    assert loss.isfinite()
    assert level.grad is not None and level.grad.isfinite().all()


def test_a_window_without_any_imagery_contributes_nothing(place: Tensor, mask: Tensor, log_heading: Tensor) -> None:
    mask[2] = False
    levels = tuple(cosines(N, ROLLS, side, side, seed=side).requires_grad_() for side in SIDES)
    logits, cross = cosines(N, P, P).requires_grad_(), cosines(N, N, ROLLS, 4, 4).requires_grad_()
    output = RefinerOutput(logits.masked_fill(~mask, -math.inf), levels, mask, log_heading)
    truth = PairTruth(place[:, None].expand(N, N, 2) / P - 0.5, HEADINGS)
    losses = refiner_losses(output, truth, SIGMA, cross=cross)
    losses.total(LossWeights(retrieval=0)).backward()
    assert losses.values().isfinite().all()
    others = plain_matching([each.detach() for each in levels], place, mask, log_heading, photos=2)
    assert float(losses.matching.detach()) == pytest.approx(sum(others) / N, rel=1e-5)
    for each in (*levels, logits, cross):
        assert each.grad is not None and each.grad.isfinite().all()


def test_a_heading_between_two_rolls_is_shared_by_them_across_north() -> None:
    assert heading_target(torch.tensor([337.5]), 24).squeeze().tolist()[22:] == [pytest.approx(0.5, abs=1e-5)] * 2
    across = heading_target(torch.tensor([356.25]), 24).squeeze()
    assert across[23] == pytest.approx(0.25, abs=1e-5) and across[0] == pytest.approx(0.75, abs=1e-5)


def test_the_losses_are_weighted_as_in_the_paper() -> None:
    losses = RefinerLosses(*(torch.tensor(float(value)) for value in (1, 2, 3, 4)))
    assert float(losses.total(LossWeights())) == 1 + 100 * 2 + 10 * 3 + 1 * 4
    assert losses.values().tolist() == [1, 2, 3, 4]
    off = replace(losses, retrieval=torch.tensor(math.nan))
    assert float(off.total(LossWeights(retrieval=0))) == 1 + 30 + 4


def test_the_target_is_in_the_exact_place_and_never_narrower_than_a_pixel() -> None:
    mask = torch.ones(1, P, P, dtype=torch.bool)
    target = place_target(torch.tensor([[7.3, 8.4]]), mask, 1.5)[0]
    centre = torch.arange(P) + 0.5
    assert float((target.sum(0) * centre).sum()) == pytest.approx(7.3, abs=1e-3)
    assert float(target.sum()) == pytest.approx(1.0)
    narrow, pixel = (place_target(torch.tensor([[5.2, 11.7]]), mask, sigma) for sigma in (0.1, 1.0))
    assert torch.equal(narrow, pixel)
