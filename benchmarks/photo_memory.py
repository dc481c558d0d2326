"""Measure the memory of decoding large photos, in bytes per pixel, and compare it with what is reserved for them.

python -m benchmarks.photo_memory                     # a photo of 20 megapixels of each format
python -m benchmarks.photo_memory --png 3             # three PNGs of 169 megapixels, in four threads
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SHAPE = (384, 768)
FORMATS = {
    "PNG RGB": ("png", "RGB", {}),
    "PNG RGBA": ("png", "RGBA", {}),
    "PNG 16-bit gray": ("png", "I;16", {}),
    "PNG palette": ("png", "P", {}),
    "JPEG": ("jpg", "RGB", {}),
    "JPEG rotated": ("jpg", "RGB", {"orientation": 6}),
    "JPEG progressive": ("jpg", "RGB", {"progressive": True, "subsampling": 0}),
    "JPEG progressive CMYK": ("jpg", "CMYK", {"progressive": True}),
    "WebP": ("webp", "RGB", {"method": 0}),
    "WebP lossless RGBA": ("webp", "RGBA", {"lossless": True, "method": 0, "quality": 0}),
    "TIFF in one strip": ("tif", "RGB", {"compression": "tiff_adobe_deflate", "strip_size": 2**31 - 1}),
    "TIFF float": ("tif", "F", {"compression": "tiff_lzw"}),
}


def write(path: Path, mode: str, size: tuple[int, int], options: dict) -> None:
    """Write a photo of coarse random colours."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1] // 64 + 1, size[0] // 64 + 1, 3)).astype(np.uint8))
    image = image.resize(size, Image.Resampling.NEAREST)
    if mode in ("I;16", "F"):
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16 if mode == "I;16" else np.float32))
    else:
        image = image.convert(mode)
    options = dict(options)
    if orientation := options.pop("orientation", None):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    if strip_size := options.pop("strip_size", None):
        from PIL import TiffImagePlugin

        TiffImagePlugin.STRIP_SIZE = strip_size
    image.save(path, **options)


def measure(paths: list[Path], resampling: str) -> tuple[float, float]:
    """Peak memory of reading the photos, in bytes, and the time, in seconds; run in a new process."""
    from jzi.encode.photo.photo_reader import PhotoReader
    from jzi.encode.prefetch import prefetch

    reader = PhotoReader(SHAPE, resampling, stamps=True)
    small = Image.new("RGB", (8, 8))
    reader.read_one(small)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    start = time.perf_counter()
    for read in prefetch(reader.read_one, paths, threads=4):
        assert read.pixels is not None, read.error
    return _memory("VmHWM") - before, time.perf_counter() - start


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=20)
    parser.add_argument("--png", type=int, default=0, help="number of PNGs of 169 megapixels to read instead")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(1, maxtasksperchild=1) as pool:
        if options.png:
            path = Path(folder, "photo.png")
            pool.apply(write, (path, "RGB", (13000, 13000), {}))
            peak, seconds = pool.apply(measure, ([path] * options.png, "antialias"))
            print(f"{options.png} PNG of 169 megapixels: {peak / 1e6:.0f} MB, {seconds:.1f} s")
            return
        side = int((options.megapixels * 1e6) ** 0.5)
        for name, (suffix, mode, arguments) in FORMATS.items():
            path = Path(folder, f"photo.{suffix}")
            pool.apply(write, (path, mode, (side, side), arguments))
            for resampling in ("antialias", "reference"):
                peak, seconds = pool.apply(measure, ([path], resampling))
                reserved = pool.apply(_reserved, (path, resampling))
                print(
                    f"{name:24} {resampling:10} {peak / side**2:5.1f} bytes a pixel, "
                    f"reserved {reserved / side**2:5.1f}; "
                    f"{path.stat().st_size / side**2:.2f} in the file; {seconds:.2f} s",
                    flush=True,
                )


def _reserved(path: Path, resampling: str) -> int:
    from jzi.encode.photo.photo_memory import decoding_bytes
    from jzi.store.photos.photo_file import open_image

    with open_image(path, "it") as image:
        return decoding_bytes(image, image.width * image.height, to_array=resampling == "reference")


if __name__ == "__main__":
    main()
