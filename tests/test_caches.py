"""Looking after caches: what there is, who needs it, merging, verifying, deleting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from jzi.cli import main
from jzi.commands.shared.reports import cache_text
from jzi.errors import CacheMismatchError
from jzi.store.cache.feature_cache import ENCODED, MISSING, FeatureCache
from jzi.store.cache.maintenance import merge_caches, same_photos
from jzi.store.cache.verify import verify_cache
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.model_config import ZoomModelConfig
from jzi.store.model_folder import create_model
from jzi.workspace.caches import inspect_cache, models_needing, scan_folder
from jzi.workspace.describe import describe

IMAGERY = ImageryInfo("a" * 64, (("ortho.tif", 1, 1, "b" * 64),), "bands as RGB")
AREA = Pyramid.around(48.2, 16.37, 6400.0, levels=4)  # more than a chunk at the last level


def fill(cache: FeatureCache, skip: tuple[int, ...] = ()) -> None:
    """Every tile but the chunks (by their number) that are to be missing at level 3; the same values every time."""
    for level in range(cache.pyramid.levels + 1):
        side, n = cache.tiles.chunk_side(level), cache.pyramid.tiles_per_side(level)
        rng = np.random.default_rng(level)
        for number, (row, col) in enumerate((r, c) for r in range(0, n, side) for c in range(0, n, side)):
            values = rng.normal(size=(side, side, 8))
            status = np.full((side, side), MISSING if level == 3 and number in skip else ENCODED, np.uint8)
            cache.tiles.write_chunk(level, row, col, status, values if level < cache.pyramid.levels else None)


def add_photos(cache: FeatureCache, numbers: range, *, views: int = 0, changed: bool = False) -> None:
    """Photos p<number>, whose embedding follows from the number."""
    old = cache.queries.frame()[["id", "latitude", "longitude", "split", "path"]] if len(cache.queries) else None
    frame = pd.DataFrame({"id": [f"p{i}" for i in numbers], "split": "train", "path": "", "latitude": 48.2})
    frame["longitude"] = 16.37 + np.array(numbers) * 1e-6
    rows = cache.queries.list_photos(pd.concat([old, frame]) if old is not None else frame)[-len(frame) :]
    if views:
        cache.queries.require_views(views, {"seed": 3})
    embedding = np.array(numbers, np.float16)[:, None, None] / 100 + np.arange(1 + views)[:, None] + np.zeros(8)
    for chunk in np.unique(rows // 256):
        mine = rows // 256 == chunk
        values = {
            "status": np.full(mine.sum(), ENCODED),
            "views": np.full(mine.sum(), views),
            "photo_sha256": np.array([f"{'new' if changed else 'old'}{i}" for i in np.array(numbers)[mine]], object),
        }
        cache.queries.write(rows[mine], values, embedding[mine])


@pytest.fixture
def make(tmp_path: Path, info: EncoderInfo) -> Callable[..., FeatureCache]:
    def make(name: str, encoder: EncoderInfo = info, imagery: ImageryInfo | None = IMAGERY) -> FeatureCache:
        return FeatureCache.create(tmp_path / name, AREA, encoder, imagery)

    return make


def write_model(folder: Path, cache: FeatureCache, has_map: bool) -> None:
    create_model(
        folder, ZoomModelConfig(pyramid=cache.pyramid, encoder=cache.encoder, imagery=IMAGERY, decoder={"layers": 1})
    )
    if has_map:
        (folder / "map.safetensors").touch()


def chunk_file(cache: FeatureCache, array: str) -> Path:
    return max(file for file in (Path(cache.path) / array / "c").rglob("*") if file.is_file())


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


# What there is


def test_caches_are_found_with_the_models_that_belong_to_them(make, tmp_path, info) -> None:
    full, other = make("a/full.zarr"), make("other.zarr", replace(info, fingerprint="f" * 64))
    fill(full)
    add_photos(full, range(10))
    make(".hidden/x.zarr")
    write_model(tmp_path / "models" / "one", full, has_map=False)
    caches, models = scan_folder(tmp_path)
    found = {Path(cache.path).name: cache for cache in caches}
    assert set(found) == {"full.zarr", "other.zarr"}
    assert found["full.zarr"].complete and not found["other.zarr"].complete
    assert found["other.zarr"].missing_tiles == AREA.tile_count
    assert found["full.zarr"].size == sum(f.stat().st_size for f in Path(full.path).rglob("*") if f.is_file())
    assert found["full.zarr"].belongs_to(models[0]) and not found["other.zarr"].belongs_to(models[0])
    assert "models/one (has no map of its own)" in cache_text(found["full.zarr"], models)
    for cache in caches:  # `jzi info` counts as `jzi cache ls` does
        facts = describe(cache.path).facts
        assert facts["complete"] == cache.complete and facts["tiles"] == cache.tiles
        assert facts["photos"] + facts["photos_missing"] + facts["photos_unreadable"] == cache.photos
    assert other.path.endswith("other.zarr") and "no model here" in cache_text(found["other.zarr"], models)


def test_a_cache_is_needed_by_models_without_a_map_unless_another_has_it(make, tmp_path) -> None:
    cache = make("one.zarr")
    fill(cache)
    write_model(tmp_path / "with", cache, has_map=True)
    write_model(tmp_path / "without", cache, has_map=False)
    mine = inspect_cache(cache.path)
    models = scan_folder(tmp_path)[1]
    assert [model.folder.name for model in models_needing(mine, models, [])] == ["without"]
    second = make("two.zarr")
    assert models_needing(mine, models, [inspect_cache(second.path)])  # it lacks tiles
    fill(second)
    assert not models_needing(mine, models, [inspect_cache(second.path)])


def test_rm_asks_and_refuses_what_a_model_needs(make, tmp_path, monkeypatch) -> None:
    cache = make("one.zarr")
    fill(cache)
    cache.close()
    write_model(tmp_path / "without", cache, has_map=False)
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    refused = run(main, ["cache", "rm", "one.zarr", "--yes"])
    assert refused.exit_code == 2 and "needed by without" in refused.output
    asked = run(main, ["cache", "rm", "one.zarr", "--force"], input="n\n")
    assert asked.exit_code == 0 and "nothing was deleted" in asked.output and Path("one.zarr").exists()
    assert run(main, ["cache", "rm", "one.zarr", "--force", "--yes"]).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["without"]


# Merging


@pytest.mark.slow
def test_merging_halves_gives_the_whole(make, files_of) -> None:
    whole, one, other = make("whole.zarr"), make("one.zarr"), make("other.zarr")
    fill(whole)
    fill(one, skip=(0, 5))
    fill(other, skip=(3,))
    add_photos(whole, range(600), views=2)
    add_photos(one, range(300), views=2)
    add_photos(other, range(250, 600), views=2)
    report = merge_caches(other, one)
    side = one.tiles.chunk_side(3)
    assert (report.tiles, report.photos, report.views, report.different) == (2 * side**2, 300, 300, 0)
    merged = FeatureCache.open(one.path)
    for level in range(4):
        assert np.array_equal(merged.tiles.level(level), whole.tiles.level(level))
        assert np.array_equal(merged.tiles.status(level), whole.tiles.status(level))
    assert same_photos(merged, whole)
    rows = [cache.queries.encoded().sort_values("id").index for cache in (merged, whole)]
    assert np.array_equal(merged.queries.embedding(rows[0], 2), whole.queries.embedding(rows[1], 2))
    before = files_of(Path(one.path))
    again = merge_caches(other, FeatureCache.open(one.path, "r+"))
    assert (again.tiles, again.photos) == (0, 0) and files_of(Path(one.path)) == before


def test_merging_keeps_what_the_target_has(make) -> None:
    one, other = make("one.zarr"), make("other.zarr")
    add_photos(one, range(5))
    add_photos(other, range(8), changed=True)
    report = merge_caches(other, one)
    assert (report.photos, report.different) == (3, 5)
    assert list(one.queries.encoded()["photo_sha256"]) == [f"old{i}" for i in range(5)] + ["new5", "new6", "new7"]


def test_views_of_another_seed_are_not_mixed_in(make) -> None:
    one, other = make("one.zarr"), make("other.zarr")
    add_photos(one, range(3), views=1)
    one.queries.require_views(1, {"seed": 9})
    add_photos(other, range(5), views=2)
    report = merge_caches(other, one)
    assert (report.photos, report.views, one.queries.augmentation) == (2, 0, {"seed": 9})


def test_what_is_damaged_in_the_target_is_mended_and_in_the_source_left_out(make) -> None:
    one, other = make("one.zarr"), make("other.zarr")
    for cache in (one, other):
        fill(cache)
        add_photos(cache, range(600))
    damage(chunk_file(one, "map/3/embedding"))
    damage(chunk_file(one, "queries/embedding"))
    damage(chunk_file(other, "map/2/embedding"))
    report = merge_caches(other, one)
    assert report.tiles == one.tiles.chunk_side(3) ** 2 and report.photos == 600 - 512
    assert verify_cache(FeatureCache.open(one.path)).sound


def test_a_map_is_merged_into_a_cache_of_photos(make) -> None:
    one, other = make("one.zarr", imagery=None), make("other.zarr")
    fill(other)
    assert merge_caches(other, FeatureCache.open(one.path, "r+")).tiles == AREA.tile_count
    assert FeatureCache.open(one.path).imagery == IMAGERY


@pytest.mark.parametrize("wrong", ["encoder", "imagery"])
def test_caches_that_do_not_belong_together_are_not_merged(make, info, files_of, wrong: str) -> None:
    different = {
        "encoder": {"encoder": replace(info, fingerprint="f" * 64)},
        "imagery": {"imagery": replace(IMAGERY, fingerprint="f" * 64)},
    }
    one, other = make("one.zarr"), make("other.zarr", **different[wrong])
    fill(other)
    before = files_of(Path(one.path))
    with pytest.raises(CacheMismatchError, match="can be merged"):
        merge_caches(other, one)
    assert files_of(Path(one.path)) == before


# Verifying


def test_a_whole_cache_is_sound(make) -> None:
    cache = make("one.zarr")
    fill(cache)
    add_photos(cache, range(300))
    report = verify_cache(cache)
    assert report.sound and report.chunks > 16


@pytest.mark.parametrize(
    ("array", "lost"),
    [
        ("map/3/embedding", "256 tiles of level 3"),
        ("map/2/status", None),
        ("queries/embedding", "44 photos"),
        ("queries/latitude", None),
        ("queries/status", None),
    ],
)
def test_a_damaged_chunk_is_named_whichever_it_is(make, array: str, lost: str | None) -> None:
    cache = make("one.zarr")
    fill(cache)
    add_photos(cache, range(300))
    damage(chunk_file(cache, array))
    report = verify_cache(FeatureCache.open(cache.path))
    assert len(report.damaged) == 1 and report.damaged[0].startswith(f"{array} [")
    assert lost is None or report.lost == (lost,)
    assert CliRunner().invoke(main, ["cache", "verify", cache.path]).exit_code == 1


def test_what_has_vanished_or_never_was_is_told(make) -> None:
    cache = make("one.zarr")
    fill(cache, skip=(1,))
    add_photos(cache, range(300))
    cache.queries.write(np.array([7]), {"status": np.array([MISSING])})
    chunk_file(cache, "queries/embedding").unlink()
    chunk_file(cache, "map/2/embedding").unlink()
    report = verify_cache(FeatureCache.open(cache.path))
    side = cache.tiles.chunk_side(3)
    assert not report.damaged
    assert set(report.lost) == {"44 photos", f"{cache.tiles.chunk_side(2) ** 2} tiles of level 2"}
    assert report.missing == (f"{side**2} tiles of level 3", "1 photos")
