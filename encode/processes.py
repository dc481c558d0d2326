"""This process among those that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

from accelerate import PartialState

from jzi.encode.encoder import best_device


def processes() -> PartialState:
    """Index, number and barriers of the processes; one alone where none was launched.

    Accelerate looks for processes on CPUs only where it is told that there is nothing better.
    """
    return PartialState(cpu=best_device() == "cpu")
