"""The base of tasks that train off the cache: all embeddings are on the device, and an epoch takes seconds.

Writing a state after every epoch could take as long as training, so states are written only when due, and the best
weights stay on the device until then: the weights on disk are never newer than the state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jzi.train.run import TrainingRun
from jzi.train.task import Batch, Task


class CacheTask(Task):
    """A task whose batches are indices of photos on the device.

    Attributes:
        device: device of the embeddings.
        photos: number of training photos.
        run: the run whose folder the best weights are written to.
    """

    device: torch.device
    photos: int
    run: TrainingRun
    _best: dict[str, Tensor] | None = None
    _random: dict[str, Tensor] | None = None  # generator states of a run interrupted within an epoch

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters of the network."""
        return [{"params": list(self.network.parameters())}]

    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return math.ceil(self.photos / self.config.batch_size)

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Indices of photos, on the device; the epoch seeds their order and dropout."""
        world, process = self.accelerator.num_processes, self.accelerator.process_index
        seed = self.config.seed * 1_000_003 + epoch
        batches = self.plan_epoch(seed)
        self.begin_epoch(seed)
        torch.manual_seed(seed * world + process)  # for dropout
        if first and self._random:
            for kind, generator in self._generators().items():
                if kind in self._random:
                    generator.set_rng_state(self._random[kind])

        def read() -> Iterator[Batch]:
            for batch in batches[first:]:
                index = batch[process::world]
                yield Batch([index], [len(index)], len(batch))

        return read()

    def plan_epoch(self, seed: int) -> Sequence[Tensor]:
        """The batches of an epoch over all processes, (photo,) indices on the device."""
        return self.shuffle(self.photos, torch.Generator().manual_seed(seed))

    def shuffle(self, photos: int, generator: torch.Generator) -> Sequence[Tensor]:
        """Shuffled indices of photos in batches, of which every process gets the same number."""
        order = torch.randperm(photos, generator=generator)
        padding = order[: -len(order) % self.accelerator.num_processes]
        return torch.cat([order, padding]).to(self.device).split(self.config.batch_size)

    def begin_epoch(self, seed: int) -> None:
        """Called before an epoch, with its seed."""
        return

    def mean_loss(self, losses: list[float]) -> float:
        """Mean of the losses of an epoch's steps, in float32."""
        return float(torch.tensor(losses, device=self.device).mean())

    def keep_best(self) -> None:
        """Keep a copy of the weights on the device."""
        self._best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def write_best(self) -> None:
        """Write the best weights, if they are not on disk yet."""
        if self._best:
            self.save(self._best)
        self._best = None

    def save(self, weights: dict[str, Tensor]) -> None:
        """Write a `state_dict` of the network to disk."""
        raise NotImplementedError

    def extra_state(self) -> dict[str, Any]:
        """States of the generators that dropout draws from, to resume within an epoch."""
        return {"random": {kind: generator.get_rng_state() for kind, generator in self._generators().items()}}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""
        self._random = state.get("random")

    def _generators(self) -> dict[str, Any]:
        kind = self.device.type
        return {"cpu": torch} if kind == "cpu" else {"cpu": torch, kind: torch.get_device_module(kind)}
