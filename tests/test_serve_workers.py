"""Processes that locate for the service: the same answers, and a process that ends is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import jzi
from jzi.errors import JziError, ModelError
from jzi.locate.answer.location import LocateOptions
from jzi.serve.batch import BatchLocator
from jzi.serve.limits import Limits, RefusedError
from jzi.serve.queue import Job, PhotoQueue, Question
from jzi.serve.workers import Worker
from jzi.workspace.service import open_service


class Asked(Question):
    """A question that keeps its answer."""

    def finish(self, result) -> None:
        self.result = result


def opened_later(folder: Path):
    return partial(
        open_service, folder, Path("none.toml"), cache=None, retriever=None, approximate=False, experts=(), zoom=None,
        fuse=False, refine=None, imagery=(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def worker(zoom_folder: Path) -> Iterator[Worker]:
    worker = Worker(opened_later(zoom_folder), Limits(), count=2)
    worker.start()
    worker.wait()
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def photo(town_folder: Path) -> bytes:
    return (town_folder / "photos" / "day0" / "000.jpg").read_bytes()


@pytest.mark.slow
def test_a_worker_answers_as_the_service_itself_does(worker, zoom_folder, photo) -> None:
    def ask() -> list[Asked]:
        options = LocateOptions(top=3)
        priors = (48.2, 16.37), 100.0
        return [
            Asked(photo, "first", options, details=True),
            Asked(b"broken", "broken", options),
            Asked(photo, "outside", options, (0.0, 0.0), 10.0),
            Asked(photo, "second", options, *priors),
        ]

    theirs, ours = ask(), ask()
    worker(theirs)
    BatchLocator(jzi.load(zoom_folder), None, Limits())(ours)
    for one, other in zip(theirs, ours, strict=True):
        if isinstance(other.result, JziError):
            assert isinstance(one.result, JziError) and str(one.result) == str(other.result)
        else:
            assert one.result == other.result
    assert [isinstance(each.result, JziError) for each in ours[:3]] == [False, True, True]


@pytest.mark.slow
def test_a_worker_that_ends_is_replaced_and_its_photos_are_refused(worker, photo) -> None:
    pid = worker._process.pid
    os.kill(pid, signal.SIGSTOP)  # so that it ends before it answers
    asked = Asked(photo, "lost", LocateOptions())
    thread = threading.Thread(target=worker, args=([asked],))
    thread.start()
    os.kill(pid, signal.SIGKILL)
    thread.join(60)
    assert isinstance(asked.result, RefusedError) and asked.result.status == 503 and asked.result.retry_after
    again = Asked(photo, "again", LocateOptions())
    worker([again])
    assert again.result["photo"] == "again" and worker._process.pid != pid


@pytest.mark.slow
def test_a_model_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    worker = Worker(opened_later(tmp_path / "none"), Limits())
    worker.start()
    with pytest.raises(ModelError, match="none"):
        worker.wait()
    worker.close()


def test_batches_of_several_workers_are_computed_at_once() -> None:
    both = threading.Barrier(2, timeout=30)  # passes only if two batches are in work

    def compute(jobs) -> None:
        both.wait()
        for job in jobs:
            job.finish({"name": job.name})

    async def run() -> None:
        queue = PhotoQueue([compute, compute], size=9, batch=1)
        queue.start()
        jobs = [queue.locate(Job(b"", name, LocateOptions())) for name in "abcd"]
        assert [each["name"] for each in await asyncio.gather(*jobs)] == list("abcd")
        queue.close()

    asyncio.run(run())
