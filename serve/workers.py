"""Processes that locate photos for the service, so that it uses all cores, or several GPUs.

Each has a model of its own. Photos reach it in batches over a pipe, and it sends the answer of each photo when it has
it. A process that ends is replaced; the photos that it had are answered with status 503.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from jzi.encode.rasters.imagery import Imagery
from jzi.errors import JziError, ModelError
from jzi.locate.locator import Locator
from jzi.serve.batch import BatchLocator
from jzi.serve.limits import Limits, RefusedError
from jzi.serve.queue import Job, Question

#: Opens a model and the background of its pages, and says why there is none; pickled, as each process opens its own.
Open = Callable[[], tuple[Locator, Imagery | None, str]]

#: Seconds after which photos may be sent again that were in a process when it ended, and for a process to end.
RETRY_S, END_S = 5, 5.0


class Worker:
    """Locates batches in a process of its own.

    Args:
        open: opens the model there.
        limits: limits on photos.
        number: of the process, from 0; of several GPUs it uses the one of this number, counted in a circle.
        count: number of processes, which share the cores.
    """

    def __init__(self, open: Open, limits: Limits, number: int = 0, count: int = 1) -> None:
        self._arguments = open, limits, number, count
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def start(self) -> None:
        """Start the process, which loads its model while the caller goes on."""
        context = multiprocessing.get_context("spawn")  # threads and GPUs do not survive a fork
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, *self._arguments), daemon=True, name="jzi-locate")
        self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Wait until the model is loaded.

        Raises:
            ModelError: it cannot be, or the process ended.
        """
        assert self._pipe is not None
        try:
            problem = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise ModelError("a process that locates photos ended while it loaded the model") from error
        if problem is not None:
            raise ModelError(problem)

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Finish every job of a batch."""
        waiting = dict(enumerate(jobs))
        try:
            if self._process is None or not self._process.is_alive():
                self.close()
                self.start()
                self.wait()
            pipe = self._pipe
            assert pipe is not None
            pipe.send([job.question() for job in jobs])
            while waiting:
                number, values, sentence, is_ours = pipe.recv()
                error = None if sentence is None else JziError(sentence) if is_ours else RuntimeError(sentence)
                waiting.pop(number).finish(error or values)
        except (EOFError, OSError, ModelError):
            self.close()
            for job in waiting.values():
                job.finish(RefusedError(503, "the process that located this photo ended: send it again", RETRY_S))

    def close(self) -> None:
        """End the process."""
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if process is not None:
            process.terminate()  # which also ends the waiting of another thread for its answers
            process.join(END_S)
            if process.is_alive():
                process.kill()
        if pipe is not None:
            pipe.close()


@dataclass(eq=False)
class _Answered(Question):
    """A question in the process of a worker; the answer goes into its pipe."""

    number: int = 0
    pipe: Connection | None = None

    def finish(self, result: dict[str, Any] | Exception) -> None:
        """Send the answer, or what a client may know of an error."""
        assert self.pipe is not None
        if isinstance(result, JziError):
            self.pipe.send((self.number, None, str(result), True))
        elif isinstance(result, Exception):
            self.pipe.send((self.number, None, type(result).__name__, False))
        else:
            self.pipe.send((self.number, result, None, False))


def _work(pipe: Connection, open: Open, limits: Limits, number: int, count: int) -> None:
    """Locate the batches of a pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the service ends this one
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    try:
        locator, imagery, _ = open()
        locate = BatchLocator(locator, imagery, limits)
    except JziError as error:
        pipe.send(str(error))
        return
    with contextlib.suppress(EOFError, OSError):  # the service has ended
        pipe.send(None)
        while True:
            locate([_Answered(**each, number=index, pipe=pipe) for index, each in enumerate(pipe.recv())])
