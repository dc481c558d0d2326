"""Claims about encoding photos into a cache."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import xarray

from jzi.encode import encode_queries as module
from jzi.encode.encode_queries import PhotoReport, encode_queries
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.photo import photo_files
from jzi.encode.photo.photos import open_photo, resize_photo
from jzi.errors import CacheCorruptError, CacheError, EncoderError
from jzi.store.cache import chunk_writer, layout
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.cache.verify import verify_cache
from jzi.store.features import photo_features as query_features
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.photo_table import PhotoTable, read_photo_table
from jzi.store.photos.splits import TABLE_SPLIT

PHOTOS, CHUNK = 20, 8  # three chunks


@dataclass
class Album:
    """A folder of photos, and a cache of them."""

    folder: Path
    path: Path
    pyramid: Pyramid
    encoder: Encoder

    def cache(self) -> FeatureCache:
        return FeatureCache.open_or_create(self.path, self.pyramid, self.encoder.info)

    def run(self, table: PhotoTable | None = None, **options: int) -> PhotoReport:
        return encode_queries(self.cache(), self.encoder, table or read_photo_table(self.folder), **options)

    def embeddings(self) -> dict[str, np.ndarray]:
        """Those of the listed photos, by id."""
        queries = FeatureCache.open(self.path).queries
        frame = queries.encoded()
        return dict(zip(frame["id"], queries.embedding(frame.index)[:, 0], strict=True))


@pytest.fixture(scope="module")
def exact(encoder_folder: Path) -> Encoder:
    encoder = Encoder.load(encoder_folder, image_size=14, device="cpu")
    # In float32 the last bit of an embedding may depend on which photos share its batch
    encoder.model.double()
    return encoder


@pytest.fixture(scope="module", autouse=True)
def _small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "PHOTO_CHUNK", CHUNK)
        patch.setattr(query_features, "CHUNK", CHUNK)
        patch.setattr(module, "CHUNK", CHUNK)
        patch.setattr(chunk_writer, "CHUNK", CHUNK)
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, exact: Encoder, take_photo: Callable) -> Album:
    """An encoded album. Do not modify."""
    folder = tmp_path_factory.mktemp("album")
    for index in range(PHOTOS):
        take_photo(folder / "photos" / f"{index:02}.jpg", 48.2, 16.37 + index * 1e-5, seed=index)
    album = Album(folder / "photos", folder / "town.zarr", Pyramid.around(48.2, 16.37, 800.0, levels=1), exact)
    assert album.run() == PhotoReport(PHOTOS, 0, (), 0)
    return album


@pytest.fixture
def album(template: Album, tmp_path: Path) -> Album:
    """Not encoded yet."""
    shutil.copytree(template.folder, tmp_path / "photos")
    return replace(template, folder=tmp_path / "photos", path=tmp_path / "town.zarr")


@pytest.fixture
def encoded_album(album: Album, template: Album) -> Album:
    shutil.copytree(template.path, album.path)
    return album


@pytest.fixture
def batches(album: Album, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the encoder is called with."""
    sizes: list[int] = []
    encode = album.encoder.encode_photos
    monkeypatch.setattr(album.encoder, "encode_photos", lambda photos: (sizes.append(len(photos)), encode(photos))[1])
    return sizes


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> set[str]:
    """Ids with the same embedding in both caches."""
    return {name for name in one.keys() & other.keys() if np.array_equal(one[name], other[name])}


# Filling


def test_every_photo_is_encoded_from_its_own_picture(encoded_album: Album) -> None:
    embeddings = encoded_album.embeddings()
    assert len(embeddings) == PHOTOS
    for name, embedding in embeddings.items():
        photo = resize_photo(open_photo(encoded_album.folder / name), 28, 14)
        expected = encoded_album.encoder.encode_photos(np.stack([photo]))[0]
        np.testing.assert_array_equal(embedding, expected.half().numpy())


def test_a_second_run_encodes_nothing_and_changes_nothing(
    encoded_album: Album, batches: list, files_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(encoded_album.path)
    monkeypatch.setattr(photo_files, "_sha256", lambda path: pytest.fail(f"{path} was read"))
    assert encoded_album.run() == PhotoReport(0, PHOTOS, (), 0)
    assert batches == []
    assert files_of(encoded_album.path) == before


def test_the_whole_table_is_seen_in_xarray_without_a_warning(encoded_album: Album, take_photo: Callable) -> None:
    take_photo(encoded_album.folder / "new.jpg", 48.2, 16.37)
    encoded_album.run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        queries = xarray.open_datatree(encoded_album.path, engine="zarr")["queries"]
    assert queries["id"].values.tolist() == [f"{index:02}.jpg" for index in range(PHOTOS)] + ["new.jpg"]
    assert queries["embedding"].dims == ("query", "view", "feature")
    assert np.isfinite(queries["embedding"]).all()
    np.testing.assert_allclose(queries["longitude"][:3], [16.37, 16.37001, 16.37002], atol=1e-7)


# Changed photos


def test_a_changed_photo_alone_is_encoded_again(encoded_album: Album, take_photo: Callable, batches: list) -> None:
    before = encoded_album.embeddings()
    take_photo(encoded_album.folder / "09.jpg", 48.2, 16.37, seed=999)
    assert encoded_album.run() == PhotoReport(1, PHOTOS - 1, (), 0)
    assert batches == [1]
    assert before.keys() - same(before, encoded_album.embeddings()) == {"09.jpg"}


def test_a_photo_that_was_only_touched_is_read_once_and_not_encoded(
    encoded_album: Album, batches: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("03.jpg", "12.jpg"):
        os.utime(encoded_album.folder / name, (1, 1))
    read = []
    sha256 = photo_files._sha256
    monkeypatch.setattr(photo_files, "_sha256", lambda path: (read.append(path.name), sha256(path))[1])
    for _ in range(2):
        assert encoded_album.run() == PhotoReport(0, PHOTOS, (), 0)
    assert sorted(read) == ["03.jpg", "12.jpg"]
    assert batches == []


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"x"), Path.unlink], ids=["garbled", "gone"])
def test_digests_in_a_damaged_chunk_are_computed_again(
    encoded_album: Album, damage: Callable, batches: list, files_of: Callable
) -> None:
    before = files_of(encoded_album.path)
    damage(encoded_album.path / "queries" / "photo_sha256" / "c" / "0")
    report = verify_cache(FeatureCache.open(encoded_album.path))
    assert report.damaged or report.lost
    assert encoded_album.run() == PhotoReport(0, PHOTOS, (), 0)
    assert batches == []
    assert files_of(encoded_album.path) == before


def test_a_photo_that_changed_while_its_digest_was_damaged_is_encoded_again(
    encoded_album: Album, take_photo: Callable, batches: list
) -> None:
    (encoded_album.path / "queries" / "photo_sha256" / "c" / "0").unlink()
    take_photo(encoded_album.folder / "09.jpg", 48.2, 16.37, seed=999)
    assert encoded_album.run() == PhotoReport(1, PHOTOS - 1, (), 0)
    assert batches == [1]


def test_new_photos_are_appended_and_alone_encoded(encoded_album: Album, take_photo: Callable, batches: list) -> None:
    before = encoded_album.embeddings()
    for name in ("000.jpg", "zz.jpg"):
        take_photo(encoded_album.folder / name, 48.2, 16.37, seed=500 + len(name))
    assert encoded_album.run() == PhotoReport(2, PHOTOS, (), 0)
    assert sum(batches) == 2
    after = encoded_album.embeddings()
    assert list(after) == [*before, "000.jpg", "zz.jpg"]
    assert same(before, after) == before.keys()


def test_a_photo_that_left_is_not_listed_and_is_reused_when_it_returns(encoded_album: Album, batches: list) -> None:
    before = encoded_album.embeddings()
    away = encoded_album.folder.parent / "away.jpg"
    (encoded_album.folder / "05.jpg").rename(away)
    assert encoded_album.run() == PhotoReport(0, PHOTOS - 1, (), 0)
    assert before.keys() - encoded_album.embeddings().keys() == {"05.jpg"}
    away.rename(encoded_album.folder / "05.jpg")
    assert encoded_album.run() == PhotoReport(0, PHOTOS, (), 0)
    assert same(before, encoded_album.embeddings()) == before.keys()
    assert batches == []


def test_a_photo_that_changed_while_it_was_away_is_encoded_when_it_returns(
    encoded_album: Album, take_photo: Callable
) -> None:
    (encoded_album.folder / "05.jpg").unlink()
    encoded_album.run()
    take_photo(encoded_album.folder / "05.jpg", 48.2, 16.37, seed=999)
    assert encoded_album.run() == PhotoReport(1, PHOTOS - 1, (), 0)


def test_what_the_table_says_is_brought_up_to_date_without_encoding(encoded_album: Album, batches: list) -> None:
    table = read_photo_table(encoded_album.folder)
    frame = table.frame.assign(split="test", latitude=48.25, weather=["wet", None] * (PHOTOS // 2))
    moved = int((table.frame["split"] != "test").sum())
    assert encoded_album.run(replace(table, frame=frame)) == PhotoReport(0, PHOTOS, (), 0, moved=moved)
    seen = FeatureCache.open(encoded_album.path).queries.frame()
    assert set(seen["split"]) == {"test"}
    assert set(seen["latitude"]) == {48.25}
    assert seen["weather"].tolist() == ["wet", ""] * (PHOTOS // 2)
    assert batches == []


def test_a_column_may_change_from_numbers_to_text(encoded_album: Album) -> None:
    table = read_photo_table(encoded_album.folder)
    for values in (np.arange(PHOTOS), [f"k{index}" for index in range(PHOTOS)], np.linspace(0, 1, PHOTOS)):
        encoded_album.run(replace(table, frame=table.frame.assign(camera=values)))
        seen = FeatureCache.open(encoded_album.path).queries.frame()
        assert seen["camera"].tolist() == list(values)


def test_no_photo_encoded_is_an_error_for_who_needs_some(album: Album) -> None:
    with pytest.raises(CacheError, match="encode-queries"):
        album.cache().queries.encoded()


# Unreadable


def test_an_unreadable_photo_costs_only_itself_and_is_reported_every_time(
    album: Album, batches: list, take_photo: Callable
) -> None:
    good = (album.folder / "07.jpg").read_bytes()
    (album.folder / "07.jpg").write_bytes(good[: len(good) // 2])  # its EXIF is intact
    for encoded, reused in ((PHOTOS - 1, 0), (0, PHOTOS - 1), (0, PHOTOS - 1)):
        report = album.run()
        assert (report.encoded, report.reused, report.damaged) == (encoded, reused, 0)
        assert [bad.name for bad in report.unreadable] == ["07.jpg"]
        assert "cannot be read" in report.unreadable[0].reason
    assert "07.jpg" not in album.embeddings()
    assert sum(batches) == PHOTOS - 1
    (album.folder / "07.jpg").write_bytes(good)
    assert album.run() == PhotoReport(1, PHOTOS - 1, (), 0)
    assert len(album.embeddings()) == PHOTOS


def test_a_photo_that_breaks_is_not_given_with_its_old_embedding(encoded_album: Album) -> None:
    (encoded_album.folder / "07.jpg").write_bytes((encoded_album.folder / "07.jpg").read_bytes()[:-300])
    report = encoded_album.run()
    assert [bad.name for bad in report.unreadable] == ["07.jpg"]
    assert "07.jpg" not in encoded_album.embeddings()


@pytest.mark.parametrize("known", [False, True], ids=["never encoded", "encoded before"])
def test_a_photo_that_vanishes_after_the_table_was_read_costs_only_itself(album: Album, known: bool) -> None:
    table = read_photo_table(album.folder)
    if known:
        album.run(table)
    gone = album.folder / "07.jpg"
    gone.rename(album.folder.parent / "away.jpg")
    for _ in range(2):
        report = album.run(table)
        assert [bad.name for bad in report.unreadable] == ["07.jpg"]
        assert len(album.embeddings()) == PHOTOS - 1
    (album.folder.parent / "away.jpg").rename(gone)
    assert album.run(table) == PhotoReport(1, PHOTOS - 1, (), 0)


def test_where_no_photo_can_be_read_each_is_reported(album: Album) -> None:
    table = read_photo_table(album.folder)
    for photo in album.folder.iterdir():
        photo.write_bytes(b"hello")
    assert len(album.run(table).unreadable) == PHOTOS


# Interrupted, damaged


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EncoderError("not finite")], ids=lambda e: type(e).__name__)
def test_an_interrupted_encode_keeps_its_photos_and_resumes_to_the_same_embeddings(
    album: Album, template: Album, error: BaseException
) -> None:
    encode, count = album.encoder.encode_photos, iter(range(3))

    def interrupted(photos: np.ndarray):
        if next(count, None) is None:
            raise error
        return encode(photos)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(album.encoder, "encode_photos", interrupted)
        album.run(batch_size=4)
    assert len(album.embeddings()) == 12
    assert album.run() == PhotoReport(PHOTOS - 12, 12, (), 0)
    assert same(album.embeddings(), template.embeddings()) == template.embeddings().keys()


def flip(chunk: Path) -> None:
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["garbled", "gone"])
@pytest.mark.parametrize(("chunk", "photos"), [("0/0/0", CHUNK), ("2/0/0", PHOTOS - 2 * CHUNK)])
def test_a_damaged_chunk_is_encoded_again_and_no_other(
    encoded_album: Album, files_of: Callable, batches: list, damage: Callable, chunk: str, photos: int
) -> None:
    before = files_of(encoded_album.path)
    damage(encoded_album.path / "queries/embedding/c" / chunk)
    with pytest.raises(CacheCorruptError):
        encoded_album.embeddings()
    assert encoded_album.run() == PhotoReport(photos, PHOTOS - photos, (), photos)
    assert sum(batches) == photos
    assert files_of(encoded_album.path) == before


@pytest.mark.parametrize(
    ("damage", "column"),
    [(flip, name) for name in ("id", "latitude", "split", "path", "heading", "status", "photo_mtime_ns")]
    + [(Path.unlink, name) for name in ("id", "latitude", "status")],
)
def test_a_damaged_column_is_mended_by_the_next_run(encoded_album: Album, damage: Callable, column: str) -> None:
    table = read_photo_table(encoded_album.folder)
    table = replace(table, frame=table.frame.assign(heading=np.arange(PHOTOS)))
    encoded_album.run(table)
    before, listed = encoded_album.embeddings(), FeatureCache.open(encoded_album.path).queries.frame()
    damage(encoded_album.path / f"queries/{column}/c/0")
    encoded_album.run(table)
    assert same(before, encoded_album.embeddings()) == before.keys()
    again = FeatureCache.open(encoded_album.path).queries.frame()
    assert again.reset_index(drop=True).equals(listed)
    assert encoded_album.run(table) == PhotoReport(0, PHOTOS, (), 0)
    report = verify_cache(FeatureCache.open(encoded_album.path))
    assert not (report.metadata or report.damaged or report.lost)


# Several processes


@pytest.mark.parametrize("damaged", [False, True])
def test_two_processes_encode_each_photo_once(
    album: Album, template: Album, batches: list, in_two_processes: Callable, damaged: bool
) -> None:
    (album.folder / "07.jpg").write_bytes((album.folder / "07.jpg").read_bytes()[:-300])
    (album.folder / "13.jpg").write_bytes((album.folder / "13.jpg").read_bytes()[:-300])
    album.cache()
    if damaged:
        album.run()
        batches.clear()
        (album.path / "queries/embedding/c/1/0/0").unlink()
    one, other = in_two_processes(module, album.run)
    assert one.encoded == other.encoded == sum(batches) == (CHUNK - 1 if damaged else PHOTOS - 2)
    assert sorted(bad.name for bad in one.unreadable) == ["07.jpg", "13.jpg"]
    untouched = template.embeddings()
    assert same(album.embeddings(), untouched) == untouched.keys() - {"07.jpg", "13.jpg"}


# Augmented views


def test_views_are_stored_for_training_photos_and_can_be_made_again(template, tmp_path) -> None:
    album = replace(template, path=tmp_path / "views.zarr")
    report = album.run(views=3, seed=7)
    assert (report.encoded, report.remade) == (PHOTOS, False)
    queries = album.cache().queries
    frame = queries.encoded()
    train = (frame["split"] == "train").to_numpy()
    assert (frame["views"] == np.where(train, 3, 0)).all() and 0 < train.sum() < PHOTOS
    embedding = queries.embedding(frame.index, views=3)
    assert embedding.shape[:2] == (PHOTOS, 4)
    assert np.isnan(embedding[~train, 1:]).all() and np.isfinite(embedding[train]).all()
    assert all((embedding[train, one] != embedding[train, other]).any() for one in range(4) for other in range(one))
    np.testing.assert_array_equal(embedding[:, 0], [template.embeddings()[name] for name in frame["id"]])
    again = replace(template, path=tmp_path / "again.zarr")
    again.run(views=3, seed=7, batch_size=3)
    np.testing.assert_allclose(again.cache().queries.embedding(frame.index, views=3), embedding, atol=2e-3)


def test_views_are_added_to_what_is_there_and_only_where_they_lack(template, tmp_path) -> None:
    shutil.copytree(template.path, tmp_path / "town.zarr")
    album = replace(template, path=tmp_path / "town.zarr")
    train = int((template.cache().queries.encoded()["split"] == "train").sum())
    assert album.run(views=2).encoded == train
    assert (album.run(views=2).encoded, album.run(views=1).encoded, album.run().encoded) == (0, 0, 0)
    assert album.run(views=3).encoded == train
    tree = xarray.open_datatree(album.path, engine="zarr")
    assert tree["queries"].sizes["view"] == 4
    photo = next(iter(album.folder.glob("*.jpg")))
    os.utime(photo, ns=(1, 1))
    assert album.run(views=3).encoded == 0  # the same bytes


def test_views_of_another_seed_are_made_anew_and_never_mixed(template, tmp_path) -> None:
    shutil.copytree(template.path, tmp_path / "town.zarr")
    album = replace(template, path=tmp_path / "town.zarr")
    album.run(views=2, seed=1)
    frame = album.cache().queries.encoded()
    rows = frame.index[frame["split"] == "train"]
    before = album.cache().queries.embedding(rows, views=2)
    report = album.run(views=1, seed=2)
    assert report.remade and report.encoded == len(rows)
    queries = album.cache().queries
    assert (queries.frame()["views"][rows] == 1).all()
    after = queries.embedding(rows, views=1)
    assert (after[:, 0] == before[:, 0]).all() and (after[:, 1] != before[:, 1]).any()
    assert queries.augmentation["seed"] == 2


def test_a_damaged_view_is_encoded_again(template, tmp_path) -> None:
    shutil.copytree(template.path, tmp_path / "town.zarr")
    album = replace(template, path=tmp_path / "town.zarr")
    album.run(views=2)
    frame = album.cache().queries.encoded()
    before = album.cache().queries.embedding(frame.index, views=2)
    (album.path / "queries/embedding/c/1/2/0").unlink()
    with pytest.raises(CacheCorruptError):
        album.cache().queries.embedding(frame.index, views=2)
    chunk = frame.loc[CHUNK : 2 * CHUNK - 1]
    assert album.run(views=2).damaged == (chunk["split"] == "train").sum() > 0
    np.testing.assert_allclose(album.cache().queries.embedding(frame.index, views=2), before, atol=2e-3)


def test_copies_of_a_file_are_in_one_split(template: Album, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(template.folder, tmp_path / "photos"))
    album = replace(template, folder=folder, path=tmp_path / "town.zarr")
    split = read_photo_table(folder, split_by="photo").frame.set_index("id")["split"]
    train, held_out = split.index[split == "train"][0], split.index[split == "val"][0]
    shutil.copy2(folder / train, folder / held_out)  # of the same size, as all others of its split are not
    table = read_photo_table(folder, split_by="photo")
    for _ in range(2):  # before and after its digest is in the cache
        report = album.run(table)
        splits = album.cache().queries.frame().set_index("id")["split"]
        assert (report.copies, report.moved, splits[held_out]) == (1, 0, "train")
        assert (splits.drop(held_out) == split.drop(held_out)).all()
    own = replace(table, split=TABLE_SPLIT)
    assert album.run(own).copies == 1 and album.cache().queries.frame().set_index("id")["split"][held_out] == "val"
