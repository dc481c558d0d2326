"""A training run on disk: settings, metrics and the state to resume from, in the folder `train` of a model folder."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jzi.errors import ModelError
from jzi.store.files import remove_leftovers
from jzi.store.model_folder import CONFIG, DECODER, read_config, replace_file

Metrics = dict[str, float]


@dataclass
class TrainingRun:
    """One training run on disk.

    Args:
        folder: the model folder.
        fingerprint: everything that the run's outcome depends on; a run is resumed only by one with the same.
        hint: what to do where the folder holds another run.
    """

    folder: Path
    fingerprint: dict[str, Any]
    metrics: list[Metrics] = field(default_factory=list)
    hint: str = "give another model.path (`--set model.path=other`) or delete it"

    @property
    def _state(self) -> Path:
        return self.folder / "train" / "state.pt"

    def load(self) -> dict[str, Any] | None:
        """The last state of this run that was saved, None if there is no run in the folder.

        Raises:
            ModelError: the folder holds another run, or its state is damaged.
        """
        if not self._state.exists():
            if (self.folder / DECODER).exists():
                raise ModelError(f"{self.folder} holds a model that was not trained here: give another model.path")
            return None
        try:
            state = torch.load(self._state, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise ModelError(f"{self._state} is damaged: delete {self.folder} to train anew") from error
        if not isinstance(state, dict) or not {"fingerprint", "metrics", "epoch", "step"} <= state.keys():
            raise ModelError(f"{self._state} is of another version of jzi: delete {self.folder} to train anew")
        then, now = state["fingerprint"], self.fingerprint
        differences = [key for key in {**now, **then} if then.get(key) != now.get(key)]
        if differences:
            was = ", ".join(f"{key} {then.get(key)} not {now.get(key)}" for key in differences)
            raise ModelError(
                f"{self.folder} holds a model that was trained with other settings or photos ({was}): {self.hint}"
            )
        if (self.folder / CONFIG).exists():
            read_config(self.folder)  # or raises before anything is trained: it is of another format, or damaged
        self.metrics = state["metrics"]
        return state

    def resume(self) -> dict[str, Any]:
        """The state to train from, which is that of the start where there is no run in the folder.

        Temporary files of processes that were killed are removed.

        Raises:
            ModelError: as `load`.
        """
        state = self.load() or {"epoch": 0, "step": 0, "losses": []}
        for folder in (self.folder, self.folder / "train", self.folder / "encoder"):
            remove_leftovers(folder)
        return state

    def start(self, settings: str) -> None:
        """Make the folder and keep the settings."""
        (self.folder / "train").mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / "train" / "settings.toml", lambda path: path.write_text(settings))

    def save(self, state: dict[str, Any]) -> None:
        """Write the state to resume from."""
        state = {**state, "fingerprint": self.fingerprint, "metrics": self.metrics}
        replace_file(self._state, lambda path: torch.save(state, path))

    def log(self, metrics: Metrics) -> None:
        """Add an epoch's metrics and write metrics.jsonl: a line an epoch."""
        self.metrics.append(metrics)
        text = "".join(json.dumps(line) + "\n" for line in self.metrics)
        replace_file(self.folder / "train" / "metrics.jsonl", lambda path: path.write_text(text))

    def best(self) -> Metrics:
        """The metrics of the epoch that is kept: the best recall at 40 m, then the lowest validation loss.

        Without validation photos it is the last epoch.
        """
        return max(self.metrics, key=rank)

    def is_best(self, metrics: Metrics) -> bool:
        """Whether an epoch is better than all so far."""
        return not self.metrics or rank(metrics) > max(map(rank, self.metrics))


class Checkpointer:
    """Writes states to resume from as often as the clock says.

    Args:
        run: where to.
        every_s: seconds between two states.
        due: whether the first is due at once.
    """

    def __init__(self, run: TrainingRun, every_s: float, *, due: bool) -> None:
        self.run, self.every_s = run, every_s
        self.saved_at = -math.inf if due else time.monotonic()
        self._position: tuple[int, int] | None = None

    def is_due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self.saved_at > self.every_s

    def holds(self, epoch: int, step: int) -> bool:
        """Whether the state after so many epochs and steps is the last that was saved."""
        return self._position == (epoch, step)

    def save(self, state: dict[str, Any]) -> None:
        """Write a state."""
        self.run.save(state)
        self.saved_at = time.monotonic()
        self._position = state["epoch"], state["step"]


@dataclass(frozen=True)
class TrainReport:
    """What a training run did.

    Attributes:
        folder: the model.
        epochs: epochs trained by this run; 0 if all had been trained before.
        total: epochs of the whole training.
        best: the metrics of the epoch that was kept.
        train: number of training photos.
        val: number of validation photos.
        unreachable: photos left out, because the map has no imagery where they were taken.
        seconds: of this run's epochs.
    """

    folder: Path
    epochs: int
    total: int
    best: Metrics
    train: int
    val: int
    unreachable: int
    seconds: float


def rank(metrics: Metrics) -> tuple[float, float, float]:
    """What epochs are compared by."""
    return metrics.get("recall@40m", 0.0), -metrics.get("val_loss", 0.0), metrics["epoch"] * ("val_loss" not in metrics)
