"""The folder `train` inside a model folder: what a run was made with, how it went, and the state to resume from."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jzi.decode.model import save_tensors
from jzi.errors import ModelError
from jzi.store.model_folder import CONFIG, read_config, replace_file

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
            if (self.folder / "decoder.safetensors").exists():
                raise ModelError(f"{self.folder} holds a model that was not trained here: give another model.path")
            return None
        try:
            state = torch.load(self._state, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise ModelError(f"{self._state} is damaged: delete {self.folder} to train anew") from error
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

    def start(self, settings: str) -> None:
        """Make the folder and keep the settings."""
        (self.folder / "train").mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / "train" / "settings.toml", lambda path: path.write_text(settings))

    def save(self, state: dict[str, Any], metrics: Metrics | None = None) -> None:
        """Keep the state; after an epoch, whose metrics are given, `log` them too."""
        if metrics:
            self.log(metrics)
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


class Checkpointer:
    """Writes the best weights and the state to resume from, when it is due.

    An epoch off the cache takes seconds, and they are four times the decoder's size: what is written between two epochs
    may cost as much as training. The best weights wait on the device, and both are written together, so that the disk
    never holds weights that the state does not know of.

    Args:
        run: where to.
        every_s: seconds between two states; the first is due at once.
    """

    def __init__(self, run: TrainingRun, every_s: float) -> None:
        self.run, self.every_s = run, every_s
        self.saved_at = -math.inf
        self.best: dict[str, Tensor] | None = None

    def note(self, metrics: Metrics, decoder: nn.Module) -> None:
        """Log an epoch's metrics, and remember its weights if they are the best so far."""
        if not self.run.metrics or rank(metrics) > max(map(rank, self.run.metrics)):
            self.best = {name: tensor.detach().clone() for name, tensor in decoder.state_dict().items()}
        self.run.log(metrics)

    def is_due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self.saved_at > self.every_s

    def save(self, state: dict[str, Any]) -> None:
        """Write the best weights, if there are better ones, then the state."""
        self.save_best()
        self.run.save(state)
        self.saved_at = time.monotonic()

    def save_best(self) -> None:
        """Write the best weights, if there are better ones than on the disk."""
        if self.best:
            save_tensors(self.run.folder, self.best)
        self.best = None


def rank(metrics: Metrics) -> tuple[float, float, float]:
    """What epochs are compared by."""
    return metrics.get("recall@40m", 0.0), -metrics.get("val_loss", 0.0), metrics["epoch"] * ("val_loss" not in metrics)
