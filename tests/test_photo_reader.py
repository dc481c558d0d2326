"""One reader of photos: in order, at one size, whatever they come as; what cannot be read is reported."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

import jzi.encode.photo.photo_reader as module
from jzi.encode.photo.photo_reader import PhotoReader, PhotoStamp
from jzi.encode.photo.photos import PANORAMA, open_photo, resize_photo

SHAPE = (14, 28)


@pytest.fixture
def paths(photo_folder: Path) -> list[Path]:
    return sorted(photo_folder.rglob("*.jpg"))


def test_photos_come_in_order_at_the_size_that_was_asked_for(paths) -> None:
    for photo, path in zip(PhotoReader(SHAPE).read(paths, ahead=5), paths, strict=True):
        assert photo.name == str(path) and (photo.error, photo.notes, photo.stamp) == ("", (), PhotoStamp())
        assert (photo.pixels == resize_photo(open_photo(path), 28, 14)).all()
    batches = list(PhotoReader(SHAPE).batches(paths, 7))
    assert [len(batch) for batch in batches] == [7, 7, 7, 7, 2]
    assert [photo.name for batch in batches for photo in batch] == [str(path) for path in paths]


def test_a_photo_may_come_as_a_path_bytes_a_file_or_an_image(paths) -> None:
    path = paths[0]
    with path.open("rb") as file:
        forms = [path, str(path), path.read_bytes(), file, Image.open(path), Image.open(io.BytesIO(path.read_bytes()))]
        read = list(PhotoReader(SHAPE).read(forms))
    assert all((photo.pixels == read[0].pixels).all() for photo in read)
    assert [photo.name for photo in read] == [str(path), str(path), "photo", str(path), str(path), "photo"]


def test_what_cannot_be_read_costs_only_itself(paths, tmp_path) -> None:
    (tmp_path / "cut.jpg").write_bytes(paths[0].read_bytes()[:500])
    photos = [paths[0], tmp_path / "gone.jpg", tmp_path / "cut.jpg", b"no photo", paths[1]]
    read = list(PhotoReader(SHAPE).read(photos))
    assert [photo.pixels is None for photo in read] == [False, True, True, True, False]
    assert read[1].error == f"there is no photo {tmp_path / 'gone.jpg'}"
    assert read[2].error.startswith(f"{tmp_path / 'cut.jpg'} cannot be read") and "is not a photo" in read[3].error
    assert not any("\n" in photo.error for photo in read)


def test_a_stamp_is_of_the_bytes_that_were_read(paths, tmp_path) -> None:
    (tmp_path / "cut.jpg").write_bytes(paths[0].read_bytes()[:500])
    photos = [paths[0], tmp_path / "cut.jpg", tmp_path / "gone.jpg"]
    whole, cut, gone = PhotoReader(SHAPE, stamps=True, subject="it").read(photos)
    for photo, path in ((whole, paths[0]), (cut, tmp_path / "cut.jpg")):
        data, stat = path.read_bytes(), path.stat()
        assert photo.stamp == PhotoStamp(hashlib.sha256(data).hexdigest(), stat.st_size, stat.st_mtime_ns)
    assert whole.pixels is not None and cut.error.startswith("it cannot be read")
    assert gone.stamp == PhotoStamp() and gone.error == "it cannot be read: No such file or directory"


def test_a_panorama_is_noted() -> None:
    wide = Image.linear_gradient("L").resize((2000, 1000))
    assert PhotoReader(SHAPE).read_one(wide).notes == (PANORAMA,)
    assert PhotoReader(SHAPE).read_one(wide.resize((2000, 1001))).notes == ()


def test_as_many_photos_are_kept_decoded_as_there_is_room_for(paths, monkeypatch) -> None:
    opened = []
    read = module.read_photo
    monkeypatch.setattr(
        module, "read_photo", lambda path, *args, **options: opened.append(path) or read(path, *args, **options)
    )
    reader = PhotoReader(SHAPE, keep=3)
    first = [reader.read_one(path) for path in paths[:5]]
    again = [reader.read_one(path) for path in paths[:5]]
    assert opened == [*paths[:5], *paths[3:5]]
    assert all((a.pixels == b.pixels).all() for a, b in zip(first, again, strict=True))
