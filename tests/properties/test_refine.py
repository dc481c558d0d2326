"""Invariants of windows, of the mass of overlapping windows, and of fixes."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jzi.locate.posterior import Posterior
from jzi.refine.outputs import RefinerOutput
from jzi.refine.windows.answer import (
    FixOptions,
    RefineCalibration,
    pixel_features,
    refine_candidates,
    to_density,
)
from jzi.refine.windows.fixes import ESTIMATES
from jzi.refine.windows.fuse import WindowWeights, combine, owned
from jzi.refine.windows.heading import summarize
from jzi.refine.windows.proposals import Proposals
from jzi.refine.windows.window import Window, Windows
from jzi.store.geometry.pyramid import Pyramid

AREA = Pyramid.around(60.2, 24.9, 2_500.0, levels=3)
SIDE = 32

floats = st.floats(-1e3, 1e3)


@st.composite
def crs_areas(draw) -> tuple[Pyramid, float, float]:
    """A map in UTM, Web Mercator or an azimuthal equidistant projection, and a position in it."""
    latitude, longitude = draw(st.floats(-70, 70)), draw(st.floats(-179, 179))
    zone = int((longitude + 180) // 6) + 1
    crs = draw(st.sampled_from(["aeqd", "EPSG:3857", f"EPSG:{32600 if latitude >= 0 else 32700}".removesuffix("00")]))
    if crs == "aeqd":
        return Pyramid.around(latitude, longitude, 20_000.0), latitude, longitude
    crs = crs if crs == "EPSG:3857" else f"{crs}{zone:02}"
    anywhere = Pyramid(crs, 0.0, 0.0, 1000.0)
    x, y = anywhere.project(latitude, longitude)
    return Pyramid(crs, float(x) - 5000, float(y) + 5000, 10_000.0), latitude, longitude


@given(crs_areas(), st.floats(10, 500), st.integers(1, 512), hnp.arrays(float, (2, 5), elements=st.floats(-1, 1)))
def test_metres_come_back_from_pixels_and_from_degrees(area, side_m, pixels, shares) -> None:
    pyramid, latitude, longitude = area
    x, y = (float(each) for each in pyramid.project(latitude, longitude))
    window = Window(pyramid, x, y, side_m, pixels)
    right, up = shares * side_m / 2
    u, v = window.offset_to_pixels(right, up)
    np.testing.assert_allclose(window.pixels_to_offset(*window.crs_to_pixels(*window.pixels_to_crs(u, v))), [right, up],
                               atol=1e-6)  # fmt: skip
    back = window.pixels_to_offset(*window.position_to_pixels(*window.pixels_to_position(u, v)))
    np.testing.assert_allclose(back, [right, up], atol=1e-6)
    bounds = window.bounds
    assert (bounds.east - bounds.west) / window.scale == pytest.approx(side_m, abs=1e-6)
    assert 0 <= window.true_heading(right[0]) < 360


cells_in = st.lists(st.tuples(st.integers(20, 24), st.integers(20, 24)), min_size=1, max_size=5, unique=True)


@st.composite
def outputs(draw) -> tuple[RefinerOutput, Proposals]:
    """A refiner's output for overlapping windows of one photo, with holes in the imagery."""
    cells = np.array(draw(cells_in))
    count, rolls = len(cells), draw(st.sampled_from([1, 8]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = torch.ones(count, SIDE, SIDE, dtype=torch.bool)
    for window in range(count):
        hole = draw(st.sampled_from(["none", "half", "all"]))
        if hole != "none":
            mask[window, :, : SIDE // 2 if hole == "half" else SIDE] = False
    logits = torch.from_numpy(rng.normal(0, draw(st.sampled_from([0.0, 1.0, 30.0])), (count, SIDE, SIDE)))
    levels = tuple(torch.from_numpy(rng.uniform(-1, 1, (count, rolls, side, side))) for side in (4, 8, 16, 32))
    output = RefinerOutput(logits.masked_fill(~mask, -torch.inf), levels, mask, torch.zeros(count, rolls))
    windows = Windows.around_cells(AREA, cells[:, 0], cells[:, 1], 80.0, SIDE)
    probability = rng.dirichlet(np.ones(count + 2))
    probability = probability[: count + 1] / (probability[: count + 1].sum() if draw(st.booleans()) else 1.0)
    row, col = np.append(cells[:, 0], 3), np.append(cells[:, 1], 60)
    return output, Proposals(windows, cells, Posterior.from_cells(AREA, row, col, probability))


@given(outputs(), st.floats(0.05, 20))
def test_densities_sum_to_one_and_masked_pixels_are_zero(case, temperature) -> None:
    output, *_ = case
    density, covered = to_density(output, temperature), output.mask.any((1, 2)).numpy()
    np.testing.assert_allclose(density.sum((1, 2)), covered.astype(float), atol=1e-12)
    assert (density[~output.mask.numpy()] == 0).all()


@given(outputs(), st.floats(0, 3), st.floats(0, 3), st.floats(0, 100))
def test_no_probability_is_lost_or_counted_twice(case, prior, density, match) -> None:
    output, proposals = case
    features, ground = pixel_features(output, proposals, 1.0)
    posterior, inside = proposals.posterior, ground.probability.sum()
    assert inside + ground.cell_probability.sum() == pytest.approx(posterior.probability.sum(), abs=1e-12)
    result = combine(features, inside, WindowWeights(prior, density, match))
    assert (result >= 0).all() and (result[~output.mask.numpy()] == 0).all()
    assert result.sum() == pytest.approx(inside, abs=1e-9)
    assert (result[~owned(proposals.windows) & output.mask.numpy().any((1, 2))[:, None, None]] == 0).all() or (
        not output.mask.any((1, 2)).all()
    )


@given(outputs(), st.sampled_from(ESTIMATES), st.floats(0.5, 20))
def test_fixes_are_finite_and_candidates_hold_no_more_than_all(case, estimate, radius) -> None:
    output, proposals = case
    windows, cells = proposals.windows, proposals.cells
    calibration = RefineCalibration(0.8, 0.1, WindowWeights(1.0, 1.0, 10.0))
    candidates = refine_candidates(output, proposals, calibration, FixOptions(estimate, radius))
    assert 1 <= len(candidates) <= len(cells) * (6 if estimate == "radius" else 1)
    found = [each for each in candidates if each.fix]
    assert candidates[: len(found)] == found  # what has no imagery comes last
    for one in found:
        fix = one.fix
        values = (fix.latitude, fix.longitude, fix.x, fix.y, fix.sd_major_m, fix.sd_minor_m, fix.axis_deg)
        assert all(math.isfinite(value) for value in values)
        assert fix.sd_major_m >= fix.sd_minor_m > 0 and 0 <= fix.axis_deg < 180
        assert 0 <= one.probability <= 1 and 0 <= fix.mode_mass <= 1 + 1e-9
        assert fix.radius_68_m <= fix.radius_95_m
        assert fix.heading_deg is None or (0 <= fix.heading_deg < 360 and 0 < fix.heading_sd_deg <= 180)
        assert fix.mode_mass + sum(mode.probability for mode in fix.modes) <= 1 + 1e-9
        assert np.hypot(fix.x - windows.x, fix.y - windows.y).min() <= 80
    for first, second in pairwise(found):
        assert math.hypot(first.x - second.x, first.y - second.y) > radius
        if estimate == "radius":
            assert first.probability >= second.probability


@given(hnp.arrays(float, st.integers(2, 72), elements=st.floats(0, 1)), st.integers(0, 71))
def test_a_turned_distribution_of_headings_has_turned_peaks(weights, turn) -> None:
    assume(weights.sum() > 1e-3)
    probability = weights / weights.sum()
    one, other = summarize(probability), summarize(np.roll(probability, turn % len(weights)))
    assert other.sd_deg == pytest.approx(one.sd_deg, abs=1e-6)
    shift = (turn % len(weights)) * 360 / len(weights)
    assert sum(peak.probability for peak in one.peaks) <= 1 + 1e-9
    if len(one.peaks) == len(other.peaks) == 1 and one.sd_deg < 120:
        assert (other.mean_deg - one.mean_deg - shift + 180) % 360 - 180 == pytest.approx(0, abs=1e-4)
