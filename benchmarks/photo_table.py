"""Time of reading a photo table of many rows, in a folder with as many photos.

    python -m benchmarks.photo_table --rows 1000000

The photos are empty files, as a table is read without opening them. A tenth of the rows names no photo.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name), rows)
        for table in ("table.csv", "ids.csv"):
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
