"""Claims about damaged, edited and hostile metadata of caches: one sentence, nothing silent, repairable."""

from __future__ import annotations

import json
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from jzi.cli import main
from jzi.errors import CacheError, JziError
from jzi.store.cache.cache_header import MAX_ROWS
from jzi.store.cache.documents import MAX_DOCUMENT
from jzi.store.cache.feature_cache import ENCODED, FeatureCache
from jzi.store.cache.verify import repair_cache, verify_cache
from jzi.store.features.projection import Projection
from jzi.store.features.token_info import DetailInfo, PhotoTokensInfo
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.store.info import EncoderInfo, ImageryInfo
from tests import hostile

IMAGERY = ImageryInfo("a" * 64, (("ortho.tif", 1, 1, "b" * 64),), "bands as RGB")
PHOTOS = 5


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, info: EncoderInfo) -> Path:
    """A cache with everything that a cache can have. Do not modify."""
    path = tmp_path_factory.mktemp("template") / "town.zarr"
    cache = FeatureCache.create(path, Pyramid.around(48.2, 16.37, 800.0, grid=2, levels=2), info, IMAGERY)
    rng = np.random.default_rng(0)
    for level in range(3):
        side = cache.tiles.chunk_side(level)
        embedding = rng.normal(size=(side, side, 8)) if level < 2 else None
        cache.tiles.write_chunk(level, 0, 0, np.full((side, side), ENCODED, np.uint8), embedding)
    for level, n in ((0, 1), (1, 2)):
        keys = [TileKey(level, row, col) for row in range(n) for col in range(n)]
        cache.require_tokens(3).write(keys, rng.normal(size=(n * n, 3, 8)).astype(np.float16))
    cells = cache.require_cells(400.0)
    for chunk in cells.units:
        cells.write(chunk, np.full((4, 4), ENCODED, np.uint8), rng.normal(size=(4, 4, 8)).astype(np.float16))
    columns = {"latitude": 48.2, "longitude": 16.37, "split": "train", "path": "a.jpg", "km/h": 30.5, "weather": "dry"}
    rows = cache.queries.list_photos(pd.DataFrame({"id": [f"photo{i}" for i in range(PHOTOS)], **columns}))
    cache.queries.require_views(1, {"seed": 3})
    values = {"status": np.ones(PHOTOS), "views": np.ones(PHOTOS), "photo_sha256": np.full(PHOTOS, "0" * 64, object)}
    cache.queries.write(rows, values, rng.normal(size=(PHOTOS, 2, 8)).astype(np.float16))
    add_tokens(cache, rows, rng)
    cache.consolidate()
    cache.close()
    return path


def add_tokens(cache: FeatureCache, rows: np.ndarray, rng: np.random.Generator) -> None:
    """Tokens at a high resolution, of 2 x 2 a tile, and tokens of photos."""
    projection = Projection.fit(rng.normal(size=(50, 8)), 3)
    common = {"source_width": 8, "width": 3, "projection": projection.digest}
    detail = cache.require_detail(DetailInfo(pixels=4, patch=2, fingerprint="c" * 64, **common), projection)
    tiles = [(row, col) for row in range(2) for col in range(2)]
    detail.write(tiles, list(rng.integers(-127, 128, (4, 2, 2, 3)).astype(np.int8)))
    detail.write_status((slice(0, 2), slice(0, 2)), np.full((2, 2), ENCODED, np.uint8))
    tokens = cache.queries.create_tokens(PhotoTokensInfo(rows=1, cols=2, **common), projection)
    tokens.write(rows, list(rng.integers(-127, 128, (PHOTOS, 1, 2, 3)).astype(np.int8)))
    tokens.mark(rows, 1)


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "town.zarr"))


def read_everything(path: Path, tokens: bool = True) -> list[Any]:
    """What commands read of a cache, comparable; format 1 had no tokens for refiners."""
    cache = FeatureCache.open(path)
    features = cache.read_map(cells=True)
    frame = cache.queries.encoded()
    arrays = [*features.embedding, *features.status, features.cells, cache.patch_tokens.read(TileKey(1, 0, 1))]
    arrays += [cache.queries.embedding(frame.index, 1), cache.tiles.embedding(TileKey(1, 1, 0))]
    if tokens:
        arrays += [cache.detail.status(), *cache.detail.read_many([(0, 1), (1, 1)]), cache.detail.projection.basis]
        photos = cache.queries.tokens
        arrays += [photos.status(), photos.read(frame.index), photos.projection.scale]
    facts = [cache.pyramid, cache.encoder, cache.imagery, cache.cells.footprint, cache.queries.augmentation]
    return [*(np.asarray(array).tobytes() for array in arrays), *map(repr, facts), frame.to_csv()]


def documents(path: Path) -> Iterator[Path]:
    yield from sorted(path.rglob("zarr.json"))


# Nothing but a sentence, nothing silent, everything repaired


@pytest.mark.parametrize("change", [hostile.flip, hostile.edit_json])
@pytest.mark.parametrize("part", ["map", "queries", "cells", "detail", ""])
def test_changed_metadata_is_noticed_named_and_repaired(path: Path, change: Callable, part: str) -> None:
    expected, originals = read_everything(path), {file: file.read_bytes() for file in documents(path)}
    files = [file for file in documents(path / part) if part or file.parent == path]
    rng = random.Random(hostile.attack_seed(f"{change.__name__} {part}"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(hostile.attacks(2, 8, 1000)):
        file = rng.choice(files)
        before = file.read_bytes()
        after = change(before, rng)
        file.write_bytes(after)
        try:
            assert read_everything(path) == expected, f"{file} changed silently: {after!r}"
        except JziError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
        try:
            sound = verify_cache(FeatureCache.open(path)).sound
        except JziError as error:
            assert "\n" not in str(error)
            sound = False
        assert not sound or json_of(after) == json_of(before), f"{file} was found sound: {after!r}"
        assert sound or repair_cache(path)
        if sound:  # other spaces, which nothing needs to restore
            file.write_bytes(before)
        assert {each: each.read_bytes() for each in documents(path)} == originals
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # kB


def json_of(data: bytes) -> str | None:
    """Content of a document, whatever its spaces; 1 and 1.0 and true differ."""
    try:
        return json.dumps(json.loads(data), sort_keys=True)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("array", "change"),
    [
        ("queries/id", {"shape": [PHOTOS - 1]}),
        ("queries/id", {"shape": [10**12]}),
        ("map/1/embedding", {"shape": [2, 2, 10**12]}),
        ("map/1/embedding", {"fill_value": 0.0}),
        ("cells/embedding", {"shape": [4, 4, 7]}),
        ("map/1/status", {"data_type": "int8"}),
        ("map/1/tokens", {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]}),
        ("queries/latitude", {"attributes": {"units": "radians"}}),
        ("detail/tokens", {"shape": [2, 2, 2, 2, 10**12]}),
        ("detail/basis", {"fill_value": 1.0}),
        ("queries/tokens", {"fill_value": 0}),
        ("queries/tokens_mean", {"shape": [9]}),
        ("map/2/spatial_ref", {"attributes": {}}),
    ],
)
def test_an_edited_document_is_named_with_its_entry_and_rewritten(path: Path, array: str, change: dict) -> None:
    file = path / array / "zarr.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({**before, **change}))
    run = CliRunner().invoke(main, ["cache", "verify", str(path)])
    assert run.exit_code == 1 and f"metadata {array}/zarr.json" in run.output and "--repair" in run.output
    run = CliRunner().invoke(main, ["cache", "verify", "--repair", str(path)])
    assert run.exit_code == 0 and f"repaired {array}/zarr.json" in run.output
    assert json.loads(file.read_text()) == before


def test_the_geometry_in_the_header_cannot_be_edited_unnoticed(path: Path) -> None:
    text = (path / "zarr.json").read_text()
    assert '"north": 400.0' in text
    (path / "zarr.json").write_text(text.replace('"north": 400.0', '"north": 401.0', 1))
    with pytest.raises(CacheError, match=r"does not match its own digest.*--repair"):
        FeatureCache.open(path)
    assert CliRunner().invoke(main, ["cache", "verify", str(path)]).exit_code == 2
    assert repair_cache(path) and (path / "zarr.json").read_text() == text


def test_a_header_whose_copy_is_damaged_too_is_refused(path: Path) -> None:
    for name in ("zarr.json", "map/zarr.json"):
        (path / name).write_text((path / name).read_text().replace('"north": 400.0', '"north": 401.0'))
    with pytest.raises(CacheError, match="digest"):
        repair_cache(path)


@pytest.mark.parametrize("name", ["zarr.json", "map/zarr.json", "queries/zarr.json", "queries/views/zarr.json"])
def test_a_document_that_is_gone_is_written_again(path: Path, name: str) -> None:
    expected, before = read_everything(path), (path / name).read_text()
    (path / name).unlink()
    assert repair_cache(path)
    assert read_everything(path) == expected
    assert (path / name).read_text() == before


def test_a_lost_header_of_photos_is_restored_with_the_photos_listed_since(path: Path) -> None:
    cache = FeatureCache.open(path, "r+")
    frame = cache.queries.frame()[["id", "latitude", "longitude", "split", "path"]]
    cache.queries.list_photos(pd.concat([frame, frame.assign(id=[f"new{i}" for i in range(PHOTOS)])]))
    (path / "queries/zarr.json").write_text("{}")  # the consolidated metadata has PHOTOS photos
    repair_cache(path)
    assert len(FeatureCache.open(path).queries) == 2 * PHOTOS


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"attributes": ' * 5000, "[1" + "0" * 5000 + "]", '"\\ud800"', " " * (MAX_DOCUMENT + 1), "\x00"],
    ids=["nested", "objects", "digits", "surrogate", "long", "nul"],
)
@pytest.mark.parametrize("name", ["zarr.json", "map/zarr.json", "queries/zarr.json", "map/1/embedding/zarr.json"])
def test_hostile_json_is_one_sentence(path: Path, name: str, text: str) -> None:
    (path / name).write_text(text)
    for read in (lambda: read_everything(path), lambda: verify_cache(FeatureCache.open(path))):
        try:
            read()
        except CacheError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
    repair_cache(path)
    assert verify_cache(FeatureCache.open(path)).sound


def test_a_hostile_header_with_a_right_digest_is_still_bounded(path: Path) -> None:
    from jzi.store.cache import cache_header

    file = path / "queries/zarr.json"
    document = json.loads(file.read_text())
    tokens = document["attributes"]["jzi"]["photo_tokens"]
    for change in (
        {"rows": MAX_ROWS + 1},
        {"rows": -1},
        {"views": 256},
        {"columns": {"": "string"}},
        {"extra": 1},
        {"photo_tokens": {**tokens, "cols": 10**9}},
        {"photo_tokens": {**tokens, "width": 9}},
        {"photo_tokens": {**tokens, "rows": 4096, "cols": 4096, "width": 8}},
        {"photo_tokens": {**tokens, "projection": "no digest"}},
        {"columns": {"tokens": "string"}},
    ):
        entries = {**document["attributes"]["jzi"], **change}
        entries.pop("digest")
        header = {**entries, "digest": cache_header._digest(entries)}
        file.write_text(json.dumps({**document, "attributes": {"jzi": header}}))
        with pytest.raises(CacheError, match=r"invalid entry|cannot be used"):
            FeatureCache.open(path).queries.frame()


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": 5},
        {"pixels": 65_536, "patch": 1},
        {"margin": 1},
        {"width": 0},
        {"width": 9},
        {"source_width": 10**9},
        {"producer": "stranger"},
        {"fingerprint": "c"},
        {"more": 1},
    ],
)
def test_a_hostile_record_of_tokens_is_refused(path: Path, change: dict) -> None:
    from jzi.store.cache import cache_header

    document = json.loads((path / "zarr.json").read_text())
    entries = document["attributes"]["jzi"]
    entries.pop("digest")
    entries["detail"] |= change
    document["attributes"]["jzi"] = {**entries, "digest": cache_header._digest(entries)}
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(CacheError, match=r"invalid entry|cannot be used") as error:
        FeatureCache.open(path)
    assert "\n" not in str(error.value)


def test_a_cache_without_tokens_has_the_headers_that_it_had(tmp_path: Path, info: EncoderInfo) -> None:
    cache = FeatureCache.create(tmp_path / "plain.zarr", Pyramid.around(48.2, 16.37, 800.0, grid=2, levels=2), info)
    text = (tmp_path / "plain.zarr" / "zarr.json").read_text() + (tmp_path / "plain.zarr/queries/zarr.json").read_text()
    assert "detail" not in text and "photo_tokens" not in text
    assert not cache.has_detail and not cache.queries.has_tokens


# Interrupted listings, columns, older caches


def test_a_listing_that_was_killed_before_its_header_is_not_read_and_done_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_everything(path)
    cache = FeatureCache.open(path, "r+")
    frame = cache.queries.frame()[["id", "latitude", "longitude", "split", "path"]]
    more = pd.concat([frame, frame.assign(id=[f"new{i}" for i in range(PHOTOS)])])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(cache.queries), "_write_header", killed)
        cache.queries.list_photos(more)
    assert read_everything(path) == expected
    cache.queries.list_photos(more)
    assert FeatureCache.open(path).queries.frame()["id"].tolist() == more["id"].tolist()


def test_columns_of_any_name_and_a_changed_type_are_kept(path: Path) -> None:
    queries = FeatureCache.open(path, "r+").queries
    frame = queries.frame()[["id", "latitude", "longitude", "split", "path"]].assign(**{
        "km/h": ["fast"] * PHOTOS, "..": 1.0, "zarr.json": 2.0, "__x": "a", "c": 3.0, "übung": "b"
    })  # fmt: skip
    queries.list_photos(frame)
    read = FeatureCache.open(path).queries.frame()
    for name in ("km/h", "..", "zarr.json", "__x", "c", "übung"):
        assert read[name].tolist() == frame[name].tolist()
    assert not (path / "zarr.json" / "zarr.json").exists() and (path / "zarr.json").is_file()
    with pytest.raises(CacheError, match="columns"):
        queries.list_photos(frame.assign(**{"x" * 1000: 1.0}))


def as_format_1(path: Path) -> None:
    """Rewrite the headers as format 1 had them."""
    root = json.loads((path / "zarr.json").read_text())
    header = root["attributes"]["jzi"]
    older = {name: header[name] for name in ("version", "pyramid", "encoder", "imagery")}
    (path / "zarr.json").write_text(json.dumps({**root, "attributes": {"jzi": {"format": 1, **older}}}))
    for name, attributes in (("map", {}), ("queries", {"columns": ["weather"], "augmented": {"seed": 3}})):
        document = json.loads((path / name / "zarr.json").read_text())
        (path / name / "zarr.json").write_text(json.dumps({**document, "attributes": attributes}))


def test_a_cache_of_format_1_is_converted_by_who_writes_and_named_by_who_reads(path: Path) -> None:
    before = FeatureCache.open(path).queries.frame().drop(columns="km/h")
    expected = read_everything(path, tokens=False)[:-1]
    as_format_1(path)
    with pytest.raises(CacheError, match=r"cache format 1.*verify --repair"):
        FeatureCache.open(path)
    run = CliRunner().invoke(main, ["cache", "verify", "--repair", str(path)])
    assert run.exit_code == 0, run.output
    assert read_everything(path, tokens=False)[:-1] == expected
    pd.testing.assert_frame_equal(FeatureCache.open(path).queries.frame(), before)


def test_a_chunk_of_another_array_is_damage_and_no_traceback(path: Path) -> None:
    shutil.copy(path / "map/0/embedding/c/0/0/0", path / "map/1/embedding/c/0/0/0")
    report = verify_cache(FeatureCache.open(path))
    assert report.damaged == ("map/1/embedding [0, 0, 0]",)
