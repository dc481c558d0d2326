"""The look-ahead head; without it, the decoder is the paper's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.model import ZoomModel
from jzi.decode.search import zoom
from jzi.decode.tile_table import TileTable
from jzi.errors import CacheError
from jzi.store.map_embeddings import ENCODED, NODATA, MapEmbeddings
from jzi.store.pyramid import Pyramid
from jzi.train.zoom import make_decoder

WIDTH = 16
AHEAD = ("children", "cells")


@pytest.fixture
def small() -> Pyramid:
    return Pyramid.around(48.2, 16.37, 160.0, grid=2, levels=3)


@pytest.fixture
def features(small: Pyramid) -> MapEmbeddings:
    """A map with embeddings of its cells; no imagery in the south-east quarter, and in some cells elsewhere."""
    rng = np.random.default_rng(0)
    has_imagery = rng.random((8, 8)) < 0.7
    has_imagery[::2, ::2] = True
    has_imagery[4:, 4:] = False
    embedding, status = [], []
    for level in range(4):
        side = small.tiles_per_side(level)
        covered = has_imagery.reshape(side, 8 // side, side, 8 // side).any((1, 3))
        embedding.append(np.where(covered[..., None], rng.normal(size=(side, side, WIDTH)), np.nan).astype(np.float16))
        status.append(np.where(covered, ENCODED, NODATA).astype(np.uint8))
    return MapEmbeddings(small, tuple(embedding[:3]), tuple(status), embedding[3])


def make(look_ahead: str, seed: int = 0, **options) -> ZoomDecoder:
    """A decoder far from its initialisation, where the look-ahead head is zero."""
    torch.manual_seed(seed)
    decoder = ZoomDecoder(
        DecoderConfig(width=WIDTH, actions=4, layers=2, heads=2, look_ahead=look_ahead, **options)
    ).eval()
    for parameter in decoder.parameters():
        parameter.data = parameter.data * 3 + 0.1 * torch.randn_like(parameter)
    return decoder


def ways(features: MapEmbeddings, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """(query, feature) photos, and (query, step) paths to cells with imagery."""
    row, col = np.nonzero(features.status[3] == ENCODED)
    chosen = np.random.default_rng(1).integers(len(row), size=count)
    query = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))
    return query, torch.from_numpy(features.pyramid.cell_to_path(row[chosen], col[chosen]))


def test_off_is_the_papers_decoder_to_the_last_bit_and_by_the_same_name() -> None:
    plain, ahead = make("none"), make("children")
    extra = set(ahead.state_dict()) - set(plain.state_dict())
    assert extra and all(name.startswith("look_ahead.") for name in extra)
    assert set(plain.config.to_dict()) == {"width", "actions", "layers", "heads", "dropout"}


@pytest.mark.parametrize("look_ahead", AHEAD)
def test_what_lies_below_a_tile_is_looked_up_by_key(features, small, look_ahead) -> None:
    table = TileTable(features)
    grids = [np.nan_to_num(grid.astype(np.float32)) for grid in (*features.embedding, features.cells)]
    for level in range(3):
        side = small.tiles_per_side(level)
        row, col = (each.ravel() for each in np.meshgrid(range(side), range(side), indexing="ij"))
        found = table.children(table.index(level, torch.from_numpy(row), torch.from_numpy(col)), look_ahead)
        assert found is not None and found.shape == (side**2, 4, WIDTH)
        if level == 2 and look_ahead == "children":
            assert not found.any()
            continue
        for tile in range(side**2):
            children = grids[level + 1][2 * row[tile] :, 2 * col[tile] :][:2, :2]
            assert (found[tile].numpy() == children.reshape(4, WIDTH)).all()


@pytest.mark.parametrize("look_ahead", AHEAD)
def test_searching_step_by_step_gives_the_probabilities_of_one_pass(features, look_ahead) -> None:
    table, decoder = TileTable(features), make(look_ahead)
    query, _ = ways(features)
    zooms = zoom(decoder, table, query, beams=64)
    assert zooms.log_probability.sum(-1).exp().sum(1) == pytest.approx(1, abs=1e-4)
    for beam in (0, 5, 20):
        paths = zooms.paths[:, beam].clone()  # search returns inference tensors
        tiles = table.tiles_along(paths.numpy())
        logits = decoder(query, table.embedding[tiles].float(), paths, table.children(tiles, look_ahead))
        steps = logits.masked_fill(~table.child_mask[tiles], -torch.inf).log_softmax(-1).gather(-1, paths[..., None])
        torch.testing.assert_close(zooms.log_probability[:, beam], steps[..., 0].detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("look_ahead", AHEAD)
def test_a_child_is_scored_by_what_it_looks_like(features, look_ahead) -> None:
    table, decoder = TileTable(features), make(look_ahead)
    query, actions = ways(features)
    tiles = table.tiles_along(actions.numpy())
    children = table.children(tiles, look_ahead)
    before = decoder(query, table.embedding[tiles].float(), actions, children)
    children = children.clone()
    children[:, 1, 2] += 1.0
    changed = decoder(query, table.embedding[tiles].float(), actions, children) != before
    assert changed[:, 1, 2].all() and changed.sum() == len(query)


def test_a_head_beside_the_papers_starts_as_if_it_were_not_there(features) -> None:
    table, plain = TileTable(features), make("none")
    query, actions = ways(features)
    tiles = table.tiles_along(actions.numpy())
    embedding = table.embedding[tiles].float()
    start = ZoomModel(plain, features.pyramid, None, None, None)  # type: ignore[arg-type]
    ahead = make_decoder(replace(plain.config, look_ahead="cells"), start).eval()
    assert torch.equal(
        ahead(query, embedding, actions, table.children(tiles, "cells")), plain(query, embedding, actions)
    )
    kept = make_decoder(plain.config, replace(start, decoder=ahead))  # look_ahead is part of the architecture
    assert kept.config.look_ahead == "cells"


def test_cells_that_are_not_there_are_refused(features) -> None:
    table = TileTable(replace(features, cells=None))
    with pytest.raises(CacheError, match="encode-map --cells"):
        table.children(torch.tensor([0]), "cells")
