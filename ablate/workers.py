"""Worker processes that run the trials of an ablation.

A worker locks a trial's folder before it runs the trial. So the workers of one command, of the processes of `accelerate
launch`, and of a second command in the same folder never run the same trial, and the trial of a killed worker is free
for the others. Each process loads the embeddings once.

On CPUs a worker uses as many threads as `jzi train-decoder`, because the last digits of a sum depend on their number,
and a trial must equal the same run outside of an ablation. Waiting threads must then sleep instead of spinning: two
workers with two threads each on two cores take 165 s for what takes 7 s with OMP_WAIT_POLICY=passive,
and the bound on spinning that suits one process does not help (`benchmarks/RESULTS.md`).
"""

from __future__ import annotations

import gc
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
from jzi.store.cache.feature_cache import FeatureCache
from jzi.train.data import UNLIMITED, TrainingData

#: Variables that mark a process as one of several of a launcher; workers must not inherit them.
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: Seconds for a worker to remove its partial files after SIGTERM. Python ignores what the handler of a signal raises in
#: a finalizer, so a worker may go on.
END_S = 30.0


def run_trials(variants: Sequence[Sequence[Trial]], jobs: int, *, device: int = 0, first: bool = True) -> None:
    """Run the trials that have not been run.

    Args:
        variants: the trials of each variant, in the order of their seeds.
        jobs: number of worker processes.
        device: index of the GPU, if there is one.
        first: whether to wait for trials that other processes run; the main process does.

    Raises:
        JziError: a trial failed for another reason than its loss.
    """
    _release_memory()
    trials = _in_order(variants)
    with tqdm(
        total=sum(trial.train.epochs for trial in trials), unit="epoch", desc="ablation", disable=not first
    ) as bar:
        _show(bar, trials)
        while pending := [trial for trial in trials if trial.result is None]:
            free = [trial for trial in pending if _is_free(trial)]
            for _, group in itertools.groupby(free, key=_process_key):
                _run_group(list(group), jobs, device, bar, trials)
            if not free and not first:
                return
            if not free:
                time.sleep(1)  # other processes run the last ones
                _show(bar, trials)


def _release_memory() -> None:
    """Return the memory of a GPU that torch has kept since encoding and fine-tuning, for the workers to use."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _process_key(trial: Trial) -> tuple[str, str]:
    """What is fixed for the lifetime of a process: the loaded data, and Accelerate's precision."""
    return trial.cache, trial.train.precision


def _in_order(variants: Sequence[Sequence[Trial]]) -> list[Trial]:
    """Trials sorted by `_process_key`, then by seed: the first of every variant, the second of every variant, ..."""
    trials = [trials[number] for number in range(max(map(len, variants))) for trials in variants]
    keys = list(dict.fromkeys(map(_process_key, trials)))
    return sorted(trials, key=lambda trial: keys.index(_process_key(trial)))


def _run_group(group: list[Trial], jobs: int, device: int, bar: tqdm, trials: Sequence[Trial]) -> None:
    context = multiprocessing.get_context("spawn")  # CUDA cannot be used in a fork of a process that has used it
    workers: dict[BaseProcess, Connection] = {}
    try:
        for _ in range(min(jobs, len(group))):
            receiver, sender = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(target=_work, args=(group, device, sender), daemon=True)
            _start(process)
            sender.close()
            workers[process] = receiver
        while any(worker.is_alive() for worker in workers):
            wait([worker.sentinel for worker in workers if worker.is_alive()], timeout=0.5)
            _show(bar, trials)
            _raise_errors(workers)
        _raise_errors(workers)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(END_S)
            worker.kill()
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
    """Raise the error of a worker, if one has failed."""
    for worker, connection in workers.items():
        with suppress(EOFError):
            if connection.poll():
                raise connection.recv()
        if worker.exitcode:  # None while it runs
            raise TrainingError(
                f"a worker process exited with code {worker.exitcode}, possibly out of memory: run the same command "
                "again to resume, with --jobs 1 to run one trial at a time"
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives it too and handles it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tqdm.set_lock(threading.RLock())  # its own lock has a semaphore, which a worker that is ended would leave behind
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        use_device(device)
        run_free(trials)
    except JziError as error:
        errors.send(error)
    except (SystemExit, KeyboardInterrupt):
        os._exit(143)  # partial files have been removed; a regular exit takes torch seconds


def use_device(index: int) -> None:
    """Make a GPU the current one, if there are any; `best_device` and a single-process Accelerator use it."""
    if torch.cuda.is_available():
        torch.cuda.set_device(index)


def run_free(trials: Sequence[Trial]) -> None:
    """Run, in this process, the trials that no other process runs.

    Args:
        trials: trials of one cache.

    Raises:
        JziError: a trial failed for another reason than its loss.
    """
    data: TrainingData | None = None
    for trial in trials:
        with trial.claim() as free:
            if free and trial.result is None:
                data = data or TrainingData.load(
                    FeatureCache.open(trial.cache), best_device(), map_memory=UNLIMITED, photo_memory=UNLIMITED
                )
                run_trial(trial, data)


def _end_with_parent() -> None:
    """End this worker when its parent has been killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_S)
    os._exit(143)
