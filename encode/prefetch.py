"""Apply a function in threads ahead of the consumer, in order and with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def reader_threads() -> int:
    """Return the number of reader threads: one per core, as GDAL and Pillow release the GIL; 16 keep a GPU busy."""
    return max(1, min(16, os.cpu_count() or 1))


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
    with ThreadPoolExecutor(threads, thread_name_prefix="jzi-read") as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
