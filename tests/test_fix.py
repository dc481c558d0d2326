"""Fixes: what a density over windows becomes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from jzi.errors import ConfigError
from jzi.locate.posterior import Posterior
from jzi.refine.outputs import RefinerOutput
from jzi.refine.temperature import fit_heading_temperature, fit_temperature, negative_log_likelihood
from jzi.refine.windows.answer import (
    FixOptions,
    RefineCalibration,
    refine_candidates,
    to_density,
    to_fixes,
)
from jzi.refine.windows.fuse import WindowWeights
from jzi.refine.windows.proposals import Proposals
from jzi.refine.windows.window import Windows
from jzi.store.geometry.pyramid import Pyramid, geodesic_distance

AREA = Pyramid.around(48.2, 16.37, 2_500.0, levels=3)  # 64 x 64 cells of 39 m
SIDE = 128


def windows_at(*cells: tuple[int, int], area=AREA, side_m=80.0, pixels=SIDE) -> Windows:
    row, col = np.array(cells).T
    return Windows.around_cells(area, row, col, side_m, pixels)


def normal(windows: Windows, right: float, up: float, major: float, minor: float, azimuth: float) -> np.ndarray:
    """(P, P) log-density of a normal distribution around an offset, metres, with a major axis from grid north."""
    centres = np.arange(windows.pixels) + 0.5
    dx, dy = windows.pixels_to_offset(*np.meshgrid(centres, centres))
    turn = math.radians(azimuth)
    along = (dx - right) * math.sin(turn) + (dy - up) * math.cos(turn)
    across = (dx - right) * math.cos(turn) - (dy - up) * math.sin(turn)
    return -((along / major) ** 2 + (across / minor) ** 2) / 2


def output_of(*logits: np.ndarray, match=None, mask=None, levels=None, rolls=1) -> RefinerOutput:
    count, side = len(logits), len(logits[0])
    stack = torch.from_numpy(np.stack(logits))
    whole = torch.ones(count, side, side, dtype=torch.bool) if mask is None else torch.from_numpy(mask)
    coarse = torch.zeros(count, rolls, 16, 16)
    coarse[:, 0, 3, 3] = torch.tensor(match if match is not None else [0.0] * count, dtype=torch.float32)
    finest = torch.zeros(count, rolls, 32, 32) if levels is None else levels
    return RefinerOutput(
        stack.masked_fill(~whole, -torch.inf), (coarse, coarse, coarse, finest), whole, torch.zeros(count, rolls)
    )


def refine(output, cells, posterior, weights=None, options=None, windows=None, **more):
    """`refine_candidates` with windows of 80 m around cells."""
    cells = np.array(cells)
    proposals = Proposals(windows or windows_at(*cells.tolist(), area=posterior.area), cells, posterior)
    return refine_candidates(output, proposals, RefineCalibration(weights=weights or WindowWeights()), options, **more)


def posterior_of(cells: dict[tuple[int, int], float], area=AREA) -> Posterior:
    row, col = np.array(list(cells)).T
    return Posterior.from_cells(area, row, col, np.array(list(cells.values())))


@pytest.mark.parametrize("estimate", ["map", "radius", "mean"])
@pytest.mark.parametrize(("major", "minor", "azimuth"), [(3.0, 1.2, 35.0), (2.0, 2.0, 0.0), (6.0, 2.0, 150.0)])
def test_the_ellipse_of_a_known_normal_distribution(estimate, major, minor, azimuth) -> None:
    windows = windows_at((20, 30))
    (fix,) = to_fixes(
        output_of(normal(windows, 6.3, -8.7, major, minor, azimuth)), windows, options=FixOptions(estimate)
    )
    u, v = windows[0].position_to_pixels(fix.latitude, fix.longitude)
    assert windows[0].pixels_to_offset(u, v) == pytest.approx((6.3, -8.7), abs=0.05)
    assert fix.sd_major_m == pytest.approx(major, rel=0.02) and fix.sd_minor_m == pytest.approx(minor, rel=0.02)
    if major > minor:
        assert fix.axis_deg == pytest.approx(float(windows[0].true_heading(azimuth)) % 180, abs=1)
    assert fix.semi_axes(0.68)[0] == pytest.approx(major * math.sqrt(2.279), rel=0.02)
    assert fix.semi_axes(0.95)[1] == pytest.approx(minor * math.sqrt(5.991), rel=0.02)
    assert fix.probability == pytest.approx(1) and fix.source == "refine" and fix.modes == ()
    if major == minor:
        assert fix.radius_68_m == pytest.approx(major * math.sqrt(2.279), rel=0.03)
        assert fix.radius_95_m == pytest.approx(major * math.sqrt(5.991), rel=0.03)
        assert fix.mode_mass == pytest.approx(1, abs=1e-4)


def test_the_density_sums_to_one_and_is_exactly_zero_where_masked() -> None:
    rng = np.random.default_rng(0)
    mask = np.ones((3, SIDE, SIDE), bool)
    mask[0, :, :50] = False
    mask[2] = False
    output = output_of(*rng.normal(0, 3, (3, SIDE, SIDE)), mask=mask)
    density = to_density(output, 0.7)
    assert density[:2].sum((1, 2)) == pytest.approx([1, 1], abs=1e-12)
    assert (density[~mask] == 0).all() and (density[mask] > 0).all()
    fixes = to_fixes(output, windows_at((20, 30), (21, 30), (50, 50)))
    assert fixes[2] is None and fixes[0].grids[0].probability[:, :50].max() == 0  # a window without imagery has no fix


def test_a_flat_density_has_its_answer_in_the_middle_and_says_how_little_it_is() -> None:
    windows = windows_at((20, 30))
    for estimate in ("map", "radius"):
        (fix,) = to_fixes(output_of(np.zeros((SIDE, SIDE))), windows, options=FixOptions(estimate))
        u, v = windows[0].position_to_pixels(fix.latitude, fix.longitude)
        assert (u, v) == pytest.approx((SIDE / 2, SIDE / 2), abs=SIDE / 4)
        assert fix.mode_mass == pytest.approx(math.pi * 100 / 80**2, rel=0.02)
        assert fix.radius_68_m > 30


def test_the_estimates_of_two_modes_differ_as_they_should() -> None:
    """A narrow peak of less mass, and a broad one of more."""
    windows = windows_at((20, 30))
    narrow, broad = normal(windows, -20, 0, 0.7, 0.7, 0), normal(windows, 20, 0, 4, 4, 0)
    logit = np.logaddexp(np.log(0.3 / 0.49) + narrow, np.log(0.7 / 16) + broad)
    points = {}
    for estimate in ("map", "radius", "mean"):
        (fix,) = to_fixes(output_of(logit), windows, options=FixOptions(estimate, radius=8.0))
        offset = windows[0].pixels_to_offset(*windows[0].position_to_pixels(fix.latitude, fix.longitude))
        points[estimate] = float(offset[0])
        if estimate == "map":
            assert [mode.probability for mode in fix.modes] == pytest.approx([0.67], abs=0.03)
            assert fix.mode_mass == pytest.approx(0.3, abs=0.03)
    assert points["map"] == pytest.approx(-20, abs=0.2) and points["radius"] == pytest.approx(20, abs=0.5)
    assert points["mean"] == pytest.approx(8, abs=0.5)


def test_points_lie_between_pixels() -> None:
    windows = windows_at((20, 30))
    errors = []
    for right, up in np.random.default_rng(0).uniform(-3, 3, (20, 2)):
        (fix,) = to_fixes(output_of(normal(windows, right, up, 1.5, 1.0, 20)), windows, options=FixOptions("map"))
        offset = windows[0].pixels_to_offset(*windows[0].position_to_pixels(fix.latitude, fix.longitude))
        errors.append(math.hypot(offset[0] - right, offset[1] - up))
    assert max(errors) < 0.02 < windows.pixel_m / 10


def test_a_disc_larger_than_a_peak_is_centred_on_it() -> None:
    """All discs of 5 m around a peak of 0.4 m hold the same; another mode must not draw the answer away."""
    windows = windows_at((20, 30))
    peak, other = normal(windows, -12.0, 5.0, 0.4, 0.4, 0), normal(windows, 25, 0, 0.4, 0.4, 0)
    (fix,) = to_fixes(output_of(np.logaddexp(math.log(0.7) + peak, math.log(0.3) + other)), windows)
    offset = windows[0].pixels_to_offset(*windows[0].position_to_pixels(fix.latitude, fix.longitude))
    assert offset == pytest.approx((-12, 5), abs=0.1)


@pytest.mark.parametrize("crs", ["EPSG:25832", "EPSG:3857"])
def test_metres_of_a_fix_are_true_in_other_coordinates(crs) -> None:
    area = {
        "EPSG:25832": Pyramid("EPSG:25832", 690_000.0, 5_550_000.0, 10_000.0),
        "EPSG:3857": Pyramid("EPSG:3857", 2_770_000.0, 8_410_000.0, 20_000.0),
    }[crs]
    windows = windows_at((100, 100), area=area)
    levels = torch.zeros(1, 24, 32, 32)
    levels[:, 6] = 0.9  # grid east
    output = output_of(normal(windows, 9.0, 12.0, 3.0, 1.0, 90.0), levels=levels, rolls=24)
    (fix,) = to_fixes(output, windows, heading_temperature=0.05)
    latitude, longitude = windows.positions
    assert geodesic_distance(latitude[0], longitude[0], fix.latitude, fix.longitude) == pytest.approx(15, rel=0.005)
    assert fix.sd_major_m == pytest.approx(3, rel=0.02) and fix.sd_minor_m == pytest.approx(1, rel=0.02)
    convergence = float(windows.convergence_deg[0])
    assert fix.axis_deg == pytest.approx(90 + convergence, abs=0.5)
    assert fix.heading_deg == pytest.approx(90 + convergence, abs=0.5)
    assert convergence == pytest.approx(2.1 if crs == "EPSG:25832" else 0, abs=0.2)


def test_radii_hold_what_they_say_and_are_open_where_too_little_was_searched() -> None:
    windows = windows_at((20, 30))
    output = output_of(normal(windows, 0, 0, 2, 2, 0))
    posterior = posterior_of({(20, 30): 0.8, (40, 31): 0.1, (60, 1): 0.05})
    (candidate,) = refine(output, [(20, 30)], posterior)
    fix = candidate.fix
    assert candidate.probability == pytest.approx(0.8 * (1 - math.exp(-(2.5**2) / 2)), abs=0.01)
    assert fix.radius_68_m == pytest.approx(2 * math.sqrt(-2 * math.log(1 - 0.68 / 0.8)), rel=0.03)
    assert fix.radius_95_m > 1_500  # 5 % lie in a cell far away, and 5 % were not searched
    unsearched = posterior_of({(20, 30): 0.8, (40, 31): 0.1})
    (candidate,) = refine(output, [(20, 30)], unsearched)
    assert math.isinf(candidate.fix.radius_95_m)


def test_candidates_are_ranked_by_the_weights_and_keep_their_number() -> None:
    cells = np.array([(20, 30), (40, 10), (5, 60)])
    windows = windows_at(*cells.tolist())
    posterior = posterior_of({(20, 30): 0.4, (40, 10): 0.3, (5, 60): 0.2})
    logits = [normal(windows, 5.0 * number, 3, 1, 1, 0) for number in range(3)]
    output = output_of(*logits, match=[0.1, 0.7, 0.2])
    unchanged = refine(output, cells, posterior)
    assert [each.fix.candidate_rank for each in unchanged] == [1, 2, 3]
    assert [each.fix.probability for each in unchanged] == pytest.approx([0.4, 0.3, 0.2], abs=1e-3)
    fused = refine(output, cells, posterior, WindowWeights(1.0, 1.0, 5.0), FixOptions("map"))
    assert [each.fix.candidate_rank for each in fused] == [2, 1, 3]
    assert sum(each.fix.probability for each in fused) == pytest.approx(0.9, abs=1e-12)
    best = fused[0]
    assert best.source == "refine" and best.radius_m == 5.0 and best.cell == (40, 10)
    assert best.path == tuple(AREA.cell_to_path(40, 10).tolist()) and len(best.step_probabilities) == 3
    assert (best.latitude, best.longitude, best.x, best.y) == (
        best.fix.latitude, best.fix.longitude, best.fix.x, best.fix.y
    )  # fmt: skip


def test_two_modes_of_a_window_are_two_candidates_for_the_radius_alone() -> None:
    windows = windows_at((20, 30))
    logit = np.logaddexp(
        math.log(0.6) + normal(windows, -15, 0, 1, 1, 0), math.log(0.4) + normal(windows, 15, 0, 1, 1, 0)
    )
    posterior = posterior_of({(20, 30): 0.9})
    first, second = refine(output_of(logit), [(20, 30)], posterior)
    assert (first.probability, second.probability) == pytest.approx((0.54, 0.36), abs=0.01)
    assert second.x - first.x == pytest.approx(30, abs=0.2) and second.fix.candidate_rank == 1
    assert second.fix.mode_mass == pytest.approx(0.36, abs=0.01) and len(first.fix.modes) == 1
    (only,) = refine(output_of(logit), [(20, 30)], posterior, options=FixOptions("map"))
    assert only.probability == pytest.approx(0.54, abs=0.01)


def test_a_fix_in_a_neighbouring_cell_knows_its_cell() -> None:
    windows = windows_at((20, 30))
    output = output_of(normal(windows, 30.0, 0.0, 1, 1, 0))
    (candidate,) = refine(output, [(20, 30)], posterior_of({(20, 30): 0.9, (20, 31): 0.05}))
    assert candidate.cell == candidate.fix.cell == (20, 31)
    assert candidate.path == tuple(AREA.cell_to_path(20, 31).tolist())


def test_a_window_without_imagery_leaves_its_probability_on_its_cell() -> None:
    cells = np.array([(20, 30), (40, 10)])
    mask = np.ones((2, SIDE, SIDE), bool)
    mask[0] = False
    windows = windows_at(*cells.tolist())
    output = output_of(*[normal(windows, 0, 0, 1, 1, 0)] * 2, mask=mask)
    posterior = posterior_of({(20, 30): 0.5, (40, 10): 0.3})
    refined = refine(output, cells, posterior, WindowWeights(1.0, 1.0, 3.0))
    assert [each.fix is None for each in refined] == [False, True]
    assert refined[0].fix.probability == pytest.approx(0.3) and refined[1].probability == pytest.approx(0.5)
    assert refined[1].cell == (20, 30) and refined[1].radius_m is None
    nothing = output_of(*[normal(windows, 0, 0, 1, 1, 0)] * 2, mask=np.zeros((2, SIDE, SIDE), bool))
    assert all(each.fix is None for each in refine(nothing, cells, posterior))


def test_a_place_in_two_windows_is_one_candidate_with_its_whole_ellipse() -> None:
    """A peak on the seam of two neighbouring cells' windows is cut by their border, but its mass is not."""
    cells = np.array([(20, 30), (20, 31)])
    windows = windows_at(*cells.tolist())
    half = AREA.cell_size / 2
    output = output_of(normal(windows, half + 0.3, 0, 2, 2, 0), normal(windows, -half + 0.3, 0, 2, 2, 0))
    posterior = posterior_of({(20, 30): 0.45, (20, 31): 0.45})
    (candidate,) = refine(output, cells, posterior)
    assert candidate.fix.mode_mass == pytest.approx(0.9, abs=0.01)
    assert sum(grid.probability.sum() for grid in candidate.fix.grids) == pytest.approx(0.9, abs=1e-5)
    assert (candidate.fix.sd_major_m, candidate.fix.sd_minor_m) == pytest.approx((2, 2), rel=0.06)
    assert candidate.x == pytest.approx(windows.x[0] + half + 0.3, abs=0.5)
    assert candidate.y == pytest.approx(windows.y[0], abs=0.5)


# Headings


def roll_output(probability: np.ndarray) -> RefinerOutput:
    """An output whose rolls have given probabilities, at a temperature of 0.1, everywhere."""
    levels = torch.from_numpy(0.1 * np.log(probability))[None, :, None, None].expand(1, -1, 32, 32)
    return output_of(np.zeros((SIDE, SIDE)), levels=levels, rolls=len(probability))


def wrapped(mean: float, sd: float, rolls: int = 72) -> np.ndarray:
    turn = (np.arange(rolls) * 360 / rolls - mean + 180) % 360 - 180
    values = np.exp(-((turn / sd) ** 2) / 2)
    return values / values.sum()


@pytest.mark.parametrize("mean", [3.0, 118.0, 357.5])
def test_the_heading_is_a_circular_mean_with_its_deviation(mean) -> None:
    (fix,) = to_fixes(roll_output(wrapped(mean, 20.0)), windows_at((20, 30)))
    assert (fix.heading_deg - mean + 180) % 360 - 180 == pytest.approx(0, abs=0.2)
    assert fix.heading_sd_deg == pytest.approx(20, rel=0.02) and fix.headings == ()


def test_two_directions_of_a_street_are_two_peaks() -> None:
    (fix,) = to_fixes(roll_output(0.6 * wrapped(40, 10) + 0.4 * wrapped(220, 10)), windows_at((20, 30)))
    assert [peak.heading_deg for peak in fix.headings] == pytest.approx([40, 220], abs=0.5)
    assert [peak.probability for peak in fix.headings] == pytest.approx([0.6, 0.4], abs=0.01)
    assert [peak.sd_deg for peak in fix.headings] == pytest.approx([10, 10], rel=0.1)
    assert fix.heading_deg == pytest.approx(40, abs=0.5) and fix.heading_sd_deg > 60
    assert fix.directions == fix.headings and "heading 40° ± 10° (60 %); heading 220° ± 10° (40 %)" in fix.text


def test_an_unknown_heading_has_the_largest_deviation_and_a_prior_excludes() -> None:
    output = roll_output(np.full(24, 1 / 24))
    (fix,) = to_fixes(output, windows_at((20, 30)))
    assert fix.heading_sd_deg > 90 and fix.headings == fix.directions == () and "heading unknown" in fix.text
    log_heading = torch.full((1, 24), -torch.inf)
    log_heading[0, 5:8] = 0
    (fix,) = to_fixes(replace(output, log_heading=log_heading), windows_at((20, 30)))
    assert fix.heading_deg == pytest.approx(90, abs=0.01) and fix.heading_sd_deg == pytest.approx(12.2, abs=0.3)
    assert to_fixes(output_of(np.zeros((SIDE, SIDE))), windows_at((20, 30)))[0].heading_deg is None


def test_the_heading_is_that_of_the_place() -> None:
    """Rolls differ by place; the heading is that where the probability is."""
    windows = windows_at((20, 30))
    levels = torch.zeros(1, 24, 32, 32)
    levels[:, 3, :, :16], levels[:, 18, :, 16:] = 0.9, 0.9
    for right, roll in ((-20, 3), (20, 18)):
        (fix,) = to_fixes(output_of(normal(windows, right, 0, 2, 2, 0), levels=levels, rolls=24), windows, 1.0, 0.05)
        assert fix.heading_deg == pytest.approx(float(windows[0].true_heading(15 * roll)), abs=0.1)


# Temperatures


def drawn(rng, count: int, sd: float) -> tuple[RefinerOutput, Windows, np.ndarray, np.ndarray]:
    """Photos whose true position is drawn from a normal mixture, and logits three times too sure of it."""
    windows = windows_at(*[(20, 30)] * count)
    logits, u, v = [], [], []
    for centre in rng.uniform(-20, 20, (count, 2)):
        second = centre + rng.uniform(-15, 15, 2)
        log_density = np.logaddexp(
            math.log(0.7) + normal(windows, centre[0], centre[1], sd, sd, 0),
            math.log(0.3) + normal(windows, second[0], second[1], sd, sd, 0),
        )
        density = np.exp(log_density - log_density.max())
        index = rng.choice(density.size, p=(density / density.sum()).ravel())
        u.append(index % SIDE + rng.uniform())
        v.append(index // SIDE + rng.uniform())
        logits.append(3.0 * log_density)
    return output_of(*logits), windows, np.array(u), np.array(v)


def test_regions_hold_their_share_of_held_out_photos_after_the_temperature_is_fitted() -> None:
    rng = np.random.default_rng(7)
    output, windows, u, v = drawn(rng, 150, 3.0)
    temperature = fit_temperature(output.logits, output.mask, u, v)
    assert temperature == pytest.approx(3.0, rel=0.2)
    output, windows, u, v = drawn(rng, 150, 3.0)
    latitude, longitude = windows.pixels_to_position(u, v)

    def coverage(fixes) -> tuple[float, float]:
        error = geodesic_distance(
            [fix.latitude for fix in fixes], [fix.longitude for fix in fixes], latitude, longitude
        )
        return tuple(
            float((error <= [getattr(fix, name) for fix in fixes]).mean()) for name in ("radius_68_m", "radius_95_m")
        )

    before, after = coverage(to_fixes(output, windows)), coverage(to_fixes(output, windows, temperature))
    assert after == pytest.approx((0.68, 0.95), abs=0.08) and abs(after[1] - 0.95) <= 0.05
    assert before[0] < 0.6  # what the temperature is for
    nll = negative_log_likelihood(to_density(output, temperature), windows.pixel_m, u, v)
    assert nll.mean() < negative_log_likelihood(to_density(output, 1.0), windows.pixel_m, u, v).mean()


def test_photos_outside_of_imagery_do_not_count_for_the_temperature() -> None:
    output, _, u, v = drawn(np.random.default_rng(1), 20, 3.0)
    mask = output.mask.clone()
    mask[:5] = False
    masked = replace(output, mask=mask)
    u[5:8] = np.array([-3.0, np.nan, SIDE])
    expected = fit_temperature(output.logits[8:], output.mask[8:], u[8:], v[8:])
    assert fit_temperature(masked.logits, masked.mask, u, v) == expected
    assert fit_temperature(masked.logits[:8], masked.mask[:8], u[:8], v[:8]) == 1.0


def test_the_temperature_of_headings_is_found() -> None:
    rng, rolls, count = np.random.default_rng(0), 36, 400
    truth = rng.uniform(0, 360, count)
    measured = truth + rng.normal(0, 15, count)
    turn = (np.arange(rolls) * 10 - measured[:, None] + 180) % 360 - 180
    log_probability = -((turn / 15) ** 2) / 2
    levels = torch.from_numpy(0.05 * log_probability)[..., None, None].expand(-1, -1, 4, 4)
    output = output_of(*np.zeros((count, 8, 8)), levels=levels, rolls=rolls)
    fitted = fit_heading_temperature(output, to_density(output), truth)
    assert fitted == pytest.approx(0.05, rel=0.15)
    assert fit_heading_temperature(output, to_density(output), np.full(count, np.nan)) == 0.1


def test_an_unknown_estimate_is_refused() -> None:
    with pytest.raises(ConfigError, match="no estimate 'greedy' of a fix"):
        FixOptions("greedy")
    with pytest.raises(ConfigError, match="radius"):
        FixOptions("radius", 0.0)
