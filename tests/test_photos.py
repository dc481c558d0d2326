"""Claims about opening street photos."""

from __future__ import annotations

import io
import os
import socket
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from jzi.encode.photo import photos
from jzi.encode.photo.photo_memory import MemoryBudget
from jzi.encode.photo.photo_reader import PhotoReader
from jzi.encode.photo.photos import fit_size, open_photo, read_photo, resize_photo
from jzi.errors import PhotoError
from jzi.store.photos.exif import read_position
from tests import hostile

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.fixture
def jpeg(take_photo: Callable, tmp_path: Path) -> bytes:
    return take_photo(tmp_path / "photo.jpg").read_bytes()


@pytest.mark.parametrize(
    ("orientation", "red"),
    [(1, "left"), (2, "right"), (3, "right"), (4, "left"), (5, "top"), (6, "top"), (7, "bottom"), (8, "bottom")],
)
def test_a_photo_is_turned_as_its_exif_says(tmp_path: Path, orientation: int, red: str) -> None:
    image = Image.new("RGB", (80, 40), GREEN)
    image.paste(RED, (0, 0, 40, 40))  # the left half as stored
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "photo.png", exif=exif)
    seen = open_photo(tmp_path / "photo.png")
    assert seen.size == ((80, 40) if red in ("left", "right") else (40, 80))
    width, height = seen.size
    place = {"left": (2, 20), "right": (width - 3, 20), "top": (20, 2), "bottom": (20, height - 3)}[red]
    assert seen.getpixel(place) == RED


@pytest.mark.parametrize("orientation", [0, 9, 200])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (80, 40)).save(tmp_path / "photo.jpg", exif=exif)
    assert open_photo(tmp_path / "photo.jpg").size == (80, 40)


def paletted(transparent: bool) -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 255, *RED])
    image.putpixel((0, 0), 0)
    if transparent:
        image.info["transparency"] = 0
    return image


MODES = {
    "L": (Image.new("L", (8, 8), 90), (90, 90, 90)),
    "LA": (Image.new("LA", (8, 8), (90, 255)), (90, 90, 90)),
    "LA, clear": (Image.new("LA", (8, 8), (90, 0)), (255, 255, 255)),
    "RGBA": (Image.new("RGBA", (8, 8), (*RED, 255)), RED),
    "RGBA, clear": (Image.new("RGBA", (8, 8), (*RED, 0)), (255, 255, 255)),
    "P": (paletted(False), RED),
    "1": (Image.new("1", (8, 8), 1), (255, 255, 255)),
    "CMYK": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), RED),
    "HSV": (Image.new("HSV", (8, 8), (0, 255, 255)), RED),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_the_colours_that_one_sees(mode: str) -> None:
    image, color = MODES[mode]
    seen = open_photo(image)
    assert seen.mode == "RGB"
    assert seen.getpixel((4, 4)) == color


def test_a_clear_place_of_a_palette_becomes_white(tmp_path: Path) -> None:
    image = paletted(True)
    image.save(tmp_path / "photo.png", transparency=0)
    seen = open_photo(tmp_path / "photo.png")
    assert (seen.getpixel((0, 0)), seen.getpixel((4, 4))) == ((255, 255, 255), RED)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_gray_is_seen_by_its_own_range(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(1000, 3000, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"photo.{suffix}")
    seen = np.asarray(open_photo(tmp_path / f"photo.{suffix}"))
    assert seen.shape == (8, 8, 3)
    assert (seen.min(), seen.max()) == (0, 255)
    assert (np.diff(seen[..., 0].ravel().astype(int)) >= 0).all()
    Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(tmp_path / "flat.png")
    assert np.asarray(open_photo(tmp_path / "flat.png")).std() == 0


def test_a_photo_may_be_a_path_bytes_a_file_or_an_image(jpeg: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    expected = np.asarray(open_photo(path))
    with path.open("rb") as file, Image.open(path) as image:
        for photo in (str(path), jpeg, io.BytesIO(jpeg), file, image):
            np.testing.assert_array_equal(np.asarray(open_photo(photo)), expected)


# Errors


def refused(photo: object, match: str) -> None:
    with pytest.raises(PhotoError, match=match) as error:
        open_photo(photo, "my.jpg")  # type: ignore[arg-type]
    assert "my.jpg" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_truncated_photo_is_refused(jpeg: bytes, share: float) -> None:
    refused(jpeg[: int(len(jpeg) * share)], "cannot be read")


def test_a_truncated_png_is_refused(tmp_path: Path, pattern: Callable) -> None:
    Image.fromarray(np.moveaxis(pattern(64, 64, 1), 0, -1).copy()).save(tmp_path / "photo.png")
    refused((tmp_path / "photo.png").read_bytes()[:-2000], "cannot be read")


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff\xe0", b"GIF89a"], ids=["empty", "text", "jpeg", "gif"])
def test_what_is_no_photo_is_refused(data: bytes) -> None:
    refused(data, "is not a photo|cannot be read")


def test_a_photo_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.jpg", "there is no photo")
    refused(tmp_path, "cannot be read")


def test_a_photo_of_too_many_pixels_is_refused_before_it_fills_the_memory(
    jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "MAX_PIXELS", 96 * 48)
    open_photo(jpeg)
    monkeypatch.setattr(photos, "MAX_PIXELS", 96 * 48 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("its pixels were loaded"))
    refused(jpeg, "96 x 48 pixels: shrink it")


@pytest.mark.parametrize("size", [(1, 65_536), (65_536, 1)])
def test_a_photo_of_one_endless_row_or_column_is_refused(size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    refused(buffer.getvalue(), "shrink it to 65,535 to a side")


def test_a_decompression_bomb_is_refused(jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(jpeg, "too large")


def test_a_fifo_a_socket_and_a_device_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", "it is a FIFO, not a file")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
        refused(tmp_path / "s.jpg", "it is a socket, not a file")
    refused("/dev/zero", "it is a device, not a file")
    with pytest.raises(PhotoError, match="it is a FIFO"):
        read_position(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("format", ["EPS", "GIF", "PPM", "BMP", "TGA"])
def test_other_formats_are_not_decoded_whatever_their_name(tmp_path: Path, format: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg", format)
    refused(tmp_path / "photo.jpg", "is not a photo in a format that is supported")


def test_metadata_are_bounded(jpeg: bytes, tmp_path: Path) -> None:
    exif = hostile.segment(0xE1, b"Exif\0\0" + bytes(40_000))
    refused(jpeg[:2] + exif * 3 + jpeg[2:], "metadata are too large")
    refused(jpeg[:2] + hostile.segment(0xFE, bytes(60_000)) * 300 + jpeg[2:], "metadata are too large")
    refused(jpeg[:2] + hostile.segment(0xFE, b"") * 5000 + jpeg[2:], "metadata are too large")
    chunks = hostile.chunk(b"eXIf", b"II*\0" + bytes(70_000))
    refused(hostile.png(4, 4, zlib.compress(bytes(52)), chunks), "EXIF has more than 65536 bytes")
    refused(hostile.png(4, 4, zlib.compress(bytes(52)), hostile.chunk(b"abCd", b"") * 2000), "metadata are too large")
    shared = [(tag, 7, 200_000, 60_000) for tag in range(1000, 5000)]  # 800 MB, all of them the same 200 kB
    refused(hostile.tiff(shared, bytes(300_000)), "metadata are too large")


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG", progressive=True)
    data = file.getvalue()
    open_photo(data)
    last = data[data.rindex(b"\xff\xda") : -2]
    refused(data[:-2] + last * 200 + data[-2:], "more than 100 scans")


@pytest.mark.parametrize("progressive", [False, True])
def test_of_a_jpeg_with_previews_or_depth_maps_the_first_picture_is_read(progressive: bool, monkeypatch) -> None:
    picture, preview = Image.effect_noise((640, 320), 60).convert("RGB"), Image.new("RGB", (32, 16))
    plain, several = io.BytesIO(), io.BytesIO()
    picture.save(plain, "JPEG", progressive=progressive)
    picture.save(several, "MPO", progressive=progressive, save_all=True, append_images=[preview])
    data = several.getvalue()
    for _ in range(2):
        for read in (open_photo, lambda photo: read_photo(photo, 100, 50)[0]):
            np.testing.assert_array_equal(np.asarray(read(data)), np.asarray(read(plain.getvalue())))
        monkeypatch.setattr(photos, "DRAFT_PIXELS", 640 * 320 - 1)
    if progressive:
        end = data.index(b"\xff\xd9")
        last = data[data.rindex(b"\xff\xda", 0, end) : end]
        refused(data[:end] + last * 200 + data[end:], "more than 100 scans")
    refused(data[: data.index(b"\xff\xda")], "its header is damaged|truncated")


def test_a_tiff_of_one_huge_tile_is_refused(tmp_path: Path) -> None:
    entries = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
               (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 200), (325, 4, 1, 100)]  # fmt: skip
    refused(hostile.tiff(entries, bytes(400)), "in tiles of 3600000000")


# Memory


def test_photos_in_flight_share_a_budget() -> None:
    budget, held, most = MemoryBudget(10), [0], [0]
    lock = threading.Lock()

    def use(amount: int) -> None:
        for _ in range(50):
            with budget.reserve(amount):
                with lock:
                    held[0] += amount
                    most[0] = max(most[0], held[0])
                with lock:
                    held[0] -= amount

    threads = [threading.Thread(target=use, args=(amount,)) for amount in (1, 3, 5, 9, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert held == [0] and 0 < most[0] <= 10


def test_a_photo_that_exceeds_the_budget_alone_is_refused(jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "photo_budget", lambda: MemoryBudget(96 * 48 * 9))
    refused(jpeg, "too many for a JPEG")


def test_large_jpegs_alone_are_decoded_at_a_fraction_of_their_size(
    tmp_path: Path, pattern: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(np.moveaxis(pattern(640, 1280, 64), 0, -1).copy())
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name, options in (("upright.jpg", {}), ("turned.jpg", {"exif": exif}), ("photo.png", {})):
        image.save(tmp_path / name, **options)
    names = ("upright.jpg", "turned.jpg", "photo.png")

    def read(name: str, resampling: str = "antialias") -> np.ndarray:
        pixels, size = read_photo(tmp_path / name, 100, 50, resampling)
        assert size == ((640, 1280) if name == "turned.jpg" else (1280, 640))
        return pixels

    before = [read(name) for name in names]
    for name, pixels in zip(names, before, strict=True):
        np.testing.assert_array_equal(pixels, resize_photo(open_photo(tmp_path / name), 100, 50))
    exact = read("upright.jpg", "reference")
    sizes = []
    to_rgb = photos._to_rgb
    monkeypatch.setattr(photos, "DRAFT_PIXELS", 640 * 1280 - 1)
    monkeypatch.setattr(photos, "_to_rgb", lambda image: sizes.append(image.size) or to_rgb(image))
    after = [read(name) for name in names]
    assert sizes == [(320, 160), (320, 640), (1280, 640)]
    assert all(np.abs(a.astype(int) - b).mean() < 4 for a, b in zip(after, before, strict=True))
    assert (read("upright.jpg", "reference") == exact).all()


# Size


def test_the_whole_photo_is_resized_and_what_is_too_fine_becomes_its_mean() -> None:
    fine = np.zeros((400, 600, 3), np.uint8)
    fine[::2, ::2] = fine[1::2, 1::2] = 255
    small = resize_photo(Image.fromarray(fine), 56, 28)
    assert small.shape == (28, 56, 3)
    assert np.abs(small.astype(int) - 127).max() <= 2


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1280, 960), (0, 0, 640, 480)),
        ((960, 1280), (140, 0, 500, 480)),  # a portrait photo is not turned
        ((1920, 1080), (0, 60, 640, 420)),
        ((64, 16), (0, 160, 640, 320)),  # scaled up
        ((3, 1000), (319, 0, 320, 480)),
        ((10_000, 1), (0, 239, 640, 240)),  # at least a pixel high
        ((641, 480), (0, 0, 640, 479)),  # the odd row of black is below
    ],
)
def test_a_photo_that_is_fitted_keeps_its_aspect_ratio_centred_on_black(size, box) -> None:
    left, top, right, bottom = box
    noise = np.random.default_rng(0).integers(1, 256, (size[1], size[0], 3), np.uint8)
    fitted = resize_photo(Image.fromarray(noise), 640, 480, "bilinear", fit=True)
    expected = np.zeros((480, 640, 3), np.uint8)
    expected[top:bottom, left:right] = np.asarray(
        Image.fromarray(noise).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    )
    assert (fitted == expected).all()
    assert fit_size(size[0], size[1], 640, 480) == (right - left, bottom - top)


def test_a_fitted_photo_is_antialiased() -> None:
    fine = np.indices((960, 1280)).sum(0) % 2 * 255
    fitted = resize_photo(Image.fromarray(np.stack([fine] * 3, -1).astype(np.uint8)), 320, 240, "bilinear", fit=True)
    assert np.ptp(fitted[2:-2, 2:-2]) < 10


def test_a_reader_turns_a_photo_by_its_exif_before_it_fits_it(tmp_path: Path) -> None:
    image = Image.new("RGB", (80, 40), GREEN)
    image.paste(RED, (0, 0, 40, 40))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored on its side: upright it is 40 x 80, red on top
    image.save(tmp_path / "photo.png", exif=exif)
    pixels = PhotoReader((48, 64), "bilinear", fit=True).read_one(tmp_path / "photo.png").pixels
    assert pixels is not None and pixels.shape == (48, 64, 3)
    assert (pixels[:, :20] == 0).all() and (pixels[:, 44:] == 0).all()
    assert (pixels[:22, 20:44] == RED).all() and (pixels[26:, 20:44] == GREEN).all()
