"""Training of state-wide retrieval: towers of photos and of cells, on one stream of samples (Fervers et al. 2024)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from numpy.typing import NDArray
from torch import Tensor, nn

from jzi.encode.encoders.towers import Towers
from jzi.encode.photo.augment import JITTER_DRAWS, jitter_colors, jitter_padded
from jzi.errors import TrainingError
from jzi.retrieve.statewide import StatewideRetriever
from jzi.store.geometry.bands import haversine
from jzi.store.photos.photo_table import Rejected
from jzi.train.config.statewide import StatewideConfig
from jzi.train.encoders.area import NO_PHOTO, new_folder
from jzi.train.encoders.encoder import seeded_generator
from jzi.train.encoders.networks import TrainedTowers
from jzi.train.loop import TrainingLoop, make_accelerator
from jzi.train.losses import decoupled_contrast, soft_margins
from jzi.train.run import Metrics, TrainingRun, TrainReport
from jzi.train.statewide.mining import MiningSchedule, cluster
from jzi.train.statewide.statewide_data import (
    AreaPhotos,
    Gallery,
    LoadedSamples,
    SampleReader,
    StatewideArea,
    ground_size,
)
from jzi.train.statewide.statewide_validation import validate
from jzi.train.statewide.stream import SampleStream
from jzi.train.task import Batch, Task

#: The metric that selects the weights: the paper's.
SELECTS = "recall@1<50m"

# What colours are jittered for: the draws differ
_TRAINING, _SCAN = range(2)


@dataclass(frozen=True)
class StatewideReport(TrainReport):
    """Outcome of a training run of state-wide retrieval; its epochs lie between two validations.

    Attributes:
        steps: steps of the whole run.
        samples_per_s: photos trained on per second, in this call.
        unreadable: photos that could not be read, or are panoramas, with the reason.
    """

    steps: int = 0
    samples_per_s: float = 0.0
    unreadable: tuple[Rejected, ...] = ()


class StatewideTask(Task):
    """Contrastive training of two towers on photos and turned cells around them, with mined batches.

    Args:
        accelerator: device, precision and processes.
        towers: the towers, trained in place.
        areas: maps with their photos.
        photos: the training photos.
        galleries: what to search in validations.
        config: the settings of training.
        run: the run whose folder the model is written to.
    """

    label = "state-wide retriever"
    check_every = 20
    network: TrainedTowers
    config: StatewideConfig

    def __init__(
        self,
        accelerator: Accelerator,
        towers: Towers,
        areas: Sequence[StatewideArea],
        photos: AreaPhotos,
        galleries: Sequence[Gallery],
        config: StatewideConfig,
        run: TrainingRun,
    ) -> None:
        self.accelerator, self.towers, self.areas, self.config, self.run = accelerator, towers, areas, config, run
        self.photos, self.galleries = photos, galleries
        self.network = TrainedTowers(towers, autocast=accelerator.mixed_precision == "bf16")
        self.fused = accelerator.device.type == "cuda"
        self.mining = MiningSchedule(config.batch_size, config.first_scan, config.pool_max, mining=config.mining)
        self.stream = self._stream()
        self.reader = SampleReader(
            areas,
            photos,
            self.stream,
            towers,
            accelerator.process_index,
            accelerator.num_processes,
        )
        #: Photos whose own cell was the most similar of the batch, photos, and negatives, since the last validation.
        self.tally = torch.zeros(3, device=accelerator.device)
        self.temperature = 1 / config.scale
        self.step = 0

    def _stream(self) -> SampleStream:
        cell_m = np.empty(len(self.photos))
        for index, area in enumerate(self.areas):
            own = self.photos.area == index
            cell_m[own] = ground_size(area.grid, self.photos.latitude[own])
        return SampleStream(
            self.photos.latitude,
            self.photos.longitude,
            cell_m=cell_m,
            bucket_m=self.config.bucket_m,
            margin_m=self.config.offset_margin_m,
            seed=self.config.seed,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Kernels and matrices, and the other parameters, without weight decay."""
        return self.network.parameter_groups()

    def steps_per_epoch(self) -> int:
        """Number of optimizer steps between two validations."""
        return min(self.config.validate_every, self.config.steps)

    def total_steps(self) -> int:
        """Number of optimizer steps in the run."""
        return self.config.steps

    def milestone(self, epoch: int) -> str:
        """The end of an epoch, for users."""
        return f"step {min((epoch + 1) * self.steps_per_epoch(), self.config.steps)} of {self.config.steps}"

    # Batches

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """This process's shares of the batches; samples are read ahead, and scanned when a scan is due."""
        if first == 0:
            self.tally.zero_()
        start = epoch * self.steps_per_epoch() + first
        stop = min((epoch + 1) * self.steps_per_epoch(), self.config.steps)
        while start < stop:
            if self.mining.is_due():
                self._scan()
            for part in self.reader.read(islice(self.mining.upcoming(), stop - start)):
                self.mining.take()
                self.step = start = start + 1
                yield Batch([part], [len(part.number)], self.config.batch_size)

    @torch.no_grad()
    def _scan(self) -> None:
        """Embed the next samples of the stream, and group them into batches."""
        self.network.eval()
        size, world = self.config.batch_size, self.accelerator.num_processes
        numbers = self.mining.begin_scan()
        parts, embeddings = [], []
        for part in self.reader.read(numbers.reshape(-1, size)):
            query, reference, readable = self._embed(self.network, part, _SCAN)
            parts.append(part.batch)
            embeddings.append(torch.stack([query * readable[:, None], reference]))
        own = torch.stack(embeddings)  # (batch, tower, sample, feature)
        all_own = self.accelerator.gather(own).unflatten(0, (world, len(parts)))
        query, reference = all_own.permute(2, 1, 0, 3, 4).flatten(1, 3)  # in the order of the parts
        order = torch.empty(len(numbers), dtype=torch.int64)
        if self.accelerator.is_main_process:
            photo, latitude, longitude = (
                np.concatenate([getattr(part, name) for part in parts]) for name in ("photo", "latitude", "longitude")
            )
            position = self.photos.latitude[photo], self.photos.longitude[photo]
            cells = latitude, longitude
            size, distance = self.config.cluster_size, self.config.negative_distance_m
            order = torch.from_numpy(cluster(query, reference, position, cells, size, distance))
        if world > 1:
            order = broadcast(order.to(self.accelerator.device))
        scanned = np.concatenate([part.number for part in parts])
        self.mining.finish_scan(scanned[order.cpu().numpy()])
        self.network.train()

    # The objective

    def loss(self, model: nn.Module, part: LoadedSamples) -> Tensor:
        """Loss of this process's samples, contrasted with the photos and cells of all processes."""
        step = int(part.batch.number[0])
        torch.manual_seed(
            seeded_generator(self.config.seed, step, self.accelerator.process_index).initial_seed()
        )  # of dropout, if there is any
        query, reference, readable = self._embed(model, part, _TRAINING)
        query, reference, readable = (self.gather_rows(rows, 0.0) for rows in (query, reference, readable))
        readable = readable > 0
        if not readable.any():
            reason = next(iter(self.reader.unreadable.values()), "another process reads them")
            raise TrainingError(
                f"none of the {len(readable)} photos of a batch can be used ({reason}): correct queries.table"
            )
        pairs = self._pairs(part) & readable[:, None] & readable
        similarity = query @ reference.T
        logits = self.config.factor * similarity
        if self.config.triplets:
            loss = soft_margins(logits, pairs)
        else:
            loss = decoupled_contrast(logits, pairs, self.config.label_smoothing, decoupled=self.config.decoupled)
        with torch.no_grad():
            best = similarity.masked_fill(~pairs, -torch.inf).argmax(1) == torch.arange(len(pairs), device=pairs.device)
            self.tally += torch.stack([(best & readable).sum(), readable.sum(), pairs.sum() - readable.sum()])
        return self.loss_of_rows(loss)

    def _pairs(self, part: LoadedSamples) -> Tensor:
        """(photo, cell) bool, the pairs of a batch that count: those of a sample, and those far enough apart."""
        batch = part.batch
        latitude, longitude = self.photos.latitude[batch.photo], self.photos.longitude[batch.photo]
        distance = haversine(latitude[:, None], longitude[:, None], batch.latitude[None], batch.longitude[None])
        pairs = (distance > self.config.negative_distance_m) | np.eye(len(batch), dtype=bool)
        return torch.from_numpy(pairs).to(self.accelerator.device)

    def _embed(self, model: Callable[..., Any], part: LoadedSamples, purpose: int) -> tuple[Tensor, Tensor, Tensor]:
        """(sample, feature) float32 embeddings of photos and cells, and (sample,) 1 for photos that could be read."""
        photos, cells = (to_unit(images, self.accelerator.device) for images in (part.photos, part.cells))
        if self.config.augment:
            draws = torch.from_numpy(self.stream.draws(part.number, purpose, 2 * JITTER_DRAWS))
            photo_draws, cell_draws = draws.chunk(2, dim=1)
            photos, cells = jitter_padded(photos, part.boxes, photo_draws), jitter_colors(cells, cell_draws)
        query, reference = model(self.towers.normalise(photos), self.towers.normalise(cells))
        return query, reference, torch.from_numpy(part.readable).to(query)

    # Validation and saving

    def validate(self) -> Metrics:
        """Share of photos whose own cell was the most similar of its batch, and `validate` of the galleries."""
        right, photos, negatives = self.tally.tolist()
        metrics = {
            "step": float(self.step),
            "batch_recall@1": right / max(photos, 1),
            "batch_negatives": negatives / max(photos, 1),
            "pool": float(self.mining.pool * self.config.batch_size if self.config.mining else 0),
            **validate(self.towers, self.galleries, self.reader),
        }
        self.temperature = metrics.get("temperature", 1 / self.config.scale)
        return metrics

    def keep_best(self) -> None:
        """Write the towers with their current weights, and the retriever's config.json."""
        StatewideRetriever.save(
            self.run.folder,
            self.towers,
            method=self.config.method,
            cell_m=self.areas[0].grid.cell_size,
            temperature=self.temperature,
        )

    def extra_state(self) -> dict[str, Any]:
        """The schedule of mining with its queue, and what batches have counted since the last validation."""
        return {"mining": self.mining.state(), "tally": self.tally.cpu()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""
        self.mining.load(state["mining"])
        self.tally.copy_(state["tally"])


def to_unit(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Convert (..., height, width, 3) uint8 to (..., 3, height, width) float32 in 0..1, on the device."""
    return torch.from_numpy(images).to(device, non_blocking=True).movedim(-1, -3).float() / 255


def _load_photos(areas: Sequence[StatewideArea], folder: Path, progress: bool) -> dict[str, AreaPhotos]:
    """The photos of each split; creates the run's folder, and holds the images of small areas in memory."""
    with new_folder(folder):
        for area in areas:
            area.crops.hold(folder, progress=progress)
        photos = {split: AreaPhotos.of(areas, split) for split in ("train", "val")}
        if not len(photos["train"]):
            raise TrainingError(NO_PHOTO)
        return photos


def train_statewide(
    areas: Sequence[StatewideArea],
    towers: Towers,
    folder: Path,
    config: StatewideConfig,
    *,
    settings: str = "",
) -> StatewideReport:
    """Train two towers on "train" photos, and keep the weights with the best recall at 50 m on "val" photos.

    An interrupted run with the same settings is resumed, also between two validations. Under `accelerate launch` the
    processes share each batch, and a photo's negatives are the cells of all processes.

    Args:
        areas: maps with their photos. Images of cells have the levels of detail and the size of the towers.
        towers: the towers to start from, trained in place.
        folder: the retriever's folder to write; cells of an area are encoded separately.
        config: the settings of training.
        settings: TOML to write to train/settings.toml.

    Raises:
        ImageryError: a map cannot be read; no folder is left behind.
        TrainingError: there is no photo to train on, no photo of a batch can be read, or the loss is not finite.
        ModelError: the folder holds a model that was trained in another way, or cannot be written.
        KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
    """
    accelerator = make_accelerator(config, folder)
    torch.manual_seed(config.seed)
    fingerprint = {
        **config.fingerprint(),
        "towers": towers.fingerprint[:16],
        **{f"area {number}": area.fingerprint() for number, area in enumerate(areas)},
        "kind": "statewide",
    }
    run = TrainingRun(folder, fingerprint, hint="give another folder with -o, or delete it", selects=SELECTS)
    state = run.resume()
    photos: dict[str, AreaPhotos] = {}
    unreadable: dict[str, str] = {}
    photo_count, seconds = 0, 0.0
    if state["epoch"] < config.epochs:
        photos = _load_photos(areas, folder, accelerator.is_main_process)
        galleries = [
            Gallery.of(area, photos["val"][photos["val"].area == number].spread(config.val_photos), config.val_cells)
            for number, area in enumerate(areas)
            if (photos["val"].area == number).any()
        ]
        task = StatewideTask(accelerator, towers, areas, photos["train"], galleries, config, run)
        loop = TrainingLoop(task, run)
        if accelerator.is_main_process:
            run.start(settings)
        accelerator.wait_for_everyone()
        began = time.monotonic()
        photo_count = loop.train(state)
        seconds = time.monotonic() - began
        unreadable = task.reader.unreadable
        loop.close()
    return StatewideReport(
        folder=folder,
        epochs=config.epochs - state["epoch"],
        total=config.epochs,
        best=run.best() if run.metrics else {},
        train=len(photos["train"]) if photos else 0,
        val=len(photos["val"]) if photos else 0,
        unreachable=sum(each.unreachable for each in photos.values()),
        seconds=seconds,
        steps=config.steps,
        samples_per_s=photo_count / max(seconds, 1e-9),
        unreadable=tuple(Rejected(Path(path).name, reason) for path, reason in sorted(unreadable.items())),
    )
