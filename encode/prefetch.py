"""Apply a function in threads ahead of the consumer, in order and with bounded memory."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def reader_threads() -> int:
    """Return the number of reader threads: one per core, as GDAL and Pillow release the GIL; 16 keep a GPU busy."""
    return max(1, min(16, os.cpu_count() or 1))


class GeneratorPool(ThreadPoolExecutor):
    """Threads of a generator, which waits for them when it ends.

    If it is collected as garbage in another thread, it leaves them to finish what they do: they may wait for that
    thread, such as for zarr's event loop.

    Args:
        threads: number of threads.
        name: start of their names.
        yielding: whether they run where others leave a core free (`yield_cores`).
    """

    def __init__(self, threads: int, name: str, *, yielding: bool = False) -> None:
        super().__init__(threads, thread_name_prefix=name, initializer=yield_cores if yielding else None)
        self._owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=threading.get_ident() == self._owner, cancel_futures=True)


def yield_cores() -> None:
    """Give the calling thread the lowest priority on Linux, where threads have one each.

    Beside an encoder on the same cores, a reader of the same priority takes one of them in the middle of a matrix
    product, and the other one waits for it.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def prefetch(
    function: Callable[[T], R],
    items: Iterable[T],
    threads: int,
    ahead: int | None = None,
    *,
    yielding: bool = False,
) -> Iterator[R]:
    """Yield `function(item)` of each item in order, like `map`, computed ahead in threads.

    Args:
        function: thread-safe.
        items: consumed as results are taken.
        threads: number of threads.
        ahead: maximum number of results computed before they are taken; twice the threads by default.
        yielding: whether the threads run only where the consumer leaves a core free.

    Raises:
        Exception: an error of `function`, when its result is taken; pending items are cancelled.
    """
    ahead = ahead or 2 * threads
    with GeneratorPool(threads, "jzi-read", yielding=yielding) as pool:
        pending: deque[Future[R]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
