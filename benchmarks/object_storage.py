"""Compare clients of object storage: time to write and read the chunks of a cache on S3.

    python -m benchmarks.object_storage                            # against moto's server, started here
    python -m benchmarks.object_storage --endpoint http://host:9000 --bucket name       # against another, such as MinIO

jzi is `jzi.store.disk.object_store`, obstore with what jzi adds to it; s3fs is measured if it is installed (`pip
install -c constraints.txt s3fs`). Each round writes an array chunk by chunk, as `encode-map` does, reads it whole, as
training does, and reads single chunks; the clients take turns, so changes in machine load affect all. CPU seconds are
those of the client's process. A round that raises is counted as failed: `python -m jzi.tests.fault_proxy URL` starts a
proxy that fails at random, and prints the URL to give as `--endpoint`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from jzi.store.disk.object_store import open_store

#: jzi's own time-outs are longer.
RETRY = {"max_retries": 20, "retry_timeout": timedelta(seconds=20)}
CHUNK = 16
STEPS = ("write", "read", "read one by one")


def open_jzi(url: str, endpoint: str) -> Any:
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    return open_store(url)


def open_obstore(url: str, endpoint: str) -> Any:
    from obstore.store import S3Store

    options = {"allow_http": True, "timeout": timedelta(seconds=5)}
    return zarr.storage.ObjectStore(
        S3Store.from_url(url, endpoint=endpoint, client_options=options, retry_config=RETRY)
    )


def open_s3fs(url: str, endpoint: str) -> Any:
    config = {"read_timeout": 5, "retries": {"max_attempts": 20}}
    options = {"endpoint_url": endpoint, "config_kwargs": config}
    return zarr.storage.FsspecStore.from_url(url, storage_options=options)


CLIENTS = {"jzi": open_jzi, "obstore": open_obstore, "s3fs": open_s3fs}


def measure(store: Any, data: np.ndarray) -> dict[str, tuple[float, float]]:
    """Wall and CPU seconds of each step."""
    side, width = data.shape[1:]
    corners = [(row, col) for row in range(0, side, CHUNK) for col in range(0, side, CHUNK)]
    windows = [(slice(row, row + CHUNK), slice(col, col + CHUNK)) for row, col in corners]
    seconds = {}

    def timed(step: str, work: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        seconds[step] = time.perf_counter() - wall, time.process_time() - cpu
        return result

    array = zarr.create_array(
        store,
        name="x",
        shape=(side, side, width),
        chunks=(CHUNK, CHUNK, width),
        dtype=data.dtype,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],  # as of a cache
        overwrite=True,
    )

    def write() -> None:
        for window in windows:
            array[window] = data[window]

    timed("write", write)
    whole = timed("read", lambda: np.asarray(array[:]))
    parts = timed("read one by one", lambda: [np.asarray(array[window]) for window in windows])
    if not (np.array_equal(whole, data) and all(map(np.array_equal, parts, (data[each] for each in windows)))):
        raise ValueError("the values read are not those written")
    return seconds


@contextmanager
def moto_server() -> Iterator[str]:
    """Start moto's S3 server in a process of its own, and yield its URL."""
    with tempfile.TemporaryDirectory() as folder:
        script = (
            "import sys, time; from moto.server import ThreadedMotoServer; "
            "server = ThreadedMotoServer('127.0.0.1', 0, verbose=False); server.start(); "
            "open(sys.argv[1], 'w').write('http://%s:%d\\n' % server.get_host_and_port()); time.sleep(1e6)"
        )
        file = Path(folder) / "url"
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen([sys.executable, "-c", script, str(file)], stderr=log)
        try:
            while not (file.exists() and file.read_text().endswith("\n")):
                if process.poll() is not None:
                    raise click.ClickException("moto's server did not start: pip install 'jzi[test]'")
                time.sleep(0.05)
            yield file.read_text().strip()
        finally:
            process.terminate()
            process.wait()


@click.command()
@click.option("--endpoint", help="URL of an S3 server with the bucket; by default moto's server is started.")
@click.option("--bucket", default="jzi-benchmark", show_default=True)
@click.option("--side", default=128, show_default=True, help="Side of the array in tiles, a multiple of 16.")
@click.option("--rounds", default=7, show_default=True)
def main(endpoint: str | None, bucket: str, side: int, rounds: int) -> None:
    """Measure each client, and print medians and ratios."""
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        os.environ.setdefault(f"AWS_{name}", value)
    if endpoint is None:
        with moto_server() as url:
            urllib.request.urlopen(urllib.request.Request(f"{url}/{bucket}", method="PUT"))
            return compare(url, bucket, side, rounds)
    return compare(endpoint, bucket, side, rounds)


def compare(endpoint: str, bucket: str, side: int, rounds: int) -> None:
    clients = [name for name in CLIENTS if find_spec(name) or name == "jzi"]
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(side, side, 768)) * 2).astype(np.float16)
    results: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in clients}
    failures: dict[str, list[str]] = {name: [] for name in clients}
    for number in range(rounds + 1):  # the first one opens connections and is not counted
        for name in clients if number % 2 else clients[::-1]:
            try:
                seconds = measure(CLIENTS[name](f"s3://{bucket}/{name}.zarr", endpoint), data)
            except Exception as error:  # every client has its own
                failures[name].append(f"{type(error).__name__}: {str(error).splitlines()[0][:90]}")
            else:
                results[name] += [seconds] if number else []
    print(
        f"{side // CHUNK * (side // CHUNK)} chunks, {data.nbytes / 1e6:.1f} MB; median of {rounds} alternating rounds"
    )
    for name in clients:
        for step in STEPS if results[name] else ():
            wall, cpu = (median(each[step][kind] for each in results[name]) for kind in (0, 1))
            print(f"{name:<8} {step:<16} {wall:7.3f} s {cpu:7.3f} CPU s")
        print(
            f"{name:<8} {len(failures[name])} of {rounds + 1} rounds failed", *sorted(set(failures[name])), sep="\n  "
        )
    for name in clients[1:] if results["jzi"] else ():
        rounds_of_both = list(zip(results[name], results["jzi"], strict=False))
        for step in STEPS if rounds_of_both else ():
            wall, cpu = (median(one[step][k] / jzi[step][k] for one, jzi in rounds_of_both) for k in (0, 1))
            print(f"{name} / jzi, {step}: {wall:.2f} in wall time, {cpu:.2f} in CPU time")


if __name__ == "__main__":
    main()
