"""A small map is searched whole: as a beam of its width finds, but only tiles that matter are expanded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.exhaustive import SPREAD, zoom_everywhere
from jzi.decode.expert import ZoomExpert
from jzi.decode.model import ZoomModel
from jzi.decode.packed import PackedDecoder
from jzi.decode.search import BeamSearchResult, zoom
from jzi.decode.tile_table import TileTable
from jzi.errors import ModelError
from jzi.locate.answer.location import LocateOptions
from jzi.store.features.map_embeddings import ENCODED, NODATA, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.tests.conftest import decided_decoder

PYRAMID = Pyramid.around(48.2, 16.37, 320.0, grid=2, levels=4)  # 16 x 16 cells of 20 m
INFO = EncoderInfo("none", False, "0" * 64, 16, 28, "halves")


@pytest.fixture(scope="module")
def table() -> TileTable:
    rng = np.random.default_rng(0)
    sides = [PYRAMID.tiles_per_side(level) for level in range(5)]
    embedding = tuple(rng.normal(size=(n, n, 16)).astype(np.float16) for n in sides[:-1])
    cells = rng.random((16, 16)) < 0.8
    cells[:4, 4:8] = False  # a tile without imagery
    status = [cells]
    while len(status[-1]) > 1:
        n = len(status[-1]) // 2
        status.append(status[-1].reshape(n, 2, n, 2).any((1, 3)))
    return TileTable(
        MapEmbeddings(
            PYRAMID, embedding, tuple(np.where(each, ENCODED, NODATA).astype(np.uint8) for each in status[::-1])
        )
    )


@pytest.fixture(scope="module")
def decoder() -> ZoomDecoder:
    return decided_decoder(DecoderConfig(width=16, actions=4, layers=2, heads=2))


@pytest.fixture(scope="module")
def query() -> Tensor:
    return torch.randn(40, 16, generator=torch.Generator().manual_seed(1))


def by_path(result: BeamSearchResult) -> Tensor:
    """(query, path) probability of every cell, in the order of paths."""
    key = (result.paths * torch.tensor([64, 16, 4, 1])).sum(-1)
    return torch.zeros(len(key), 256).scatter(1, key, result.log_probability.sum(-1).exp())


@pytest.fixture(scope="module")
def exact(decoder, table, query) -> Tensor:
    return by_path(zoom(decoder, table, query, 64, cells=256))


def test_without_spread_it_finds_what_a_beam_as_wide_as_the_map_does(decoder, table, query, exact) -> None:
    temperature = torch.tensor([1.5, 1.0, 0.7, 1.0])
    torch.testing.assert_close(by_path(zoom_everywhere(decoder, table, query, spread=0.0)), exact)
    hot = zoom_everywhere(decoder, table, query, spread=0.0, temperature=temperature)
    torch.testing.assert_close(
        by_path(hot), by_path(zoom(decoder, table, query, 64, cells=256, temperature=temperature))
    )
    assert (hot.log_probability.sum(-1).exp().diff() <= 0).all()  # the most probable first


def test_what_is_spread_is_bounded_and_the_rest_exact(decoder, table, query, exact) -> None:
    found = by_path(zoom_everywhere(decoder, table, query, spread=0.05))
    torch.testing.assert_close(found.sum(1), torch.ones(len(query)))
    distance = (found - exact).abs().sum(1) / 2
    assert (distance <= 0.05 + 1e-5).all() and distance.max() > 1e-3
    assert ((found > 0) == (exact > 0)).all()  # cells with imagery, and no others
    assert ((found - exact).abs().view(-1, 4) < 1e-6).all(1).float().mean() > 0.1


def test_cells_below_a_tile_that_is_not_expanded_are_equally_probable(decoder, table, query, exact) -> None:
    found = by_path(zoom_everywhere(decoder, table, query, spread=0.3)).view(-1, 64, 4)
    changed = ((found - exact.view(-1, 64, 4)).abs() > 1e-5).any(-1)
    for children in found[changed]:
        present = children[children > 0]
        torch.testing.assert_close(present, present[:1].expand_as(present))
    assert changed.any()


@pytest.mark.parametrize("packed", [False, True])
def test_tiles_that_do_not_matter_are_not_expanded(decoder, table, query, monkeypatch, packed) -> None:
    used = PackedDecoder(decoder, steps=4) if packed else decoder
    rows = []
    step = used.step
    monkeypatch.setattr(used, "step", lambda action, *rest: rows.append(len(action)) or step(action, *rest))
    few = zoom_everywhere(used, table, query, spread=0.05)
    some = sum(rows)
    rows.clear()
    every = zoom_everywhere(used, table, query, spread=0.0)
    assert some < 0.9 * sum(rows)
    assert (few.paths[:, 0] == every.paths[:, 0]).all()


def test_the_expert_searches_small_maps_whole_and_a_given_beam_as_told(decoder, table, query) -> None:
    model = ZoomModel(decoder, PYRAMID, INFO, None, Path(), None)
    expert = ZoomExpert(model, table)
    whole, beam = (expert.posterior(query, LocateOptions(beams=beams)) for beams in (None, 64))
    assert (whole.residual == 0).all() and whole.row.shape == beam.row.shape
    near = by_path(zoom_everywhere(decoder, table, query)).numpy()
    np.testing.assert_allclose(np.sort(whole.probability), np.sort(near), atol=1e-6)
    assert 0 < np.abs(whole.probability - beam.probability).sum(1).max() <= 2 * SPREAD
    restricted = expert.restricted(table.cell_mask() & (np.arange(16) < 8))
    assert (restricted.posterior(query, LocateOptions()).col[:, 0] < 8).all()


@pytest.mark.parametrize("options", [LocateOptions(), LocateOptions("greedy"), LocateOptions(beams=3)])
def test_probabilities_that_overflow_are_refused(table, query, options: LocateOptions) -> None:
    decoder = decided_decoder(DecoderConfig(width=16, actions=4, layers=2, heads=2))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter *= 1e25
    expert = ZoomExpert(ZoomModel(decoder.requires_grad_(False), PYRAMID, INFO, None, Path()), table)
    with pytest.raises(ModelError, match="the expert zoom computed probabilities that are not finite"):
        expert.posterior(query, options)
