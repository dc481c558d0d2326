"""Sectors of azimuth of panoramas and photos, priors of headings, and the cosines at each heading."""

from __future__ import annotations

import math

import pytest
import torch

from jzi.refine.azimuth import log_heading_prior, sector_sampling
from jzi.refine.networks.matching import WindowNorm, roll_cosines


def sampling(hfov: float, panorama: bool, columns: int, bins: int = 24, fill: float | None = None):
    share = None if fill is None else torch.tensor([fill])
    weights, window = sector_sampling(torch.tensor([hfov]), torch.tensor([panorama]), share, columns, bins)
    return weights[0], window[0]


def test_a_panorama_with_a_column_per_sector_is_not_resampled() -> None:
    weights, window = sampling(360.0, True, 24)
    assert torch.equal(weights, torch.eye(24)) and torch.equal(window, torch.ones(24))


@pytest.mark.parametrize(("columns", "bins"), [(10, 2), (48, 24), (54, 6), (12, 24), (8, 72)])
def test_a_panorama_rolled_by_whole_sectors_has_rolled_sectors(columns: int, bins: int) -> None:
    common = math.gcd(columns, bins)
    weights, _ = sampling(360.0, True, columns, bins)
    photo = torch.randn(columns)
    turned = weights @ photo.roll(columns // common)
    assert torch.allclose(turned, (weights @ photo).roll(bins // common), atol=1e-6)


@pytest.mark.parametrize(("hfov", "shown"), [(90.0, 6.0), (70.0, 70 / 15), (5.0, 1 / 3), (180.0, 170 / 15)])
def test_a_window_has_the_width_of_the_field_of_view(hfov: float, shown: float) -> None:
    weights, window = sampling(hfov, False, 27)
    assert window.sum().item() == pytest.approx(shown, abs=1e-5)
    assert torch.allclose(window, window.flip(0)) and torch.allclose(weights.sum(1), torch.ones(24))


def test_columns_of_an_image_plane_are_at_the_tangent() -> None:
    """At 120 degrees, the sector from 45 to 60 degrees fills more columns than the one from 0 to 15."""
    weights, window = sampling(120.0, False, 1200)
    assert window[12:16].tolist() == pytest.approx([1.0] * 4)
    position = torch.arange(1200) + 0.5
    low, high = (600 * (1 + math.tan(math.radians(edge)) / math.tan(math.radians(60))) for edge in (45, 60))
    assert (weights[15] @ position).item() == pytest.approx((low + high) / 2, abs=0.01)
    assert (weights[15] > 1e-9).sum().item() == pytest.approx(high - low, abs=1.5)


def test_a_photo_in_the_middle_of_a_letterbox_reads_no_border() -> None:
    whole, _ = sampling(70.0, False, 10)
    filled, window = sampling(70.0, False, 20, fill=0.5)
    visible = window > 0
    assert torch.allclose(filled[visible][:, 5:15], whole[visible], atol=1e-6)
    assert not filled[visible][:, :5].any() and not filled[visible][:, 15:].any()


def test_fields_of_view_are_mixed_in_a_batch() -> None:
    hfov, panorama = torch.tensor([360.0, 70.0, 200.0]), torch.tensor([True, False, True])
    weights, window = sector_sampling(hfov, panorama, None, 54, 24)
    for index, (degrees, flat) in enumerate(zip(hfov.tolist(), panorama.tolist(), strict=True)):
        one, shown = sampling(degrees, flat, 54)
        assert torch.equal(weights[index], one) and torch.equal(window[index], shown)


def test_a_prior_of_headings_excludes_those_beyond_three_deviations() -> None:
    prior = log_heading_prior(torch.tensor([345.0]), torch.tensor([10.0]), 24)[0]
    assert prior.isfinite().nonzero().flatten().tolist() == [0, 1, 21, 22, 23]
    assert prior.argmax() == 23 and prior.amax() == 0
    assert torch.allclose(prior[[22, 21]], prior[[0, 1]], atol=1e-4)


def test_a_prior_is_flat_without_a_heading_and_never_empty() -> None:
    prior = log_heading_prior(torch.tensor([math.nan, 7.5, 8.0]), torch.tensor([10.0, 0.001, 0.0]), 24)
    assert not prior[0].any()
    assert prior[1].isfinite().nonzero().flatten().tolist() == [0, 1]
    assert prior[2].isfinite().nonzero().flatten().tolist() == [1]


def literal_cosines(descriptor, window, aerial, rolls):
    """Cosine of the part of a descriptor that is shown, with the map's sectors from r on, element by element."""
    bins, width = descriptor.shape[1:]
    places = aerial.unflatten(3, (bins, width))
    scores = torch.zeros(len(descriptor), rolls, *aerial.shape[1:3], dtype=descriptor.dtype)
    for n in range(len(descriptor)):
        root = window[n].sqrt()[:, None]
        for roll in range(rolls):
            for i in range(aerial.shape[1]):
                for j in range(aerial.shape[2]):
                    there = torch.stack([places[n, i, j, (w + roll) % bins] for w in range(bins)])
                    one, two = (root * descriptor[n]).flatten(), (root * there).flatten()
                    scores[n, roll, i, j] = one @ two / (one.norm() * two.norm())
    return scores


def test_cosines_are_those_of_the_sectors_that_the_photo_shows() -> None:
    torch.manual_seed(0)
    descriptor, aerial = torch.randn(2, 6, 3), torch.randn(2, 2, 2, 18)
    window = torch.tensor([[1.0] * 6, [0, 0.3, 1, 1, 0.3, 0]])
    expected = literal_cosines(descriptor.double(), window.double(), aerial.double(), 6)
    assert torch.allclose(roll_cosines(descriptor, window, aerial, 6).double(), expected, atol=1e-6)
    assert torch.allclose(roll_cosines(descriptor, window, aerial, 1).double(), expected[:, :1], atol=1e-6)
    crossed = roll_cosines(descriptor, window, aerial, 6, cross=True)
    swapped = roll_cosines(descriptor, window, aerial.flip(0), 6)
    assert torch.allclose(crossed[[0, 1], [0, 1]].double(), expected, atol=1e-6)
    assert torch.allclose(crossed[[0, 1], [1, 0]], swapped, atol=1e-6)


def test_places_without_features_have_cosine_0_and_finite_gradients() -> None:
    descriptor = torch.randn(1, 4, 2, requires_grad=True)
    aerial = torch.zeros(1, 2, 2, 8, requires_grad=True)
    cosines = roll_cosines(descriptor, torch.ones(1, 4), aerial, 4)
    cosines.sum().backward()
    assert not cosines.any() and aerial.grad.isfinite().all() and descriptor.grad.isfinite().all()


def test_a_photo_of_90_degrees_cut_from_a_panorama_is_found_where_the_panorama_is() -> None:
    """Each place of the scene has colours of its own by azimuth; the photo is cut on an image plane, 30 degrees off."""
    torch.manual_seed(0)
    bins, width, side, (row, col), heading = 24, 4, 6, (1, 4), 2
    scene = torch.randn(1, bins, width, side, side)
    around = scene[0, :, :, row, col]  # sector w of the map begins at azimuth (w - 12) * 15 degrees
    panorama = around.roll(-heading, 0).repeat_interleave(32, 0)  # (768, width), its centre column looks to 30 degrees
    pixel = (torch.arange(512) + 0.5) / 512 * 2 - 1
    azimuth = torch.atan(pixel * math.tan(math.radians(45))).rad2deg()
    photo = panorama[((azimuth / 360 + 0.5) * 768).long()]
    places = scene.flatten(1, 2).permute(0, 2, 3, 1)
    answers = []
    for hfov, is_panorama, columns in ((360.0, True, panorama), (90.0, False, photo)):
        weights, window = sampling(hfov, is_panorama, len(columns))
        cosines = roll_cosines((weights @ columns)[None], window[None], places, bins)
        answers.append(cosines.flatten().argmax().item())
        assert cosines.amax() > 0.99
    assert answers == [(heading * side + row) * side + col] * 2


def test_only_a_norm_that_is_the_same_for_all_sectors_rotates_with_a_panorama() -> None:
    torch.manual_seed(0)
    descriptor, window = torch.randn(2, 8, 3), torch.ones(2, 8)
    differences = []
    for tied in (True, False):
        norm = WindowNorm(8, 3, tied)
        torch.nn.init.normal_(norm.weight)
        turned = norm(descriptor.roll(3, 1), window)
        differences.append((turned - norm(descriptor, window).roll(3, 1)).abs().max().item())
    assert differences[0] < 1e-6 and differences[1] > 0.1


def test_a_norm_over_all_sectors_is_a_layer_norm_and_else_one_of_those_that_are_shown() -> None:
    torch.manual_seed(0)
    descriptor = torch.randn(2, 8, 3)
    norm = WindowNorm(8, 3, False)
    whole = torch.nn.functional.layer_norm(descriptor.flatten(1), (24,)).view(2, 8, 3)
    assert torch.allclose(norm(descriptor, torch.ones(2, 8)), whole, atol=1e-6)
    window = torch.tensor([0.0, 0, 1, 1, 1, 0, 0, 0]).expand(2, 8)
    part = torch.nn.functional.layer_norm(descriptor[:, 2:5].flatten(1), (9,)).view(2, 3, 3)
    assert torch.allclose(norm(descriptor, window)[:, 2:5], part, atol=1e-6)
