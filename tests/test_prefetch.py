"""Results computed ahead in threads, and generators that end before they are exhausted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from jzi.encode.prefetch import prefetch
from jzi.vectors.store import read_ahead


def test_results_come_in_order_and_not_too_far_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    def square(number: int) -> int:
        time.sleep(0.001 * (number % 3))
        return number * number

    results = prefetch(square, items(), threads=3, ahead=4)
    for number in range(20):
        assert next(results) == number * number
        assert len(taken) <= number + 5
    assert next(results, None) is None


def test_the_threads_of_a_generator_that_nobody_uses_any_more_have_ended() -> None:
    before = set(threading.enumerate())  # a traceback that pytest keeps may hold a generator of another test
    results = prefetch(lambda number: time.sleep(0.01) or number, range(100), threads=3)
    assert next(results) == 0
    started = set(threading.enumerate()) - before
    assert len(started) == 3
    del results
    assert not started & set(threading.enumerate())


@pytest.mark.parametrize("kind", ["prefetch", "read ahead"])
def test_a_generator_that_is_collected_in_the_thread_that_it_waits_for_does_not_block_it(kind: str) -> None:
    """As zarr's event loop may collect one, while its threads wait for what the loop reads."""
    answered = threading.Event()

    def read(number: int) -> int:
        return number if number == 0 or answered.wait(20) else -1

    results = [prefetch(read, range(3), threads=1, ahead=1) if kind == "prefetch" else read_ahead(map(read, range(3)))]
    assert next(results[0]) == 0
    collected = threading.Event()

    def collect() -> None:
        results.clear()
        collected.set()
        answered.set()

    threading.Thread(target=collect).start()
    assert collected.wait(10)
