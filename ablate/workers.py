"""The runs of an ablation, spread over processes that take whichever run is free.

A run is taken by a lock on its folder, so that the workers of one command, of the processes of `accelerate launch` and
of a second command in the same folder never do the same work, and a killed one leaves its run to the others. Each
process loads the embeddings once.

On CPUs a worker computes with as many threads as `jzi train-decoder` does, because a sum's last digits depend on their
number, and the runs shall be the same runs. Threads that wait must then sleep rather than spin: two workers of two
threads on two cores need 165 s for what takes 7 s with OMP_WAIT_POLICY=passive, and a bound on spinning that is right
for one process does not help (`benchmarks/RESULTS.md`).
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch
from tqdm import tqdm

from jzi.ablate.trials import Trial, run_trial
from jzi.encode.device import best_device
from jzi.encode.threads import sleep_at_once
from jzi.errors import JziError, TrainingError
from jzi.store.cache import FeatureCache
from jzi.train.data import TrainingData

#: What tells a process that it is one of several; a worker's runs are its own.
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_trials(variants: Sequence[Sequence[Trial]], jobs: int, *, device: int = 0, first: bool = True) -> None:
    """Run what has not been run.

    Args:
        variants: the runs of each, in the order of their seeds.
        jobs: how many at once.
        device: index of the GPU, where there are any.
        first: whether this process is the one that returns only when every run is done, also those of others.

    Raises:
        JziError: a run cannot be made.
    """
    trials = _in_order(variants)
    with tqdm(
        total=sum(trial.train.epochs for trial in trials), unit="epoch", desc="ablation", disable=not first
    ) as bar:
        _show(bar, trials)
        while todo := [trial for trial in trials if trial.result is None]:
            free = [trial for trial in todo if _is_free(trial)]
            for _, group in itertools.groupby(free, key=_needs):
                _run_group(list(group), jobs, device, bar, trials)
            if not free and not first:
                return
            if not free:
                time.sleep(1)  # others are at the last ones
                _show(bar, trials)


def _needs(trial: Trial) -> tuple[str, str]:
    """What a process has for good: the data that it has loaded, and Accelerate's precision."""
    return trial.cache, trial.train.precision


def _in_order(variants: Sequence[Sequence[Trial]]) -> list[Trial]:
    """By what a process has; then the first seed of every variant, the second of every variant, ..."""
    trials = [trials[number] for number in range(max(map(len, variants))) for trials in variants]
    needs = list(dict.fromkeys(map(_needs, trials)))
    return sorted(trials, key=lambda trial: needs.index(_needs(trial)))


def _run_group(group: list[Trial], jobs: int, device: int, bar: tqdm, trials: Sequence[Trial]) -> None:
    context = multiprocessing.get_context("spawn")
    workers: dict[BaseProcess, Connection] = {}
    try:
        for _ in range(min(jobs, len(group))):
            ours, theirs = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(target=_work, args=(group, device, theirs), daemon=True)
            _start(process)
            theirs.close()
            workers[process] = ours
        while any(worker.is_alive() for worker in workers):
            wait([worker.sentinel for worker in workers if worker.is_alive()], timeout=0.5)
            _show(bar, trials)
            _raise_errors(workers)
        _raise_errors(workers)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
    _show(bar, trials)


def _start(process: BaseProcess) -> None:
    before = dict(os.environ)
    sleep_at_once()
    for name in _LAUNCHED:
        os.environ.pop(name, None)
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _raise_errors(workers: dict[BaseProcess, Connection]) -> None:
    """Raise what went wrong in a worker, if anything has."""
    for worker, connection in workers.items():
        with suppress(EOFError):
            if connection.poll():
                raise connection.recv()
        if worker.exitcode:  # None while it runs
            raise TrainingError(
                f"a process that trained decoders ended with exit code {worker.exitcode}, for want of memory perhaps: "
                "what was done is kept; run the same command to go on, with --jobs 1 to run one at a time"
            )


def _show(bar: tqdm, trials: Sequence[Trial]) -> None:
    done = sum(trial.result is not None for trial in trials)
    bar.set_postfix_str(f"{done} of {len(trials)} runs done", refresh=False)
    bar.update(sum(trial.epochs_done for trial in trials) - bar.n)


def _is_free(trial: Trial) -> bool:
    with trial.claim() as free:
        return free


# In the worker


def _work(trials: list[Trial], device: int, errors: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and says how to go on
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tqdm.set_lock(threading.RLock())  # its own lock has a semaphore, which a worker that is ended would leave behind
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        use_device(device)
        run_free(trials)
    except JziError as error:
        errors.send(error)
    except (SystemExit, KeyboardInterrupt):
        os._exit(143)  # what was being written has been taken back; torch takes seconds to end in order


def use_device(index: int) -> None:
    """Make a GPU, where there are any, the current one: of `best_device`, and of Accelerate in a single process."""
    if torch.cuda.is_available():
        torch.cuda.set_device(index)


def run_free(trials: Sequence[Trial]) -> None:
    """Run, in this process, those of some trials of one cache that nobody else runs.

    Raises:
        JziError: a run cannot be made.
    """
    data: TrainingData | None = None
    for trial in trials:
        with trial.claim() as free:
            if free and trial.result is None:
                cells = any(each.decoder.look_ahead == "cells" for each in trials)
                data = data or TrainingData.load(FeatureCache.open(trial.cache), best_device(), cells=cells)
                run_trial(trial, data)


def _end_with_parent() -> None:
    """Nobody else ends a worker whose parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
