"""Processes that tests start: bounded in time, with their output in files, and ended with all that they have started.

A pipe is at its end only when the last process that has inherited it ends, so a test that reads from one can wait for a
grandchild that is left over, for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil
import pytest

#: Seconds after which a process is ended and its test fails: no claim about speed, the longest takes some 20 s on one
#: core that nothing else uses.
BOUND_S = 300.0

#: Seconds for the processes to write where they are, when they are ended.
_STACKS_S = 1.0


class Child:
    """A process in a session and a group of its own; a context manager that ends the group.

    Args:
        command: program and arguments.
        cwd: its working directory; that of the test by default.
        env: its environment; that of the test with one OpenMP thread by default.
        stdin: `subprocess.PIPE` to write to it; it reads nothing by default.
        bound_s: seconds until `deadline`.

    Attributes:
        process: the process.
        pid: its number.
        deadline: when `wait` and `wait_until` end it and fail, by `time.monotonic`.
    """

    def __init__(
        self,
        command: Sequence[object],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        bound_s: float = BOUND_S,
    ) -> None:
        self._name = " ".join(map(str, command))
        self.deadline = time.monotonic() + bound_s
        self._output, self._errors = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        self._started: set[psutil.Process] = set()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} if env is None else dict(env)
        environment["PYTHONFAULTHANDLER"] = "1"  # a SIGABRT makes it print the stacks of its threads
        self.process = subprocess.Popen(
            list(map(str, command)), cwd=cwd, env=environment, stdin=stdin, stdout=self._output, stderr=self._errors,
            start_new_session=True,
        )  # fmt: skip
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def output(self) -> str:
        """What it has written to standard output so far."""
        return _text(self._output.fileno())

    @property
    def errors(self) -> str:
        """What it has written to standard error so far."""
        return _text(self._errors.fileno())

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.returncode is None and not _has_ended(self.pid)

    def wait(self, code: int | None = None) -> int:
        """Return its exit code, which must be `code` if one is given; what it has left running is ended."""
        while self.runs:
            self._check_time()
            time.sleep(0.01)
        self.end()
        if code is not None and self.process.returncode != code:
            pytest.fail(self._report(f"ended with {self.process.returncode}"))
        return self.process.returncode

    def wait_until(self, happened: Callable[[], object]) -> None:
        """Wait for something that happens before it ends."""
        while not happened():
            if not self.runs and not happened():
                self.end()
                pytest.fail(self._report(f"ended too early with {self.process.returncode}"))
            self._check_time()
            time.sleep(0.01)

    def end(self, number: int = signal.SIGKILL) -> None:
        """Kill it and everything that it has started and that still runs."""
        if self.process.returncode is not None:
            return
        with contextlib.suppress(psutil.Error):
            self._started.update(psutil.Process(self.pid).children(recursive=True))
        for process in self._started:  # some are in sessions of their own, such as the workers of torchrun
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: nothing of the group runs
            os.killpg(self.pid, number)  # it is nobody else's: a process keeps its number until it was waited for
        if number == signal.SIGKILL:
            self.process.wait(60)
            if self.process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    self.process.stdin.close()

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            self.end(signal.SIGABRT)
            time.sleep(_STACKS_S)
            self.end()
            pytest.fail(self._report("had not ended in time"))

    def _report(self, what: str) -> str:
        return f"{self._name}\n{what}\n--- standard output\n{self.output}\n--- standard error\n{self.errors}"


def run(command: Sequence[object], *, code: int | None = 0, **options: object) -> Child:
    """Run a process to its end; its exit code must be `code`, unless that is None."""
    with Child(command, **options) as child:
        child.wait(code)
    return child


def run_python(source: str, *arguments: object, code: int | None = 0, **options: object) -> Child:
    """`run` a Python program, given as text."""
    return run([sys.executable, "-c", source, *arguments], code=code, **options)


def run_distributed(processes: int, *command: object, **options: object) -> Child:
    """`run` Python with some arguments in one process, or in several of torchrun on the loopback interface alone."""
    launcher = f"-m torch.distributed.run --standalone --local-addr=127.0.0.1 --nproc-per-node={processes}".split()
    interface = "lo0" if sys.platform == "darwin" else "lo"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": interface}
    return run([sys.executable, *(launcher if processes > 1 else ()), *command], env=environment, **options)


def wait_until(happened: Callable[[], object]) -> None:
    """Wait for what a thread of this process does, for `BOUND_S` seconds at most."""
    deadline = time.monotonic() + BOUND_S
    while not happened():
        assert time.monotonic() < deadline, "it has not happened in time"
        time.sleep(0.01)


def _text(descriptor: int) -> str:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")  # leaves the offset alone


def _has_ended(pid: int) -> bool:
    """Whether a child has ended, which keeps its number and its group."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
