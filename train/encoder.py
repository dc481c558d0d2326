"""What every training of the encoder shares: reading ahead, augmenting, steps, states to resume from.

What is random in a step (order, augmentation, dropout) is seeded by the step, so that a run that was killed goes on as
if it had not been. What a batch is and what its loss is, the kinds of training say: the zoom itself
(`jzi.train.finetune`), or a contrast between photos and cells (`jzi.train.retriever`).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from jzi.encode.augment import DRAWS, augment_photos, augment_tiles, drop_parts
from jzi.encode.encoder import Encoder
from jzi.encode.imagery import Imagery
from jzi.errors import ModelError, TrainingError, first_line
from jzi.store.photo_table import PhotoTable, Rejected
from jzi.train.area import PhotoDataset, PhotoReader
from jzi.train.common import learning_rate_factor, start_trackers
from jzi.train.config import EncoderTrainingConfig
from jzi.train.decoder import TrainReport
from jzi.train.joint import TrainedEncoder
from jzi.train.run import Metrics, TrainingRun, rank

#: Images to a forward pass that needs no gradient.
ENCODE_BATCH = 128

#: Steps between two looks at the loss, each of which waits for the device.
LOOK_EVERY = 20


class Images(Protocol):
    """Images of an area's tiles: a tensor (tile, S, S, 3) uint8, or what cuts them out when they are asked for."""

    @property
    def device(self) -> torch.device:
        """Where indices are wanted."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


class Area(Protocol):
    """What is trained on: tiles as images, and photos that know their tiles."""

    @property
    def images(self) -> Images:
        """Of every tile."""
        ...

    @property
    def train(self) -> PhotoDataset:
        """Photos to learn from."""
        ...

    @property
    def val(self) -> PhotoDataset:
        """Photos to choose the epoch by."""
        ...


AreaType = TypeVar("AreaType", bound=Area)


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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**super().to_dict(), "encoder": str(self.encoder), "unreadable": len(self.unreadable)}


class EncoderTraining(ABC):
    """One run: what it trains, on what, and how far it is."""

    #: Parts of a batch that go through one after the other.
    parts = 1

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
        self.optimizer = torch.optim.AdamW(
            [group for group in self.parameter_groups() if group["params"]],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=accelerator.device.type == "cuda",
        )
        steps = max(1, config.epochs * self.steps())
        self.schedule = LambdaLR(self.optimizer, lambda step: learning_rate_factor(step, steps, config.warmup))
        self.model, self.prepared = accelerator.prepare(network, self.optimizer)
        self.saved_at = time.monotonic()
        self.interrupts: list[int] = []

    # What a kind of training says

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer moves."""

    @abstractmethod
    def plan(self, epoch: int) -> list[tuple[int, Tensor]]:
        """The epoch's batches in order: which area, and which of its training photos."""

    @abstractmethod
    def loss(
        self, area: int, index: Tensor, photos: list[NDArray[np.uint8] | None], generator: torch.Generator
    ) -> Tensor:
        """Of a batch, or of a part of one.

        Args:
            area: which.
            index: (photo,) which training photos of it.
            photos: what was read of them.
            generator: of the numbers that augment them.
        """

    @abstractmethod
    def validate(self) -> Metrics:
        """On the validation photos, the network in eval mode."""

    @abstractmethod
    def keep(self) -> None:
        """Write the model as it is now."""

    def extra_state(self) -> dict[str, Any]:
        """What else must be kept to resume from."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """The inverse of `extra_state`."""
        return

    def steps(self) -> int:
        """Of an epoch."""
        return len(self.plan(0))

    # The run

    def carry_out(self, state: dict[str, Any], settings: str) -> EncoderTrainingReport:
        """All that is left to do after a state.

        Args:
            state: from `TrainingRun.load`, or that of the beginning.
            settings: kept as train/settings.toml.

        Raises:
            TrainingError: the loss is no number any more.
            ModelError: the disk is full.
        """
        accelerator, config, run = self.accelerator, self.config, self.run
        if self.areas:
            if accelerator.is_main_process:
                run.start(settings)
            accelerator.wait_for_everyone()
            start_trackers(accelerator, config)
        began = time.monotonic()
        samples = self.train(state) if self.areas else 0
        seconds = time.monotonic() - began
        self.close()
        return EncoderTrainingReport(
            folder=run.folder,
            epochs=config.epochs - state["epoch"],
            total=config.epochs,
            best=run.best() if run.metrics else {},
            train=sum(len(area.train) for area in self.areas),
            val=sum(len(area.val) for area in self.areas),
            unreachable=sum(area.train.unreachable + area.val.unreachable for area in self.areas),
            seconds=seconds,
            encoder=run.folder / "encoder",
            samples_per_s=samples / max(seconds, 1e-9),
            unreadable=tuple(
                Rejected(Path(path).name, reason) for path, reason in sorted(self.reader.unreadable.items())
            ),
        )

    def train(self, state: dict[str, Any]) -> int:
        """Go on from a state to the end; the number of photos that were trained on."""
        if "weights" in state:
            self._restore(state)
        samples = 0
        first, step, losses = state["epoch"], state["step"], state["losses"]
        steps = self.steps()
        bar = tqdm(
            total=self.config.epochs * steps,
            initial=first * steps + step,
            unit="step",
            desc="fine-tuning",
            disable=not self.accelerator.is_main_process,
        )
        with bar, interrupts_between_steps() as self.interrupts:
            for epoch in range(first, self.config.epochs):
                began, before = time.monotonic(), samples
                samples += self._epoch(epoch, step, losses, bar)
                seconds = time.monotonic() - began
                metrics: Metrics = {
                    "epoch": epoch,
                    "loss": float(np.mean(losses)),
                    "learning_rate": float(self.schedule.get_last_lr()[0]),
                    "seconds": seconds,
                    "samples_per_s": (samples - before) / seconds,
                }
                if self.accelerator.is_main_process:
                    self._finish_epoch(epoch, metrics, bar)
                self.accelerator.wait_for_everyone()
                step, losses = 0, []
                if self._agreed(True, bool(self.interrupts)):
                    raise KeyboardInterrupt
        return samples

    def _epoch(self, epoch: int, first: int, losses: list[float], bar: tqdm) -> int:
        """The steps of an epoch from `first` on; appends their losses, and returns the number of photos."""
        plan = self.plan(epoch)
        self.network.train()
        pending: list[Tensor] = []
        samples = 0
        for step, (area, parts, photos) in enumerate(self._read(plan[first:]), first):
            pending.append(self._step(area, parts, photos, (epoch, step)))
            samples += len(plan[step][1])
            bar.update()
            last = step + 1 == len(plan)
            look = last or len(pending) == LOOK_EVERY
            stop, save = self._agreed(look, bool(self.interrupts)), self._agreed(look, self._state_is_due())
            if look or stop or save:
                self._look(pending, losses, epoch)
                bar.set_postfix(loss=f"{np.mean(losses[-100:]):.3f}", refresh=False)
                pending = []
            if (stop or save) and not last:
                self._save(epoch, step + 1, losses)
            if stop and not last:
                raise KeyboardInterrupt
        return samples

    def _agreed(self, now: bool, wanted: bool) -> bool:
        """What any process wants; several ask each other only where all of them do so."""
        if self.accelerator.num_processes == 1 or not now:
            return wanted and self.accelerator.num_processes == 1
        flag = torch.tensor(float(wanted), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _look(self, pending: list[Tensor], losses: list[float], epoch: int) -> None:
        """Learn what the last losses were, on all processes alike.

        Raises:
            TrainingError: one is no number.
        """
        mean = self.accelerator.reduce(torch.stack(pending), "mean").tolist()
        if bad := [loss for loss in mean if not math.isfinite(loss)]:
            kept = f"the best epoch so far is kept in {self.run.folder}" if self.run.metrics else "no epoch is done yet"
            raise TrainingError(
                f"the loss is {bad[0]} in epoch {epoch}: {kept}; train with a lower "
                f"{self.config.section}.learning_rate and another -o"
            )
        losses += mean

    def _step(
        self, area: int, parts: list[Tensor], photos: list[list[NDArray[np.uint8] | None]], number: tuple[int, int]
    ) -> Tensor:
        """One step of the optimizer, its batch in `accumulation` parts; the mean loss."""
        count = sum(len(part) for part in parts)
        total = torch.zeros((), device=self.accelerator.device)
        for index, (part, images) in enumerate(zip(parts, photos, strict=True)):
            last = index + 1 == len(parts)
            generator = self._seed(*number, index)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.loss(area, part, images, generator)
                self.accelerator.backward(loss * (len(part) / count))
            total += loss.detach() * (len(part) / count)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.prepared.step()
        self.schedule.step()
        self.prepared.zero_grad()
        return total

    def _finish_epoch(self, epoch: int, metrics: Metrics, bar: tqdm) -> None:
        self.network.eval()
        with torch.inference_mode():
            metrics |= self.validate()
        if not self.run.metrics or rank(metrics) > max(map(rank, self.run.metrics)):
            self.keep()
        self.run.save(self._state(epoch + 1, 0, []), metrics)
        self.saved_at = time.monotonic()
        self.accelerator.log(metrics, step=epoch)
        shown = [f"{name} {100 * value:.1f} %" for name, value in metrics.items() if name.startswith("recall")]
        line = ", ".join([f"epoch {epoch + 1} of {self.config.epochs}: loss {metrics['loss']:.3f}", *shown])
        bar.write(line, file=sys.stderr)

    # A batch

    def _read(
        self, plan: list[tuple[int, Tensor]]
    ) -> Iterator[tuple[int, list[Tensor], list[list[NDArray[np.uint8] | None]]]]:
        """This process's parts of the batches, and their photos, which are read ahead."""
        world, process = self.accelerator.num_processes, self.accelerator.process_index
        mine = []
        for area, batch in plan:
            own = batch[process::world]
            mine.append((area, list(own.split(math.ceil(len(own) / self.parts)))))
        paths = (
            self.areas[area].train.paths[index] for area, parts in mine for part in parts for index in part.tolist()
        )
        photos = self.reader.read(paths, 2 * self.config.batch_size)
        for area, parts in mine:
            yield area, parts, [[next(photos) for _ in part] for part in parts]

    def squares(self, photos: list[NDArray[np.uint8] | None], generator: torch.Generator) -> tuple[list[int], Tensor]:
        """Which photos could be read, and their squares (photo, square, 3, S, S), 0..1, augmented if that is wanted.

        Raises:
            TrainingError: none could be read.
        """
        readable, stacked = readable_photos(photos)
        if stacked is None:
            reason = next(iter(self.reader.unreadable.values()))
            raise TrainingError(
                f"none of the {len(photos)} photos of a batch can be read ({reason}): mend queries.table"
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

    def encode_tiles(self, number: int, tiles: Tensor | None = None) -> Tensor:
        """(tile, feature) float16 of an area's tiles, or of some of them."""
        embedding = []
        wanted = torch.arange(len(self.areas[number].images)) if tiles is None else tiles
        for part in wanted.split(ENCODE_BATCH):
            with self.accelerator.autocast():
                embedding.append(self.network.embed(self.encoder.normalise(self._images(number, part))))
        return torch.cat(embedding).half()

    def encode_photos(self, photos: PhotoDataset) -> tuple[Tensor, NDArray[np.int64]]:
        """(photo, feature) float16 of those that can be read, and which those are."""
        embedding, readable = [], []
        for number, batch in enumerate(self.reader.batches(photos.paths, ENCODE_BATCH)):
            good, stacked = readable_photos(batch)
            if stacked is None:
                continue
            readable += [number * ENCODE_BATCH + place for place in good]
            squares = self.encoder.squares(self.encoder.to_unit(stacked))
            with self.accelerator.autocast():
                each = self.network.embed(self.encoder.normalise(squares.flatten(0, 1)))
                embedding.append(each.unflatten(0, squares.shape[:2]).mean(1))
        if not embedding:
            raise TrainingError(f"none of the {len(photos)} validation photos can be read: mend queries.table")
        return torch.cat(embedding).half(), np.array(readable)

    # What is kept

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

    def _state_is_due(self) -> bool:
        return time.monotonic() - self.saved_at > self.config.save_every_s

    def _save(self, epoch: int, step: int, losses: list[float]) -> None:
        if self.accelerator.is_main_process:
            self.run.save(self._state(epoch, step, losses))
        self.saved_at = time.monotonic()

    def _state(self, epoch: int, step: int, losses: list[float]) -> dict[str, Any]:
        position = {"epoch": epoch, "step": step, "losses": list(losses)}
        if epoch == self.config.epochs:  # and nothing is left to resume
            return position
        scaler = self.accelerator.scaler
        return {
            **position,
            **self.extra_state(),
            "weights": {name: value for name, value in self.network.named_parameters() if value.requires_grad},
            "optimizer": self.prepared.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.load_extra_state(state)
        with torch.no_grad():
            parameters = dict(self.network.named_parameters())
            for name, value in state["weights"].items():
                parameters[name].copy_(value)
        self.prepared.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _seed(self, epoch: int, step: int, part: int) -> torch.Generator:
        """Seed the dropout, and give a generator for the augmentation."""
        process = self.accelerator.process_index
        torch.manual_seed(seeded(self.config.seed, epoch, step, part, process, 1).initial_seed())
        return seeded(self.config.seed, epoch, step, part, process, 2)

    def close(self) -> None:
        """Part from the other processes."""
        self.model = self.prepared = None
        self.accelerator.free_memory()  # what was wrapped for the processes goes before their group does
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


@contextlib.contextmanager
def interrupts_between_steps() -> Iterator[list[int]]:
    """Gathers the first Ctrl-C, so that a step is finished and kept before it is obeyed; the second stops at once."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield asked
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def readable_photos(photos: list[NDArray[np.uint8] | None]) -> tuple[list[int], Tensor | None]:
    """Which photos could be read, and those as (n, height, width, 3); None if none could."""
    places = [place for place, photo in enumerate(photos) if photo is not None]
    there = [photo for photo in photos if photo is not None]
    return places, torch.from_numpy(np.stack(there)) if there else None


def seeded(*numbers: int) -> torch.Generator:
    """Random numbers that are a function of the given ones."""
    seed = int(np.random.SeedSequence([number & 0xFFFFFFFF for number in numbers]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed >> 1)


def load_or_leave_nothing(folder: Path, load: Callable[[], list[AreaType]]) -> list[AreaType]:
    """Areas to train on, as a function loads them; a folder that was made for the run is removed again if it fails.

    Raises:
        TrainingError: there is no photo to train on.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        areas = load()
        if not sum(len(area.train) for area in areas):
            raise TrainingError("there is no photo to train on: none with split 'train' lies on the map's imagery")
        return areas
    except BaseException:
        if made:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Those that have a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def data_fingerprint(
    sources: Sequence[tuple[Imagery, PhotoTable]], encoder: Encoder, config: EncoderTrainingConfig
) -> dict[str, Any]:
    """What a run's fingerprint says of its settings, its encoder, its maps and its photos."""
    fingerprint = {f"{config.section}.{key}": value for key, value in asdict(config).items()}
    for without_effect in ("trackers", "save_every_s"):
        del fingerprint[f"{config.section}.{without_effect}"]
    fingerprint["encoder"] = encoder.fingerprint[:16]
    for number, (imagery, table) in enumerate(sources):
        photos = table.frame[["id", "latitude", "longitude", "split"]].sort_values("id")
        digest = hashlib.sha256(photos.to_csv(index=False).encode()).hexdigest()[:16]
        area = hashlib.sha256(str(imagery.pyramid.to_dict()).encode()).hexdigest()[:8]
        fingerprint[f"area {number}"] = f"{area}, {imagery.info().fingerprint[:16]}, {len(photos)} photos, {digest}"
    return fingerprint
