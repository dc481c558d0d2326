"""The base of tasks that train an encoder: reading photos ahead, augmentation, encoding for validation."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from jzi.encode.encoders.encoder import Encoder
from jzi.encode.photo.augment import DRAWS, augment_photos, augment_tiles, drop_parts
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import ModelError, TrainingError, first_line
from jzi.store.photos.photo_table import PhotoTable, Rejected
from jzi.store.plain import plain
from jzi.store.trained_photos import TrainedPhotos, photo_keys
from jzi.train.config.encoders import EncoderTrainingConfig
from jzi.train.encoders.area import Area
from jzi.train.encoders.networks import TrainedEncoder
from jzi.train.encoders.photos import PhotoDataset, PhotoReader, stack_readable
from jzi.train.loop import TrainingLoop
from jzi.train.run import TrainingRun, TrainReport
from jzi.train.task import Batch, Task

#: Images per forward pass without gradients.
ENCODE_BATCH = 128


@dataclass(frozen=True)
class EncoderTrainingReport(TrainReport):
    """Outcome of a training run of an encoder.

    Attributes:
        encoder: folder of the trained encoder.
        samples_per_s: photos trained on per second, in this call.
        unreadable: photos that could not be read, with the reason.
    """

    encoder: Path = Path()
    samples_per_s: float = 0.0
    unreadable: tuple[Rejected, ...] = ()


@dataclass(frozen=True)
class Part:
    """A part of a batch; all its photos are of one area.

    Attributes:
        area: index of the area.
        index: (photo,) indices into the area's training photos.
        photos: the photos, (height, width, 3) uint8 each; None for one that cannot be read.
        number: epoch, step, and index of the part in the step; they seed its random numbers.
    """

    area: int
    index: Tensor
    photos: list[NDArray[np.uint8] | None]
    number: tuple[int, int, int]


class EncoderTask(Task):
    """Training of an encoder; subclasses define the batches and the loss.

    Args:
        accelerator: device, precision and processes.
        network: the trained part of the encoder, and what is trained with it.
        encoder: the encoder, which shares its weights with the network.
        areas: maps and photos.
        config: the settings of training.
        run: the run whose folder the model is written to.
    """

    check_every = 20
    network: TrainedEncoder
    config: EncoderTrainingConfig

    #: Parts into which a batch is split for gradient accumulation.
    accumulation = 1

    def __init__(
        self,
        accelerator: Accelerator,
        network: TrainedEncoder,
        encoder: Encoder,
        areas: Sequence[Area],
        config: EncoderTrainingConfig,
        run: TrainingRun,
    ) -> None:
        self.accelerator, self.network, self.encoder = accelerator, network, encoder
        self.areas, self.config, self.run = areas, config, run
        self.reader = PhotoReader(encoder.photo_shape, encoder.resampling)
        self.fused = accelerator.device.type == "cuda"

    @abstractmethod
    def plan_epoch(self, epoch: int) -> list[tuple[int, Tensor]]:
        """The epoch's batches in order: index of the area, and (photo,) indices of its training photos."""

    @abstractmethod
    def part_loss(self, model: nn.Module, part: Part, generator: torch.Generator) -> Tensor:
        """Mean loss of a part of a batch.

        Args:
            model: the network as wrapped by Accelerate.
            part: the photos.
            generator: source of the random numbers for augmentation.
        """

    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return len(self.plan_epoch(0))

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """This process's parts of the batches; photos are read ahead."""
        return self._read(self.plan_epoch(epoch)[first:], epoch, first)

    def _read(self, plan: list[tuple[int, Tensor]], epoch: int, first: int) -> Iterator[Batch]:
        world, process = self.accelerator.num_processes, self.accelerator.process_index
        shares = []
        for area, batch in plan:
            share = batch[process::world]
            shares.append((area, share.split(math.ceil(len(share) / self.accumulation)), len(batch)))
        paths = (
            self.areas[area].train.paths[index]
            for area, indices, _ in shares
            for part in indices
            for index in part.tolist()
        )
        photos = self.reader.read(paths, 2 * self.config.batch_size)
        for step, (area, indices, count) in enumerate(shares, first):
            parts = [
                Part(area, index, [next(photos) for _ in index], (epoch, step, number))
                for number, index in enumerate(indices)
            ]
            yield Batch(parts, [len(index) for index in indices], count)

    def loss(self, model: nn.Module, part: Part) -> Tensor:
        """`part_loss`, with dropout and augmentation seeded by the part's number."""
        process = self.accelerator.process_index
        torch.manual_seed(seeded_generator(self.config.seed, *part.number, process, 1).initial_seed())
        return self.part_loss(model, part, seeded_generator(self.config.seed, *part.number, process, 2))

    # Input of the network

    def photo_squares(
        self, photos: list[NDArray[np.uint8] | None], generator: torch.Generator
    ) -> tuple[list[int], Tensor]:
        """The squares that photos are cut into, augmented if `config.augment` is set.

        Args:
            photos: (height, width, 3) uint8 each; None for one that cannot be read.
            generator: source of the random numbers for augmentation.

        Returns:
            Indices of the photos that could be read, and their squares, (photo, square, 3, S, S), 0..1.

        Raises:
            TrainingError: none could be read.
        """
        readable, stacked = stack_readable(photos)
        if stacked is None:
            reason = next(iter(self.reader.unreadable.values()))
            raise TrainingError(
                f"none of the {len(photos)} photos of a batch can be read ({reason}): correct queries.table"
            )
        pixels = self.encoder.to_unit(stacked)
        if self.config.augment:
            pixels = augment_photos(pixels, torch.rand(len(pixels), DRAWS, generator=generator))
        squares = self.encoder.squares(pixels)
        if self.config.augment:
            parts = torch.rand(*squares.shape[:2], DRAWS, generator=generator)
            squares = drop_parts(squares.flatten(0, 1), parts.flatten(0, 1)).unflatten(0, squares.shape[:2])
        return readable, squares

    def input_pixels(self, area: int, tiles: Tensor, squares: Tensor, draws: Tensor | None) -> Tensor:
        """Squares of photos and images of tiles as one batch for the network.

        Args:
            area: index of the area.
            tiles: (tile,) indices of its tiles.
            squares: (square, 3, S, S) 0..1.
            draws: (tile, DRAWS) random numbers for the tiles' augmentation; None for no augmentation.

        Returns:
            (square + tile, 3, S, S), normalised.
        """
        images = self._images(area, tiles)
        if draws is not None:
            images = augment_tiles(images, draws)
        return self.encoder.normalise(torch.cat([squares, images]))

    def _images(self, area: int, tiles: Tensor) -> Tensor:
        stored = self.areas[area].images
        return self.encoder.to_unit(stored[tiles.to(stored.device)])

    # Embeddings for validation and mining

    def encode_tiles(self, area: int, tiles: Tensor | None = None) -> Tensor:
        """(tile, feature) float16 embeddings of an area's tiles.

        Args:
            area: index of the area.
            tiles: (tile,) indices of the tiles; None for all.
        """
        embedding = []
        index = torch.arange(len(self.areas[area].images)) if tiles is None else tiles
        for part in index.split(ENCODE_BATCH):
            with self.accelerator.autocast():
                embedding.append(self.network.embed(self.encoder.normalise(self._images(area, part))))
        return torch.cat(embedding).half()

    def encode_photos(self, photos: PhotoDataset) -> tuple[Tensor, NDArray[np.int64]]:
        """(photo, feature) float16 embeddings of the photos that can be read, and the indices of those photos.

        Raises:
            TrainingError: none can be read.
        """
        embedding, readable = [], []
        for number, batch in enumerate(self.reader.batches(photos.paths, ENCODE_BATCH)):
            indices, stacked = stack_readable(batch)
            if stacked is None:
                continue
            readable += [number * ENCODE_BATCH + index for index in indices]
            squares = self.encoder.squares(self.encoder.to_unit(stacked))
            with self.accelerator.autocast():
                each = self.network.embed(self.encoder.normalise(squares.flatten(0, 1)))
                embedding.append(each.unflatten(0, squares.shape[:2]).mean(1))
        if not embedding:
            raise TrainingError(f"none of the {len(photos)} validation photos can be read: correct queries.table")
        return torch.cat(embedding).half(), np.array(readable)

    def save_encoder(self) -> Path:
        """Write the encoder with its current weights, and return its folder.

        Raises:
            ModelError: it cannot be written.
        """
        folder = self.run.folder
        new, old = folder / ".encoder.new", folder / "encoder"
        try:
            shutil.rmtree(new, ignore_errors=True)
            self.encoder.save(new)
            shutil.rmtree(old, ignore_errors=True)
            new.rename(old)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            raise ModelError(f"{old} cannot be written: {first_line(error)}") from error
        return old


def train_encoder(
    task: EncoderTask, state: dict[str, Any], settings: str, tables: Sequence[PhotoTable]
) -> EncoderTrainingReport:
    """Run a task from a state to its last epoch; does nothing if the task has no areas.

    Args:
        task: the task; without areas if the run is complete.
        state: the state to start from, as returned by `TrainingRun.resume`.
        settings: TOML to write to train/settings.toml.
        tables: photos of each area, for the record of what the encoder was trained on.

    Raises:
        TrainingError: the loss is not finite.
        ModelError: the folder cannot be written.
        KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
    """
    accelerator, config, run = task.accelerator, task.config, task.run
    photo_count, seconds = 0, 0.0
    if task.areas:
        loop = TrainingLoop(task, run)
        if accelerator.is_main_process:
            run.start(settings)
            _trained_photos(task.encoder, tables).write(run.folder)
        accelerator.wait_for_everyone()
        began = time.monotonic()
        photo_count = loop.train(state)
        seconds = time.monotonic() - began
        loop.close()
    return EncoderTrainingReport(
        folder=run.folder,
        epochs=config.epochs - state["epoch"],
        total=config.epochs,
        best=run.best() if run.metrics else {},
        train=sum(len(area.train) for area in task.areas),
        val=sum(len(area.val) for area in task.areas),
        unreachable=sum(area.train.unreachable + area.val.unreachable for area in task.areas),
        seconds=seconds,
        encoder=run.folder / "encoder",
        samples_per_s=photo_count / max(seconds, 1e-9),
        unreadable=tuple(Rejected(Path(path).name, reason) for path, reason in sorted(task.reader.unreadable.items())),
    )


def _trained_photos(encoder: Encoder, tables: Sequence[PhotoTable]) -> TrainedPhotos:
    """The training photos, and those that the encoder had been trained on before."""
    frames = (table.frame for table in tables)
    keys = np.concatenate([photo_keys(frame[frame["split"] == "train"]) for frame in frames])
    before = Path(encoder.name)
    return TrainedPhotos(keys, keys).plus([TrainedPhotos.of_encoder(before if before.is_dir() else None)])


def seeded_generator(*numbers: int) -> torch.Generator:
    """A generator seeded by several numbers, of which the lowest 32 bits count."""
    seed = int(np.random.SeedSequence([number & 0xFFFFFFFF for number in numbers]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed >> 1)


def data_fingerprint(
    sources: Sequence[tuple[Imagery, PhotoTable]], encoder: Encoder, config: EncoderTrainingConfig
) -> dict[str, Any]:
    """What the outcome of a run depends on: settings, encoder, maps and photos.

    Args:
        sources: map and photos of each area.
        encoder: the encoder before training.
        config: the settings of training.
    """
    fingerprint = {**config.fingerprint(), "encoder": encoder.fingerprint[:16]}
    for number, (imagery, table) in enumerate(sources):
        photos = table.frame[["id", "latitude", "longitude", "split"]].sort_values("id")
        digest = hashlib.sha256(photos.to_csv(index=False).encode()).hexdigest()[:16]
        area = hashlib.sha256(str(plain(imagery.pyramid)).encode()).hexdigest()[:8]
        fingerprint[f"area {number}"] = f"{area}, {imagery.info().fingerprint[:16]}, {len(photos)} photos, {digest}"
    return fingerprint
