"""Search returns the decoder's probabilities and enters tiles with imagery only."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.search import zoom
from jzi.decode.tile_table import TileTable
from jzi.store.features.map_embeddings import ENCODED, NODATA, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid
from jzi.tests.conftest import decided_decoder


def random_map(pyramid: Pyramid, width: int = 16, seed: int = 0) -> MapEmbeddings:
    rng = np.random.default_rng(seed)
    side = pyramid.tiles_per_side
    embedding = [rng.normal(size=(side(k), side(k), width)).astype(np.float16) for k in range(pyramid.levels)]
    status = [np.full((side(k), side(k)), ENCODED, np.uint8) for k in range(pyramid.levels + 1)]
    return MapEmbeddings(pyramid, tuple(embedding), tuple(status))


@pytest.fixture
def small() -> Pyramid:
    return Pyramid.around(48.2, 16.37, 160.0, grid=2, levels=3)


@pytest.fixture
def decoder() -> ZoomDecoder:
    return decided_decoder(DecoderConfig(width=16, actions=4, layers=2, heads=2))


@pytest.fixture
def query() -> torch.Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def probability_of(decoder: ZoomDecoder, table: TileTable, query: torch.Tensor, path: tuple[int, ...]) -> torch.Tensor:
    """(query,) by the chain rule, teacher-forced, independent of search."""
    paths = np.array([path] * len(query))
    tiles = table.tiles_along(paths)
    logits = decoder(query, table.embedding[tiles].float(), torch.from_numpy(paths))
    steps = logits.masked_fill(~table.child_mask[tiles], -torch.inf).log_softmax(-1)
    return steps.gather(-1, torch.from_numpy(paths)[..., None]).sum((1, 2)).exp()


def test_a_full_beam_holds_every_cell_with_its_probability(decoder, query, small) -> None:
    table = TileTable(random_map(small))
    zooms = zoom(decoder, table, query, beams=64)
    found = zooms.log_probability.sum(-1).exp()
    assert zooms.paths.shape == (6, 64, 3)
    torch.testing.assert_close(found.sum(1), torch.ones(6), atol=1e-5, rtol=0)
    for index, beam in itertools.product((0, 3), (0, 17, 63)):
        path = tuple(zooms.paths[index, beam].tolist())
        expected = probability_of(decoder, table, query[index : index + 1], path)[0]
        torch.testing.assert_close(found[index, beam], expected, atol=1e-6, rtol=1e-4)


def test_beams_come_best_first_and_the_best_is_the_most_probable_cell(decoder, query, small) -> None:
    table = TileTable(random_map(small))
    zooms = zoom(decoder, table, query, beams=64)
    probability = zooms.log_probability.sum(-1)
    assert (probability.diff(dim=1) <= 1e-6).all()
    cells = list(itertools.product(range(4), repeat=3))
    every = torch.stack([probability_of(decoder, table, query, cell) for cell in cells], 1)
    assert [tuple(path) for path in zooms.paths[:, 0].tolist()] == [cells[best] for best in every.argmax(1)]


def test_one_beam_takes_the_most_probable_child_at_every_step(decoder, query, small) -> None:
    table = TileTable(random_map(small))
    zooms = zoom(decoder, table, query)
    paths = zooms.paths[:, 0].numpy()
    logits = decoder(query, table.embedding[table.tiles_along(paths)].float(), torch.from_numpy(paths))
    assert (logits.argmax(-1).numpy() == paths).all()


@pytest.mark.parametrize("beams", [1, 3, 64])
def test_search_never_enters_a_tile_without_imagery(decoder, query, small, beams: int) -> None:
    features = random_map(small)
    rng = np.random.default_rng(5)
    features.status[3][:] = np.where(rng.random((8, 8)) < 0.7, NODATA, ENCODED)
    features.status[3][0, 0] = ENCODED
    for level in (2, 1):
        below = features.status[level + 1]
        side = len(below) // 2
        covered = (below == ENCODED).reshape(side, 2, side, 2).any((1, 3))
        features.status[level][:] = np.where(covered, ENCODED, NODATA)
        features.embedding[level][~covered] = np.nan
    zooms = zoom(decoder, TileTable(features), query, beams)
    probability = zooms.log_probability.sum(-1).exp().numpy()
    row, col = small.path_to_tile(zooms.paths.numpy())
    assert not np.isnan(probability).any()
    assert (features.status[3][row, col][probability > 0] == ENCODED).all()
    assert (probability[:, 0] > 0).all()
    if beams == 64:
        assert ((probability > 0).sum(1) == (features.status[3] == ENCODED).sum()).all()
        np.testing.assert_allclose(probability.sum(1), 1, atol=1e-5)


def test_the_table_looks_tiles_up_by_key(small) -> None:
    features = random_map(small)
    table = TileTable(features)
    paths = small.paths(*small.unproject([10.0, -70.0], [33.0, -5.0]))
    rows, cols = small.input_tiles(paths)
    for level in range(small.levels):
        expected = features.embedding[level][rows[:, level], cols[:, level]]
        assert (table.embedding[table.tiles_along(paths)[:, level]].numpy() == expected).all()
