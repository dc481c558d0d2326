"""A batch computed in parts on a CPU, each on one core.

Torch's threads share each operation, and wait for one another after it. Threads that compute a part of the batch each
wait once a batch, so whatever else uses the cores, such as rendering tiles and reading photos, holds them up less.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

#: Least operations of a part: of less, handing it to a thread and taking turns in Python cost more than waiting does.
LEAST_FLOP = 1e9


def in_parts(function: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, image_flop: float) -> tuple[Tensor, ...]:
    """Return what a function returns for a batch of images, computed in as many parts as torch uses threads.

    Args:
        function: of images to tensors with a row for each of them, which do not depend on the others of the batch. It
            is called by several threads at once.
        images: (n, ...); computed as a whole where gradients are recorded, elsewhere than on a CPU, and where parts
            would be too small.
        image_flop: operations that the function takes for an image.
    """
    threads = torch.get_num_threads()
    small = len(images) // threads * image_flop < LEAST_FLOP
    if images.device.type != "cpu" or torch.is_grad_enabled() or threads < 2 or small:
        return function(images)
    inference = torch.is_inference_mode_enabled()

    def compute(part: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode(inference), torch.no_grad():  # they are properties of a thread
            return function(part)

    parts = _threads(threads).map(compute, images.tensor_split(threads))
    return tuple(torch.cat(rows) for rows in zip(*parts, strict=True))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Threads in which torch uses no others."""
    pool = ThreadPoolExecutor(count, "jzi-encode", initializer=_use_one_core)
    started = threading.Barrier(count)
    list(pool.map(lambda _: started.wait(), range(count)))
    torch.set_num_threads(count)  # threads that start later are given what was set last
    return pool


def _use_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread takes over what was set last when torch first needs the number in it
