"""Processes that locate photos for the service, so that it uses all cores, or several GPUs.

Each has a model of its own. Photos reach it in batches over a pipe, and it sends the answer of each photo when it has
it. A process that ends is replaced; the photos that it had are answered with status 503.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from jzi.encode.rasters.imagery import Imagery
from jzi.errors import JziError, ModelError, first_line
from jzi.locate.locator import Locator
from jzi.serve.batch import BatchLocator
from jzi.serve.guard import frames
from jzi.serve.limits import Limits, RefusedError
from jzi.serve.queue import Job, Question

log = logging.getLogger("jzi.serve")

#: Opens a model and the background of its pages, and says why there is none; pickled, as each process opens its own.
Open = Callable[[], tuple[Locator, Imagery | None, str]]

#: Seconds after which photos may be sent again that were in a process when it ended, and until one is started again
#: that could not load its model.
RETRY_S = 5

#: Signals to the whole group of processes, by a terminal or a service manager, which the service handles alone.
_GROUP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


class WorkerError(RuntimeError):
    """An error in the process of a worker that is no `JziError`.

    Args:
        kind: its type.
        at: where it was raised.
    """

    def __init__(self, kind: str, at: list[str]) -> None:
        super().__init__(kind, at)  # pickled with both
        self.kind, self.at = kind, at


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
        self._ended = False

    def start(self) -> None:
        """Start the process, which loads its model while the caller goes on."""
        context = multiprocessing.get_context("spawn")  # threads and GPUs do not survive a fork
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, *self._arguments), daemon=True, name="jzi-locate")
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)  # from its first moment, as it inherits this
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
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
        """Finish every job of a batch; those whose clients have gone are left out, until the batch is sent."""
        waiting = {number: job for number, job in enumerate(jobs) if not job.abandoned}
        if not waiting:
            return
        try:
            pipe = self._ready_pipe()
            pipe.send([(number, job.question()) for number, job in waiting.items()])
            while waiting:
                number, result = pipe.recv()
                waiting.pop(number).finish(result)
        except (EOFError, OSError, ModelError) as error:
            exit_code = self._stop()
            for job in waiting.values():
                job.finish(RefusedError(503, "the process that located this photo ended: send it again", RETRY_S))
            if not self._ended:
                reason = {"reason": str(error)} if isinstance(error, ModelError) else {}
                log.error("worker ended", extra={"entry": {"exit_code": exit_code, **reason}})
                if isinstance(error, ModelError):
                    time.sleep(RETRY_S)  # other workers take the photos that wait meanwhile
        except Exception:
            self._stop()  # answers of this batch may be left in the pipe, and must not be taken for those of the next
            raise

    def close(self) -> None:
        """End the process for good."""
        self._ended = True
        self._stop()

    def _ready_pipe(self) -> Connection:
        if self._ended:
            raise EOFError
        if self._process is None or not self._process.is_alive():
            self._stop()
            self.start()
            if self._ended:  # meanwhile
                raise EOFError
            self.wait()
        assert self._pipe is not None
        return self._pipe

    def _stop(self) -> int | None:
        """Kill the process, which has nothing to tidy up, and return its exit code."""
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        code = None
        if process is not None:
            process.kill()  # which also ends the waiting of another thread for its answers
            process.join()
            code = process.exitcode
        if pipe is not None:
            pipe.close()
        return code


@contextlib.contextmanager
def running_workers(open: Open, limits: Limits, count: int) -> Iterator[list[Worker]]:
    """Processes that have loaded their models, which end with the context.

    Args:
        open: opens a model.
        limits: limits on photos.
        count: number of processes.

    Raises:
        ModelError: one cannot load its model.
    """
    workers = [Worker(open, limits, number, count) for number in range(count)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.wait()
        yield workers
    finally:
        for worker in workers:
            worker.close()


@dataclass(eq=False)
class _Answered(Question):
    """A question in the process of a worker; the answer goes into its pipe."""

    number: int = 0
    pipe: Connection | None = None
    done: bool = False

    def finish(self, result: dict[str, Any] | Exception) -> None:
        """Send the answer, or what may be known of an error: the messages of other libraries may quote anything."""
        assert self.pipe is not None
        if isinstance(result, JziError):
            result = JziError(str(result))  # not every kind can be pickled
        elif isinstance(result, Exception):
            result = WorkerError(type(result).__name__, frames(result))
        self.done = True
        self.pipe.send((self.number, result))


def _work(pipe: Connection, open: Open, limits: Limits, number: int, count: int) -> None:
    """Locate the batches of a pipe until it is closed."""
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    try:
        locator, imagery, _ = open()
        locate = BatchLocator(locator, imagery, limits)
    except Exception as error:
        pipe.send(str(error) if isinstance(error, JziError) else f"{type(error).__name__}: {first_line(error)}")
        return
    with contextlib.suppress(EOFError, OSError):  # the service has ended
        pipe.send(None)
        while True:
            batch = [_Answered(**question, number=index, pipe=pipe) for index, question in pipe.recv()]
            try:
                locate(batch)
            except Exception as error:  # one batch must not end the process
                for each in batch:
                    if not each.done:
                        each.finish(error)
