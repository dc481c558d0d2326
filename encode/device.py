"""Where to compute and where to put things: devices, processes, and memory for large arrays."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import PartialState

#: What one array may take of what is free, so that there is room for the work itself.
SHARE = 0.25


def best_device() -> str:
    """The accelerator of this process under `accelerate launch`, the current one otherwise, or "cpu".

    The current GPU is the first, until `torch.cuda.set_device` makes another one current.
    """
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK') or torch.cuda.current_device()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def processes() -> PartialState:
    """Index, number and barriers of the processes; one alone where none was launched.

    Accelerate looks for processes on CPUs only where it is told that there is nothing better.
    """
    from accelerate import PartialState

    return PartialState(cpu=best_device() == "cpu")


def free_bytes(device: torch.device) -> int:
    """Free memory of a device, or of the machine for "cpu"."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, folder: Path) -> Tensor:
    """An uninitialised tensor where there is room for it.

    Args:
        shape: of the tensor.
        dtype: of the tensor.
        device: where it is wanted.
        folder: where to put a file for it, if neither the device nor the memory has room; the file has no name, and
            is gone with the tensor.
    """
    count = math.prod(shape)
    for place in dict.fromkeys((device, torch.device("cpu"))):
        if count * dtype.itemsize <= SHARE * free_bytes(place):
            return torch.empty(shape, dtype=dtype, device=place)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".jzi-room") as file:
        file.truncate(count * dtype.itemsize)
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)
