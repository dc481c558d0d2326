"""What every task that trains an encoder shares: photos that are read ahead, augmentation, encoding as in use."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from jzi.encode.augment import DRAWS, augment_photos, augment_tiles, drop_parts
from jzi.encode.encoder import Encoder
from jzi.encode.imagery import Imagery
from jzi.errors import ModelError, TrainingError, first_line
from jzi.store.photo_table import PhotoTable, Rejected
from jzi.store.plain import plain
from jzi.train.area import Area
from jzi.train.config import EncoderTrainingConfig
from jzi.train.loop import TrainingLoop
from jzi.train.networks import TrainedEncoder
from jzi.train.photos import PhotoDataset, PhotoReader, readable_photos
from jzi.train.run import TrainingRun, TrainReport
from jzi.train.task import Batch, Task

#: Images to a forward pass that needs no gradient.
ENCODE_BATCH = 128


@dataclass(frozen=True)
class EncoderTrainingReport(TrainReport):
    """What a training of the encoder did.

    Attributes:
        encoder: the folder of the fine-tuned encoder.
        samples_per_s: photos trained on per second of this run.
        unreadable: photos that could not be read, and why.
    """

    encoder: Path = Path()
    samples_per_s: float = 0.0
    unreadable: tuple[Rejected, ...] = ()


@dataclass(frozen=True)
class Part:
    """A part of a batch, all of one area.

    Attributes:
        area: which.
        index: (photo,) which training photos of it.
        photos: those photos, (height, width, 3) uint8 each; None for one that cannot be read.
        number: epoch, step, and number of the part in the step: what its random numbers are seeded by.
    """

    area: int
    index: Tensor
    photos: list[NDArray[np.uint8] | None]
    number: tuple[int, int, int]


class EncoderTask(Task):
    """A training of the encoder; what a batch is and what its loss is, the kinds of training define.

    Args:
        accelerator: where to train.
        network: the trained part of the encoder, and what is trained with it.
        encoder: whose weights those are.
        areas: maps and photos.
        config: how to train.
        run: where the model is written.
    """

    check_every = 20
    network: TrainedEncoder
    config: EncoderTrainingConfig

    #: Parts of a batch that go through one after the other.
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
        self.reader = PhotoReader(encoder.photo_shape)
        self.fused = accelerator.device.type == "cuda"

    @abstractmethod
    def plan(self, epoch: int) -> list[tuple[int, Tensor]]:
        """The epoch's batches in order: which area, and which of its training photos."""

    @abstractmethod
    def part_loss(self, model: nn.Module, part: Part, generator: torch.Generator) -> Tensor:
        """Mean loss of a part of a batch.

        Args:
            model: the network as Accelerate wraps it.
            part: what was read.
            generator: of the numbers that augment it.
        """

    def steps(self) -> int:
        """Of an epoch."""
        return len(self.plan(0))

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """This process's parts of the batches; their photos are read ahead."""
        return self._read(self.plan(epoch)[first:], epoch, first)

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
        torch.manual_seed(seeded(self.config.seed, *part.number, process, 1).initial_seed())
        return self.part_loss(model, part, seeded(self.config.seed, *part.number, process, 2))

    # Images as the network takes them

    def squares(self, photos: list[NDArray[np.uint8] | None], generator: torch.Generator) -> tuple[list[int], Tensor]:
        """Which photos could be read, and their squares (photo, square, 3, S, S), 0..1, augmented if that is set.

        Raises:
            TrainingError: none could be read.
        """
        readable, stacked = readable_photos(photos)
        if stacked is None:
            reason = next(iter(self.reader.unreadable.values()))
            raise TrainingError(
                f"none of the {len(photos)} photos of a batch can be read ({reason}): correct queries.table"
            )
        device = self.accelerator.device
        pixels = self.encoder.to_unit(stacked)
        if self.config.augment:
            pixels = augment_photos(pixels, torch.rand(len(pixels), DRAWS, generator=generator).to(device))
        squares = self.encoder.squares(pixels)
        if self.config.augment:
            parts = torch.rand(*squares.shape[:2], DRAWS, generator=generator).to(device)
            squares = drop_parts(squares.flatten(0, 1), parts.flatten(0, 1)).unflatten(0, squares.shape[:2])
        return readable, squares

    def pixels(self, area: int, tiles: Tensor, squares: Tensor, draws: Tensor | None) -> Tensor:
        """Photos' squares and tiles as the network takes them.

        Args:
            area: whose tiles.
            tiles: (tile,) which.
            squares: (square, 3, S, S) 0..1.
            draws: (tile, DRAWS) for the tiles' augmentation, or None for none.

        Returns:
            (square + tile, 3, S, S), normalised.
        """
        images = self._images(area, tiles)
        if draws is not None:
            images = augment_tiles(images, draws.to(images.device))
        return self.encoder.normalise(torch.cat([squares, images]))

    def _images(self, area: int, tiles: Tensor) -> Tensor:
        stored = self.areas[area].images
        return self.encoder.to_unit(stored[tiles.to(stored.device)])

    # As in use

    def encode_tiles(self, area: int, tiles: Tensor | None = None) -> Tensor:
        """(tile, feature) float16 of an area's tiles, or of some of them."""
        embedding = []
        index = torch.arange(len(self.areas[area].images)) if tiles is None else tiles
        for part in index.split(ENCODE_BATCH):
            with self.accelerator.autocast():
                embedding.append(self.network.embed(self.encoder.normalise(self._images(area, part))))
        return torch.cat(embedding).half()

    def encode_photos(self, photos: PhotoDataset) -> tuple[Tensor, NDArray[np.int64]]:
        """(photo, feature) float16 of those that can be read, and which those are."""
        embedding, readable = [], []
        for number, batch in enumerate(self.reader.batches(photos.paths, ENCODE_BATCH)):
            places, stacked = readable_photos(batch)
            if stacked is None:
                continue
            readable += [number * ENCODE_BATCH + place for place in places]
            squares = self.encoder.squares(self.encoder.to_unit(stacked))
            with self.accelerator.autocast():
                each = self.network.embed(self.encoder.normalise(squares.flatten(0, 1)))
                embedding.append(each.unflatten(0, squares.shape[:2]).mean(1))
        if not embedding:
            raise TrainingError(f"none of the {len(photos)} validation photos can be read: correct queries.table")
        return torch.cat(embedding).half(), np.array(readable)

    def keep_encoder(self) -> Path:
        """Write the encoder as it is now; its folder."""
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


def train_encoder(task: EncoderTask, state: dict[str, Any], settings: str) -> EncoderTrainingReport:
    """Train from a state to the end; nothing is done where that is the end.

    Args:
        task: without areas where nothing is left to do.
        state: from `TrainingRun.resume`.
        settings: kept as train/settings.toml.

    Raises:
        TrainingError: the loss is not finite.
        ModelError: the disk is full.
        KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
    """
    accelerator, config, run = task.accelerator, task.config, task.run
    samples, seconds = 0, 0.0
    if task.areas:
        loop = TrainingLoop(task, run)
        if accelerator.is_main_process:
            run.start(settings)
        accelerator.wait_for_everyone()
        began = time.monotonic()
        samples = loop.train(state)
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
        samples_per_s=samples / max(seconds, 1e-9),
        unreadable=tuple(Rejected(Path(path).name, reason) for path, reason in sorted(task.reader.unreadable.items())),
    )


def seeded(*numbers: int) -> torch.Generator:
    """Random numbers that are a function of the given ones."""
    seed = int(np.random.SeedSequence([number & 0xFFFFFFFF for number in numbers]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed >> 1)


def data_fingerprint(
    sources: Sequence[tuple[Imagery, PhotoTable]], encoder: Encoder, config: EncoderTrainingConfig
) -> dict[str, Any]:
    """What a run's outcome depends on: settings, encoder, maps and photos."""
    fingerprint = {f"{config.section}.{key}": value for key, value in asdict(config).items()}
    for without_effect in ("trackers", "save_every_s"):
        del fingerprint[f"{config.section}.{without_effect}"]
    fingerprint["encoder"] = encoder.fingerprint[:16]
    for number, (imagery, table) in enumerate(sources):
        photos = table.frame[["id", "latitude", "longitude", "split"]].sort_values("id")
        digest = hashlib.sha256(photos.to_csv(index=False).encode()).hexdigest()[:16]
        area = hashlib.sha256(str(plain(imagery.pyramid)).encode()).hexdigest()[:8]
        fingerprint[f"area {number}"] = f"{area}, {imagery.info().fingerprint[:16]}, {len(photos)} photos, {digest}"
    return fingerprint
