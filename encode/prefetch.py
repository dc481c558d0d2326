"""Apply a function in threads ahead of the consumer, in order and with bounded memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self._owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=threading.get_ident() == self._owner, cancel_futures=True)


def prefetch(function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int | None = None) -> Iterator[R]:
    """Yield `function(item)` of each item in order, like `map`, computed ahead in threads.

    Args:
        function: thread-safe.
        items: consumed as results are taken.
        threads: number of threads.
        ahead: maximum number of results computed before they are taken; twice the threads by default.

    Raises:
        Exception: an error of `function`, when its result is taken; pending items are cancelled.
    """
    ahead = ahead or 2 * threads
    with GeneratorPool(threads, "jzi-read") as pool:
        pending: deque[Future[R]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
