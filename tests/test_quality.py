"""What is measured of photos tells good ones from degraded copies, and copies from other photos."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from jzi.curate.dashboard import MIN_PHOTOS, static_share
from jzi.curate.duplicates import duplicates_of, near_pairs
from jzi.curate.options import FilterOptions
from jzi.curate.quality import LOWER_SHAPE, QUALITY_COLUMNS, Quality, lower_halves, measure

pytest.importorskip("cv2")

DATA = Path(__file__).parents[2] / "shared" / "data"
OPTIONS = FilterOptions()


def street(seed: int = 0, width: int = 800, height: int = 600) -> Image.Image:
    """A scene with a sky, houses with windows, and a road with texture."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), (110, 160, 230))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        left, top = rng.integers(0, width), rng.integers(height // 4, height // 2)
        side = int(rng.integers(width // 10, width // 4))
        draw.rectangle((left, top, left + side, height), fill=tuple(rng.integers(20, 220, 3).tolist()))
        for x in range(left, left + side, 24):
            for y in range(top, height, 30):
                draw.rectangle((x, y, x + 10, y + 14), fill=(15, 15, 20))
    road = 2 * height // 3
    draw.rectangle((0, road, width, height), fill=(90, 90, 90))
    pixels = np.asarray(image).astype(float)
    pixels[road:] += rng.normal(0, 25, (height - road, width, 1))
    pixels[height // 3 : road] += rng.normal(0, 8, (road - height // 3, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def exposed(image: Image.Image, stops: float) -> Image.Image:
    light = (np.asarray(image) / 255.0) ** 2.2 * 2**stops
    return Image.fromarray((np.clip(light, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8))


def covered(image: Image.Image, share: float) -> Image.Image:
    """A thumb out of focus over the left side."""
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).rectangle((0, 0, int(image.width * share), image.height), fill=255)
    thumb = Image.new("RGB", image.size, (150, 100, 80))
    return Image.composite(thumb, image, mask.filter(ImageFilter.GaussianBlur(10)))


def saved(image: Image.Image, quality: int, scale: float = 1.0) -> Image.Image:
    file = io.BytesIO()
    size = (round(image.width * scale), round(image.height * scale))
    image.resize(size).save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def bits_between(first: Quality, second: Quality) -> int:
    return (int(first.phash, 16) ^ int(second.phash, 16)).bit_count()


def real_photos() -> list[Image.Image]:
    paths = [path for path in sorted(DATA.glob("helsinki-pairs/*.jpg")) if not path.stem.endswith("_sat")]
    paths += sorted(DATA.glob("exif-photos/*.jpg"))
    if not paths:
        pytest.skip(f"there are no photos in {DATA}")
    return [Image.open(path).convert("RGB") for path in paths]


def removed_by(quality: Quality) -> set[str]:
    most = ("dark_share", "bright_share", "sky_share", "occlusion_share", "veil")
    removed = {name for name in most if getattr(quality, name) > getattr(OPTIONS, name)}
    return removed | ({"sharpness"} if quality.sharpness < OPTIONS.sharpness else set())


def test_a_good_photo_passes_all_thresholds() -> None:
    quality = measure(street())
    assert removed_by(quality) == set()
    assert 0.2 < quality.sky_share < 0.5
    assert set(quality.to_columns()) == set(QUALITY_COLUMNS)


@pytest.mark.parametrize(
    "degrade, name",
    [
        (lambda image: image.filter(ImageFilter.GaussianBlur(5)), "sharpness"),
        (lambda image: exposed(image, -9), "dark_share"),
        (lambda image: exposed(image, 6), "bright_share"),
        (lambda image: covered(image, 0.6), "occlusion_share"),
        (lambda image: Image.blend(image, Image.new("RGB", image.size, "white"), 0.35), "veil"),
        (lambda image: image.crop((0, 0, image.width, image.height // 4)).resize(image.size), "sky_share"),
    ],
)
def test_degraded_photos_are_removed_for_what_was_done(degrade, name: str) -> None:
    assert name in removed_by(measure(degrade(street())))


def test_real_photos_pass_and_their_degraded_copies_do_not() -> None:
    photos = real_photos()
    assert [removed_by(measure(photo)) for photo in photos] == [set()] * len(photos)
    for photo in photos[::3]:
        assert "sharpness" in removed_by(measure(photo.filter(ImageFilter.GaussianBlur(max(photo.size) / 500))))
        assert "occlusion_share" in removed_by(measure(covered(photo, 0.5)))
        assert "veil" in removed_by(measure(Image.blend(photo, Image.new("RGB", photo.size, "white"), 0.35)))
        assert bits_between(measure(photo), measure(saved(photo, 30))) <= 2


def test_hashes_of_copies_are_near_and_of_other_photos_far() -> None:
    photos = [measure(street(seed)) for seed in range(6)]
    for seed, quality in enumerate(photos):
        assert bits_between(quality, measure(saved(street(seed), 40, 0.5))) <= OPTIONS.duplicate_bits
    distances = [bits_between(photos[i], photos[j]) for i in range(6) for j in range(i)]
    assert min(distances) > 3 * OPTIONS.duplicate_bits


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (16, 16), (5000, 40)])
@pytest.mark.parametrize("color", ["black", "white", "blue"])
def test_odd_pictures_are_measured(size: tuple[int, int], color: str) -> None:
    quality = measure(Image.new("RGB", size, color))
    assert all(0 <= getattr(quality, name) <= 1 for name in ("dark_share", "bright_share", "sky_share", "veil"))
    assert lower_halves([quality.lower_half]).shape == (1, *LOWER_SHAPE)


def test_measuring_does_not_depend_on_the_resolution() -> None:
    small, large = measure(street()), measure(street().resize((3200, 2400), Image.Resampling.BICUBIC))
    for name in ("dark_share", "bright_share", "sky_share", "occlusion_share", "veil"):
        assert getattr(small, name) == pytest.approx(getattr(large, name), abs=0.05)
    assert bits_between(small, large) <= 2


def drive(dashboard: float) -> np.ndarray:
    """Lower halves of a drive through streets, with a dashboard over a share of the picture."""
    photos = []
    for seed in range(MIN_PHOTOS):
        image = street(100 + seed, 512, 384)
        top = int(384 * (1 - dashboard))
        ImageDraw.Draw(image).rectangle((0, top, 512, 384), fill=(25, 25, 28))
        photos.append(measure(image).lower_half)
    return lower_halves(photos)


@pytest.mark.parametrize("dashboard", [0.15, 0.4])
def test_a_dashboard_is_what_does_not_move(dashboard: float) -> None:
    assert static_share(drive(dashboard)) == pytest.approx(dashboard, abs=0.04)


def test_a_drive_without_a_dashboard_has_no_static_edge() -> None:
    assert static_share(lower_halves([measure(street(seed, 512, 384)).lower_half for seed in range(MIN_PHOTOS)])) < 0.3
    moving = np.random.default_rng(0).integers(0, 255, (MIN_PHOTOS, *LOWER_SHAPE), np.uint8)
    assert static_share(moving) == 0


@pytest.mark.parametrize("bits", [0, 1, 4, 9])
def test_bands_find_the_same_pairs_as_comparing_all(bits: int) -> None:
    rng = np.random.default_rng(bits)
    hashes = np.unique(rng.integers(0, 2**63, 60, np.uint64) & np.uint64(0x7070_F00F_0301_1111))
    every = [(i, j) for i in range(len(hashes)) for j in range(i + 1, len(hashes))]
    expected = [pair for pair in every if int(hashes[pair[0]] ^ hashes[pair[1]]).bit_count() <= bits]
    assert near_pairs(hashes, bits).tolist() == [list(pair) for pair in expected]


def test_the_first_of_duplicates_is_kept() -> None:
    hashes = np.array([0b1111, 0b0, 0b1110, 0b1111, 0b1], np.uint64)
    assert duplicates_of(hashes, 1) == {2: 0, 3: 0, 4: 1}
    assert duplicates_of(hashes, 0) == {3: 0}
    assert duplicates_of(hashes[:0], 4) == {}


def test_a_chain_of_similar_photos_is_not_removed_as_a_whole() -> None:
    chain = np.array([(1 << n) - 1 for n in range(10)], np.uint64)  # neighbours differ in one bit, the ends in nine
    assert sorted(set(range(10)) - duplicates_of(chain, 1).keys()) == [0, 2, 4, 6, 8]


def test_all_equal_hashes_are_one_photo() -> None:
    assert len(duplicates_of(np.zeros(20_000, np.uint64), 4)) == 19_999
