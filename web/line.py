"""A connection that another thread can cut, whatever its own waits for."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx


class Line:
    """A client of httpx with one connection at a time, for one thread.

    Args:
        client: the client; limited to one connection.

    Attributes:
        is_cut: whether it was cut since the last request began: what was received may then look like a whole answer.
    """

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.is_cut = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def trace(self, event: str, details: Mapping[str, Any]) -> None:
        """Take note of a new connection; called by httpcore."""
        if not event.endswith("connect_tcp.complete"):
            return
        connected = details["return_value"].get_extra_info("socket").dup()  # TLS takes over the other
        with self._lock:
            if self._socket:
                self._socket.close()
            self._socket = connected
        if self.is_cut:
            self.cut()

    def cut(self) -> None:
        """End the request that is under way; closing the client would wait for it."""
        with self._lock:
            self.is_cut = True
            if self._socket:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Cut the line unless the block ends in time."""
        self.is_cut = False
        timer = threading.Timer(seconds, self.cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # it might be cutting

    def close(self) -> None:
        """Close the connection."""
        self.client.close()
        with self._lock:
            if self._socket:
                self._socket.close()
            self._socket = None
