"""The folder `train` inside a model folder: what a run was made with, how it went, and the state to resume from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jzi.decode.model import replace_file
from jzi.errors import ModelError

Metrics = dict[str, float]


@dataclass
class Run:
    """One training run on disk.

    Args:
        folder: the model folder.
        identity: everything that the run's outcome depends on; a run is resumed only by one with the same.
        mend: what to do where the folder holds another run.
    """

    folder: Path
    identity: dict[str, Any]
    metrics: list[Metrics] = field(default_factory=list)
    mend: str = "give another model.path (`--set model.path=other`) or delete it"

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
        differences = [key for key in self.identity if state["identity"].get(key) != self.identity[key]]
        if differences:
            was = ", ".join(f"{key} {state['identity'].get(key)} not {self.identity[key]}" for key in differences)
            raise ModelError(
                f"{self.folder} holds a model that was trained with other settings or photos ({was}): {self.mend}"
            )
        self.metrics = state["metrics"]
        return state

    def start(self, settings: str) -> None:
        """Make the folder and keep the settings."""
        (self.folder / "train").mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / "train" / "settings.toml", lambda path: path.write_text(settings))

    def save(self, state: dict[str, Any], metrics: Metrics | None = None) -> None:
        """Keep the state; after an epoch, whose metrics are given, write metrics.jsonl too: a line an epoch."""
        if metrics:
            self.metrics.append(metrics)
        state = {**state, "identity": self.identity, "metrics": self.metrics}
        replace_file(self._state, lambda path: torch.save(state, path))
        if not metrics:
            return
        text = "".join(json.dumps(line) + "\n" for line in self.metrics)
        replace_file(self.folder / "train" / "metrics.jsonl", lambda path: path.write_text(text))

    def best(self) -> Metrics:
        """The metrics of the epoch that is kept: the best recall at 40 m, then the lowest validation loss.

        Without validation photos it is the last epoch.
        """
        return max(self.metrics, key=rank)


def rank(metrics: Metrics) -> tuple[float, float, float]:
    """What epochs are compared by."""
    return metrics.get("recall@40m", 0.0), -metrics.get("val_loss", 0.0), metrics["epoch"] * ("val_loss" not in metrics)
