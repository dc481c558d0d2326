"""Download blocks of a layer: politely, with an estimate from samples, repetitions and progress."""

from __future__ import annotations

import random
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from tqdm import tqdm

from jzi.errors import ImageryError
from jzi.overhead.blocks import Block, Blocks, encode_block
from jzi.overhead.layer import ReadError

#: Seconds before each repetition of a block that failed, varied by a half: two minutes in total.
WAITS_S = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0)

#: Blocks that are read for the estimate: first, so that nothing is read twice.
SAMPLES = 3

#: Overviews add a third to the pixels: 1/4 + 1/16 + ...
_OVERVIEWS = 4 / 3


@dataclass(frozen=True)
class Estimate:
    """What a download takes.

    Attributes:
        blocks: number of blocks.
        missing: of these, to be read.
        requests: requests of tiles still to be sent; 0 for files.
        kept_bytes: size of all blocks while the download lasts.
        output_bytes: size of the result.
        seconds: time to read the missing blocks.
        empty: share of the sampled blocks without imagery.
    """

    blocks: int
    missing: int
    requests: int
    kept_bytes: int
    output_bytes: int
    seconds: float
    empty: float


class Pacer:
    """Keeps requests below a rate, averaged over a block.

    Args:
        per_second: requests a second; None for no limit.
    """

    def __init__(self, per_second: float | None) -> None:
        self._per_second, self._free_at = per_second, 0.0

    def wait(self, requests: int) -> None:
        """Wait until some requests may be sent."""
        now = time.monotonic()
        if self._free_at > now:
            time.sleep(self._free_at - now)
        if self._per_second:
            self._free_at = max(now, self._free_at) + requests / self._per_second


def sample(blocks: Blocks, pacer: Pacer, options: dict[str, object], keep: bool, progress: bool) -> Estimate:
    """Read a few of the missing blocks, spread over the area, and estimate the rest.

    Args:
        blocks: the blocks.
        pacer: limits requests.
        options: compression of the result, for GDAL's GeoTIFF driver.
        keep: whether they are written.
        progress: print what is waited for.

    Raises:
        ImageryError: a block cannot be read.
        OSError: it cannot be written.
    """
    missing = blocks.missing()
    count = min(SAMPLES, len(missing))
    chosen = [missing[round(index)] for index in np.linspace(0, len(missing) - 1, 2 * count + 1)[1::2]] if count else []
    pixels = kept = output = empty = 0
    started = time.monotonic()
    for block in dict.fromkeys(chosen):
        data, valid = read_block(blocks, block, pacer, progress)
        pixels += valid.size
        empty += not valid.any()
        if valid.any():
            kept += len(encode_block(data, valid, blocks.transform(block)))
            output += len(encode_block(data, None, blocks.transform(block), **options))
        if keep:
            blocks.write(block, data, valid)
    elapsed = time.monotonic() - started
    area = sum(int(block.window.width) * int(block.window.height) for block in blocks.all)
    left = sum(int(block.window.width) * int(block.window.height) for block in missing)
    if not pixels:
        return _estimate_kept(blocks, options)
    requests = sum(blocks.requests(block) for block in missing)
    return Estimate(
        len(blocks.all), len(missing), requests, round(kept / pixels * area),
        round(output / pixels * area * _OVERVIEWS), elapsed / pixels * left, empty / len(set(chosen)),
    )  # fmt: skip


def _estimate_kept(blocks: Blocks, options: dict[str, object]) -> Estimate:
    """The estimate if all blocks are there: the size of the result from some of them."""
    files = sorted(blocks.folder.glob("*_*.tif"))
    kept = sum(file.stat().st_size for file in files)
    before = after = 0
    for file in files[:: max(1, len(files) // SAMPLES)][:SAMPLES]:
        with rasterio.open(file) as source:
            content = encode_block(source.read(list(range(1, source.count))), None, source.transform, **options)
        before, after = before + file.stat().st_size, after + len(content)
    return Estimate(len(blocks.all), 0, 0, kept, round(kept * after / max(1, before) * _OVERVIEWS), 0.0, 0.0)


def check_space(folder: Path, estimate: Estimate) -> None:
    """Raise if the disk will not hold the blocks and the result.

    Raises:
        ImageryError: it will not.
    """
    share = estimate.missing / max(1, estimate.blocks)
    # GDAL writes overviews to a temporary file before it writes the result
    needed = estimate.kept_bytes * share + 1.5 * estimate.output_bytes
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ImageryError(
            f"about {needed / 1e9:.3g} GB are needed in {folder}, and {free / 1e9:.3g} GB are free: free some space, "
            "or give a smaller area or coarser pixels"
        )


def download(blocks: Blocks, pacer: Pacer, progress: bool) -> None:
    """Read and keep all missing blocks.

    Raises:
        ImageryError: the service fails; the blocks that are there are kept.
        OSError: a block cannot be written.
    """
    missing = blocks.missing()
    with tqdm(
        total=len(blocks.all), initial=len(blocks.all) - len(missing), unit="block", desc="imagery",
        disable=not progress,
    ) as bar:  # fmt: skip
        for block in missing:
            blocks.write(block, *read_block(blocks, block, pacer, progress))
            bar.update()


def read_block(
    blocks: Blocks, block: Block, pacer: Pacer, progress: bool
) -> tuple[NDArray[np.generic], NDArray[np.uint8]]:
    """Read a block, again if that may help.

    Raises:
        ReadError: it cannot be read.
    """
    for wait_s in (*WAITS_S, None):
        pacer.wait(blocks.requests(block))
        try:
            return blocks.layer.read(block.window)
        except ReadError as error:
            if not error.passes:
                raise ReadError(f"{error}; {_kept(blocks)}", error.code, False) from None
            if wait_s is None:
                times = len(WAITS_S) + 1
                raise ReadError(f"{error}, {times} times; {_kept(blocks)}", error.code, True) from None
            wait_s *= random.uniform(0.5, 1.5)
            if progress and wait_s > 2:
                tqdm.write(f"{error}; trying again in {wait_s:.0f} s", file=sys.stderr)
            time.sleep(wait_s)
    raise AssertionError  # the last wait is None


def _kept(blocks: Blocks) -> str:
    if not blocks.states:
        return "nothing was written"
    return f"{len(blocks.states)} of {len(blocks.all)} blocks are kept, run the same command again to resume"
