"""An epoch of every training run takes each photo once, with one process or several, resumed or not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from jzi.decode.dataset import ZoomDataset
from jzi.train.config.encoders import FinetuneConfig, RetrieverConfig
from jzi.train.config.training import TrainConfig
from jzi.train.decoder import DecoderTask
from jzi.train.encoders.finetune import FinetuneTask
from jzi.train.encoders.retriever import RetrieverTask

COUNTS, SIZES, PROCESSES = st.integers(1, 100), st.integers(4, 40), st.integers(1, 4)
SEEDS, EPOCHS = st.integers(0, 1000), st.integers(0, 50)


def process(number: int, of: int) -> Any:
    """What a task asks of its accelerator."""
    return SimpleNamespace(num_processes=of, process_index=number)


def check_permutation(photos: list[int], count: int, processes: int) -> None:
    """Each of `count` photos once; the last ones again where several processes need as many each."""
    repeated = -count % processes
    assert len(photos) == count + min(repeated, count)
    assert sorted(set(photos)) == list(range(count))


def encoder_epoch(task: type, config: object, counts: list[int], processes: int, epoch: int) -> list:
    """(area, photos) of each batch of a task that needs neither network nor imagery to plan an epoch."""
    areas = [SimpleNamespace(train=range(count)) for count in counts]
    planner = object.__new__(task)
    planner.accelerator, planner.config, planner.areas, planner.orders = process(0, processes), config, areas, {}
    return planner.plan_epoch(epoch)


@given(COUNTS, SIZES, PROCESSES, SEEDS, EPOCHS, st.integers(0, 3))
def test_the_decoder_takes_every_photo_once(
    count: int, size: int, processes: int, seed: int, epoch: int, first: int
) -> None:
    zeros = torch.zeros(count, 1, 4)
    photos = ZoomDataset(zeros, zeros.long(), zeros.long(), np.zeros(count), np.zeros(count), 0)
    table: Any = SimpleNamespace(device=torch.device("cpu"))
    taken, resumed = [], []
    with torch.random.fork_rng():
        for number in range(processes):
            task = DecoderTask(
                process(number, processes), None, table, photos, photos, TrainConfig(batch_size=size, seed=seed), None
            )
            taken.append([index.tolist() for batch in task.batches(epoch, 0) for index in batch.parts])
            resumed.append([index.tolist() for batch in task.batches(epoch, first) for index in batch.parts])
    check_permutation([photo for batches in taken for batch in batches for photo in batch], count, processes)
    assert resumed == [batches[first:] for batches in taken]


@given(st.lists(COUNTS, min_size=1, max_size=3), SIZES, PROCESSES, SEEDS, EPOCHS)
def test_fine_tuning_takes_every_photo_of_every_area_once(
    counts: list[int], size: int, processes: int, seed: int, epoch: int
) -> None:
    batches = encoder_epoch(FinetuneTask, FinetuneConfig(batch_size=size, seed=seed), counts, processes, epoch)
    for area, count in enumerate(counts):
        check_permutation(
            [photo for number, batch in batches if number == area for photo in batch.tolist()], count, processes
        )


@given(COUNTS, SIZES, PROCESSES, SEEDS, EPOCHS)
def test_a_retriever_takes_every_photo_once(count: int, size: int, processes: int, seed: int, epoch: int) -> None:
    config = RetrieverConfig(method="infonce", batch_size=size, seed=seed)
    batches = encoder_epoch(RetrieverTask, config, [count], processes, epoch)
    check_permutation([photo for _, batch in batches for photo in batch.tolist()], count, processes)
