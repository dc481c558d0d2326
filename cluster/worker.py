"""The process of a node that encodes: it holds the encoder, and takes tasks one at a time."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

import ray

from jzi.encode.progress import Progress
from jzi.version import __version__


class Work(Protocol):
    """What the processes of a cluster do; sent to each of them."""

    def start(self, node: str) -> Callable[[Any, Progress], Any]:
        """Open what the work needs, and return the function that does a task.

        Args:
            node: name of this node, for messages.

        Raises:
            JziError: this node lacks something.
        """


class Stopped(Exception):  # noqa: N818 - no error
    """The command was interrupted."""


class Encoding:
    """Actor that encodes. `update` counts for the driver, and ends the task when that wants to stop."""

    def __init__(self) -> None:
        self._run: Callable[[Any, Progress], Any] | None = None
        self._done, self._stopping = 0, False

    def start(self, work: Work) -> str:
        """Prepare for tasks; returns the version of jzi."""
        self._run = work.start(f"{socket.gethostname()} ({ray.util.get_node_ip_address()})")
        return __version__

    def run(self, task: Any) -> Any:
        """Do a task; None if it was stopped, after what has been encoded is written."""
        assert self._run is not None
        self._done = 0
        try:
            return self._run(task, self)
        except Stopped:
            return None

    def update(self, n: int = 1) -> None:
        """See `jzi.encode.progress.Progress`."""
        self._done += n
        if self._stopping:
            raise Stopped

    @ray.method(concurrency_group="control")
    def done(self) -> int:
        """What has been encoded of the current task."""
        return self._done

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """End the current task soon."""
        self._stopping = True


#: As Ray runs it: tasks in one thread, `done` and `stop` beside them in another.
EncodingActor = ray.remote(concurrency_groups={"control": 1}, max_restarts=0, max_task_retries=0)(Encoding)
