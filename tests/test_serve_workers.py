"""Processes that locate for the service: the same answers, and a process that ends is replaced."""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import jzi
from jzi.errors import JziError, ModelError
from jzi.locate.answer.location import LocateOptions
from jzi.serve.batch import BatchLocator
from jzi.serve.limits import Limits, RefusedError
from jzi.serve.queue import Job, PhotoQueue, Question
from jzi.serve.workers import Worker, WorkerError, running_workers
from jzi.store.model_folder import update_config
from jzi.tests.broken_locator import open_broken
from jzi.tests.children import Child
from jzi.tests.test_serve_process import Service
from jzi.workspace.service import open_service, reopen_service, service_digest


class Asked(Job):
    """A photo without a client, which keeps its answer."""

    def __init__(self, *arguments, **more) -> None:
        Question.__init__(self, *arguments, **more)

    @property
    def abandoned(self) -> bool:
        return False

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
def test_a_worker_that_ends_is_replaced_and_its_photos_are_refused(worker, photo, monkeypatch) -> None:
    process, sent = worker._process, threading.Event()
    os.kill(process.pid, signal.SIGSTOP)  # so that it ends before it answers
    send = worker._pipe.send
    monkeypatch.setattr(worker, "_pipe", Sending(worker._pipe, lambda batch: (send(batch), sent.set())))
    asked = Asked(photo, "lost", LocateOptions())
    thread = threading.Thread(target=worker, args=([asked],))
    thread.start()
    assert sent.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    thread.join(60)
    assert isinstance(asked.result, RefusedError) and asked.result.status == 503 and asked.result.retry_after
    monkeypatch.undo()
    worker._pipe = None
    again = Asked(photo, "again", LocateOptions())
    worker([again])
    assert again.result["photo"] == "again" and worker._process.pid != process.pid


class Sending:
    """A pipe with another `send`."""

    def __init__(self, pipe, send) -> None:
        self.send, self.recv, self.close = send, pipe.recv, pipe.close


def test_answers_that_are_left_in_a_pipe_are_not_those_of_the_next_batch() -> None:
    def fail():
        raise pickle.UnpicklingError

    worker = Worker(lambda: None, Limits())
    worker._process = process = SimpleNamespace(
        is_alive=lambda: True, kill=lambda: ended.append("killed"), join=lambda: None, exitcode=-9
    )
    ended: list[str] = []
    worker._pipe = SimpleNamespace(send=lambda _: None, recv=fail, close=lambda: ended.append("closed"))
    with pytest.raises(pickle.UnpicklingError):
        worker([Asked(b"", "first", LocateOptions())])
    assert ended == ["killed", "closed"] and worker._process is not process


@pytest.mark.slow
def test_an_error_costs_a_worker_one_batch_and_says_no_more_than_where(zoom_folder, photo) -> None:
    worker = Worker(partial(open_broken, zoom_folder), Limits())
    worker.start()
    worker.wait()
    pid = worker._process.pid
    failed, located = (Asked(photo, name, LocateOptions()) for name in ("failed", "located"))
    worker([failed])
    assert isinstance(failed.result, WorkerError) and "secret" not in str(failed.result)
    assert failed.result.kind == "ValueError" and any("embed" in each for each in failed.result.at)
    worker([located])
    assert located.result["photo"] == "located" and worker._process.pid == pid
    worker.close()
    late = Asked(photo, "late", LocateOptions())
    worker([late])
    assert isinstance(late.result, RefusedError) and worker._process is None


@pytest.mark.slow
def test_a_service_with_workers_outlives_one_of_them_and_ends_by_a_signal_to_all(zoom_folder, photo) -> None:
    command = [sys.executable, "-m", "jzi", "serve", "--model", zoom_folder, "--port", "0", "--workers", "2"]
    with Child(command) as child:
        service = Service(child)
        assert service.post(photo) == 200
        children = psutil.Process(child.process.pid).children()
        workers = [each for each in children if "resource_tracker" not in str(each.cmdline())]
        assert len(workers) == 2
        workers[0].kill()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: service.post(photo), range(40)))
        assert set(answers) <= {200, 503} and answers.count(200) > 20
        for each in (psutil.Process(child.process.pid), *psutil.Process(child.process.pid).children()):
            each.send_signal(signal.SIGTERM)
        child.process.wait(20)
    assert "Traceback" not in child.errors


@pytest.mark.slow
def test_a_model_that_a_worker_cannot_open_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="none"), running_workers(opened_later(tmp_path / "none"), Limits(), 2):
        pass


def test_a_process_that_is_replaced_refuses_a_model_that_was_trained_again(zoom_folder, tmp_path) -> None:
    folder = Path(shutil.copytree(zoom_folder, tmp_path / "model"))
    again = opened_later(folder).keywords
    digest = service_digest(folder, Path("none.toml"), None, None, None)
    reopened, _, _ = reopen_service(digest, folder, Path("none.toml"), **again)
    assert reopened.name == "model"
    update_config(folder, temperature=(1.5, 1.5, 1.5))
    with pytest.raises(ModelError, match="model has changed since the service was started"):
        reopen_service(digest, folder, Path("none.toml"), **again)


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
