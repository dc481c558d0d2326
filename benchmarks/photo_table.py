"""Time of reading a photo table of many rows, in a folder with as many photos, or a folder by the photos' EXIF.

    python -m benchmarks.photo_table --rows 1000000
    python -m benchmarks.photo_table --rows 0 --exif 20000

The photos of a table are empty files, as it is read without opening them. A tenth of the rows names no photo. Those of
a folder are small JPEGs with a position; they are read without a record of their EXIF, for it, and from it, in
alternation.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from PIL import Image

from jzi.store.photos.exif import write_position
from jzi.store.photos.photo_table import read_photo_table


def write(folder: Path, rows: int) -> Path:
    """Write the photos into folders of 10 000, and their table."""
    numbers = np.arange(rows)
    names = [f"drive{number // 10_000:04}/{number:09}.jpg" for number in numbers]
    for sub in {name.split("/")[0] for name in names}:
        (folder / "photos" / sub).mkdir(parents=True)
    for name in names[: rows - rows // 10]:
        os.close(os.open(folder / "photos" / name, os.O_CREAT | os.O_WRONLY))
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "image_id": [f"{number:09}" for number in numbers],
            "path": names,
            "latitude": rng.uniform(48.1, 48.3, rows),
            "longitude": rng.uniform(16.2, 16.5, rows),
            "captured_at": pd.Timestamp("2024-05-01") + pd.to_timedelta(numbers, unit="s"),
        }
    )
    frame.to_csv(folder / "table.csv", index=False)
    frame.drop(columns="path").to_csv(folder / "ids.csv", index=False)
    return folder


def measure_folder(folder: Path, count: int) -> None:
    """Print the times of reading a folder of photos with a position, in three rounds."""
    photos, record = folder / "exif", folder / "photos.exif.parquet"
    photos.mkdir()
    Image.new("RGB", (64, 48)).save(folder / "plain.jpg")
    write_position(folder / "plain.jpg", folder / "photo.jpg", 48.2, 16.37)
    data = (folder / "photo.jpg").read_bytes()
    for number in range(count):
        (photos / f"{number:06}.jpg").write_bytes(data)
    times: dict[str, list[float]] = {}
    for _ in range(3):
        record.unlink(missing_ok=True)
        for kind, file in (("without a record", None), ("for a record", record), ("from the record", record)):
            start = time.perf_counter()
            assert len(read_photo_table(photos, split_by="photo", record=file)) == count
            times.setdefault(kind, []).append(time.perf_counter() - start)
    for kind, seconds in times.items():
        print(f"EXIF of {count} photos, {kind}: {sorted(seconds)[1]:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--exif", type=int, default=0, metavar="PHOTOS")
    rows, count = (options := parser.parse_args()).rows, options.exif
    with tempfile.TemporaryDirectory() as name:
        if count:
            measure_folder(Path(name), count)
        folder = write(Path(name), rows)
        for table in ("table.csv", "ids.csv") if rows else ():
            start, start_cpu = time.perf_counter(), time.process_time()
            photos = read_photo_table(folder / table, folder / "photos")
            seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            memory = psutil.Process().memory_info().rss
            print(
                f"{table}: {seconds:.1f} s, {cpu:.1f} s of CPU time for {rows} rows, {len(photos)} usable, "
                f"{len(photos.rejected)} rejected; {memory / 1e6:.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
