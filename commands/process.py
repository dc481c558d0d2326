"""What the process of a command sets for itself, and a library must not: warning filters and signal handlers."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Exit codes by the convention of shells: 128 and the signal's number.
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

#: Warnings about what jzi takes care of, by the start of their message: their classes would have to be imported.
HANDLED_WARNINGS = (
    "Dataset has no geotransform",  # rasterio: an ImageryError where it matters; the rest are arrays being warped
    r"Image size \(\d+ pixels\) exceeds limit",  # Pillow: the limit is jzi.encode.photos.MAX_PIXELS
    "Consolidated metadata is currently not part",  # Zarr: a reader that does not know it reads without
)


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
