"""Maps that are read where they are needed: the same answers as in memory, within bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from safetensors.torch import load_file, save_file

from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.expert import ZoomExpert
from jzi.decode.model import ZoomModel
from jzi.decode.search import zoom
from jzi.decode.tile_table import TileTable
from jzi.encode.device import _container_bytes, buffer_bytes
from jzi.errors import CacheError, ConfigError, ModelError
from jzi.export.heatmap import write_heatmap
from jzi.export.overlay import heat_overlay
from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.inside import Hidden
from jzi.locate.joint.sparse import fuse_sparse, smooth_sparse
from jzi.locate.posterior import Posterior
from jzi.retrieve.cells import CellsExpert
from jzi.retrieve.dense import DenseExpert
from jzi.retrieve.heads import HeadsConfig, SimilarityHeads
from jzi.retrieve.levels import LevelsExpert
from jzi.retrieve.paged import PagedCellsExpert, PagedDenseExpert, PagedLevelsExpert
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.disk.memory import memory_bytes
from jzi.store.features.map_embeddings import ENCODED, NODATA, MapEmbeddings
from jzi.store.features.map_pages import PagedMap
from jzi.store.features.paged_grids import ChunkedGrid
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo

WIDTH = 8
ENCODER = EncoderInfo("made", False, "1" * 64, WIDTH, 14, "whole")
PYRAMID = Pyramid.around(48.2, 16.37, 2560.0, levels=4)  # chunks of 1, 4, 16 and 16 tiles to a side


@pytest.fixture(scope="module")
def features() -> MapEmbeddings:
    """A random map, a seventh of whose tiles have no imagery."""
    rng = np.random.default_rng(0)
    status, embedding = [], []
    for level in range(PYRAMID.levels + 1):
        side = PYRAMID.tiles_per_side(level)
        status.append(
            np.where(rng.random((side, side)) < 1 / 7 if level else [[False]], NODATA, ENCODED).astype(np.uint8)
        )
        values = rng.normal(size=(side, side, WIDTH)).astype(np.float16)
        values[status[-1] == NODATA] = np.nan
        embedding.append(values)
    return MapEmbeddings(PYRAMID, tuple(embedding[:-1]), tuple(status))


@pytest.fixture(scope="module")
def cache(features: MapEmbeddings, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """`features` in a cache."""
    path = tmp_path_factory.mktemp("cache") / "features.zarr"
    cache = FeatureCache.create(path, PYRAMID, ENCODER)
    for level in range(PYRAMID.levels + 1):
        side = cache.tiles.chunk_side(level)
        for row in range(0, len(features.status[level]), side):
            for col in range(0, len(features.status[level]), side):
                window = slice(row, row + side), slice(col, col + side)
                values = features.embedding[level][window] if level < PYRAMID.levels else None
                cache.tiles.write_chunk(level, row, col, features.status[level][window], values)
    cache.close()
    return FeatureCache.open(path)


@pytest.fixture(scope="module")
def file(features: MapEmbeddings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`features` as the file of a model folder."""
    path = tmp_path_factory.mktemp("model") / "map.safetensors"
    features.save(path)
    return path


@pytest.fixture(params=["cache", "file"])
def paged(request: pytest.FixtureRequest, cache: FeatureCache, file: Path) -> PagedMap:
    """The map of the cache, and of the file, within a tenth of its size."""
    if request.param == "cache":
        return PagedMap.of_cache(cache, 1500)
    return PagedMap.of_file(file, PYRAMID, WIDTH, 1500)


def expert(table: TileTable) -> ZoomExpert:
    torch.manual_seed(0)
    decoder = ZoomDecoder(DecoderConfig(width=WIDTH, layers=2, heads=2, actions=PYRAMID.actions)).eval()
    return ZoomExpert(ZoomModel(decoder, PYRAMID, ENCODER, None, Path()), table)


def test_a_paged_table_holds_what_the_table_in_memory_holds(features: MapEmbeddings, paged: PagedMap) -> None:
    table, other = TileTable(features), TileTable(paged)
    tiles = torch.randint(PYRAMID.tile_count, (50, 7), generator=torch.Generator().manual_seed(1))
    assert torch.equal(table.embedding[tiles], other.embedding[tiles])
    assert torch.equal(table.child_mask[tiles], other.child_mask[tiles])
    assert torch.equal(table.embedding[5:], other.embedding[5:])
    assert len(other.embedding) == PYRAMID.tile_count


@pytest.mark.parametrize("beams", [1, 5, 64])
def test_search_finds_the_same_paths_with_the_same_probabilities(
    features: MapEmbeddings, paged: PagedMap, beams: int
) -> None:
    query = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(2))
    decoder = expert(TileTable(features)).model.decoder
    mine, theirs = (zoom(decoder, TileTable(each), query, beams) for each in (paged, features))
    assert torch.equal(mine.paths, theirs.paths)
    assert torch.equal(mine.log_probability, theirs.log_probability)
    assert torch.equal(mine.dropped, theirs.dropped)


def test_a_search_of_a_district_is_the_same(features: MapEmbeddings, paged: PagedMap) -> None:
    district = np.zeros(PYRAMID.shape, bool)
    district[30:61, 17:90] = True
    query = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(3))
    mine, theirs = (expert(TileTable(each)).restricted(district) for each in (paged, features))
    assert np.array_equal(mine.cell_mask, theirs.cell_mask)
    assert mine._restricted_beams == theirs._restricted_beams
    one, other = (each.posterior(query, LocateOptions("map")) for each in (mine, theirs))
    assert np.array_equal(one.row, other.row)
    assert np.array_equal(one.probability, other.probability)
    assert np.array_equal(one.residual, other.residual)


def test_the_cell_mask_is_read_where_it_is_asked_for(features: MapEmbeddings, paged: PagedMap) -> None:
    mask, whole = paged.cell_mask, features.status[-1] != NODATA
    row, col = np.array([[3, 200], [-1, 5]]), np.array([[9, 255], [4, -2]])
    assert np.array_equal(mask[row, col], whole[row, col])
    assert np.array_equal(mask[100:133], whole[100:133])
    assert mask.sum() == whole.sum()
    assert np.array_equal(mask & whole, whole)
    assert np.array_equal(np.asarray(mask), whole)
    assert np.array_equal(~mask, ~whole)


def test_a_map_is_written_by_strips_as_in_memory(
    features: MapEmbeddings, paged: PagedMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jzi.store.features.map_pages.STRIP_BYTES", 3000)
    paged.save(tmp_path / "map.safetensors")
    written = MapEmbeddings.load(tmp_path / "map.safetensors", PYRAMID, WIDTH)
    for mine, theirs in zip(
        (*written.embedding, *written.status), (*features.embedding, *features.status), strict=True
    ):
        assert np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f")


def test_chunks_are_read_once_while_they_fit(cache: FeatureCache) -> None:
    array = cache.array("map/3/embedding")  # 16 chunks of 4 kB
    grid = ChunkedGrid(array, 16 * 16 * 16 * WIDTH * 2, cache.path, "map/3/embedding")
    row, col = np.divmod(np.arange(64 * 64), 64)
    for _ in range(3):
        assert np.array_equal(grid.gather(row, col), np.asarray(array[:]).reshape(-1, WIDTH), equal_nan=True)
    assert grid.reads == 16


def test_the_chunks_used_last_are_kept(cache: FeatureCache) -> None:
    grid = ChunkedGrid(cache.array("map/3/embedding"), 2 * 16 * 16 * WIDTH * 2, cache.path, "map/3/embedding")
    for chunk in (0, 1, 0, 2, 0):  # 2 takes the place of 1
        grid.gather(np.array([0]), np.array([16 * chunk]))
    assert grid.reads == 3
    grid.gather(np.array([0]), np.array([16]))
    assert grid.reads == 4


def test_a_missing_tile_is_a_sentence(tmp_path: Path, features: MapEmbeddings) -> None:
    path = tmp_path / "features.zarr"
    FeatureCache.create(path, PYRAMID, ENCODER).close()
    table = TileTable(PagedMap.of_cache(FeatureCache.open(path), 10**6))
    with pytest.raises(CacheError, match="lacks tiles, such as level 2, row 0, column 7"):
        table.embedding[torch.tensor([8 + 16])]


def test_a_value_that_is_not_finite_is_a_sentence(tmp_path: Path, features: MapEmbeddings) -> None:
    embedding = [each.copy() for each in features.embedding]
    embedding[2][5, 6] = np.inf
    status = [each.copy() for each in features.status]
    status[2][5, 6] = ENCODED
    MapEmbeddings(PYRAMID, tuple(embedding), tuple(status)).save(tmp_path / "map.safetensors")
    paged = PagedMap.of_file(tmp_path / "map.safetensors", PYRAMID, WIDTH, 1000)
    with pytest.raises(ModelError, match="level 2, row 5, column 6 that are not finite"):
        paged.tiles(2, np.array([1, 5]), np.array([1, 6]))


def dense_expert(kind: str, features: MapEmbeddings, path: Path) -> tuple[DenseExpert, PagedDenseExpert]:
    """An expert with random codes in memory, and the one that reads its file."""
    torch.manual_seed(4)
    mask = features.status[-1] != NODATA
    if kind == "cells":
        heads = SimilarityHeads(HeadsConfig(WIDTH, scales=PYRAMID.levels, hidden=8, features=4)).eval()
        codes = torch.nn.functional.normalize(torch.randn(int(mask.sum()), 4), dim=-1).half()
        expert: DenseExpert = CellsExpert(PYRAMID, ENCODER, mask, heads, codes)
    else:
        heads = SimilarityHeads(HeadsConfig(WIDTH, hidden=8, features=4, spaces=PYRAMID.levels)).eval()
        sides = [PYRAMID.tiles_per_side(level) for level in range(1, PYRAMID.levels + 1)]
        codes = [torch.nn.functional.normalize(torch.randn(side**2, 4), dim=-1).half() for side in sides]
        expert = LevelsExpert(PYRAMID, ENCODER, [each != NODATA for each in features.status[1:]], heads, codes)
    expert.save(path)
    paged = PagedCellsExpert if kind == "cells" else PagedLevelsExpert
    return expert, paged.load(path, expert.entries(), PYRAMID, ENCODER, mask, "cpu")


@pytest.fixture(params=["cells", "levels"])
def experts(
    request: pytest.FixtureRequest, features: MapEmbeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[DenseExpert, PagedDenseExpert]:
    """An expert in memory, and one that reads strips of 2048 cells, 8 rows."""
    monkeypatch.setattr("jzi.retrieve.paged.STRIP_CELLS", 2048)
    return dense_expert(request.param, features, tmp_path / "expert.safetensors")


def check_same(one: Posterior, other: Posterior) -> None:
    """Check that two posteriors are the same but for the rounding of sums."""
    assert one.probability.shape == other.probability.shape
    np.testing.assert_allclose(one.probability, other.probability, rtol=1e-5)
    np.testing.assert_allclose(one.residual, other.residual, atol=1e-6)
    for photo in range(len(one)):
        np.testing.assert_allclose(one.grid(photo), other.grid(photo), rtol=1e-5, atol=1e-5 * one.probability.max())


def test_an_expert_that_reads_its_codes_gives_the_same_probabilities(
    experts: tuple[DenseExpert, PagedDenseExpert],
) -> None:
    expert, paged = experts
    query = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(5))
    for estimate in ("map", "greedy"):
        check_same(paged.posterior(query, LocateOptions(estimate)), expert.posterior(query, LocateOptions(estimate)))


def test_a_restricted_expert_that_reads_its_codes_does_so_too(experts: tuple[DenseExpert, PagedDenseExpert]) -> None:
    expert, paged = experts
    district = np.zeros(PYRAMID.shape, bool)
    district[40:81, 100:151] = True
    query = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(6))
    one, other = (each.restricted(district).posterior(query, LocateOptions("map")) for each in (paged, expert))
    check_same(one, other)


def test_evidence_of_cells_that_are_read_is_the_same(
    features: MapEmbeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jzi.retrieve.paged.STRIP_CELLS", 2048)
    expert, paged = dense_expert("cells", features, tmp_path / "cells.safetensors")
    assert isinstance(expert, CellsExpert)
    assert isinstance(paged, PagedCellsExpert)
    query = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(7))
    hidden = Hidden(np.full(4, 20.0), np.full(4, -30.0))
    for each in (None, hidden):
        np.testing.assert_allclose(paged.evidence(query, each), expert.evidence(query, each), rtol=1e-5)


def test_codes_that_are_not_finite_are_a_sentence(experts: tuple[DenseExpert, PagedDenseExpert]) -> None:
    expert, paged = experts
    tensors = load_file(paged.path)
    name = "codes" if "codes" in tensors else f"codes.{PYRAMID.levels}"
    tensors[name][-1] = torch.nan
    save_file(tensors, paged.path)
    again = type(paged).load(paged.path, expert.entries(), PYRAMID, ENCODER, expert.cell_mask, "cpu")
    with pytest.raises(ModelError, match="codes that are not finite"):
        again.posterior(torch.randn(1, WIDTH), LocateOptions("map"))


def test_photos_are_fused_with_a_mask_that_is_not_in_memory(features: MapEmbeddings, paged: PagedMap) -> None:
    query = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(8))
    posterior = expert(TileTable(features)).posterior(query, LocateOptions("map"))
    whole = features.status[-1] != NODATA
    one, other = (fuse_sparse(posterior, mask, 0.02) for mask in (paged.cell_mask, whole))
    assert np.array_equal(one.probability, other.probability)
    for mine, theirs in zip(*(smooth_sparse(posterior, mask, [50, 90], 0.02) for mask in (paged.cell_mask, whole)),
                            strict=True):  # fmt: skip
        assert np.array_equal(mine.probability, theirs.probability)


def test_a_heat_map_of_a_large_map_stores_what_search_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    area = Pyramid.around(48.2, 16.37, 40_960.0, levels=5)  # 1024 cells to a side
    row, col = np.array([3, 700]), np.array([900, 5])
    posterior = Posterior.from_cells(area, row, col, np.array([0.75, 0.2]))
    location = to_locations(posterior, LocateOptions("map"), ["photo.jpg"])
    mask = np.ones(area.shape, bool)
    mask[0, 800] = False
    write_heatmap(tmp_path / "all.tif", location, mask)
    monkeypatch.setattr("jzi.export.heatmap.LARGE", 512)
    write_heatmap(tmp_path / "reached.tif", location, mask)
    with rasterio.open(tmp_path / "all.tif") as one, rasterio.open(tmp_path / "reached.tif") as other:
        whole, reached = one.read(1), other.read(1)
        assert np.isnan(other.nodata)
    assert np.array_equal(np.isnan(whole), ~mask)
    assert whole[row, col] == pytest.approx([0.75, 0.2])
    stored = np.isfinite(reached)
    assert np.array_equal(whole[stored], reached[stored])
    assert stored.sum() == 2 * 256**2 - 1


def test_a_map_is_held_in_memory_if_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jzi.encode.device.free_bytes", lambda device: 4000)
    cpu = torch.device("cpu")
    assert [buffer_bytes(None, size, cpu) for size in (1000, 1001)] == [None, 1000]
    assert [buffer_bytes(memory_bytes("3kB"), size, cpu) for size in (3000, 3001)] == [None, 3000]
    with pytest.raises(ConfigError, match=r'map\.memory is \'4 apples\': give "auto", or a number with a unit'):
        memory_bytes("4 apples", "map.memory")


def test_free_memory_is_that_of_the_container(tmp_path: Path) -> None:
    assert _container_bytes(tmp_path) > 1e15
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert _container_bytes(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert _container_bytes(tmp_path) > 1e15


def test_the_overlay_of_a_large_map_is_of_what_search_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    area = Pyramid.around(48.2, 16.37, 320_000.0)
    assert area.shape == (16_384, 16_384)
    posterior = Posterior.from_cells(area, np.array([8000, 8004]), np.array([3000, 3001]), np.array([0.7, 0.2]))
    monkeypatch.setattr(Posterior, "grid", lambda *_: pytest.fail("an array of all cells"))
    (south, west), (north, east) = heat_overlay(to_locations(posterior, LocateOptions("map"), ["a.jpg"])[0])["bounds"]
    latitude, longitude = area.unproject(*area.cell_centers(8000, 3000))
    assert south < latitude < north < south + 0.01
    assert west < longitude < east < west + 0.01
