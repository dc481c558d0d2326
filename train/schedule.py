"""Learning rates: a linear warm-up, then a cosine, set without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Schedule:
    """Sets the learning rates of an optimizer for its next step.

    Args:
        optimizer: the optimizer; the rates of its groups are the largest.
        factor: factor of the rates at a step, from 0.
        device: device of the rates, for a compiled step, which would hold numbers as constants; None for numbers.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float], device: torch.device | None = None
    ) -> None:
        self.optimizer, self.factor, self.step_number = optimizer, factor, 0
        self._largest = [float(group["lr"]) for group in optimizer.param_groups]
        self._on_device: list[Tensor] = []
        if device is not None:
            # The fused AdamW of a CPU reads a tensor as it reads a number; those of GPUs take float32
            dtype = torch.float64 if device.type == "cpu" else torch.float32
            self._on_device = [torch.zeros((), dtype=dtype, device=device) for _ in self._largest]
        self._set()

    @property
    def rates(self) -> list[float]:
        """Learning rate of each group at the next step."""
        factor = self.factor(self.step_number)
        return [largest * factor for largest in self._largest]

    def step(self) -> None:
        """Set the rates of the next step; call it after each step of the optimizer."""
        self.step_number += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` restores."""
        return {"last_epoch": self.step_number}  # torch's name, by which older states are read too

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of steps; call it after the optimizer's state is restored, which has rates of its own."""
        self.step_number = int(state["last_epoch"])
        self._set()

    def _set(self) -> None:
        groups, rates = self.optimizer.param_groups, self.rates
        for number, (group, rate) in enumerate(zip(groups, rates, strict=True)):
            if self._on_device:
                self._on_device[number].fill_(rate)  # a kernel with the number as its argument: nothing is copied
            group["lr"] = self._on_device[number] if self._on_device else rate


def learning_rate_factor(step: int, steps: int, warm: int, final: float = 0.0) -> float:
    """Factor of the learning rate at a step: linear warm-up, then a cosine.

    Args:
        step: from 0.
        steps: total number of steps.
        warm: number of steps over which the factor rises to 1.
        final: factor at the end.
    """
    if step < warm:
        return (step + 1) / warm
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
