"""UnifyGeo: its shapes, what a rotated panorama changes, headings, masks, gradients and the paper's switches."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from jzi.errors import ConfigError
from jzi.refine import PhotoInput, RefinerOutput, UnifyGeo, UnifyGeoConfig
from jzi.refine.azimuth import log_heading_prior
from jzi.refine.networks.aggregate import AttentionGem, generalised_mean
from jzi.refine.networks.backbone import ConvNextBlock
from jzi.tests import pair_trees as trees
from jzi.train.refine.refine_losses import LossWeights, PairTruth, RefinerLosses, refiner_losses

#: Small, and with blocks that do something although their weights are random.
SMALL = UnifyGeoConfig(
    ground_height=64,
    ground_width=256,
    photo_width=96,
    aerial=64,
    widths=(16, 32, 64, 128),
    depths=(1, 1, 1),
    bins=8,
    layer_scale=1.0,
    circular=True,
    aligned=False,
)


#: Aligned panoramas as in the paper; levels of 2, 4, 8 and 16 pixels.
LEARNED = UnifyGeoConfig(
    ground_height=32, ground_width=64, photo_width=64, aerial=64, widths=(16, 16, 32, 32), depths=(1, 1, 1), bins=4,
    layer_scale=1.0,
)  # fmt: skip
LEARNED_M = 40.0


def photos(config: UnifyGeoConfig, count: int = 2, width: int | None = None, hfov: float = 360.0) -> PhotoInput:
    pixels = torch.randn(count, 3, config.ground_height, width or config.ground_width)
    panorama = torch.full((count,), hfov >= 360)
    return PhotoInput(torch.full((count,), hfov), panorama, torch.zeros(count, config.rolls), pixels=pixels)


def small(**changes) -> UnifyGeo:
    torch.manual_seed(0)
    model = UnifyGeo(replace(SMALL, **changes)).eval()
    for name, parameter in model.named_parameters():  # so that the input matters everywhere
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        if "norms" in name:
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return model


def run(model: UnifyGeo, batch: PhotoInput, windows: Tensor, mask: Tensor | None = None) -> RefinerOutput:
    with torch.no_grad():
        return model.match(model.ground(batch), model.aerial(windows), mask)


def test_the_published_network_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        model = UnifyGeo(UnifyGeoConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 57_683_043


@pytest.mark.parametrize(("height", "rows"), [(384, 12), (140, 4)])
def test_the_published_network_has_the_published_shapes(height: int, rows: int) -> None:
    config = UnifyGeoConfig(ground_height=height)
    with FakeTensorMode():  # allocates and computes nothing
        check_shapes(UnifyGeo(config), photos(config), torch.randn(2, 3, 384, 384), height, rows)


def check_shapes(model: UnifyGeo, batch: PhotoInput, windows: Tensor, height: int, rows: int) -> None:
    branch = model.ground_branch(batch.pixels)
    columns = ((768, rows, 24), (384, height // 16, 48), (192, height // 8, 96), (96, height // 4, 192))
    assert [each.shape[1:] for each in branch.maps] == [*columns] and branch.semantic.shape[1:] == columns[0]
    ground, aerial = model.ground(batch), model.aerial(windows)
    assert [each.shape for each in ground.descriptors] == [(2, 24, 32), (2, 24, 16), (2, 24, 8), (2, 24, 4)]
    sides = (12, 24, 48, 96)
    squares = list(zip((768, 384, 192, 96), sides, strict=True))
    assert [each.shape for each in aerial.maps] == [(2, width, side, side) for width, side in squares]
    assert ground.embedding.shape == aerial.embedding.shape == (2, 768)
    output = model.match(ground, aerial)
    assert output.logits.shape == output.mask.shape == (2, 384, 384)
    assert [each.shape for each in output.levels] == [(2, 1, side, side) for side in sides]
    assert model.match_level0(ground, aerial.select(torch.tensor([0, 1, 0]))).shape == (2, 3, 1, 12, 12)


def test_a_rotated_panorama_moves_the_heading_and_nothing_else() -> None:
    model, batch, windows = small(), photos(SMALL), torch.randn(2, 3, 64, 64)
    before, turned = run(model, batch, windows), replace(batch, pixels=batch.pixels.roll(3 * 32, 3))
    after = run(model, turned, windows)
    assert torch.allclose(after.heading_posterior(), before.heading_posterior().roll(-3, 1), atol=1e-6)
    assert (after.log_density() - before.log_density()).abs().max() < 1e-4
    for one, other in zip(before.levels, after.levels, strict=True):
        assert torch.allclose(other, one.roll(-3, 1), atol=1e-5)
    assert torch.allclose(model.embed_ground(turned), model.embed_ground(batch), atol=1e-5)
    assert before.heading_posterior().std(1).min() > 1e-3  # not the same for all headings anyway
    assert before.log_density().flatten(1).std(1).min() > 1e-3


def test_without_circular_padding_a_rotated_panorama_changes_more() -> None:
    model, batch, windows = small(circular=False), photos(SMALL), torch.randn(2, 3, 64, 64)
    before = run(model, batch, windows)
    after = run(model, replace(batch, pixels=batch.pixels.roll(3 * 32, 3)), windows)
    assert (after.levels[0] - before.levels[0].roll(-3, 1)).abs().max() > 1e-2


def test_a_photo_that_is_no_panorama_is_not_padded_circularly() -> None:
    model = small()
    batch = photos(SMALL, width=96, hfov=70.0)
    moved = batch.pixels.clone()
    moved[..., -32:] += 1.0  # blocks reach 3 columns of their level: the leftmost ones see no change but around a ring
    first, second = (model.ground_branch(each, batch.ring).maps[3][..., 0] for each in (batch.pixels, moved))
    assert torch.equal(first, second)
    ring = torch.ones_like(batch.ring)
    assert not torch.equal(model.ground_branch(moved, ring).maps[3][..., 0], first)


def test_a_prior_of_headings_excludes_the_others() -> None:
    model, batch, windows = small(bins=16), photos(SMALL), torch.randn(2, 3, 64, 64)
    prior = log_heading_prior(torch.tensor([90.0, math.nan]), torch.tensor([10.0, 10.0]), 16)
    output = run(model, replace(batch, log_heading=prior), windows)
    posterior = output.heading_posterior()
    assert posterior[0].nonzero().flatten().tolist() == [3, 4, 5] and (posterior[1] > 0).all()
    assert torch.allclose(posterior.sum(1), torch.ones(2), atol=1e-5)
    free = run(model, replace(batch, log_heading=torch.zeros(2, 16)), windows)
    assert (output.level0_max <= free.level0_max + 1e-6).all() and output.level0_max[1] == free.level0_max[1]
    assert torch.equal(output.density()[1], free.density()[1])
    assert not torch.allclose(output.density()[0], free.density()[0])


def test_an_aligned_network_compares_north_alone() -> None:
    aligned, free = small(aligned=True), small()
    batch, windows = photos(SMALL), torch.randn(2, 3, 64, 64)
    one = run(aligned, replace(batch, log_heading=torch.zeros(2, 1)), windows)
    assert torch.allclose(one.levels[0], run(free, batch, windows).levels[0][:, :1], atol=1e-6)


def test_masked_pixels_have_no_probability_and_masked_places_no_cosine() -> None:
    model, batch, windows = small(), photos(SMALL), torch.randn(2, 3, 64, 64)
    mask = torch.ones(2, 64, 64, dtype=torch.bool)
    mask[0, :, :40] = False
    output = run(model, batch, windows, mask)
    density = output.density()
    assert torch.allclose(density.sum((1, 2)), torch.ones(2), atol=1e-5)
    assert not density[0, :, :40].any() and output.logits[0, :, :40].isneginf().all()
    for cosines, covered in zip(output.levels, output.level_masks, strict=True):
        assert covered[0].float().mean() >= 24 / 64 and not cosines[0][:, ~covered[0]].any()
        assert cosines.abs().max() <= 1 + 1e-6
    alone = torch.where(output.level_masks[0], output.levels[0].amax(1), -2.0).flatten(1).amax(1)
    assert torch.allclose(output.level0_max, alone)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    model, batch, windows = small(), photos(SMALL), torch.randn(2, 3, 64, 64)
    ground, aerial = model.ground(batch), model.aerial(windows)
    output = model.match(ground, aerial)
    parts = [output.logits, *output.levels, ground.embedding, aerial.embedding]
    torch.stack([(part * torch.randn_like(part)).sum() for part in parts]).sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    zero = [name for name, parameter in model.named_parameters() if parameter.grad.abs().max() < 1e-9]
    assert without == []
    # Of a bias that is the same for all sectors and features, the norm after it leaves nothing.
    assert [name for name in zero if not name.startswith("descriptors.columns.")] == []


def test_features_of_a_photo_are_matched_with_several_windows() -> None:
    model, batch, windows = small(), photos(SMALL, 1), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        ground, aerial = model.ground(batch), model.aerial(windows)
        output = model.match(ground.select(torch.zeros(3, dtype=torch.long)), aerial)
        level0 = model.match_level0(ground, aerial)[0]
    assert torch.allclose(output.levels[0], level0, atol=1e-6)
    single = run(model, batch, windows[2:])
    assert torch.allclose(output.select(torch.tensor([2])).logits, single.logits, atol=1e-5)


@pytest.mark.parametrize("shape", [(96, 256), (64, 100)])
def test_photos_of_another_height_are_refused(shape: tuple[int, int]) -> None:
    batch = replace(photos(SMALL), pixels=torch.randn(2, 3, *shape))
    with pytest.raises(ConfigError, match=r"reads photos of 64 rows .* not of \(\d+, \d+\): resize them"):
        small().ground(batch)


def test_windows_that_are_no_squares_of_whole_features_are_refused() -> None:
    for shape in ((64, 96), (60, 60)):
        with pytest.raises(ConfigError, match="square windows of a multiple of 32 pixels"):
            small().aerial(torch.randn(1, 3, *shape))


def test_the_aggregator_can_be_the_mean() -> None:
    model, batch = small(aggregator="mean"), photos(SMALL)
    semantic = model.ground_branch(batch.pixels, batch.ring).semantic
    expected = torch.nn.functional.normalize(semantic.mean((2, 3)), dim=1)
    assert torch.allclose(model.embed_ground(batch), expected)
    with torch.device("meta"):
        published = UnifyGeo(UnifyGeoConfig(aggregator="mean"))
    assert sum(parameter.numel() for parameter in published.parameters()) == 57_683_043 - 2 * 1_181_185


def test_generalised_means_are_exact_in_bfloat16() -> None:
    torch.manual_seed(0)
    tokens, power = torch.randn(2, 50, 7).bfloat16(), torch.tensor(3.0)
    exact = tokens.double().clamp(min=1e-6).pow(3).mean(1).pow(1 / 3)
    with torch.autocast("cpu", torch.bfloat16):
        mean = generalised_mean(tokens, power)
    assert mean.dtype == torch.float32 and torch.allclose(mean.double(), exact, rtol=1e-5)
    nothing = generalised_mean(torch.full((1, 50, 7), -1.0), power)
    assert torch.allclose(nothing, torch.full((1, 7), 1e-6), rtol=1e-3)


def test_attention_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    aggregate = AttentionGem(8)
    features = torch.randn(2, 8, 3, 5)
    tokens = features.flatten(2).transpose(1, 2)
    normalised = torch.nn.functional.layer_norm(tokens, (8,))
    scores = aggregate.query(normalised) @ aggregate.key(normalised).transpose(1, 2) / math.sqrt(4)
    attended = tokens + aggregate.out(scores.softmax(2) @ aggregate.value(tokens))
    pooled = attended.clamp(min=1e-6).pow(3).mean(1).pow(1 / 3)
    assert torch.allclose(aggregate(features), torch.nn.functional.normalize(pooled, dim=1), atol=1e-6)


def test_blocks_with_the_published_layer_scale_do_nothing_before_they_learn() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 16, 8, 8)
    changes = [(ConvNextBlock(16, scale)(features) - features).abs().max() for scale in (1e-6, 1.0)]
    assert changes[0] < 1e-5 and changes[1] > 1e-2


def test_half_precision_is_for_the_branches_alone() -> None:
    model, batch, windows = small(), photos(SMALL), torch.randn(2, 3, 64, 64)
    exact = run(model, batch, windows)
    with torch.autocast("cpu", torch.bfloat16):
        half = run(model, batch, windows)
    assert half.logits.dtype == torch.float32 and all(level.dtype == torch.float32 for level in half.levels)
    assert (half.levels[0] - exact.levels[0]).abs().max() < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bins": 5}, "refine.widths are .* each must be a multiple of 5"),
        ({"aerial": 380}, "multiple of 32"),
        ({"ground_height": 31}, "give at least 32"),
        ({"layer_scale": 0.0}, "refine.layer_scale = 0.0"),
        ({"widths": (96, 192, 384)}, "refine.widths"),
        ({"depths": (3, 3, 10**9)}, "refine.depths"),
        ({"aggregator": "max"}, "refine.aggregator"),
    ],
)
def test_settings_that_fit_nothing_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UnifyGeoConfig(**changes)


def made_pairs(rng: np.random.Generator, image: NDArray[np.uint8], count: int) -> tuple[PhotoInput, Tensor, PairTruth]:
    """Panoramas of one smooth map, aerial images of `LEARNED_M` metres that show their places, and these."""
    side, place = LEARNED.pixels, rng.uniform(-0.4, 0.4, (count, 2))  # right and down of the centre
    corner = rng.integers(0, len(image) - side, (count, 2))  # column and row
    aerial = np.stack([image[row : row + side, col : col + side] for col, row in corner])
    camera = ((corner + side / 2 - len(image) / 2) / side + place) * (LEARNED_M, -LEARNED_M)
    ground = np.stack([np.asarray(trees.panorama(trees.scene(0, 60.0), x, y, 64, 32)) for x, y in camera])
    windows, pixels = (torch.from_numpy(each).permute(0, 3, 1, 2) / 127.5 - 1 for each in (aerial, ground))
    places = torch.full((count, count, 2), 1e3)  # no image shows the place of another pair
    places[range(count), range(count)] = torch.from_numpy(place).float()
    whole = torch.full((count,), 360.0)
    photos = PhotoInput(whole, whole > 0, torch.zeros(count, 1), pixels=pixels)
    return photos, windows, PairTruth(places, torch.zeros(count))


def test_the_published_form_learns_the_place_from_made_pairs() -> None:
    """40 steps on pairs that never repeat; aligned panoramas, the losses and their weights are the paper's."""
    torch.manual_seed(0)
    image = np.asarray(trees.aerial(trees.scene(0, 60.0), 0.0, 0.0, 12 * LEARNED_M, 12 * LEARNED.pixels))
    rng, model = np.random.default_rng(0), UnifyGeo(LEARNED)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)

    def losses(count: int) -> tuple[RefinerOutput, PairTruth, RefinerLosses]:
        photos, windows, truth = made_pairs(rng, image, count)
        ground, aerial = model.ground(photos), model.aerial(windows)
        output = model.match(ground, aerial)
        return output, truth, refiner_losses(output, truth, 1.5, cross=model.match_level0(ground, aerial))

    for _ in range(40):
        optimizer.zero_grad()
        losses(16)[2].total(LossWeights()).backward()
        optimizer.step()
    with torch.no_grad():
        output, truth, measured = losses(64)
    side = LEARNED.pixels
    chance = sum(math.log(level.shape[-1] ** 2) for level in output.levels)
    assert float(measured.matching) < 0.85 * chance
    best = output.logits.flatten(1).argmax(1)
    found = torch.stack([best % side, best // side], 1).add(0.5) / side - 0.5
    error, constant = ((each * LEARNED_M).norm(dim=1).median() for each in (found - truth.place, truth.place))
    assert float(error) < 0.7 * float(constant)
