"""A training run on disk: settings, metrics and the state to resume from, in the folder `train` of a model folder."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jzi.encode.device import writer_lock_mode
from jzi.errors import ModelError
from jzi.store.disk.archive import check_archive
from jzi.store.disk.lock import WriterLock
from jzi.store.model_config import CONFIG, read_config
from jzi.store.model_folder import DECODER, lock_model, replace_file

Metrics = dict[str, float]


def lock_folder(folder: Path) -> WriterLock:
    """Lock a model folder for writing (`lock_model`). Waits until another process has finished with it.

    Processes of one launch are one writer; of several, the main process does not wait.

    Raises:
        ModelError: another process writes to it and several processes were launched, or it cannot be locked.
    """
    return lock_model(folder, writer_lock_mode())


@dataclass
class TrainingRun:
    """A training run on disk.

    Args:
        folder: the model folder.
        fingerprint: everything that the outcome depends on; a run is only resumed if its fingerprint is the same.
        metrics: metrics of the epochs so far.
        hint: what to do if the folder holds another run, for the error message.
        name: name of the run in train/, if the folder holds several; the run writes to train/<name>.
        weights: path in the folder of the file that a complete run writes.
        selects: name of the metric whose largest value selects the best epoch.
    """

    folder: Path
    fingerprint: dict[str, Any]
    metrics: list[Metrics] = field(default_factory=list)
    hint: str = "give another model.path (`--set model.path=other`) or delete it"
    name: str = ""
    weights: str = DECODER
    selects: str = "recall@40m"
    lock: WriterLock | None = field(default=None, init=False, repr=False, compare=False)
    _untrained: bool = field(default=False, init=False, repr=False, compare=False)

    @property
    def train_folder(self) -> Path:
        """Folder of the settings, the metrics and the state."""
        return self.folder / "train" / self.name

    @property
    def _state(self) -> Path:
        return self.train_folder / "state.pt"

    def load(self) -> dict[str, Any] | None:
        """The last saved state of this run; None if the folder holds no run.

        Raises:
            ModelError: the folder holds another run, or its state is damaged.
        """
        if not self._state.exists():
            if (self.folder / self.weights).exists():
                raise ModelError(
                    f"{self.folder} holds {self.weights} without the state of its training: give another model.path"
                )
            return None
        try:
            check_archive(self._state)
            state = torch.load(self._state, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # zipfile, pickle and torch have errors of many kinds
            raise ModelError(f"{self._state} is damaged: delete {self.folder} to train from scratch") from error
        if not _is_state(state):
            raise ModelError(
                f"{self._state} was written by another version of jzi: delete {self.folder} to train from scratch"
            )
        saved, current = state["fingerprint"], self.fingerprint
        differences = [key for key in {**current, **saved} if saved.get(key) != current.get(key)]
        if differences and _is_initial(state):
            return None  # nothing has been trained
        if differences:
            listed = ", ".join(f"{key} {saved.get(key)} not {current.get(key)}" for key in differences)
            raise ModelError(
                f"{self.folder} holds a model that was trained with other settings or photos ({listed}): {self.hint}"
            )
        if (self.folder / CONFIG).exists():
            read_config(self.folder)  # raises before any training if it is damaged or of another format
        self.metrics = state["metrics"]
        return state

    def resume(self) -> dict[str, Any]:
        """The state to train from: the last saved one, or the initial one if the folder holds no run.

        Locks the folder until this run is no longer used.

        Raises:
            ModelError: as `load` and `lock_folder`.
        """
        if self.lock is None:
            self.lock = lock_folder(self.folder)
            self.lock.release_with(self)
        with self.lock.released_on_error():
            state = self.load() or _initial_state()
        self._untrained = _is_initial(state)
        return state

    def start(self, settings: str) -> None:
        """Create the folder, and write the settings to train/settings.toml and the initial state.

        The latter says that weights, which are written before the state that belongs to them, are of this run.
        """
        self.train_folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.train_folder / "settings.toml", lambda path: path.write_text(settings))
        if self._untrained:
            self.save(_initial_state())

    def save(self, state: dict[str, Any]) -> None:
        """Write a state to resume from.

        Raises:
            ModelError: it cannot be written, or another process has taken over the folder.
        """
        if self.lock is not None:
            self.lock.check()
        state = {**state, "fingerprint": self.fingerprint, "metrics": self.metrics}
        replace_file(self._state, lambda path: torch.save(state, path))

    def log(self, metrics: Metrics) -> None:
        """Append an epoch's metrics, and write metrics.jsonl: one line per epoch."""
        self.metrics.append(metrics)
        text = "".join(json.dumps(line) + "\n" for line in self.metrics)
        replace_file(self.train_folder / "metrics.jsonl", lambda path: path.write_text(text))

    def best(self) -> Metrics:
        """Metrics of the best epoch: the highest recall (`selects`), then the lowest validation loss.

        Without validation photos, the last epoch. Epochs that were not validated count only if none was.
        """
        return max(_validated(self.metrics) or self.metrics, key=self._rank)

    def is_best(self, metrics: Metrics) -> bool:
        """Whether an epoch's metrics are better than those of all epochs so far."""
        rivals = _validated(self.metrics) if _validated([metrics]) else self.metrics
        return not rivals or self._rank(metrics) > max(map(self._rank, rivals))

    def _rank(self, metrics: Metrics) -> tuple[float, float, float]:
        """Sort key of epochs, ascending."""
        latest = metrics["epoch"] * ("val_loss" not in metrics)
        return metrics.get(self.selects, 0.0), -metrics.get("val_loss", 0.0), latest


class Checkpointer:
    """Saves states of a run at an interval.

    Args:
        run: the run.
        every_s: seconds between two states.
        due: whether the first state is due immediately.
    """

    def __init__(self, run: TrainingRun, every_s: float, *, due: bool) -> None:
        self.run, self.every_s = run, every_s
        self.saved_at = -math.inf if due else time.monotonic()
        self._position: tuple[int, int] | None = None

    def is_due(self) -> bool:
        """Whether a state is due."""
        return time.monotonic() - self.saved_at > self.every_s

    def has_saved(self, epoch: int, step: int) -> bool:
        """Whether the state at this epoch and step was the last one saved."""
        return self._position == (epoch, step)

    def save(self, state: dict[str, Any]) -> None:
        """Save a state."""
        self.run.save(state)
        self.saved_at = time.monotonic()
        self._position = state["epoch"], state["step"]


@dataclass(frozen=True)
class TrainReport:
    """Outcome of a training run.

    Attributes:
        folder: the model folder.
        epochs: epochs trained by this call; 0 if the run was complete.
        total: epochs of the whole run.
        best: metrics of the best epoch, whose weights were kept.
        train: number of training photos.
        val: number of validation photos.
        unreachable: photos left out because the map has no imagery where they were taken.
        seconds: duration of the epochs trained by this call.
    """

    folder: Path
    epochs: int
    total: int
    best: Metrics
    train: int
    val: int
    unreachable: int
    seconds: float


def _validated(metrics: list[Metrics]) -> list[Metrics]:
    """The epochs with a validation loss."""
    return [epoch for epoch in metrics if "val_loss" in epoch]


def _initial_state() -> dict[str, Any]:
    return {"epoch": 0, "step": 0, "losses": []}


def _is_initial(state: dict[str, Any]) -> bool:
    return state["epoch"] == 0 and "weights" not in state


def _is_state(state: Any) -> bool:
    """Whether a value has the entries of a state, of the right types."""
    types = {"fingerprint": dict, "metrics": list, "losses": list, "epoch": int, "step": int}
    return (
        isinstance(state, dict)
        and all(isinstance(state.get(name), kind) for name, kind in types.items())
        and min(state["epoch"], state["step"]) >= 0
        and all(isinstance(metrics, dict) and "epoch" in metrics for metrics in state["metrics"])
    )
