"""What the process of a command sets for itself, and a library must not: how threads wait, warnings, SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Exit codes by the convention of shells: 128 and the signal's number.
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

#: Rounds that an OpenMP thread spins before it sleeps. Beside two busy processes a training step takes 1.7 s rather
#: than the 4.1 s of libgomp's default, and on idle cores a zoom takes 17 ms rather than the 42 ms of sleeping at once
#: (`benchmarks/RESULTS.md`).
SPIN_COUNT = 200_000

#: Who sets one of these has decided how threads wait. OMP_NUM_THREADS is not among them: it says how many there are.
WAITING_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")

#: Warnings about what jzi takes care of, by the start of their message: their classes would have to be imported.
HANDLED_WARNINGS = (
    "Dataset has no geotransform",  # rasterio: an ImageryError where it matters; the rest are arrays being warped
    r"Image size \(\d+ pixels\) exceeds limit",  # Pillow: the limit is jzi.encode.photos.MAX_PIXELS
    "Consolidated metadata is currently not part",  # Zarr: a reader that does not know it reads without
)


def bound_spinning() -> None:
    """Set how long idle OpenMP threads spin, unless the user has decided how they wait.

    Must be called before torch is imported: libgomp reads its variables when it is loaded.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


@contextmanager
def handled_warnings_ignored() -> Iterator[None]:
    """Ignore `HANDLED_WARNINGS`, in all threads; filters belong to the process."""
    with warnings.catch_warnings():
        for message in HANDLED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        yield


class Termination:
    """Makes SIGTERM do what Ctrl-C does, while entered: whatever handles SIGINT then handles both.

    A handler of SIGTERM that is there already is left in place, and so is everything outside of the main thread.

    Attributes:
        exit_code: of a command that was interrupted: INTERRUPTED, or TERMINATED after a SIGTERM.
    """

    def __init__(self) -> None:
        self.exit_code: int = INTERRUPTED
        self._installed = False

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._interrupt)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _interrupt(self, _: int, frame: FrameType | None) -> None:
        self.exit_code = TERMINATED
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # ignored, as in a background job of a script
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)
