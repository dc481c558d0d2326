"""What is known of a photo's view: EXIF, GPano and the photo table, in the cache and for a single photo."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from jzi.encode.photo.declination import DEFAULT_YEAR, FIRST_YEAR, declination_deg
from jzi.encode.photo.photo_view import COLUMNS, MAX_HFOV_DEG, PhotoView, read_view, with_view_columns
from jzi.errors import PhotoError

GPANO = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description '
    'xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" '
    "{attributes}>{elements}</rdf:Description></rdf:RDF></x:xmpmeta>"
)


@pytest.fixture
def photo(tmp_path: Path) -> Callable[..., Path]:
    """A JPEG with entries of EXIF, of its directories, and of XMP."""

    def write(size=(60, 40), exif=None, gps=None, base=None, xmp: str | bytes = b"", suffix: str = ".jpg") -> Path:
        entries = Image.Exif()
        for tag, value in (base or {}).items():
            entries[tag] = value
        entries.get_ifd(ExifTags.IFD.Exif).update(exif or {})
        entries.get_ifd(ExifTags.IFD.GPSInfo).update(gps or {})
        path = tmp_path / f"photo{suffix}"
        options = {"xmp": xmp.encode() if isinstance(xmp, str) else xmp} if xmp else {}
        Image.new("RGB", size, "gray").save(path, exif=entries, **options)
        return path

    return write


def focal(value) -> dict:
    return {ExifTags.Base.FocalLengthIn35mmFilm: value}


def direction(value, reference: str | None = "T") -> dict:
    entries = {ExifTags.GPS.GPSImgDirection: value}
    return entries if reference is None else {**entries, ExifTags.GPS.GPSImgDirectionRef: reference}


# Field of view


@pytest.mark.parametrize(("size", "film"), [((60, 40), 36), ((40, 60), 24), ((50, 50), 36)])
def test_the_field_of_view_follows_from_the_focal_length(photo, size, film) -> None:
    view = read_view(photo(size, exif=focal(28)))
    assert view.hfov_deg == pytest.approx(math.degrees(2 * math.atan(film / 56))) and not view.panorama


def test_a_photo_that_lies_on_its_side_in_the_file_is_a_portrait(photo) -> None:
    view = read_view(photo((60, 40), exif=focal(28), base={ExifTags.Base.Orientation: 6}))
    assert view.hfov_deg == pytest.approx(math.degrees(2 * math.atan(24 / 56)))


@pytest.mark.parametrize("value", [None, 0, 1, 60_000])
def test_a_focal_length_that_is_none_leaves_the_field_of_view_unknown(photo, value) -> None:
    view = read_view(photo(exif={} if value is None else focal(value)))
    assert view.hfov_deg is None and view.completed(70, 10, 20).hfov_deg == 70


# Heading


def test_directions_from_true_and_from_magnetic_north_differ_in_their_deviation(photo) -> None:
    true = read_view(photo(gps=direction(IFDRational(1234, 10))))
    assert (true.heading_deg, true.heading_sd_deg, true.magnetic) == (pytest.approx(123.4), None, False)
    assert true.completed(70, 10, 20).heading_sd_deg == 10
    magnetic = read_view(photo(gps=direction(123.4, "M")))
    assert magnetic.magnetic and magnetic.completed(70, 10, 20).heading_sd_deg == 20
    assert read_view(photo(gps=direction(370.0, None))).heading_deg == pytest.approx(10)


def test_a_magnetic_heading_is_corrected_where_the_declination_is_known(photo, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("jzi.encode.photo.photo_view.declination_deg", lambda *place: asked.append(place) or 15.5)
    taken = {ExifTags.Base.DateTimeOriginal: "2026:07:02 12:00:00"}
    view = read_view(photo(exif=taken, gps=direction(350.0, "M"))).from_true_north(47.6, -122.3)
    assert (view.heading_deg, view.magnetic, view.completed(70, 10, 20).heading_sd_deg) == (5.5, False, 10)
    assert asked == [(47.6, -122.3, pytest.approx(2026.5, abs=0.01))]
    given = read_view(photo(gps=direction(350.0, "M"))).with_heading(90.0)  # by a user, from true north
    assert given.from_true_north(47.6, -122.3).heading_deg == 90
    monkeypatch.setattr("jzi.encode.photo.photo_view.declination_deg", lambda *place: None)
    unknown = read_view(photo(gps=direction(350.0, "M"))).from_true_north(47.6, -122.3)
    assert unknown.magnetic and unknown.heading_deg == 350


@pytest.mark.parametrize(
    ("latitude", "longitude", "year", "expected"),
    [
        (80, 0, 2025.0, 1.28),  # test values that NOAA publishes with WMM2025, at sea level
        (0, 120, 2025.0, -0.16),
        (-80, 240, 2025.0, 68.78),
        (80, 0, 2020.0, -1.28),  # and with WMM2020
        (-80, 240, 2020.0, 69.36),
    ],
)
def test_declinations_are_those_of_the_world_magnetic_model(latitude, longitude, year, expected) -> None:
    pytest.importorskip("pygeomag")
    assert declination_deg(latitude, longitude, year) == pytest.approx(expected, abs=0.01)


def test_years_without_a_model_and_the_pole_itself_are_no_error() -> None:
    pytest.importorskip("pygeomag")
    assert declination_deg(47.6, -122.3) == declination_deg(47.6, -122.3, DEFAULT_YEAR)
    assert declination_deg(47.6, -122.3, 1901.0) == declination_deg(47.6, -122.3, FIRST_YEAR)
    assert declination_deg(47.6, -122.3, 2055.0) == pytest.approx(14.5, abs=0.5)
    assert declination_deg(86.0, 139.0, 2025.0) is None  # the north magnetic pole


def test_a_direction_that_is_no_number_is_none(photo) -> None:
    view = read_view(photo(gps=direction(IFDRational(0, 0))))
    assert view.heading_deg is None and view.heading_sd_deg is None
    assert view.completed(70, 10, 20).heading_sd_deg is None


# Panoramas


def test_gpano_makes_a_panorama(photo) -> None:
    attributes = 'GPano:ProjectionType="equirectangular" GPano:PoseHeadingDegrees="350.5"'
    view = read_view(photo((80, 40), xmp=GPANO.format(attributes=attributes, elements="")))
    assert view == PhotoView(360.0, True, 350.5)
    elements = (
        "<GPano:ProjectionType>equirectangular</GPano:ProjectionType> <GPano:FullPanoWidthPixels>80"
        "</GPano:FullPanoWidthPixels>\n<GPano:CroppedAreaImageWidthPixels>80</GPano:CroppedAreaImageWidthPixels>"
    )
    assert read_view(photo((80, 40), xmp=GPANO.format(attributes="", elements=elements))).panorama


def test_a_part_of_a_panorama_is_none(photo) -> None:
    attributes = (
        'GPano:ProjectionType="equirectangular" GPano:FullPanoWidthPixels="240" GPano:CroppedAreaImageWidthPixels="80"'
    )
    view = read_view(photo((80, 40), xmp=GPANO.format(attributes=attributes, elements="")))
    assert not view.panorama and view.hfov_deg == pytest.approx(120)


def test_a_wide_photo_without_metadata_is_a_panorama_only_at_the_size_of_one(photo) -> None:
    assert not read_view(photo((80, 40))).panorama
    assert read_view(photo((2000, 1000))).panorama
    assert not read_view(photo((2000, 900))).panorama
    assert not read_view(photo((2000, 1000), exif=focal(24))).panorama


@pytest.mark.parametrize(
    "xmp",
    [
        b"GPano:ProjectionType=" * 3000,
        b"\xff\xfe" * 20_000,
        GPANO.format(attributes='GPano:ProjectionType="cylindrical"', elements=""),
        GPANO.format(attributes='GPano:FullPanoWidthPixels="nan"', elements="<GPano:ProjectionType>" * 500),
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + "&b;" * 5000,
    ],
)
def test_hostile_metadata_make_no_panorama_and_no_error(photo, xmp) -> None:
    assert read_view(photo((80, 40), xmp=xmp)) == PhotoView()


def test_png_and_webp_have_them_too(photo) -> None:
    attributes = 'GPano:ProjectionType="equirectangular"'
    xmp = GPANO.format(attributes=attributes, elements="")
    assert read_view(photo((80, 40), xmp=xmp, suffix=".webp")).panorama
    base = {ExifTags.Base.Make: "camera"}  # an EXIF of nothing but directories is empty to Pillow
    assert read_view(photo(exif=focal(28), base=base, suffix=".png")).hfov_deg == pytest.approx(65.47, abs=0.01)


def test_bytes_images_and_files_are_read_alike_and_no_photo_is_refused(photo, tmp_path) -> None:
    path = photo(exif=focal(28), gps=direction(10.0))
    views = [read_view(path), read_view(path.read_bytes())]
    with path.open("rb") as file:
        views.append(read_view(file))
    with Image.open(path) as image:
        views.append(read_view(image))
    assert views[0].heading_deg == 10 and len(set(views)) == 1
    (tmp_path / "text.jpg").write_text("no photo")
    with pytest.raises(PhotoError):
        read_view(tmp_path / "text.jpg")


# The photo table


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, PhotoView(65.0, False, 10.0, None, True)),
        ({"heading": 10.0}, PhotoView(65.0, False, 10.0, None, True)),  # of EXIF itself
        ({"heading": 20.0}, PhotoView(65.0, False, 20.0)),
        ({"heading": -20.0, "heading_sd": 3}, PhotoView(65.0, False, 340.0, 3.0)),
        ({"hfov": 90.0}, PhotoView(90.0, False, 10.0, None, True)),
        ({"hfov": 360.0}, PhotoView(360.0, True, 10.0, None, True)),
        ({"panorama": "True"}, PhotoView(360.0, True, 10.0, None, True)),
        ({"panorama": 0, "hfov": 80}, PhotoView(80.0, False, 10.0, None, True)),
        (
            {"panorama": "?", "hfov": "wide", "heading": np.nan, "heading_sd": -1},
            PhotoView(65.0, False, 10.0, None, True),
        ),
        ({"hfov": 200.0}, PhotoView(65.0, False, 10.0, None, True)),
    ],
)
def test_a_table_counts_more_than_the_file(row: dict, expected: PhotoView) -> None:
    assert PhotoView(65.0, False, 10.0, None, True).with_table(row) == expected


def test_a_panorama_that_the_table_says_is_none_has_an_unknown_field_of_view() -> None:
    assert PhotoView(360.0, True).with_table({"panorama": "no"}) == PhotoView(None, False)
    assert PhotoView(360.0, True).with_table({"hfov": MAX_HFOV_DEG}) == PhotoView(MAX_HFOV_DEG, False)


@pytest.mark.parametrize(
    "view",
    [PhotoView(), PhotoView(360.0, True, 12.5, 3.0), PhotoView(65.0, False, 359.9), PhotoView(None, False, 0.0, 20.0)],
)
def test_columns_hold_a_view(view: PhotoView) -> None:
    assert PhotoView.from_columns(*view.to_columns(20.0)) == view
    magnetic = PhotoView(65.0, False, 1.0, None, True)
    assert PhotoView.from_columns(*magnetic.to_columns(20.0)) == PhotoView(65.0, False, 1.0, 20.0)


def test_a_table_gets_the_columns_of_its_photos(photo, tmp_path, monkeypatch) -> None:
    path = photo(exif=focal(28), gps=direction(10.0, "M"))
    frame = pd.DataFrame({"photo": [str(path), str(tmp_path / "gone.jpg")], "heading": [np.nan, 7.0]})
    columns = with_view_columns(frame, 25.0)[list(COLUMNS)]  # without positions, magnetic headings stay as they are
    np.testing.assert_allclose(columns.iloc[0], [65.47, 0, 10, 25], atol=0.01)
    np.testing.assert_allclose(columns.iloc[1], [np.nan, 0, 7, np.nan])
    monkeypatch.setattr("jzi.encode.photo.photo_view.declination_deg", lambda latitude, longitude, year: longitude)
    columns = with_view_columns(frame.assign(latitude=48.0, longitude=4.0), 25.0)[list(COLUMNS)]
    np.testing.assert_allclose(columns["heading_deg"], [14, 7])
    assert columns["heading_sd_deg"].isna().all()
