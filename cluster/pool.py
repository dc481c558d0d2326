"""Run tasks on all nodes of a Ray cluster; those of nodes that die are run on others."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from jzi.cluster.worker import EncodingActor, Work
from jzi.errors import ClusterError, first_line
from jzi.version import __version__

#: Seconds between two looks at the progress, and at the nodes: some may have joined.
POLL_S, NODES_S = 1.0, 5.0

#: Seconds that interrupted tasks have to write what they have encoded.
STOP_S = 60.0

#: Times that a task may take a process with it, or a node its process, before it is given up.
ATTEMPTS = 3

#: Seconds without a process after which a message says so.
IDLE_S = 30.0


@dataclass(eq=False)
class _Process:
    """An actor, and what it does.

    Attributes:
        actor: its handle.
        node: id of its node.
        waits_for: the answer that is awaited: of `start`, or of a task.
        task: number of the task; None while it starts, or has none.
        done: what it has encoded of the task, as of the last answer.
        asked: the awaited answer about that.
    """

    actor: Any
    node: str
    waits_for: Any
    task: int | None = None
    done: int = 0
    asked: Any = None


@dataclass
class _State:
    pending: deque[int]
    results: dict[int, Any] = field(default_factory=dict)
    losses: Counter[int] = field(default_factory=Counter)
    finished: int = 0


class Pool:
    """The processes of a cluster, one for each GPU, or one for each node if there is none.

    Args:
        work: what they do; sent to each node once.
    """

    def __init__(self, work: Work) -> None:
        self._work = ray.put(work)
        self._processes: list[_Process] = []
        self._failed: Counter[str] = Counter()
        self._reason = ""
        self.lost = 0

    def run(self, tasks: Sequence[Any], bar: tqdm) -> list[Any]:
        """Run tasks, each on whichever process is free.

        When this is interrupted, the tasks end after they have written what they have encoded.

        Args:
            tasks: the tasks, whose length is what they count.
            bar: counts what has been encoded.

        Returns:
            The results, in the order of the tasks.

        Raises:
            ClusterError: no node can do the work, or a task has ended several processes.
            JziError: a task failed.
        """
        state = _State(deque(range(len(tasks))))
        looked, idle_since = 0.0, time.monotonic()
        try:
            while len(state.results) < len(tasks):
                if time.monotonic() - looked > NODES_S:
                    self._hire()
                    looked = time.monotonic()
                for process in self._processes:
                    if process.waits_for is None and state.pending:
                        process.task, process.done = state.pending.popleft(), 0
                        process.waits_for = process.actor.run.remote(tasks[process.task])
                waiting = [process.waits_for for process in self._processes if process.waits_for is not None]
                ready: list[Any] = []
                if waiting:
                    ready, _ = ray.wait(waiting, timeout=POLL_S)
                else:
                    time.sleep(POLL_S)
                for process in [each for each in self._processes if each.waits_for in ready]:
                    self._take(process, state, tasks)
                if any(process.task is not None for process in self._processes):
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > IDLE_S:
                    tqdm.write("waiting for a node of the Ray cluster with a free GPU or free CPUs", file=sys.stderr)
                    idle_since = time.monotonic()
                self._show(bar, state)
        finally:
            self._stop()
        return [state.results[number] for number in range(len(tasks))]

    def _hire(self) -> None:
        """Start the processes that are missing on the nodes that are alive."""
        nodes = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
        with_gpus = any(resources.get("GPU", 0) >= 1 for _, resources in nodes)
        usable = 0
        for node, resources in nodes:
            count = int(resources.get("GPU", 0)) if with_gpus else min(1, int(resources.get("CPU", 0)))
            if self._failed[node] >= ATTEMPTS:
                continue
            usable += count
            missing = count - sum(process.node == node for process in self._processes)
            for _ in range(missing):
                options = {"num_gpus": int(with_gpus), "num_cpus": int(resources.get("CPU", 0)) // count}
                actor = EncodingActor.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False), **options
                ).remote()
                self._processes.append(_Process(actor, node, actor.start.remote(self._work)))
        if not usable:
            reason = self._reason or "none has a GPU or a CPU"
            raise ClusterError(
                f"no node of the Ray cluster can encode ({reason}): install the same jzi on each of them"
            )

    def _take(self, process: _Process, state: _State, tasks: Sequence[Any]) -> None:
        """Take the answer of a process."""
        number, process.task = process.task, None
        try:
            answer, process.waits_for = ray.get(process.waits_for), None
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else ClusterError(first_line(error)) from None
        except RayError as error:  # the process, its node, or its answer is gone
            self._processes.remove(process)
            ray.kill(process.actor)
            self.lost += 1
            self._reason = first_line(error)
            if number is None:
                self._failed[process.node] += 1
                return
            state.pending.appendleft(number)
            state.losses[number] += 1
            if state.losses[number] == ATTEMPTS:
                raise ClusterError(
                    f"{ATTEMPTS} processes of the cluster have ended with the same task ({self._reason}): see that the "
                    "nodes have enough memory, or set encoder.batch_size lower; what was written is kept"
                ) from error
            return
        if number is not None:
            state.results[number] = answer
            state.finished += len(tasks[number])
        elif answer != __version__:
            raise ClusterError(
                f"a node of the cluster has jzi {answer}, not {__version__}: install the same on all nodes"
            )

    def _show(self, bar: tqdm, state: _State) -> None:
        for process in self._processes:
            if process.task is None:
                continue
            if process.asked is None:
                process.asked = process.actor.done.remote()
            elif ray.wait([process.asked], timeout=0)[0]:
                try:
                    process.done = ray.get(process.asked)
                except RayError:
                    continue  # its task reports it
                process.asked = None
        total = state.finished + sum(process.done for process in self._processes if process.task is not None)
        if total != bar.n:
            bar.n = total
            bar.refresh()

    def _stop(self) -> None:
        """End all processes; nothing writes afterwards."""
        busy = [process for process in self._processes if process.task is not None]
        for process in busy:
            process.actor.stop.remote()
        try:
            if busy:
                ray.wait([process.waits_for for process in busy], num_returns=len(busy), timeout=STOP_S)
        finally:
            for process in self._processes:
                ray.kill(process.actor)
            self._processes.clear()
