"""The refiner of tokens, and the trunks that make tokens from pixels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jzi.errors import ConfigError
from jzi.refine import CachedRefiner, CachedRefinerConfig, PhotoInput, RefineConfig
from jzi.refine.config import TrunkConfig
from jzi.refine.networks.trunks import AerialTrunk, PhotoTrunk

SMALL = CachedRefinerConfig(
    features=12, photo_features=10, rows=5, side=4, width=24, blocks=1, channels=(48, 24, 24, 24), bins=12
)
TRUNK = TrunkConfig(widths=(6, 8, 12), depths=(1, 0, 1), kernel=5, features=7)


def photos(columns: int, hfov: float, count: int = 2) -> PhotoInput:
    ring = torch.full((count,), hfov >= 360)
    return PhotoInput(torch.full((count,), hfov), ring, torch.zeros(count, 12), torch.randn(count, 5, columns, 10))


def small(config: CachedRefinerConfig = SMALL) -> CachedRefiner:
    torch.manual_seed(0)
    model = CachedRefiner(config).eval()
    for norm in model.descriptors.norms:  # as after training, not the same for all features
        torch.nn.init.normal_(norm.weight, 1.0, 0.3)
        torch.nn.init.normal_(norm.bias, 0.0, 0.3)
    return model


def run(model: CachedRefiner, batch: PhotoInput, tokens: torch.Tensor, mask: torch.Tensor | None = None):
    with torch.no_grad():
        return model.match(model.ground(batch), model.aerial(tokens), mask)


def test_shapes_are_those_of_four_levels_without_skips() -> None:
    model = CachedRefiner(CachedRefinerConfig())
    tokens = torch.randn(1, 16, 16, 128)
    batch = PhotoInput(
        torch.tensor([70.0]), torch.tensor([False]), torch.zeros(1, 24), tokens=torch.randn(1, 27, 54, 128)
    )
    output = run(model, batch, tokens)
    assert [level.shape[1:] for level in output.levels] == [(24, side, side) for side in (16, 32, 64, 128)]
    assert output.logits.shape == (1, model.config.pixels, model.config.pixels) == (1, 128, 128)
    assert 2.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 2.7e6


@pytest.mark.parametrize("columns", [12, 24])
def test_a_rotated_panorama_moves_the_heading_and_nothing_else(columns: int) -> None:
    model, batch, tokens = small(), photos(columns, 360.0), torch.randn(2, 4, 4, 12)
    before = run(model, batch, tokens)
    after = run(model, replace(batch, tokens=batch.tokens.roll(5 * columns // 12, 2)), tokens)
    assert torch.allclose(after.heading_posterior(), before.heading_posterior().roll(-5, 1), atol=1e-5)
    assert (after.log_density() - before.log_density()).abs().max() < 1e-4
    assert before.heading_posterior().std(1).min() > 1e-3


def test_panoramas_and_photos_in_one_batch_do_not_change_one_another() -> None:
    model, tokens = small(), torch.randn(2, 4, 4, 12)
    batch = replace(photos(12, 70.0), hfov_deg=torch.tensor([360.0, 70.0]), panorama=torch.tensor([True, False]))
    both = run(model, batch, tokens)
    for index in range(2):
        chosen = torch.tensor([index])
        one = run(model, batch.select(chosen), tokens[chosen])
        assert torch.allclose(both.logits[index], one.logits[0], atol=1e-5)


def test_tokens_without_imagery_are_masked_at_every_level() -> None:
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[0, 0], mask[1] = False, False
    output = run(small(), photos(12, 70.0), torch.randn(2, 4, 4, 12), mask)
    density = output.density()
    assert density.sum((1, 2)).tolist() == pytest.approx([1, 0], abs=1e-5)
    assert not density[0, :8].any() and (density[0, 8:] > 0).all()
    for level in output.levels:
        assert not level[0, :, : level.shape[2] // 4].any() and not level[1].any()
    assert output.level0_max[1] == -1


def test_gradients_reach_every_parameter() -> None:
    trunk = replace(TRUNK, features=12)
    config = replace(SMALL, source="trained", trunk=trunk, photo_trunk=replace(trunk, features=10))
    model = small(config)
    batch = replace(photos(6, 70.0), tokens=None, pixels=torch.randn(2, 3, 80, 96))
    tokens = model.aerial_trunk(torch.randn(2, 3, 128, 128), 32)
    output = model.match(model.ground(batch), model.aerial(tokens))
    torch.stack([(part * torch.randn_like(part)).sum() for part in (output.logits, *output.levels)]).sum().backward()
    zero = [name for name, each in model.named_parameters() if each.grad is None or each.grad.abs().max() < 1e-9]
    assert [name for name in zero if not name.startswith("descriptors.columns.")] == []


def test_dropout_is_for_training_alone() -> None:
    model, batch, tokens = small(), photos(12, 70.0), torch.randn(2, 4, 4, 12)
    assert torch.equal(run(model, batch, tokens).logits, run(model, batch, tokens).logits)
    model.train()
    assert not torch.equal(run(model, batch, tokens).logits, run(model, batch, tokens).logits)


def test_tokens_of_other_shapes_are_refused() -> None:
    model = small()
    with pytest.raises(ConfigError, match=r"windows of 4 x 4 tokens of 12 features, not of \(5, 5, 12\)"):
        model.aerial(torch.randn(1, 5, 5, 12))
    with pytest.raises(ConfigError, match=r"5 rows of tokens of 10 features, not \(6, 10\)"):
        model.ground(replace(photos(12, 70.0), tokens=torch.randn(2, 6, 12, 10)))
    with pytest.raises(ConfigError, match="5 rows of tokens of 10 features, not None"):
        model.ground(replace(photos(12, 70.0), tokens=None, pixels=torch.randn(2, 3, 80, 96)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (48, 24, 24, 10)}, "each must be a multiple of 12"),
        ({"source": "trained"}, "refine.source is 'trained'"),
        ({"trunk": TRUNK}, "has trunks only if it is 'trained'"),
        ({"source": "trained", "trunk": TRUNK, "photo_trunk": TRUNK}, "tokens of 7 and 7 features"),
        ({"side": 0}, "refine.side"),
        ({"dropout": 1.0}, "refine.dropout"),
    ],
)
def test_settings_that_fit_nothing_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **changes)


def test_the_section_of_settings_makes_the_architecture() -> None:
    section = RefineConfig(side=8, bins=12, channels=(48, 24, 24, 24), blocks=1, source="tokens")
    config = section.cached(features=768, photo_features=768, rows=27)
    assert (config.features, config.rows, config.side, config.bins, config.trunk) == (768, 27, 8, 12, None)
    trained = replace(section, source="trained", trunk=TRUNK, photo_trunk=TRUNK).cached(768, 768, 20)
    assert (trained.features, trained.photo_features, trained.trunk) == (7, 7, TRUNK)


# Trunks


def test_tokens_of_tiles_with_a_margin_are_those_of_the_whole_map() -> None:
    torch.manual_seed(0)
    trunk, margin = AerialTrunk(TRUNK), TRUNK.margin
    assert (TRUNK.stride, TRUNK.receptive_field, margin) == (16, 96, 48)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        whole = trunk(image, margin)
        for row in (0, 64):
            for col in (0, 64):
                size = 64 + 2 * margin
                tile = trunk(image[:, :, row : row + size, col : col + size], margin)
                assert tile.shape == (1, 4, 4, 7)
                i, j = row // 16, col // 16
                assert torch.allclose(tile, whole[:, i : i + 4, j : j + 4], atol=1e-5)


def test_the_receptive_field_is_what_a_token_depends_on() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 160, 160, requires_grad=True)
    AerialTrunk(TRUNK)(image)[0, 5, 4].square().sum().backward()
    seen = image.grad[0].abs().amax(0) > 0
    rows, columns = (seen.any(dim).nonzero().flatten() for dim in (1, 0))
    reach = (TRUNK.receptive_field - TRUNK.stride) // 2
    assert (rows.min(), rows.max()) == (5 * 16 - reach, 6 * 16 + reach - 1)
    assert (columns.min(), columns.max()) == (4 * 16 - reach, 5 * 16 + reach - 1)


def test_the_default_trunk_is_small() -> None:
    config = TrunkConfig()
    assert 1e6 < sum(parameter.numel() for parameter in AerialTrunk(config).parameters()) < 2e6
    assert (config.stride, config.receptive_field, config.margin) == (16, 448, 224)


def test_a_panorama_has_no_edge_for_the_trunk_of_photos() -> None:
    torch.manual_seed(0)
    trunk, pixels = PhotoTrunk(TRUNK), torch.randn(1, 3, 32, 128)
    ring = torch.tensor([True])
    with torch.no_grad():
        assert torch.allclose(trunk(pixels.roll(32, 3), ring), trunk(pixels, ring).roll(2, 2), atol=1e-5)
        assert not torch.allclose(trunk(pixels.roll(32, 3)), trunk(pixels).roll(2, 2), atol=1e-2)


@pytest.mark.parametrize(("side", "margin"), [(100, 0), (96, 8), (96, 48)])
def test_images_that_tokens_do_not_fill_are_refused(side: int, margin: int) -> None:
    with pytest.raises(ConfigError, match="give multiples of 16"):
        AerialTrunk(TRUNK)(torch.randn(1, 3, side, side), margin)


@pytest.mark.parametrize("changes", [{"depths": (1, 1)}, {"kernel": 4}, {"widths": ()}, {"depths": (1, 1, 100)}])
def test_trunks_that_cannot_be_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError, match=r"refine\.trunk"):
        replace(TRUNK, **changes)
