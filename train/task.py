"""The interface between the training loop and what it trains.

The task seeds all random numbers, once per epoch or once per step, so an interrupted run resumes exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from jzi.train.config.training import RunConfig
from jzi.train.run import Metrics


@dataclass(frozen=True)
class Batch:
    """The photos of one step.

    Attributes:
        parts: this process's share, split for gradient accumulation; each is passed to the task's `loss`.
        sizes: photos in each part.
        photos: number of photos in the batch, over all processes.
    """

    parts: list[Any]
    sizes: list[int]
    photos: int


class Task(ABC):
    """A network to train: its batches, its loss, its validation, and where the best weights are saved.

    Attributes:
        accelerator: device, precision and processes.
        network: the network, before Accelerate wraps it.
        config: the settings of training.
    """

    #: Label of the progress bar.
    label: str
    #: Steps between two checks of the losses, the time and interrupts; a check synchronizes with the device. With None,
    #: for short epochs, losses are checked once per epoch, and a state is saved after an epoch if one is due.
    check_every: int | None = None
    #: Whether to use torch's fused AdamW.
    fused = True
    #: Whether `config.clip` bounds each value of the gradient rather than its norm; not if the task is compiled.
    clips_values = False
    #: Whether to compile the steps of full batches; "auto" where it is worth it (`jzi.train.compiled`).
    compile: bool | Literal["auto"] = False

    accelerator: Accelerator
    network: nn.Module
    config: RunConfig

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer; empty groups are dropped."""

    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""

    def total_steps(self) -> int:
        """Number of optimizer steps in the run; the last epoch may have fewer than the others."""
        return self.config.epochs * self.steps_per_epoch()

    def full_batches(self) -> int:
        """Number of optimizer steps in the run whose batch has `batch_size` photos."""
        return self.total_steps()

    def obstacle(self) -> str:
        """Why `loss` cannot be compiled; empty if it can."""
        return ""

    def fixed_tensors(self) -> list[Tensor]:
        """Tensors that `loss` reads beside the network, which a task that is compiled leaves where they are."""
        return []

    def validates(self, epoch: int) -> bool:
        """Whether to validate after an epoch; the best is kept of those that are."""
        return True

    def milestone(self, epoch: int) -> str:
        """The end of an epoch, for users."""
        return f"epoch {epoch + 1} of {self.config.epochs}"

    @abstractmethod
    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch, starting at step `first`; called before the network is put into training mode."""

    @abstractmethod
    def loss(self, model: nn.Module, part: Any) -> Tensor:
        """Mean loss of a part of a batch.

        Args:
            model: the network as wrapped by Accelerate.
            part: one of `Batch.parts`.
        """

    @abstractmethod
    def validate(self) -> Metrics:
        """Metrics on the validation photos; runs on the main process."""

    @abstractmethod
    def keep_best(self) -> None:
        """Keep the current weights as the best so far, in memory or on disk."""

    def has_converged(self) -> bool:
        """Whether to train no further epoch, by the metrics of those so far; asked on the main process."""
        return False

    def write_best(self) -> None:
        """Write the weights that `keep_best` holds in memory, if any; called before each state is saved."""
        return

    def mean_loss(self, losses: list[float]) -> float:
        """Mean of the losses of an epoch's steps."""
        return float(np.mean(losses))

    def gather_rows(self, values: Tensor, padding: float) -> Tensor:
        """Rows of all processes, padded to the same number; only this process's rows have a gradient.

        Args:
            values: (row, ...), another number of rows in each process perhaps.
            padding: value of the padded rows.
        """
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return values
        padded = accelerator.pad_across_processes(values, pad_index=padding)
        parts = list(accelerator.gather(padded.detach()).split(len(padded)))
        parts[accelerator.process_index] = padded
        return torch.cat(parts)

    def loss_of_rows(self, loss: Tensor) -> Tensor:
        """A loss of gathered rows whose gradient is right once DDP has averaged it over the processes.

        A process has the gradient of its own rows only, so the gradient is multiplied by the number of processes.
        """
        return loss + (self.accelerator.num_processes - 1) * (loss - loss.detach())

    def extra_state(self) -> dict[str, Any]:
        """Entries of the saved state beside weights, optimizer and schedule."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""
        return
