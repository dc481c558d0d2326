"""A prior excludes the cells that it gives no weight, and multiplies the others; experts search only what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jzi.decode import expert as zoom_module
from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.expert import ZoomExpert
from jzi.decode.model import ZoomModel
from jzi.decode.tile_table import TileTable
from jzi.errors import ConfigError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert, Restrictable
from jzi.locate.joint.fusion import FusedExpert
from jzi.locate.posterior import Posterior
from jzi.locate.priors.prior import PriorExpert
from jzi.locate.priors.prior_weights import near, region
from jzi.locate.priors.restricted import RestrictedExpert, restrict
from jzi.retrieve import vpr as vpr_module
from jzi.retrieve.cells import CellsExpert
from jzi.retrieve.expert import RetrievalExpert
from jzi.retrieve.heads import HeadsConfig, SimilarityHeads
from jzi.retrieve.search import CellIndex
from jzi.retrieve.vpr import VprConfig, VprExpert
from jzi.store.features.map_embeddings import ENCODED, NODATA, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.tests.prior_map import AREA, position, rectangle

WIDTH = 16
INFO = EncoderInfo("none", False, "0" * 64, WIDTH, 28, "halves")


def zoom_expert(seed: int = 0, imagery: np.ndarray | None = None, area: Pyramid = AREA) -> ZoomExpert:
    """A random decoder on a random map."""
    rng = np.random.default_rng(seed)
    sides = [area.tiles_per_side(level) for level in range(area.levels + 1)]
    imagery = np.ones(area.shape, bool) if imagery is None else imagery
    covered = [imagery.reshape(side, sides[-1] // side, side, -1).any((1, 3)) for side in sides]
    status = tuple(np.where(each, ENCODED, NODATA).astype(np.uint8) for each in covered)
    embedding = tuple(rng.normal(size=(side, side, WIDTH)).astype(np.float16) for side in sides[:-1])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = ZoomDecoder(DecoderConfig(width=WIDTH, actions=area.actions, layers=1, heads=2)).eval()
    for parameter in decoder.parameters():
        parameter.data *= 6  # or all steps would be close to uniform
    model = ZoomModel(decoder.requires_grad_(False), area, INFO, None, Path())
    return ZoomExpert(model, TileTable(MapEmbeddings(area, embedding, status)))


def cells_expert(seed: int = 1) -> CellsExpert:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = SimilarityHeads(HeadsConfig(WIDTH, features=8)).eval().requires_grad_(False)
        codes = torch.nn.functional.normalize(torch.randn(256, 8), dim=-1)
    return CellsExpert(AREA, INFO, np.ones(AREA.shape, bool), heads, codes)


def vpr_expert(seed: int = 2, photos: int = 60) -> VprExpert:
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-160, 160, (2, photos))
    embedding = torch.from_numpy(rng.normal(size=(photos, WIDTH)))
    return VprExpert(AREA, INFO, np.ones(AREA.shape, bool), embedding, x, y, VprConfig(width_m=15.0, temperature=0.1))


def retrieval_expert() -> RetrievalExpert:
    pytest.importorskip("faiss")
    from jzi.retrieve.retriever import Retriever
    from jzi.store.model_config import RetrieverModelConfig

    row, col = (values.ravel() for values in np.indices(AREA.shape))
    embedding = np.random.default_rng(3).normal(size=(256, WIDTH))
    config = object.__new__(RetrieverModelConfig)
    object.__setattr__(config, "temperature", 0.1)
    object.__setattr__(config, "pyramid", AREA)
    object.__setattr__(config, "encoder", INFO)
    return RetrievalExpert(Retriever(Path(), config), CellIndex(row, col, embedding))


EXPERTS: dict[str, Callable[[], Any]] = {
    "zoom": zoom_expert,
    "cells": cells_expert,
    "vpr": vpr_expert,
    "retrieval": retrieval_expert,
    "fused": lambda: FusedExpert([zoom_expert(), cells_expert(), vpr_expert()], [0.6, 0.5, 0.4]),
    "any": lambda: RestrictedExpert(zoom_expert(), np.ones(AREA.shape, bool)),
}
QUERY = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(4))
OPTIONS = LocateOptions("map")
#: As `OPTIONS`, but a zoom computes the probability of every cell instead of spreading the last of it evenly.
EXACT = LocateOptions("map", beams=64)


def grids(posterior: Posterior) -> np.ndarray:
    return np.stack([posterior.grid(photo) for photo in range(len(posterior))])


@pytest.mark.parametrize("name", EXPERTS)
def test_the_product_is_the_posterior_times_the_weights_where_an_expert_reaches_all_cells(name: str) -> None:
    expert = EXPERTS[name]()
    weight = np.random.default_rng(5).random(AREA.shape)
    weight[:, :9] = weight[12:] = 0.0
    product = PriorExpert(expert, weight).posterior(QUERY, EXACT)
    whole = expert.posterior(QUERY, EXACT)
    spread = (
        whole.residual[:, None, None]
        * (grids(whole) == 0)
        / np.maximum(1, (grids(whole) == 0).sum((1, 2)))[:, None, None]
    )
    expected = (grids(whole) + spread) * weight
    np.testing.assert_allclose(grids(product), expected / expected.sum((1, 2), keepdims=True), rtol=2e-3, atol=1e-7)
    assert (grids(product)[:, weight == 0] == 0).all() and (product.residual == 0).all()
    assert product.probability.sum(1) == pytest.approx(np.ones(5))
    assert (np.diff(product.probability) <= 0).all()


@pytest.mark.parametrize("name", EXPERTS)
def test_a_restricted_expert_keeps_to_its_cells_and_proportions(name: str) -> None:
    expert = EXPERTS[name]()
    assert isinstance(expert, Restrictable) == (name != "any")
    mask = np.zeros(AREA.shape, bool)
    mask[3:8, 5:14] = True
    restricted = restrict(expert, mask)
    part, whole = grids(restricted.posterior(QUERY, EXACT)), grids(expert.posterior(QUERY, EXACT)) * mask
    np.testing.assert_array_equal(restricted.cell_mask, mask)
    assert (part[:, ~mask] == 0).all()
    ratio = part.sum((1, 2)) / whole.sum((1, 2))
    np.testing.assert_allclose(part, whole * ratio[:, None, None], rtol=2e-3, atol=1e-7)
    west = np.broadcast_to(np.arange(16) < 8, AREA.shape)
    again = restrict(restricted, west)  # twice
    np.testing.assert_array_equal(again.cell_mask, mask & west)
    assert (grids(again.posterior(QUERY, EXACT))[:, :, 8:] == 0).all()


def test_the_beams_of_a_zoom_stay_inside_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    expert, mask = zoom_expert(), np.zeros(AREA.shape, bool)
    exact = grids(expert.posterior(QUERY, EXACT))
    few = LocateOptions("map", beams=2)
    unreached = grids(expert.posterior(QUERY, few)).max(0) == 0
    least = np.argsort(np.where(unreached, exact.max(0), np.inf), axis=None)[:40]
    mask[np.unravel_index(least, AREA.shape)] = True  # the least probable cells, which no beam reaches
    assert not mask[~unreached].any()
    restricted = expert.restricted(mask)
    part = restricted.posterior(QUERY, few)
    reached = grids(part)
    assert (reached[:, ~mask] == 0).all() and (reached > 0).any((1, 2)).all()
    np.testing.assert_allclose(reached[reached > 0], exact[reached > 0], rtol=1e-4)
    missed = (exact * mask * (reached == 0)).sum((1, 2))
    assert (part.residual >= missed * (1 - 1e-4)).all() and (part.residual > 0).any()
    # By default all tiles of a small region are searched, however large the map is
    monkeypatch.setattr(zoom_module, "BEAMS", 1)
    monkeypatch.setattr(zoom_module, "EXACT_CELLS", 4 * 40)
    whole = expert.restricted(mask).posterior(QUERY, OPTIONS)
    np.testing.assert_allclose(grids(whole), exact * mask, rtol=1e-4)
    assert (whole.residual == 0).all()
    assert expert.table.search_mask is expert.table.child_mask  # the original is as before


def test_vpr_searches_the_photos_of_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vpr_module, "NEIGHBOURS", 3)
    expert, mask = vpr_expert(), np.zeros(AREA.shape, bool)
    mask[:3, :3] = True
    few = grids(expert.posterior(QUERY, OPTIONS)) * mask
    assert (few.sum((1, 2)) == 0).any()  # no neighbour of some photo is there
    assert (grids(expert.restricted(mask).posterior(QUERY, OPTIONS)).sum((1, 2)) > 0).all()
    nowhere = replace(expert.config, width_m=1e-3)
    empty = VprExpert(
        AREA, INFO, expert.cell_mask, expert.embedding[:1], np.array([150.0]), np.array([-150.0]), nowhere
    )
    product = PriorExpert(FusedExpert([empty], [1.0]), mask.astype(float)).posterior(QUERY, OPTIONS)
    np.testing.assert_allclose(grids(product), np.broadcast_to(mask / 9, (5, 16, 16)))


class Nowhere:
    """An expert that gives one cell all the probability."""

    name, rules_out, area, encoder = "nowhere", False, AREA, INFO
    cell_mask = np.ones(AREA.shape, bool)

    def posterior(self, query: torch.Tensor, options: LocateOptions) -> Posterior:
        return Posterior.from_cells(AREA, np.array([15]), np.array([15]), np.ones((len(query), 1)))

    def uncalibrated(self) -> None:
        return None


def test_where_an_expert_gives_nothing_the_prior_remains() -> None:
    weight = np.zeros(AREA.shape)
    weight[2, 3], weight[4, 5] = 1.0, 3.0
    product = PriorExpert(Nowhere(), weight).posterior(QUERY, OPTIONS)
    assert product.grid()[2, 3] == pytest.approx(0.25) and product.grid()[4, 5] == pytest.approx(0.75)


def test_a_prior_of_many_cells_keeps_a_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    expert, weight = zoom_expert(), np.random.default_rng(5).random(AREA.shape)
    weight[:, 8:] = 0.0
    options = LocateOptions("map", beams=4)
    dense = PriorExpert(expert, weight).posterior(QUERY, options)
    monkeypatch.setattr("jzi.locate.priors.prior.MAX_CELLS", 10)
    sparse = PriorExpert(expert, weight).posterior(QUERY, options)
    assert (sparse.residual > 0).any() and (grids(sparse)[:, :, 8:] == 0).all()
    np.testing.assert_allclose(sparse.probability.sum(1) + sparse.residual, 1)
    reached = grids(sparse) > 0
    np.testing.assert_allclose(grids(sparse)[reached], grids(dense)[reached])


def test_greedy_with_a_prior_is_the_most_probable_cell() -> None:
    expert = PriorExpert(zoom_expert(), near(AREA, *position(100, 100), 50.0))
    greedy, best = (expert.posterior(QUERY, LocateOptions(each)) for each in ("greedy", "map"))
    assert greedy.row.shape == (5, 1) and (greedy.row[:, 0] == best.row[:, 0]).all()
    assert (greedy.probability[:, 0] == best.probability[:, 0]).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weight: weight * 0, "no cell with imagery"),
        (lambda weight: -weight, "0 or more"),
        (lambda weight: weight * np.nan, "finite"),
        (lambda weight: weight / 0, "finite"),
        (lambda weight: weight[1:], "a weight for each of"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_weights_that_are_none_are_refused(change: Callable, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        PriorExpert(zoom_expert(), change(np.ones(AREA.shape)))


def test_a_region_without_imagery_is_refused() -> None:
    imagery = np.ones(AREA.shape, bool)
    imagery[:, 8:] = False
    expert: Expert = zoom_expert(imagery=imagery)
    with pytest.raises(ConfigError, match="no cell with imagery"):
        PriorExpert(expert, region(AREA, [rectangle(40, 40, 80, 80)]))
    partly = PriorExpert(expert, region(AREA, [rectangle(-70, 42, 70, 58)]))
    assert partly.cell_mask.any() and not partly.cell_mask[:, 8:].any()
    assert PriorExpert(expert, np.full(AREA.shape, 1e308)).weight.sum() == pytest.approx(1)
