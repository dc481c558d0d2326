"""Reading ahead: work is done in threads while the caller uses what is ready, in order, with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def reader_threads() -> int:
    """How many threads read: GDAL and Pillow let go of the interpreter, so that one a core pays; 16 feed a fast GPU."""
    return max(1, min(16, os.cpu_count() or 1))


def prefetch(function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int | None = None) -> Iterator[R]:
    """Like map, but `ahead` results (twice the threads by default) are worked out before they are asked for."""
    ahead = ahead or 2 * threads
    with ThreadPoolExecutor(threads, thread_name_prefix="jzi-read") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
