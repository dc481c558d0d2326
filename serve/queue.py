"""Photos that wait for the model: a bounded queue, and the threads that take them in batches."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from jzi.locate.answer.location import LocateOptions
from jzi.serve.limits import RefusedError, StoppingError

#: Longest time that `Retry-After` asks for, seconds.
MAX_RETRY_AFTER = 120


@dataclass(eq=False)
class Question(ABC):
    """A photo to locate.

    Attributes:
        photo: bytes of its file.
        name: name of the photo in the answer.
        options: how to locate it.
        near: latitude and longitude of the centre of the prior's circle, degrees.
        within: radius of that circle, metres.
        region: GeoJSON text of the prior's region.
        details: whether the answer has what the page draws.
    """

    photo: bytes
    name: str
    options: LocateOptions
    near: tuple[float, float] | None = None
    within: float | None = None
    region: bytes | str | None = None
    details: bool = False

    def question(self) -> dict[str, Any]:
        """The attributes that are listed above, to send to another process."""
        return {each.name: getattr(self, each.name) for each in fields(Question)}

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return False

    @abstractmethod
    def finish(self, result: dict[str, Any] | Exception) -> None:
        """Give the answer, or why there is none."""


@dataclass(eq=False)
class Job(Question):
    """A photo that a client waits for.

    Attributes:
        answer: set by `PhotoQueue`; cancelled when the client has gone.
        waited_s: seconds in the queue, once taken from it.
        batch: photos of the batch that it was computed in.
        submitted: time on the monotonic clock, seconds.
    """

    answer: asyncio.Future[dict[str, Any]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    waited_s: float = 0.0
    batch: int = 0
    submitted: float = field(default_factory=time.monotonic)

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.answer.cancelled()

    def finish(self, result: dict[str, Any] | Exception) -> None:
        """Set the answer from the worker's thread, unless nobody waits for it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the service has ended
            self.answer.get_loop().call_soon_threadsafe(self._set, result)

    def _set(self, result: dict[str, Any] | Exception) -> None:
        if self.answer.done():
            return
        if isinstance(result, Exception):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


class PhotoQueue:
    """A bounded queue of jobs, computed in batches by one thread for each model.

    Args:
        computes: each finishes every job of a batch (`Job.finish`), and is called in a thread of its own.
        size: photos that may wait.
        batch: largest batch.
    """

    def __init__(self, computes: Sequence[Callable[[Sequence[Job]], None]], size: int, batch: int) -> None:
        self.size, self.batch = size, batch
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds_per_photo = 0.5  # a guess until photos have been located
        self._threads = [
            threading.Thread(
                target=self._work, args=(compute,), name="jzi-locate", daemon=True
            )  # do not delay the exit
            for compute in computes
        ]

    def __len__(self) -> int:
        return len(self._jobs)

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raise a `RefusedError` if no photo may be added."""
        if self._closed:
            raise StoppingError()
        if len(self) >= self.size:
            raise RefusedError(503, f"{self.size} photos wait already: try again later", self.retry_after)

    @property
    def retry_after(self) -> int:
        """Estimate of the seconds until half of those that wait are answered."""
        seconds = len(self) * self._seconds_per_photo / len(self._threads)
        return int(min(max(1.0, seconds / 2), MAX_RETRY_AFTER))

    async def locate(self, job: Job) -> dict[str, Any]:
        """Return the answer; if the caller is cancelled, the job is dropped unless it is being computed.

        Raises:
            RefusedError: the queue is full, or closed before the photo's turn.
            JziError: the photo cannot be located.
        """
        self.check()
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        try:
            return await job.answer
        finally:
            job.answer.cancel()  # without effect on an answer
            with self._changed:
                if job in self._jobs:
                    self._jobs.remove(job)

    def close(self) -> None:
        """Refuse the photos that wait; each thread ends after the batch that it computes."""
        with self._changed:
            self._closed, waiting = True, list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        for job in waiting:
            job.finish(StoppingError())

    def _work(self, compute: Callable[[Sequence[Job]], None]) -> None:
        while (batch := self._take()) is not None:
            start = time.monotonic()
            try:
                compute(batch)
            except Exception as error:  # the thread must not end
                for job in batch:
                    job.finish(error)
            if batch:
                seconds = (time.monotonic() - start) / len(batch)
                self._seconds_per_photo += 0.2 * (seconds - self._seconds_per_photo)

    def _take(self) -> list[Job] | None:
        """The next batch, which is empty if all of its clients have gone; None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return None
            count = min(self.batch, len(self._jobs))
            batch = [job for job in (self._jobs.popleft() for _ in range(count)) if not job.abandoned]
        for job in batch:
            job.waited_s, job.batch = time.monotonic() - job.submitted, len(batch)
        return batch
