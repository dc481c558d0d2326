"""Densities with masks, posteriors of headings, and re-ranking by eq. 4."""

from __future__ import annotations

import pytest
import torch

from jzi.refine.outputs import RefinerOutput, masked_log_softmax, pool_mask, roll_scores
from jzi.refine.rerank import rerank_scores

INFINITE = float("-inf")


def output(mask: torch.Tensor, **changes) -> RefinerOutput:
    """Two photos, 4 headings, 8 x 8 pixels and levels of 1, 2, 4 and 8 places."""
    torch.manual_seed(0)
    logits = torch.randn(2, 8, 8).masked_fill(~mask, INFINITE)
    levels = tuple(torch.rand(2, 4, side, side) * 2 - 1 for side in (1, 2, 4, 8))
    return RefinerOutput(
        **{"logits": logits, "levels": levels, "mask": mask, "log_heading": torch.zeros(2, 4)} | changes
    )


def test_a_density_sums_to_1_and_is_0_without_imagery() -> None:
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask[0, 3:] = False
    density = output(mask).density(0.7)
    assert density.sum((1, 2)).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert not density[~mask].any() and (density[mask] > 0).all()


def test_a_window_without_imagery_has_no_density_and_spoils_no_gradient() -> None:
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask[1] = False
    logits, temperature = torch.randn(2, 8, 8, requires_grad=True), torch.ones((), requires_grad=True)
    masked = output(mask, logits=logits.masked_fill(~mask, INFINITE))
    log_density = masked.log_density(temperature)
    assert log_density[1].isneginf().all() and not masked.density()[1].any()
    assert masked.level0_max[1] == -1 and not masked.heading_posterior()[1].any()
    log_density[mask].sum().backward()
    assert logits.grad.isfinite().all() and not logits.grad[1].any() and temperature.grad.isfinite()


def test_masked_log_softmax_is_the_log_softmax_of_what_is_left() -> None:
    logits, mask = torch.randn(3, 6), torch.tensor([True, False, True, True, False, True])
    expected = logits[:, mask].log_softmax(1)
    actual = masked_log_softmax(logits, mask.expand(3, 6), (1,))
    assert torch.allclose(actual[:, mask], expected) and actual[:, ~mask].isneginf().all()


def test_a_place_of_a_level_has_imagery_if_any_of_its_pixels_has() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 0, 7] = mask[0, 5, 0] = True
    assert pool_mask(mask, 2)[0].tolist() == [[False, True], [True, False]]


def test_the_heading_is_that_where_the_photo_probably_was() -> None:
    """p(r) = sum over x of D(x) softmax of M(x, r) / T, by hand."""
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask[0, :4] = False
    prior = torch.tensor([[0.0, 0, 0, 0], [0, INFINITE, -1.0, INFINITE]])
    one = output(mask, log_heading=prior)
    expected = torch.zeros(2, 4)
    density = one.density(2.0)
    for n in range(2):
        for i in range(8):
            for j in range(8):
                expected[n] += density[n, i, j] * (one.levels[3][n, :, i, j] / 0.3 + prior[n]).softmax(0)
    posterior = one.heading_posterior(2.0, 0.3)
    assert torch.allclose(posterior, expected, atol=1e-6)
    assert posterior.sum(1).tolist() == pytest.approx([1, 1], abs=1e-5) and not posterior[1, [1, 3]].any()


def test_the_finest_level_may_be_coarser_than_pixels() -> None:
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    one = output(mask)
    coarse = output(mask, levels=one.levels[:3])
    density = one.density().unflatten(1, (4, 2)).unflatten(3, (4, 2)).sum((2, 4))
    expected = torch.einsum("nrij,nij->nr", (one.levels[2] / 0.1).softmax(1), density)
    assert torch.allclose(coarse.heading_posterior(), expected, atol=1e-6)


def test_unlikely_headings_need_greater_cosines() -> None:
    cosines = torch.tensor([0.5, 0.9, 0.95]).view(1, 3, 1, 1)
    assert roll_scores(cosines, torch.tensor([[0.0, -3.0, INFINITE]]), 0.1).item() == pytest.approx(0.6)
    assert roll_scores(cosines, torch.tensor([[7.0, 7.0, 7.0]]), 0.1).item() == pytest.approx(0.95)


def test_reranking_is_equation_4() -> None:
    """Retrieval prefers the first of three candidates; the second, whose best place fits better, is decoded."""
    similarity, best = torch.tensor([0.80, 0.75, 0.40]), (0.10, 0.30, 0.50)
    levels = torch.full((3, 2, 2, 2), -0.2)
    for candidate, (value, (roll, row, col)) in enumerate(zip(best, ((0, 0, 1), (1, 1, 0), (1, 0, 0)), strict=True)):
        levels[candidate, roll, row, col] = value
    levels[0, 1, 1, 1] = 0.99  # has no imagery
    mask = torch.ones(3, 2, 2, dtype=torch.bool)
    mask[0, 1, 1] = False
    one = RefinerOutput(torch.zeros(3, 2, 2), (levels,), mask, torch.zeros(3, 2))
    scores = rerank_scores(similarity, one.level0_max)
    assert scores.tolist() == pytest.approx([0.90, 1.05, 0.90]) and scores.argmax() == 1
    assert similarity.argmax() == 0


def test_batches_can_be_indexed_repeated_and_moved() -> None:
    one = output(torch.ones(2, 8, 8, dtype=torch.bool))
    chosen = one.select(torch.tensor([1, 1, 0]))
    assert len(chosen) == 3 and torch.equal(chosen.logits[2], one.logits[0])
    assert torch.equal(chosen.levels[1][0], one.levels[1][1]) and chosen.temperature == one.temperature
