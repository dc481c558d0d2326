"""The refiner that looks along rays: geometry, equivariance, masks, tokens by tile, and files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from jzi.errors import ConfigError
from jzi.refine.azimuth import log_heading_prior
from jzi.refine.config import RefineConfig
from jzi.refine.info import RefinerInfo
from jzi.refine.networks.files import load_refiner, save_refiner
from jzi.refine.networks.producer import TrunkTokens
from jzi.refine.networks.ray_shifts import Places, along_rays, between_tokens, ray_shifts
from jzi.refine.networks.rays import RayRefiner
from jzi.refine.outputs import LEAST_MATCH, AerialFeatures, GroundFeatures, PhotoInput
from jzi.refine.ray_config import RayConfig
from jzi.tests.ray_scene import SMALL


@pytest.fixture(scope="module")
def refiner() -> RayRefiner:
    torch.manual_seed(0)
    return RayRefiner(SMALL).eval()


def photos(count: int, hfov: float = 90.0, rolls: int = SMALL.bins) -> PhotoInput:
    pixels = torch.randn(count, 3, SMALL.photo_height, SMALL.photo_width)
    return PhotoInput(torch.full((count,), hfov), torch.full((count,), hfov == 360), torch.zeros(count, rolls),
                      pixels=pixels)  # fmt: skip


def grids(count: int, config: RayConfig = SMALL) -> Tensor:
    return torch.randn(count, config.outer, config.outer, config.trunk.features)


def at(heading_deg: float, sd_deg: float, rolls: int = SMALL.bins) -> Tensor:
    return log_heading_prior(torch.tensor([heading_deg]), torch.tensor([sd_deg]), rolls)


# Shifts


def test_rays_of_azimuths_a_quarter_apart_are_quarter_turns_of_one_another() -> None:
    shifts = ray_shifts(36, [0, 1, 3.5, 15.5])
    for azimuth in range(36):
        turned = shifts[(azimuth + 9) % 36]
        assert turned == tuple((col, -row) for row, col in shifts[azimuth])
    assert all(row < 0 < col for row, col in shifts[4][1:])  # 45 degrees: north-east
    exact = [(-15.5 * math.cos(math.radians(10 * j + 5)), 15.5 * math.sin(math.radians(10 * j + 5))) for j in range(36)]
    assert all(max(abs(a - b) for a, b in zip(shifts[j][3], exact[j], strict=True)) <= 0.5 for j in range(36))


def test_tokens_along_rays_and_their_gradient_are_those_of_slices() -> None:
    shifts = ray_shifts(8, [0, 1, 2.2])
    tokens = torch.randn(2, 11, 11, 3, dtype=torch.double, requires_grad=True)
    places, chosen = Places((3, 4), 2, 3), [(shifts[0], shifts[3]), (shifts[7], shifts[5]), (shifts[1], shifts[1])]
    found = along_rays(tokens, [0, 1, 1], chosen, places)
    row, col = shifts[5][2]
    assert torch.equal(found[1, 1, 1, 0, 6:], tokens[1, 3 + 3 + row, 4 + col])
    assert torch.autograd.gradcheck(lambda values: along_rays(values, [0, 1, 1], chosen, places), tokens)


def test_tokens_between_tokens_are_exact_on_a_slope() -> None:
    row, col = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    grid = torch.stack([row, col], -1)[None]
    moved = between_tokens(grid, -0.25, 0.5)
    assert torch.allclose(moved[0, 1:-1, 1:-1, 0], row[1:-1, 1:-1] - 0.25)
    assert torch.allclose(moved[0, 1:-1, 1:-1, 1], col[1:-1, 1:-1] + 0.5)


# Equivariance


@pytest.mark.parametrize("fine", [1, 2])
def test_a_quarter_turn_of_map_and_heading_leaves_the_scores(fine: int) -> None:
    torch.manual_seed(1)
    network = RayRefiner(replace(SMALL, fine=fine)).eval()
    ground, tokens = network.ground(photos(2)), grids(2)
    turned = torch.rot90(tokens, 1, (1, 2))  # counter-clockwise: north becomes west
    with torch.no_grad():
        first, second = (network.match(ground, network.aerial(each)) for each in (tokens, turned))
    expected = torch.rot90(first.levels[0].roll(-SMALL.bins // 4, 1), 1, (2, 3))
    assert torch.allclose(second.levels[0], expected, atol=1e-5)
    assert torch.allclose(second.logits, torch.rot90(first.logits, 1, (1, 2)), atol=1e-5)
    assert first.levels[0].std() > 0.01


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_another_turn_of_a_smooth_map_and_the_heading_nearly_leaves_the_scores(steps: int) -> None:
    torch.manual_seed(2)
    config = replace(SMALL, side=1, bins=36, fine=1)
    network = RayRefiner(config).eval()
    waves, phases = torch.randn(2, config.trunk.features) * 0.12, torch.rand(config.trunk.features) * 6

    def scores(turn_deg: float) -> Tensor:
        centre = torch.arange(config.outer) + 0.5 - config.outer / 2
        down, right = torch.meshgrid(centre, centre, indexing="ij")
        cos, sin = math.cos(math.radians(turn_deg)), math.sin(math.radians(turn_deg))
        east, south = cos * right + sin * down, cos * down - sin * right  # turned clockwise
        grid = torch.sin(east[..., None] * waves[0] + south[..., None] * waves[1] + phases)
        with torch.no_grad():
            return network.match(ground, network.aerial(grid[None])).levels[0][0, :, 0, 0]

    ground = network.ground(photos(1, 60.0, 36))
    first, second = scores(0.0), scores(10.0 * steps)
    assert (second - first.roll(steps)).square().mean().sqrt() < 0.2 * first.std()  # rays end at whole tokens
    assert (second - first.roll(steps + 3)).square().mean().sqrt() > 0.4 * first.std()


def test_a_panorama_that_is_rolled_by_a_sector_has_sectors_that_are_rolled() -> None:
    torch.manual_seed(3)
    network = RayRefiner(replace(SMALL, photo_width=8 * 12)).eval()
    one = photos(2, 360.0)
    with torch.no_grad():
        first, second = (
            network.ground(each).descriptors[0] for each in (one, replace(one, pixels=one.pixels.roll(8, 3)))
        )
    assert torch.allclose(second, first.roll(1, 1), atol=1e-5)


# Geometry


def landmark_refiner() -> RayRefiner:
    """Its score is the first feature of the token 12 m away in the direction of the sector right of the middle."""
    network = RayRefiner(replace(SMALL, side=24)).eval()
    with torch.no_grad():
        for each in network.ray:
            if isinstance(each, nn.Linear):
                each.weight.zero_()
                each.bias.zero_()
                each.weight[0, 0] = 1.0
        network.ray[0].weight[0, :] = 0.0
        network.ray[0].weight[0, 3 * SMALL.trunk.features] = 1.0
        for each in network.place:
            if isinstance(each, nn.Linear):
                each.weight.zero_()
                each.bias.zero_()
    return network


@pytest.mark.parametrize("roll", [0, 1, 4, 8, 11])
def test_one_landmark_decides_the_place_if_the_heading_is_known_and_the_heading_at_a_place(roll: int) -> None:
    network = landmark_refiner()
    config, bins = network.config, SMALL.bins
    sectors = torch.zeros(1, bins, SMALL.width)
    sectors[0, bins // 2, 0] = 30.0
    window = torch.zeros(1, bins)
    window[0, bins // 2] = 1.0
    row, col = config.outer // 2, config.outer // 2 + 1
    grid = torch.zeros(1, config.outer, config.outer, SMALL.trunk.features)
    grid[0, row, col, 0] = 1.0
    ground = GroundFeatures((sectors, torch.zeros(1, 1, SMALL.width)), window, at(360 * roll / bins, 1.0))
    with torch.no_grad():
        output = network.match(ground, AerialFeatures((grid.permute(0, 3, 1, 2),)))
    best = output.logits[0].argmax().item()
    azimuth = math.radians(360 * (roll + 0.5) / bins)
    expected = row - config.margin + 6 * math.cos(azimuth), col - config.margin - 6 * math.sin(azimuth)
    assert math.dist(divmod(best, config.pixels), expected) <= math.sqrt(0.5)
    free = replace(ground, log_heading=torch.zeros(1, bins))
    with torch.no_grad():
        headings = network.match(free, AerialFeatures((grid.permute(0, 3, 1, 2),))).levels[0][0]
    assert headings.flatten(1)[:, best].argmax() == roll


def test_an_unlikely_heading_is_not_considered(refiner: RayRefiner) -> None:
    ground = refiner.ground(photos(1))
    known = replace(ground, log_heading=at(90.0, 1.0))
    with torch.no_grad():
        free, output = (refiner.match(each, refiner.aerial(TOKENS)) for each in (ground, known))
    assert torch.allclose(output.logits, free.levels[0][:, 3], atol=1e-5)
    assert output.heading_posterior()[0, 3] == pytest.approx(1.0)


TOKENS = torch.randn(1, SMALL.outer, SMALL.outer, SMALL.trunk.features, generator=torch.Generator().manual_seed(5))


def test_scores_of_training_are_those_of_the_answer(refiner: RayRefiner) -> None:
    torch.manual_seed(6)
    ground, tokens = refiner.ground(photos(3)), grids(3)
    places = Places((SMALL.margin + 1, SMALL.margin), 4, 2)
    with torch.no_grad():
        output = refiner.match(ground, refiner.aerial(tokens[[2, 0, 1]]))
        scores = refiner.pair_scores(ground, tokens, [0, 2], [2, 1], [7, 0], places)
    assert torch.allclose(scores[0], output.levels[0][0, 7, 1:8:2, 0:7:2], atol=1e-5)
    assert torch.allclose(scores[1], output.levels[0][2, 0, 1:8:2, 0:7:2], atol=1e-5)


def test_windows_are_compared_by_the_sum_of_their_likelihoods(refiner: RayRefiner) -> None:
    ground = refiner.ground(photos(1))
    with torch.no_grad():
        output = refiner.match(ground, refiner.aerial(TOKENS))
    likelihood = (output.levels[0] - math.log(SMALL.bins)).exp().sum()
    assert output.match[0].exp() == pytest.approx(float(likelihood), rel=1e-4)
    assert output.density().sum() == pytest.approx(1.0, abs=1e-5)
    assert output.heading_posterior().sum() == pytest.approx(1.0, abs=1e-5)


# Masks


def test_places_without_imagery_have_no_probability_and_its_tokens_no_effect(refiner: RayRefiner) -> None:
    ground = refiner.ground(photos(1))
    mask = torch.ones(1, SMALL.outer, SMALL.outer, dtype=torch.bool)
    mask[:, :, : SMALL.outer // 2] = False
    other = torch.where(mask[..., None], TOKENS, 99.0)
    with torch.no_grad():
        first, second = (refiner.match(ground, refiner.aerial(each), mask) for each in (TOKENS, other))
    assert torch.equal(first.logits, second.logits)
    assert (first.density()[:, :, : SMALL.pixels // 2] == 0).all()
    assert first.density().sum() == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        empty = refiner.match(ground, refiner.aerial(TOKENS), torch.zeros_like(mask))
    assert (empty.density() == 0).all() and empty.match.item() == LEAST_MATCH


# Tokens


def test_tokens_of_tiles_are_those_of_the_whole_map(refiner: RayRefiner) -> None:
    trunk, tile = refiner.aerial_trunk, 32
    margin = trunk.config.margin
    image = torch.randn(1, 3, 2 * tile + 2 * margin, 2 * tile + 2 * margin)
    with torch.no_grad():
        whole = trunk(image, margin)
        parts = [
            trunk(image[:, :, y : y + tile + 2 * margin, x : x + tile + 2 * margin], margin)
            for y in (0, tile) for x in (0, tile)
        ]  # fmt: skip
    joined = torch.cat([torch.cat(parts[:2], 2), torch.cat(parts[2:], 2)], 1)
    assert torch.allclose(joined, whole, atol=1e-5)
    with torch.no_grad():
        short = trunk(image[:, :, 4 : 4 + tile + 2 * margin - 8, : tile + 2 * margin], margin - 4)
    assert not torch.allclose(short[:, 0], whole[:, 0, : short.shape[2]], atol=1e-5)  # a smaller margin is not enough


def test_its_network_makes_the_tokens_of_a_cache(refiner: RayRefiner) -> None:
    producer = TrunkTokens(refiner)
    assert (producer.patch, producer.width, producer.margin) == (4, 8, 8)
    images = torch.randint(0, 255, (1, 32, 32, 3), dtype=torch.uint8).numpy()
    assert producer.tokens(images).shape == (1, 4, 4, 8)


def test_windows_of_pixels_are_those_of_their_tokens(refiner: RayRefiner) -> None:
    pixels = torch.randn(1, 3, 4 * SMALL.outer, 4 * SMALL.outer)
    with torch.no_grad():
        assert torch.equal(refiner.aerial(pixels).maps[0], refiner.aerial(refiner.aerial_trunk(pixels)).maps[0])


# Errors and files


def test_what_does_not_fit_is_refused(refiner: RayRefiner) -> None:
    with pytest.raises(ConfigError, match="reads photos of 96 x 32 pixels, not 64 x 32"):
        refiner.ground(replace(photos(1), pixels=torch.zeros(1, 3, 32, 64)))
    with pytest.raises(ConfigError, match="reads windows of 26 x 26 tokens of 8 features"):
        refiner.aerial(torch.zeros(1, 12, 12, 8))
    with pytest.raises(ConfigError, match="multiple of"):
        RefineConfig(kind="rays", window_m=25.0)
    with pytest.raises(ConfigError, match="ascending"):
        RayConfig(distances=(0.0, 4.0, 4.0))
    with pytest.raises(ConfigError, match="bins"):
        RayConfig(bins=30)


def test_a_saved_refiner_is_loaded_with_the_same_answers(refiner: RayRefiner, tmp_path: Path) -> None:
    info = RefinerInfo(kind="rays", config=SMALL, window_m=24.0, heading_temperature=1.0)
    save_refiner(tmp_path, refiner, info)
    loaded, read = load_refiner(tmp_path)
    assert isinstance(loaded, RayRefiner)
    assert (read.config, read.kind, read.heading_temperature) == (SMALL, "rays", 1.0)
    photo = photos(1)
    with torch.no_grad():
        first, second = (each.match(each.ground(photo), each.aerial(TOKENS)).logits for each in (refiner, loaded))
    assert torch.equal(first, second)
