"""Process-wide settings of the command line, which a library must not change: warning filters and signal handlers."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Exit codes by the convention of shells: 128 plus the signal's number.
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

#: Start of the messages of warnings that jzi handles; matching by class would need heavy imports.
HANDLED_WARNINGS = (
    "Dataset has no geotransform",  # rasterio: raised as ImageryError where it matters, else from warping arrays
    r"Image size \(\d+ pixels\) exceeds limit",  # Pillow: the limit is jzi.encode.photo.photos.MAX_PIXELS
    "Glyph .* missing from font",  # Matplotlib: a photo's name in another script is drawn as boxes
    "Consolidated metadata is currently not part",  # Zarr: other readers can open the store without it
)


#: Seconds between two states of a progress bar in a file, where each stays.
_LOGGED_S = "60"


def log_progress_seldom() -> None:
    """Let progress bars write rarely where they do not go to a terminal; before tqdm is imported."""
    if not sys.stderr.isatty():
        for name in ("TQDM_MININTERVAL", "TQDM_MAXINTERVAL"):
            os.environ.setdefault(name, _LOGGED_S)


@contextmanager
def handled_warnings_ignored() -> Iterator[None]:
    """Ignore `HANDLED_WARNINGS` in all threads of the process."""
    with warnings.catch_warnings():
        for message in HANDLED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        yield


class Termination:
    """Context manager that treats SIGTERM like Ctrl-C: the handler of SIGINT is called for both.

    An existing handler of SIGTERM is kept, and nothing is changed outside the main thread.

    Attributes:
        exit_code: exit code of an interrupted command: INTERRUPTED, or TERMINATED after a SIGTERM.
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
