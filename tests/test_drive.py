"""Photos of a drive are ordered by their times, whose clock and precision are as the photos record them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from jzi.errors import PhotoError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.joint.sequential import smooth_track
from jzi.locate.posterior import Posterior
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos import exif
from jzi.store.photos.drive import read_drive
from jzi.store.photos.photo_file import open_image
from jzi.tests.conftest import write_photo


@pytest.fixture
def timed(tmp_path: Path) -> Callable[..., Path]:
    """Write a photo with a time in its EXIF."""

    def write(name: str, time: str, offset: str = "", fraction: str = "") -> Path:
        path = write_photo(tmp_path / name, 48.2, 16.37)
        with Image.open(path) as image:
            tags = image.getexif()
            camera = tags.get_ifd(ExifTags.IFD.Exif)
            camera[ExifTags.Base.DateTimeOriginal] = f"2026:05:01 {time}"
            if offset:
                camera[ExifTags.Base.OffsetTimeOriginal] = offset
            if fraction:
                camera[ExifTags.Base.SubsecTimeOriginal] = fraction
            image.save(path, exif=tags)
        return path

    return write


def test_photos_are_in_the_order_of_time_and_fractions_of_seconds_count(timed) -> None:
    files = [timed("a.jpg", "10:00:05"), timed("b.jpg", "10:00:01", fraction="75"), timed("c.jpg", "10:00:01")]
    drive = read_drive(files)
    assert [file.name for file in drive.files] == ["c.jpg", "b.jpg", "a.jpg"]
    assert drive.seconds == [0.0, 0.75, 4.0] and drive.rounding_s == 1.0
    assert all(position and position.latitude == pytest.approx(48.2) for position in drive.positions)
    exact = read_drive([timed("d.jpg", "10:00:01", fraction="0"), timed("e.jpg", "10:00:02", fraction="5")])
    assert exact.seconds == [0.0, 1.5] and exact.rounding_s == 0.0


def test_offsets_from_utc_count_if_all_photos_record_them(timed) -> None:
    vienna, london = timed("a.jpg", "10:00:00", "+02:00"), timed("b.jpg", "09:00:03", "+01:00")
    assert read_drive([vienna, london]).seconds == [0.0, 3.0]
    drive = read_drive([timed("c.jpg", "10:00:02"), vienna])  # by the clock that both photos show
    assert [file.name for file in drive.files] == ["a.jpg", "c.jpg"] and drive.seconds == [0.0, 2.0]


def test_a_photo_without_a_time_is_named_and_a_file_is_opened_once(timed, tmp_path, monkeypatch) -> None:
    opened = []

    def counted(photo: Path, name: str):
        opened.append(Path(photo).name)
        return open_image(photo, name)

    monkeypatch.setattr(exif, "open_image", counted)
    files = [timed("a.jpg", "10:00:00"), timed("b.jpg", "10:00:01")]
    read_drive(files)
    assert opened == ["a.jpg", "b.jpg"]
    with pytest.raises(PhotoError, match=r"c\.jpg has no capture time in its EXIF: pass --interval"):
        read_drive([*files, write_photo(tmp_path / "c.jpg")])


def test_a_camera_that_counts_whole_seconds_may_have_driven_for_one_more() -> None:
    """Photos 0.9 s apart at 60 km/h, of which two have the same second, on cells of 5 m."""
    area = Pyramid.around(48.2, 16.37, 160.0, grid=2, levels=5)
    cols = np.array([4, 7, 10, 13])
    found = Posterior.from_cells(area, np.full(4, 8), cols, np.full((4, 4), 0.01) + 0.9 * np.eye(4))
    everywhere = np.ones((32, 32), bool)
    exact = smooth_track(found, everywhere, [0, 0, 1, 2], 60 / 3.6)
    rounded = smooth_track(found, everywhere, [0, 0, 1, 2], 60 / 3.6, rounding_s=1.0)
    truth = [each.grid()[8, col] for each, col in zip(rounded, cols, strict=True)]
    assert min(truth) > 0.9 and exact[0].grid()[8, cols[0]] < 0.1


@pytest.mark.slow
def test_a_drive_by_its_times_is_read_once_and_its_positions_are_kept(
    jzi, trained_folder, timed, tmp_path, monkeypatch
) -> None:
    shutil.copytree(trained_folder, tmp_path, dirs_exist_ok=True)
    names = [timed(f"{second}.jpg", f"10:00:0{second}").name for second in (4, 2)]
    opened = []

    def counted(photo: Path, name: str):
        opened.append(Path(photo).name)
        return open_image(photo, name)

    monkeypatch.setattr(exif, "open_image", counted)
    jzi(f"locate --track {' '.join(names)} --geojson a.geojson")
    assert opened == names and (tmp_path / "a.geojson").read_text().count('"truth"') == 2


def test_answers_that_no_drive_joins_are_marked(locator, monkeypatch) -> None:
    """Three photos that are sure of places far apart: each answer is where its photo fits, and a note says so."""
    area = locator.expert.area
    rows, cols = area.shape
    corners = np.array([12, 12, rows - 12]), np.array([12, cols - 12, 12])  # within reach of which the map has no edge
    certain = Posterior.from_cells(area, *corners, np.eye(3))
    monkeypatch.setattr(type(locator), "posterior", lambda *_: certain)
    photos = list(np.random.default_rng(0).integers(0, 256, (3, 48, 96, 3), np.uint8))
    near = locator.locate_track(photos, [0.0, 5.0, 10.0], 15.0)
    assert [len(each.notes) for each in near] == [0, 1, 1], near
    assert "m from the answer to the photo before, which 5 s at the top speed of 54 km/h do not" in near[1].notes[0]
    assert not any(each.notes for each in locator.locate_track(photos, [0.0, 3600.0, 7200.0], 10.0))
    unsure = locator.locate_track(photos, [0.0, 5.0, 10.0], 15.0, LocateOptions(abstain=1.0))
    assert not any(each.notes for each in unsure)
