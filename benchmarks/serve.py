"""Measure the service under load, beside the rate of the bare encoder in the same run.

    python -m benchmarks.serve MODEL PHOTOS...                  # for example a demo's model and its photos/*.jpg

Starts `jzi serve` on 127.0.0.1, and clients in a process of their own: each sends a photo, waits for the answer, and
sends the next one over the same connection. They share the cores with the service. The bare encoder embeds batches of
photos that are decoded already, with as many threads as the service, before and after the load.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

BOUNDARY = "photo-of-the-benchmark"


def form(photo: bytes) -> bytes:
    """Return a multipart form with a photo."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="photo"; filename="photo.jpg"\r\n\r\n'
    return head.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()


def run_clients(port: int, files: Sequence[str], clients: int, seconds: float, query: str, results: Any) -> None:
    """Send photos until the time is over, and put seconds per request and the statuses that were not 200."""
    bodies = [form(Path(file).read_bytes()) for file in files]
    end = time.monotonic() + seconds
    durations: list[float] = []
    refused: list[int] = []

    def work(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        while time.monotonic() < end:
            start = time.monotonic()
            connection.request("POST", f"/locate{query}", bodies[number % len(bodies)], headers)
            response = connection.getresponse()
            content = response.read()
            durations.append(time.monotonic() - start)
            if response.status != 200:
                refused.append(response.status)
            else:
                json.loads(content)
            number += clients
        connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((durations, refused))


def bare_rate(model: str, files: Sequence[str], seconds: float, batch: int, results: Any) -> None:
    """Put the photos per second of the encoder alone, which embeds batches of decoded photos."""
    from jzi.encode.photo.photos import open_photo, resize_photo
    from jzi.workspace.models.locators import load

    encoder = load(model).encoder
    height, width = encoder.photo_shape
    photos = [
        resize_photo(open_photo(file), width, height, encoder.resampling, fit=encoder.fit) for file in files[:batch]
    ]
    pixels = np.stack([photos[index % len(photos)] for index in range(batch)])
    encoder.encode_photos(pixels)
    count, start = 0, time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds:
        encoder.encode_photos(pixels).cpu()
        count += batch
    results.put(count / elapsed)


def in_process(target: Any, *arguments: Any) -> list[Any]:
    """Run a function in a process of its own, and return what it puts."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=target, args=(*arguments, results))
    process.start()
    values = [results.get(timeout=300)]
    process.join()
    return values


@click.command()
@click.argument("model", type=click.Path(exists=True))
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--clients", default=16, show_default=True, help="Requests at once.")
@click.option("--seconds", default=10.0, show_default=True, help="Duration of the load; half of it for each bare rate.")
@click.option("--batch", default=8, show_default=True, help="Photos of a batch of the bare encoder.")
@click.option("--query", default="", help="Parameters of the requests, such as ?details=true.")
@click.option("--workers", default=1, show_default=True, help="Processes of the service that locate.")
def main(
    model: str, photos: tuple[str, ...], clients: int, seconds: float, batch: int, query: str, workers: int
) -> None:
    """Measure and print a row."""
    files = photos[:256]
    command = [sys.executable, "-m", "jzi", "serve", "--model", model, "--port", "0", "--workers", str(workers)]
    service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        port = 0
        for line in service.stderr or ():
            if match := re.search(r"serving on http://[^:]+:(\d+)", line):
                port = int(match[1])
            if '"started"' in line:
                break
        threading.Thread(target=lambda: [None for _ in service.stderr or ()], daemon=True).start()
        in_process(run_clients, port, files, clients, min(2.0, seconds), query)  # warm
        rates = in_process(bare_rate, model, files, seconds / 2, batch)
        ((durations, refused),) = in_process(run_clients, port, files, clients, seconds, query)
        rates += in_process(bare_rate, model, files, seconds / 2, batch)
    finally:
        service.terminate()
        service.wait(30)
    rate, bare = len(durations) / seconds, float(np.mean(rates))
    p50, p95, p99 = np.percentile(1000 * np.array(durations), [50, 95, 99])
    click.echo(f"{clients} clients, {len(refused)} of {len(durations)} requests refused")
    click.echo(f"{'photos/s':>10}{'bare encoder':>14}{'ratio':>7}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}")
    click.echo(f"{rate:>10.1f}{bare:>14.1f}{rate / bare:>7.2f}{p50:>9.0f}{p95:>9.0f}{p99:>9.0f}")


if __name__ == "__main__":
    main()
