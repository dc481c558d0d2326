"""Training a refiner with trunks from images: windows are sampled from the tokens that the cache will have."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from jzi.cluster.sent import SentNetwork
from jzi.encode.detail import encode_detail
from jzi.encode.encode_map import encode_map
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.rasters.imagery import Imagery
from jzi.refine.config import RefineConfig, TrunkConfig
from jzi.refine.info import RefinerInfo
from jzi.refine.networks.cached import CachedRefiner
from jzi.refine.networks.files import load_refiner
from jzi.refine.networks.producer import TrunkTokens, trunk_pixels
from jzi.refine.photos import normalised
from jzi.refine.windows.tokens import WindowTokens
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.photo_table import read_photo_table
from jzi.train.config.refiner import RefinerTrainingConfig
from jzi.train.refine.refine_augment import Symmetry
from jzi.train.refine.refine_data import Pairs, prepare, window_tokens
from jzi.train.refine.refine_images import ImageSource, TokenGrid
from jzi.train.refine.refine_pairs import draw_windows
from jzi.train.refine.refiner import train_refiner

TRUNK = TrunkConfig(widths=(8, 12), depths=(1, 1), kernel=3, features=6)
REFINE = RefineConfig(
    source="trained", window_m=40.0, side=4, bins=8, width=16, blocks=1, channels=(16, 16, 8, 8), dropout=0.0,
    trunk=TRUNK, photo_trunk=TRUNK,
)  # fmt: skip
QUICK = RefinerTrainingConfig(epochs=2, batch_size=8, learning_rate=1e-3)


@pytest.fixture
def source(town_raster: Path, photo_folder: Path, pyramid: Pyramid) -> ImageSource:
    table = read_photo_table(photo_folder, split_by="photo").inside(pyramid)
    return ImageSource.load(Imagery([str(town_raster)], pyramid), table, REFINE, QUICK)


def refiner_of(source: ImageSource) -> CachedRefiner:
    torch.manual_seed(0)
    return CachedRefiner(source.network(REFINE)).eval()


def test_windows_are_sampled_from_the_tokens_that_the_cache_has(
    source: ImageSource, encoder: Encoder, pyramid: Pyramid, tmp_path: Path
) -> None:
    refiner = refiner_of(source)
    cache = FeatureCache.create(str(tmp_path / "c.zarr"), pyramid, encoder.info, source.imagery.info())
    encode_map(cache, encoder, source.imagery)
    info = RefinerInfo(kind="cached", config=source.config, window_m=REFINE.window_m)
    sent = pickle.loads(pickle.dumps(SentNetwork.of(TrunkTokens(refiner))))  # as to the nodes of a cluster
    encode_detail(cache, sent.load(), source.imagery, trunk_pixels(info, TRUNK.stride, pyramid))
    windows = draw_windows(source.train, pyramid, REFINE.window_m, source.config.pixels, "cell", (0,))
    inside = np.flatnonzero((abs(windows.x) < 370) & (abs(windows.y) < 370))
    windows = windows.select(inside)
    expected, mask = WindowTokens(cache).read(windows, REFINE.side)
    read = source.read(source.train[inside], windows)
    with torch.inference_mode():
        pixels = normalised(read.windows.permute(0, 2, 3, 1).numpy())
        tokens = window_tokens(refiner, pixels, read.grid).numpy()
    assert mask.all() and read.mask.all()
    step = cache.detail.projection.scale
    assert (abs(tokens - expected) <= step + 0.02 * abs(expected).max()).all()
    assert np.corrcoef(tokens.ravel(), expected.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 3])
def test_a_flipped_and_turned_window_is_sampled_at_the_same_places(
    source: ImageSource, monkeypatch: pytest.MonkeyPatch, flipped: bool, turns: int
) -> None:
    photos = source.train[:3]
    windows = draw_windows(photos, source.area, REFINE.window_m, source.config.pixels, "cell", (0,))
    pairs = Pairs.read(source, photos, windows)
    symmetry = Symmetry(torch.tensor([flipped] * 3), torch.tensor([turns] * 3))
    monkeypatch.setattr(Symmetry, "draw", lambda *_, **__: symmetry)
    monkeypatch.setattr("jzi.train.refine.refine_data.jitter_images", lambda images, *_: images)
    known = torch.ones(3, dtype=torch.bool)
    plain, moved = (
        prepare(pairs, 8, known, torch.Generator(), images=True, augment=augment) for augment in (False, True)
    )

    def sample(batch) -> torch.Tensor:
        return torch.nn.functional.grid_sample(batch.windows, batch.grid, align_corners=False)

    assert torch.allclose(sample(moved), symmetry.windows(sample(plain), 2, 3), atol=1e-4)


def test_the_part_of_a_window_covers_it_with_a_token_to_spare(pyramid: Pyramid) -> None:
    grid = TokenGrid.of(pyramid, REFINE.cached(1, 1, 12), REFINE.window_m)
    for west in np.linspace(-50, 50, 23):
        bounds, places = grid.part(west, 20.0, 40.0)
        assert abs(places).max() <= 1 - 1 / grid.count + 1e-6  # between the centres of tokens
        edge = grid.margin * grid.token / grid.stride
        centre = (bounds.west + edge + (bounds.east - edge)) / 2
        reach = (bounds.east - bounds.west) / 2 - edge
        assert centre + places[0, 0, 0] * reach == pytest.approx(west + 5.0, abs=1e-3)


def test_masked_where_the_map_ends(source: ImageSource) -> None:
    photos = source.train[:1]
    windows = draw_windows(photos, source.area, REFINE.window_m, source.config.pixels, "cell", (0,))
    at_edge = replace(windows, x=np.array([source.area.bounds.east]), y=np.array([0.0]))
    mask = source.read(photos, at_edge).mask[0]
    assert mask[:, :2].all() and not mask[:, 2:].any()


def test_the_trunks_are_trained_too(source: ImageSource, tmp_path: Path) -> None:
    info = RefinerInfo(kind="cached", config=source.config, window_m=REFINE.window_m)
    train_refiner(
        source,
        partial(refiner_of, source),
        tmp_path,
        REFINE,
        QUICK,
        info,
        fingerprint=source.fingerprint,
        progress=False,
    )
    trained, before = load_refiner(tmp_path)[0].state_dict(), refiner_of(source).state_dict()
    for trunk in ("aerial_trunk", "photo_trunk"):
        assert any(not torch.equal(trained[name], before[name]) for name in before if name.startswith(trunk))
