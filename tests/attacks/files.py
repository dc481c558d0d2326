"""Hostile files through the readers, in a process with bounded memory and a watchdog."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import random
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

#: Bytes of address space that the process may use beyond what it has after its imports: the photos that are decoded
#: together share at most 8 GiB, and none of these files needs more than a few hundred MB.
MEMORY = 3 * 2**30

#: Seconds for a file; the slowest take about a second.
STALL_S = 60.0


class Outcome(NamedTuple):
    """What became of a file.

    Attributes:
        kind: of the file.
        seed: with which it is made again.
        fault: the fault, or an empty text.
        refused: whether it was refused in a sentence.
        seconds: that reading took.
        memory: that reading added to the peak of the process, bytes.
    """

    kind: str
    seed: int
    fault: str
    refused: bool
    seconds: float
    memory: int


def jobs(count: int, seed: int, kinds: list[str]) -> list[tuple[str, int]]:
    """Kinds and seeds of files, the kinds in turn."""
    rng = random.Random(seed)
    return [(kinds[number % len(kinds)], rng.randrange(2**32)) for number in range(count)]


def attack(count: int, seed: int, kinds: list[str], say: Callable[[str], object]) -> dict[str, list[Outcome]]:
    """Read hostile files, the kinds in turn, and return what became of them by kind; faults are reported at once."""
    found: dict[str, list[Outcome]] = {}
    for outcome in read_files(jobs(count, seed, kinds)):
        found.setdefault(outcome.kind, []).append(outcome)
        if outcome.fault:
            say(f"FAULT {outcome.kind} {outcome.seed}: {outcome.fault}")
    return found


def read_files(remaining: list[tuple[str, int]]) -> Iterator[Outcome]:
    """Read files one after another; the process is started again where one ended it."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        stacks = Path(folder, "stacks")
        while remaining:
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(remaining, stacks, sender))
            worker.start()
            sender.close()
            done = 0
            try:
                while True:
                    yield receiver.recv()
                    done += 1
            except EOFError:
                worker.join()
            if done < len(remaining):
                kind, each = remaining[done]
                text = stacks.read_text() if stacks.exists() else ""
                what = "stalled" if "Timeout" in text else f"the process ended with {worker.exitcode}"
                yield Outcome(kind, each, f"{what}\n{text}", False, STALL_S, 0)
                done += 1
            remaining = remaining[done:]


def _work(work: list[tuple[str, int]], stacks: Path, sender: Any) -> None:
    from jzi.tests.attacks.readers import ATTACKS

    torch_ready()
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MEMORY, resource.RLIM_INFINITY))
    with stacks.open("w") as file:
        faulthandler.enable(file)
        for number, (kind, seed) in enumerate(work):
            faulthandler.dump_traceback_later(STALL_S, exit=True, file=file)
            example = ATTACKS[kind].make(seed)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            before, start = _status("VmRSS"), time.perf_counter()
            fault, refused = _read(example, ATTACKS[kind].read)
            seconds, memory = time.perf_counter() - start, _status("VmHWM") - before
            sender.send(Outcome(kind, seed, fault, refused, seconds, memory))
            faulthandler.cancel_dump_traceback_later()
            if number % 100 == 0:  # takes longer than reading a file
                gc.collect()


def torch_ready() -> None:
    """Start what libraries start on first use, so that the bound counts the files alone."""
    import torch

    torch.ones(2, 2) @ torch.ones(2, 2)


def _read(example: Any, read: Any) -> tuple[str, bool]:
    from jzi.tests.properties import test_hostile as properties

    refused = []

    def record(path: Path) -> None:
        from jzi.errors import JziError

        try:
            read(path)
        except JziError:
            refused.append(True)
            raise

    try:
        properties.check(example, record)
    except BaseException as error:  # the faults that are looked for
        return f"{example!r}: {''.join(traceback.format_exception(error)[-12:])}", False
    return "", bool(refused)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
