"""Commands killed at random moments, resumed, and compared byte by byte with a run that nothing interrupted."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jzi.tests.attacks.scene import (
    DECODER,
    FINETUNE,
    REFINER,
    RETRIEVER,
    TRAIN,
    contents,
    differences,
    encode,
    make_town,
    must,
)

#: Imported once; each command is forked from the process that has them, so that kills hit work rather than imports.
PRELOADED = ["jzi.cli", "torch", "transformers", "zarr", "rasterio", "pandas", "accelerate", "pyproj", "pydantic"]

#: Seconds after which a command that should have ended is taken for stalled.
BOUND_S = 300.0


class Command(NamedTuple):
    """A long command.

    Attributes:
        name: what it is, for the table.
        line: the command line.
        outputs: what it writes, compared.
        before: commands whose results it needs, from `STAGES`.
        weight: share of the kills.
        processes: 1, "commands" for two at once, or "ranks" for one on two processes of torch.distributed.
    """

    name: str
    line: str
    outputs: tuple[str, ...]
    before: str
    weight: int = 4
    processes: int | str = 1


MERGE = "cache merge features.zarr merged.zarr"
ABLATE = f"ablate decoder.layers=1,2 {DECODER} --set train.epochs=3 --set train.batch_size=8 --jobs 1"
ALL = "encode-map --tokens --cells --detail"

COMMANDS = (
    Command("encode-map", ALL, ("features.zarr",), "town", 6),
    Command("encode-map by two commands", ALL, ("features.zarr",), "town", 3, "commands"),
    Command("encode-map on two processes", ALL, ("features.zarr",), "town", 3, "ranks"),
    Command("encode-queries", "encode-queries --tokens --views 2", ("features.zarr",), "town", 6),
    Command("train-decoder", f"{TRAIN} --experts zoom,cells,levels,vpr", ("model",), "encoded", 6),
    Command("finetune", FINETUNE, ("finetuned",), "town", 6),
    Command("train-retriever", RETRIEVER, ("retriever",), "town", 6),
    Command("index", "index --hnsw", ("retriever",), "retriever", 4),
    Command("train-refiner", f"{REFINER} -o refiner", ("refiner",), "encoded", 5),
    Command("cache merge", MERGE, ("merged.zarr",), "encoded", 5),
    Command("ablate", ABLATE, ("ablations",), "encoded", 2),
)


class Outcome(NamedTuple):
    """A command that was killed some times, and resumed."""

    name: str
    kills: int
    fault: str


def make_stages(folder: Path) -> dict[str, Path]:
    """Folders that commands start from."""
    folder.mkdir(exist_ok=True)
    stages = {name: folder / name for name in ("town", "encoded", "retriever")}
    make_town(stages["town"])
    shutil.copytree(stages["town"], stages["encoded"])
    encode(stages["encoded"])
    shutil.copytree(stages["town"], stages["retriever"])
    must(RETRIEVER, stages["retriever"])
    return stages


def _run(line: str, folder: Path, log: Path, environment: dict[str, str]) -> None:
    """A command in a group of its own; the exit code is that of the process."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    from jzi.cli import main

    try:
        main(line.split())
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(70)


class Runner:
    """Starts commands in copies of a stage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.context = folder, multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        self.log = folder / "log"

    def start(self, command: Command, work: Path) -> list[Any]:
        """One process, or two."""
        environments: list[dict[str, str]] = [{}]
        if command.processes == "commands":
            environments = [{}, {}]
        elif command.processes == "ranks":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            shared |= {"GLOO_SOCKET_IFNAME": "lo"}
            environments = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        started = []
        self.log.write_text("")
        for environment in environments:
            started.append(self.context.Process(target=_run, args=(command.line, work, self.log, environment)))
            started[-1].start()
        return started

    def finish(self, command: Command, work: Path) -> tuple[float, str]:
        """Run to the end: seconds, and the fault."""
        start = time.monotonic()
        started = self.start(command, work)
        for process in started:
            process.join(max(1.0, BOUND_S - (time.monotonic() - start)))
        stalled = any(process.is_alive() for process in started)
        for process in started:
            self.kill(process)
        codes = [process.exitcode for process in started]
        if stalled or any(codes):
            return 0.0, f"{'stalled' if stalled else codes}: {self.log.read_text()[-2000:]}"
        text = self.log.read_text()
        return time.monotonic() - start, text if "Traceback" in text else ""

    def kill(self, process: Any) -> bool:
        """Kill a process and those that it has started; whether it was running."""
        running = bool(process.is_alive())
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        process.join()
        return running


def attack(count: int, seed: int, folder: Path, names: tuple[str, ...] = ()) -> Iterator[Outcome]:
    """Kill commands in turn, each up to three times before it is left to end."""
    rng = random.Random(seed)
    stages = make_stages(folder)
    chosen = [each for each in COMMANDS if not names or each.name in names]
    runner = Runner(folder)
    whole: dict[str, tuple[float, dict[str, bytes]]] = {}
    total = sum(each.weight for each in chosen)
    for command in chosen:
        quota = -(-count * command.weight // total)
        work = folder / "work"
        results = []
        for _ in range(2):  # the second shows what differs between two runs that nothing interrupts
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(stages[command.before], work)
            seconds, fault = runner.finish(command, work)
            if fault:
                yield Outcome(command.name, 0, f"uninterrupted: {fault}")
            results.append(contents(work, *command.outputs))
        if different := differences(*results):
            yield Outcome(command.name, 0, f"two uninterrupted runs differ in {different[:5]}")
            continue
        whole[command.name] = seconds, results[0]
        killed = 0
        while killed < quota:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(stages[command.before], work)
            kills, moments = 0, []
            for _ in range(rng.choice([1, 1, 2, 3])):
                started = runner.start(command, work)
                moment = rng.uniform(0, seconds)
                time.sleep(moment)
                ended = rng.sample(started, 1) if command.processes == "commands" else started
                hit = [runner.kill(each) for each in ended]
                for each in started:
                    if each not in ended:  # the other command takes over
                        each.join(BOUND_S)
                        runner.kill(each)
                kills += any(hit)
                moments.append(round(moment, 2))
                if not any(hit):
                    break
            _, fault = runner.finish(command, work)
            if not fault and (different := differences(whole[command.name][1], contents(work, *command.outputs))):
                fault = f"{len(different)} files differ: {different[:5]}"
                keep = folder / f"fault {command.name} {killed}"
                shutil.copytree(work, keep, dirs_exist_ok=True)
            killed += kills
            yield Outcome(command.name, kills, f"killed after {moments} of {seconds:.1f} s: {fault}" if fault else "")
