"""Photos in HEIC: read as others are, upright once, and within the same bounds."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from jzi.commands.shared.outputs import Outputs
from jzi.encode.photo.photo_reader import PhotoReader
from jzi.encode.photo.photo_view import read_view
from jzi.encode.photo.photos import open_photo
from jzi.errors import PhotoError
from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.posterior import Posterior
from jzi.store.photos import photo_file
from jzi.store.photos.exif import read_position, read_time, sexagesimal, write_position
from jzi.store.photos.photo_table import read_photo_table

RED, GREEN = (255, 0, 0), (0, 255, 0)
HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.fixture
def heif() -> Any:
    return pytest.importorskip("pillow_heif", reason="photos in HEIC need pillow-heif: pip install 'jzi[heic]'")


@pytest.fixture
def take_heic(heif: Any, tmp_path: Path) -> Any:
    """Writes a HEIC of 80 x 40 pixels as stored, of which the left half is red."""

    def take(name: str = "IMG_1.HEIC", orientation: int = 1) -> Path:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        gps, camera = exif.get_ifd(ExifTags.IFD.GPSInfo), exif.get_ifd(ExifTags.IFD.Exif)
        gps.update({1: "N", 2: sexagesimal(48.2), 3: "E", 4: sexagesimal(16.37), 16: "T", 17: 33.0})
        camera[ExifTags.Base.FocalLengthIn35mmFilm] = 26
        camera[ExifTags.Base.DateTimeOriginal] = "2024:05:06 07:08:09"
        image = Image.new("RGB", (80, 40), GREEN)
        image.paste(RED, (0, 0, 40, 40))
        heif.from_pillow(image).save(tmp_path / name, quality=90, exif=exif.tobytes())
        return tmp_path / name

    return take


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_is_turned_once(take_heic, tmp_path, orientation) -> None:
    """As a PNG with the same pixels and the same EXIF is."""
    path = take_heic(orientation=orientation)
    stored, exif = Image.new("RGB", (80, 40), GREEN), Image.Exif()
    stored.paste(RED, (0, 0, 40, 40))
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(tmp_path / "same.png", exif=exif)
    seen, same = np.asarray(open_photo(path)), np.asarray(open_photo(tmp_path / "same.png"))
    assert seen.shape == same.shape and np.abs(seen.astype(int) - same).mean() < 10
    wide = read_view(path).hfov_deg > read_view(take_heic("tall.heic", orientation=6)).hfov_deg
    assert wide == (orientation < 5)


def test_the_metadata_of_a_heic_are_read(take_heic, tmp_path) -> None:
    path = take_heic(orientation=6)
    position, view = read_position(path), read_view(path)
    assert (position.latitude, position.longitude, position.heading) == pytest.approx((48.2, 16.37, 33.0))
    assert read_position(path.read_bytes()) == position and read_time(path).minute == 8
    assert view.heading_deg == 33.0 and not view.magnetic and view.hfov_deg == pytest.approx(49.55, abs=0.01)
    assert list(read_photo_table(tmp_path).frame["latitude"]) == pytest.approx([48.2])
    photo = PhotoReader((14, 28)).read_one(path)
    assert photo.error == "" and photo.pixels.shape == (14, 28, 3)


def test_a_heic_that_is_damaged_or_too_large_is_one_sentence(take_heic, monkeypatch) -> None:
    data = take_heic().read_bytes()
    at = data.index(b"ispe") + 8
    small = data[:at] + struct.pack(">II", 8, 4) + data[at + 8 :]  # the coded picture is larger than its header says
    for broken in (HEAD, data[:200], data[: len(data) - 200], small):
        with pytest.raises(PhotoError, match=r"^the photo cannot be read: [^\n]+$"):
            open_photo(broken)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1599)
    with pytest.raises(PhotoError, match="too large to open"):
        open_photo(data)
    monkeypatch.setattr(photo_file, "WHOLE_BYTES", len(data) - 1)
    with pytest.raises(PhotoError, match="more than"):
        open_photo(data)


def test_metadata_of_a_heic_are_bounded(heif) -> None:
    file = io.BytesIO()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + bytes(photo_file.EXIF_BYTES)
    heif.from_pillow(Image.new("RGB", (80, 40))).save(file, exif=exif)
    with pytest.raises(PhotoError, match="its EXIF has more than"):
        open_photo(file.getvalue())


def test_a_heic_gets_no_copy_with_a_position(pyramid, tmp_path) -> None:
    posterior = Posterior.from_cells(pyramid, np.array([3]), np.array([5]), np.array([1.0]))
    photo = tmp_path / "IMG_1.HEIC"
    photo.write_bytes(HEAD)
    outputs = Outputs(None, None, None, None, None, copies=tmp_path / "copies")
    outputs.add(photo, to_locations(posterior, LocateOptions(), ["IMG_1.HEIC"])[0])
    outputs.write(None)
    assert not outputs.errors and not outputs.copies.exists()
    assert outputs.notes == [f"{photo} is a HEIC photo: no copy was written; convert it to JPEG first"]


def test_a_position_is_not_written_into_a_heic(take_heic, tmp_path) -> None:
    with pytest.raises(PhotoError, match="is a HEIC photo, which cannot be saved again without loss"):
        write_position(take_heic(), tmp_path / "copy.heic", 48.2, 16.37, overwrite=True)
    assert not (tmp_path / "copy.heic").exists()


@pytest.mark.parametrize("brand", photo_file.HEIF_BRANDS)
def test_without_pillow_heif_the_refusal_says_what_to_install(tmp_path, take_photo, monkeypatch, brand) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(HEAD.replace(b"heic", brand, 1))
    with pytest.raises(PhotoError, match=r"a\.heic cannot be read: HEIC photos need `pip install 'jzi\[heic\]'`"):
        open_photo(tmp_path / "a.heic")
    take_photo(tmp_path / "b.jpg", 48.2, 16.37)
    (rejected,) = read_photo_table(tmp_path).rejected
    assert "jzi[heic]" in rejected.reason


@pytest.mark.parametrize("suffix", ["jfif", "JPE"])
def test_less_common_suffixes_of_jpegs_are_those_of_photos(tmp_path, take_photo, suffix) -> None:
    take_photo(tmp_path / "photo.jpg", 48.2, 16.37).rename(tmp_path / f"photo.{suffix}")
    assert len(read_photo_table(tmp_path).frame) == 1
