"""Photos are upright, undistorted and cropped as their cameras and panoramas ask."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from jzi.curate.camera import MAX_FOV_DEG, Camera, undistort
from jzi.curate.panorama import Coverage, crop_panorama
from jzi.curate.prepare import PrepareOptions, image_path, prepare, write_prepared
from jzi.errors import PhotoError

cv2 = pytest.importorskip("cv2")

CAMERAS = {
    "perspective": Camera("perspective", (0.9, 0.9), radial=(-0.12, 0.02)),
    "pincushion": Camera("perspective", (0.9, 0.9), radial=(0.1, 0.01)),
    "fisheye": Camera("fisheye", (0.35, 0.35), radial=(-0.02, 0.003)),
    "brown": Camera("brown", (0.8, 0.82), (0.01, -0.02), (-0.1, 0.03, -0.002), (0.002, -0.003)),
}


def jpeg(image: Image.Image, **save) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, **save)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def panorama(width: int = 2048) -> Image.Image:
    """Red is the azimuth, green the elevation; blue marks a direction."""
    height = width // 2
    azimuth = (np.arange(width) + 0.5) / width * 255
    elevation = (np.arange(height) + 0.5) / height * 255
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = azimuth[None].round(), elevation[:, None].round()
    return Image.fromarray(pixels)


def xmp(**entries: object) -> bytes:
    attributes = " ".join(f'GPano:{name}="{value}"' for name, value in entries.items())
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {attributes}/></x:xmpmeta>'.encode()


@pytest.mark.parametrize("name", CAMERAS)
def test_the_models_are_those_of_opencv(name: str) -> None:
    camera = CAMERAS[name]
    rays = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 2))
    points = np.concatenate([rays, np.ones((50, 1))], 1)
    matrix = np.array([[camera.focal[0], 0, camera.centre[0]], [0, camera.focal[1], camera.centre[1]], [0, 0, 1.0]])
    zero = np.zeros(3)
    if camera.kind == "fisheye":
        k = np.array([*camera.radial, 0, 0])
        expected = cv2.fisheye.projectPoints(points[:, None], zero, zero, matrix, k)[0]
    else:
        k1, k2, k3 = (*camera.radial, 0.0)[:3]
        expected = cv2.projectPoints(points, zero, zero, matrix, np.array([k1, k2, *camera.tangential, k3]))[0]
    u, v = camera.project(*rays.T)
    assert np.allclose(np.stack([u, v], 1), expected[:, 0], atol=1e-9)


@pytest.mark.parametrize("name", CAMERAS)
def test_straight_lines_are_straight_again(name: str) -> None:
    """A picture of the plane z = 1 with dark lines at x = const and y = const, seen by the camera, and undistorted."""
    camera, width, height = CAMERAS[name], 640, 480
    u, v = np.meshgrid((np.arange(width) + 0.5 - width / 2) / width, (np.arange(height) + 0.5 - height / 2) / width)
    x, y = invert(camera, u, v)
    spacing, half = 0.2, 0.02
    lines = np.minimum(np.abs((x / spacing + 0.5) % 1 - 0.5), np.abs((y / spacing + 0.5) % 1 - 0.5)) * spacing
    picture = np.clip(lines / half, 0, 1) * 255
    pixels = np.repeat(picture[..., None], 3, 2).round().astype(np.uint8)
    straight, focal = undistort(pixels, camera)
    columns = (np.arange(width) + 0.5 - width / 2) / (focal * width)
    rows = (np.arange(height) + 0.5 - height / 2) / (focal * width)
    lines = np.minimum(
        np.abs((columns / spacing + 0.5) % 1 - 0.5)[None], np.abs((rows / spacing + 0.5) % 1 - 0.5)[:, None]
    )
    expected = np.clip(lines * spacing / half, 0, 1) * 255
    difference = np.abs(straight[..., 0].astype(float) - expected)
    assert np.quantile(difference, 0.99) < 40
    assert np.abs(pixels[..., 0].astype(float) - expected).mean() > 4 * difference.mean(), "it was distorted before"


def invert(camera: Camera, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rays of image coordinates, by Newton's method with numerical derivatives."""
    if camera.kind == "fisheye":
        angle = np.hypot(u, v) / camera.focal[0]
        for _ in range(20):
            angle = np.hypot(u, v) / camera.focal[0] / camera._series(angle * angle)
        factor = np.tan(np.minimum(angle, 1.5)) / np.maximum(np.hypot(u, v), 1e-9)
        return u * factor, v * factor
    x, y = (u - camera.centre[0]) / camera.focal[0], (v - camera.centre[1]) / camera.focal[1]
    x0, y0 = x.copy(), y.copy()
    for _ in range(60):
        a, b = camera.project(x, y)
        x, y = x + (x0 - (a - camera.centre[0]) / camera.focal[0]), y + (y0 - (b - camera.centre[1]) / camera.focal[1])
    return x, y


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["perspective", "fisheye", "brown"]), st.floats(0.3, 3), st.floats(-0.3, 0.3),
       st.floats(-0.1, 0.1), st.sampled_from([(640, 480), (480, 640), (600, 600)]))  # fmt: skip
def test_an_undistorted_photo_is_filled_to_its_edges(
    kind: str, focal: float, k1: float, k2: float, size: tuple[int, int]
) -> None:
    camera = Camera.read(kind, [focal, k1, k2])
    assert camera is not None
    pinhole = camera.pinhole(*size)
    longer = max(size)
    for edge in (-1, 1):
        for along in np.linspace(-1, 1, 21):
            for x, y in ((edge, along), (along, edge)):
                right, down = size[0] / longer / 2, size[1] / longer / 2
                u, v = camera.project(np.array(x * right / pinhole), np.array(y * down / pinhole))
                assert abs(u) <= right + 1e-6 and abs(v) <= down + 1e-6
    assert 2 * math.degrees(math.atan(1 / (2 * pinhole))) <= MAX_FOV_DEG + 1e-6


def test_a_camera_without_distortion_keeps_its_field_of_view() -> None:
    camera = Camera("perspective", (0.8, 0.8), radial=(0.0, 0.0))
    assert not camera.distorted
    assert camera.pinhole(640, 480) == pytest.approx(0.8, abs=1e-9)
    assert camera.hfov_deg(640, 480) == pytest.approx(2 * math.degrees(math.atan(1 / 1.6)), abs=0.01)
    assert camera.hfov_deg(480, 640) == pytest.approx(2 * math.degrees(math.atan(0.75 / 1.6)), abs=0.01)


def test_camera_parameters_of_no_camera_are_refused() -> None:
    assert Camera.read("perspective", None) is None and Camera.read("perspective", math.nan) is None
    assert Camera.read("spherical", []) is None and Camera.read("", [1, 2, 3]) is None
    assert Camera.read("perspective", "[0.85, -0.1, 0.02]") == Camera.read("Perspective", (0.85, -0.1, 0.02))
    for wrong in ([0.85], [0, 0, 0], [math.inf, 0, 0], [0.85, 1e9, 0], {"focal": 1}, "a,b,c", 3, ["x", 1, 2]):
        with pytest.raises(PhotoError, match="camera_parameters"):
            Camera.read("perspective", wrong)


def test_photos_are_upright_small_and_without_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "ACME"
    image = noise(1600, 1200)
    image.putpixel((0, 0), (0, 0, 0))
    content = jpeg(image, exif=exif, comment=b"a secret", xmp=b"<x>secret</x>")
    (one,) = prepare(content, {"id": "1", "creator": "someone"}, PrepareOptions(size=640))
    assert one.image.size == (480, 640) == (one.row["width"], one.row["height"])
    assert one.row["creator"] == "someone" and len(one.row["phash"]) == 16
    row = write_prepared(tmp_path, one)
    written = (tmp_path / row["path"]).read_bytes()
    assert b"secret" not in written and b"ACME" not in written and b"Exif" not in written
    assert row["path"] == image_path("1")
    assert not list(tmp_path.rglob("*.partial"))


def test_small_photos_are_not_enlarged() -> None:
    (one,) = prepare(jpeg(noise(300, 200)), {"id": "1"}, PrepareOptions(size=1024))
    assert one.image.size == (300, 200)


def test_the_field_of_view_comes_from_the_focal_length() -> None:
    content = jpeg(noise(800, 600))
    row = {"id": "1", "camera": "perspective", "camera_parameters": [0.8, 0.0, 0.0], "hfov": 12.0}
    (one,) = prepare(content, row, PrepareOptions())
    assert one.row["hfov"] == pytest.approx(2 * math.degrees(math.atan(1 / 1.6)), abs=0.01)
    barrel = {**row, "camera_parameters": [0.8, -0.1, 0.01]}
    (straight,) = prepare(content, barrel, PrepareOptions())
    (bent,) = prepare(content, barrel, PrepareOptions(undistort=False))
    assert straight.row["camera_parameters"][1:] == [0.0, 0.0]
    focal = straight.row["camera_parameters"][0]
    assert straight.row["hfov"] == pytest.approx(2 * math.degrees(math.atan(1 / (2 * focal))), abs=1e-4)
    assert bent.row["hfov"] > one.row["hfov"], "barrel distortion squeezes more into the picture"
    assert not np.array_equal(np.asarray(straight.image), np.asarray(bent.image))


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 360), st.floats(50, 110), st.integers(33, 200))
def test_the_centre_of_a_crop_is_its_direction(yaw: float, hfov: float, width: int) -> None:
    crop = np.asarray(crop_panorama(panorama(1024), yaw, hfov, width | 1)).astype(float)
    centre = crop[crop.shape[0] // 2, crop.shape[1] // 2]
    azimuth = centre[0] / 255 * 360 - 180
    if abs((yaw - 180 + 180) % 360 - 180) < 175:  # not at the seam, where red jumps
        assert abs((azimuth - yaw + 180) % 360 - 180) < 2.5
    assert abs(centre[1] / 255 * 180 - 90) < 2.5


def test_a_crop_sees_the_angles_of_a_pinhole_camera() -> None:
    crop = np.asarray(crop_panorama(panorama(), 90.0, 90.0, 401)).astype(float)
    row = crop[crop.shape[0] // 2, :, 0] / 255 * 360 - 180
    expected = 90 + np.degrees(np.arctan((np.arange(crop.shape[1]) + 0.5 - crop.shape[1] / 2) / (crop.shape[1] / 2)))
    assert np.abs(row - expected).max() < 1.5
    assert crop.shape[0] == round(0.75 * crop.shape[1])


def test_crops_of_a_panorama_are_those_of_its_seed_and_id() -> None:
    content = jpeg(panorama())
    row = {"id": "p", "camera": "spherical", "heading": 100.0}
    options = PrepareOptions(size=256, crops=3, seed=1)
    first, again = prepare(content, row, options), prepare(content, row, options)
    assert [one.row["id"] for one in first] == ["p_0", "p_1", "p_2"]
    assert all(np.array_equal(np.asarray(a.image), np.asarray(b.image)) for a, b in zip(first, again, strict=True))
    headings = [one.row["heading"] for one in first]
    other_seed = prepare(content, row, PrepareOptions(size=256, crops=3, seed=2))
    other_id = prepare(content, {**row, "id": "q"}, options)
    assert headings != [one.row["heading"] for one in other_seed] != [one.row["heading"] for one in other_id]
    for one in first:
        pixels = np.asarray(one.image).astype(float)
        azimuth = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2, 0] / 255 * 360 - 180
        assert abs((100 + azimuth - one.row["heading"] + 180) % 360 - 180) < 4, "heading of the panorama plus yaw"
        assert 60 <= one.row["hfov"] <= 100 and one.row["panorama"] is False and one.row["camera"] == "perspective"


def test_panoramas_are_kept_or_skipped() -> None:
    content = jpeg(panorama())
    (kept,) = prepare(content, {"id": "p", "panorama": True}, PrepareOptions(size=256, panoramas="keep"))
    assert kept.image.size == (1024, 512) and kept.row["panorama"] is True and kept.row["hfov"] == 360
    assert math.isnan(kept.row["heading"])
    assert prepare(content, {"id": "p"}, PrepareOptions(panoramas="skip")) == []
    (plain,) = prepare(content, {"id": "p", "panorama": False}, PrepareOptions(panoramas="skip"))
    assert plain.row["panorama"] is False, "the table says that it is none"


def test_parts_of_panoramas_are_refused_or_stay_within_what_they_show() -> None:
    whole = {"ProjectionType": "equirectangular", "FullPanoWidthPixels": 2048, "FullPanoHeightPixels": 1024}
    half = xmp(**whole, CroppedAreaImageWidthPixels=1024, CroppedAreaImageHeightPixels=1024, CroppedAreaTopPixels=0)
    with pytest.raises(PhotoError, match="180 degrees of the horizon"):
        prepare(jpeg(panorama().crop((0, 0, 1024, 1024)), xmp=half), {"id": "p"}, PrepareOptions())
    band = xmp(**whole, CroppedAreaImageWidthPixels=2048, CroppedAreaImageHeightPixels=400, CroppedAreaTopPixels=312)
    content = jpeg(panorama().crop((0, 312, 2048, 712)), xmp=band)
    (one,) = prepare(content, {"id": "p"}, PrepareOptions(size=256))
    rise = math.atan(0.75 * math.tan(math.radians(one.row["hfov"] / 2)))
    assert math.degrees(rise) <= 35.2
    pixels = np.asarray(one.image).astype(float)
    assert abs(pixels[0, pixels.shape[1] // 2, 1] / 255 * 180 - (90 - math.degrees(rise))) < 2
    narrow = xmp(**whole, CroppedAreaImageWidthPixels=2048, CroppedAreaImageHeightPixels=100, CroppedAreaTopPixels=462)
    with pytest.raises(PhotoError, match="too few"):
        prepare(jpeg(panorama().crop((0, 462, 2048, 562)), xmp=narrow), {"id": "p"}, PrepareOptions())
    with pytest.raises(PhotoError, match="not 2:1"):
        prepare(jpeg(noise(2000, 700)), {"id": "p", "camera": "spherical"}, PrepareOptions())
    assert Coverage.read(2000, 1000, {}) == Coverage()


@pytest.mark.parametrize("content", [b"<html><body>Not found</body></html>", b"", jpeg(noise(64, 48))[:300]])
def test_what_is_no_photo_is_an_error(content: bytes) -> None:
    with pytest.raises(PhotoError):
        prepare(content, {"id": "broken"}, PrepareOptions())


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=200))
def test_paths_of_photos_stay_below_the_folder(name: str) -> None:
    path = image_path(name)
    folder, digits, file = path.split("/")
    assert folder == "images" and len(digits) == 2 and file.endswith(".jpg")
    assert not file.startswith((".", "-")) and len(file) < 120 and file.isascii()
    assert image_path(name + "x") != path
    if name != name.swapcase():
        assert image_path(name.swapcase()).lower() != path.lower(), "file systems may ignore the case"
