"""Devices, processes, and memory for large tensors."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from accelerate import PartialState

    from jzi.store.disk.lock import LockMode

#: Fraction of the free memory that one tensor may take; the rest is for the computation itself.
SHARE = 0.25


def best_device() -> str:
    """Name the device to compute on.

    Returns:
        The GPU of this process under `accelerate launch`, else torch's current GPU, else "mps" or "cpu".
    """
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK') or torch.cuda.current_device()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def processes() -> PartialState:
    """Return accelerate's process state: index and number of processes, barriers; a single process by default."""
    from accelerate import PartialState

    return PartialState(cpu=best_device() == "cpu")  # accelerate detects CPU-only launches only with cpu=True


def writer_lock_mode() -> LockMode:
    """Return how this process takes a writer's lock (`jzi.store.disk.lock`): processes of one launch are one writer.

    Returns:
        "wait" for a single process, "refuse" for the main process of several, because the others would wait at a
        barrier, and "shared" for the others.
    """
    state = processes()
    if state.num_processes == 1:
        return "wait"
    return "refuse" if state.is_main_process else "shared"


def to_host(*values: Tensor) -> tuple[NDArray[Any], ...]:
    """Copy results to main memory, where locating waits for the device; nothing before it does."""
    return tuple(each.cpu().numpy() for each in values)


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of a GPU's memory, or of main memory for any other device, within a container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, _container_bytes(Path("/sys/fs/cgroup")))


def _container_bytes(folder: Path) -> int:
    """Bytes that the limit of a container leaves (control groups, version 2); a large number if there is none."""
    with contextlib.suppress(OSError, ValueError):
        limit = int((folder / "memory.max").read_text())  # "max" if there is none
        used = int((folder / "memory.current").read_text())
        files = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(files.get("inactive_file", 0)))  # cached pages are given up when needed
    return 2**62


def buffer_bytes(memory: int | None, whole: int, device: torch.device) -> int | None:
    """Decide whether data are held in memory as a whole.

    Args:
        memory: bytes that they may take; None for `SHARE` of what is free.
        whole: bytes of all of them.
        device: device on which they would be.

    Returns:
        None to hold them; else the bytes of main memory that the part in use may take.
    """
    if memory is not None:
        return None if whole <= memory else memory
    if whole <= SHARE * free_bytes(device):
        return None
    return int(SHARE * free_bytes(torch.device("cpu")))


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, folder: Path) -> Tensor:
    """Allocate an uninitialised tensor on the device, else in main memory, else in a memory-mapped file.

    Args:
        shape: shape of the tensor.
        dtype: data type of the tensor.
        device: preferred device.
        folder: folder of the file, which is deleted with the tensor.

    Returns:
        A tensor of that shape. It takes at most `SHARE` of the free memory unless it is in a file.
    """
    count = math.prod(shape)
    for candidate in dict.fromkeys((device, torch.device("cpu"))):
        if count * dtype.itemsize <= SHARE * free_bytes(candidate):
            return torch.empty(shape, dtype=dtype, device=candidate)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".jzi-room") as file:
        file.truncate(count * dtype.itemsize)
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Create modules on the meta device in this context, without memory and without initial values.

    Random values of the meta device would import torch's compiler, which takes as long as torch itself.
    """
    with torch.device("meta"), _NoInitialisation():
        yield


class _NoInitialisation(TorchFunctionMode):
    """Skips what initialises tensors in place, the functions of `torch.nn.init`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
