"""Write a Cloud-Optimized GeoTIFF with overviews from a VRT, in a process of its own, which an interrupt can end.

GDAL writes the whole file in one call. In this process nothing could stop it, or see how far it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from jzi.encode.rasters.raster_sources import OFFLINE
from jzi.errors import ImageryError

Compression = Literal["jpeg", "webp", "deflate"]

#: Quality of lossy compression: JPEG at 90 and WebP at 90 are hard to tell from the original at the resolution of an
#: encoder's input; a default that someone may change.
QUALITY = 90

#: The program that writes the file; its input is JSON. It ends when the process that started it does.
_PROGRAM = """
import json, os, sys, threading, time
request = json.load(sys.stdin)
def watch():
    while os.getppid() == request["parent"]:
        time.sleep(0.5)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
import rasterio, rasterio.shutil
try:
    with rasterio.Env(**request["environment"]):
        rasterio.shutil.copy(request["source"], request["target"], driver="COG", **request["options"])
except Exception as error:
    print(" ".join(str(error.__cause__ or error).split())[:300], file=sys.stderr)
    sys.exit(1)
"""


def check_compression(compression: Compression, bands: int, dtype: str) -> None:
    """Raise if pixels cannot be compressed so.

    Raises:
        ImageryError: they cannot.
    """
    possible = {"jpeg": (1, 3), "webp": (3,), "deflate": (1, 3)}[compression]
    if compression != "deflate" and (dtype != "uint8" or bands not in possible):
        raise ImageryError(f"{compression} takes no {bands} bands of {dtype}: pass --compress deflate")


def block_options(compression: Compression, quality: int, bands: int, dtype: str) -> dict[str, Any]:
    """Options of GDAL's GeoTIFF driver that compress a block as the result, to estimate its size."""
    if compression == "jpeg":
        return {"compress": "jpeg", "jpeg_quality": quality, "photometric": "ycbcr" if bands == 3 else "minisblack"}
    if compression == "webp":
        return {"compress": "webp", "webp_level": quality}
    return {"compress": "deflate", "zlevel": 6, "predictor": _predictor(dtype)}


def write_cog(
    source: Path, target: Path, compression: Compression, quality: int, dtype: str, expected: int, progress: bool
) -> None:
    """Write a raster as a Cloud-Optimized GeoTIFF.

    Args:
        source: a VRT.
        target: the file to write, which is not there, in a folder for temporary files.
        compression: of the pixels.
        quality: 1 to 100, of JPEG and WebP.
        dtype: of the pixels.
        expected: estimated size, bytes, for the progress.
        progress: show it.

    Raises:
        ImageryError: it cannot be written.
    """
    options: dict[str, Any] = {
        "COMPRESS": compression.upper(), "BLOCKSIZE": 512, "BIGTIFF": "IF_SAFER", "OVERVIEWS": "IGNORE_EXISTING",
        "OVERVIEW_RESAMPLING": "AVERAGE", "OVERVIEW_COMPRESS": compression.upper(), "SPARSE_OK": True,
        "NUM_THREADS": min(4, os.cpu_count() or 1),
    }  # fmt: skip
    if compression == "deflate":
        options["PREDICTOR"] = {1: "NO", 2: "STANDARD", 3: "FLOATING_POINT"}[_predictor(dtype)]
    else:
        options |= {"QUALITY": quality, "OVERVIEW_QUALITY": quality}
    environment = {**OFFLINE, "GDAL_CACHEMAX": 256}
    request = {"parent": os.getpid(), "source": str(source), "target": str(target), "options": options,
               "environment": environment}  # fmt: skip
    with tempfile.TemporaryFile() as errors:
        # in a session of its own, so that Ctrl-C reaches this process alone, which ends it
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
        try:
            assert child.stdin
            child.stdin.write(json.dumps(request).encode())
            child.stdin.close()
            with tqdm(
                total=expected, unit="B", unit_scale=True, desc="write", disable=not progress, leave=False
            ) as bar:
                while child.poll() is None:
                    time.sleep(0.1)
                    if (written := min(expected, _size(target.parent))) > bar.n:
                        bar.update(written - bar.n)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
        errors.seek(0)
        reason = errors.read(2**16).decode(errors="replace").strip()
    if child.returncode:
        full = shutil.disk_usage(target.parent).free < 2**26
        what = "the disk is full: free some space" if full else reason.splitlines()[-1] if reason else "GDAL was ended"
        raise ImageryError(f"the GeoTIFF cannot be written ({what}); the blocks are kept, run the same command again")


def _size(folder: Path) -> int:
    """Bytes of the files of a folder, some of which may vanish."""
    size = 0
    for file in folder.glob("*"):
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return size


def _predictor(dtype: str) -> int:
    return 3 if dtype.startswith("float") else 2
