"""Stage one: encoder and zoom decoder trained together on the zoom itself (paper section 3; DESIGN 5, 6).

Teacher-forced cross-entropy of the next action, no contrastive loss. A step encodes each distinct tile of a batch once;
what the frozen trunk makes of a tile that is not augmented is kept. What is random in a step (order, augmentation,
dropout) is seeded by the step, so that a run that was killed goes on as if it had not been.
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from jzi.decode.config import DecoderConfig
from jzi.decode.model import ZoomModel, create_folder, save_weights
from jzi.decode.run import Metrics, Run, rank
from jzi.decode.samples import Samples
from jzi.decode.train import TrainReport
from jzi.decode.training import learning_rate_factor, make_accelerator, make_decoder, told_apart, validate
from jzi.encode.augment import DRAWS, augment_photos, augment_tiles, drop_parts, tiles_left_alone
from jzi.encode.encoder import Encoder
from jzi.encode.finetune_config import FinetuneConfig
from jzi.encode.imagery import Imagery
from jzi.encode.joint import JointModel
from jzi.encode.room import find_room
from jzi.encode.training_area import PhotoReader, Photos, TrainingArea
from jzi.errors import ModelError, TrainingError, first_line
from jzi.store.queries import QueryTable, Rejected

#: Images to a forward pass that needs no gradient.
ENCODE_BATCH = 128

#: Steps between two looks at the loss, each of which waits for the device.
LOOK_EVERY = 20


@dataclass(frozen=True)
class FinetuneReport(TrainReport):
    """What `finetune` did.

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


def finetune(
    sources: Sequence[tuple[Imagery, QueryTable]],
    encoder: Encoder,
    folder: Path,
    decoder_config: DecoderConfig,
    config: FinetuneConfig,
    *,
    start: ZoomModel | None = None,
    settings: str = "",
) -> FinetuneReport:
    """Train the encoder's last blocks and a decoder; keep the epoch with the best recall at 40 m on "val" photos.

    The model folder that is made holds the encoder as `save_pretrained` writes it, and the decoder, but no map: that is
    encoded anew. A run with the same settings goes on where it was stopped, in the middle of an epoch too. Under
    `accelerate launch` the processes share every batch.

    Args:
        sources: map and photos of each area; a batch is of one area.
        encoder: where to start from; its weights are changed.
        folder: the model folder to make.
        decoder_config: the architecture; width and actions follow from encoder and pyramid.
        config: how to train.
        start: a model whose decoder to start from; its architecture is taken too.
        settings: kept as train/settings.toml.

    Raises:
        ImageryError: the map cannot be read; nothing is left behind.
        TrainingError: there is no photo to train on, or the loss is no number any more.
        ModelError: the folder holds a model that was trained in another way, or the disk is full.
    """
    accelerator = make_accelerator(config, folder)
    decoder_config = replace(decoder_config, width=encoder.width, actions=sources[0][0].pyramid.actions)
    torch.manual_seed(config.seed)
    decoder = make_decoder(decoder_config, start)
    joint = JointModel(
        encoder,
        decoder,
        config.blocks,
        checkpointing=config.checkpointing,
        trunk_dtype=torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32,
    )
    run = Run(folder, _identity(sources, encoder, decoder.config, config, start))
    state = run.load() or {"epoch": 0, "step": 0, "losses": []}
    areas = _load_areas(sources, encoder, config, folder, accelerator) if state["epoch"] < config.epochs else []
    training = _Finetuning(accelerator, joint, encoder, areas, config, run)
    if areas:
        if accelerator.is_main_process:
            run.start(settings)
        accelerator.wait_for_everyone()
        if config.trackers:
            accelerator.init_trackers("jzi", config={k: v for k, v in asdict(config).items() if k != "trackers"})
    began = time.monotonic()
    samples = training.train(state) if areas else 0
    seconds = time.monotonic() - began
    training.model = training.prepared = None
    accelerator.free_memory()  # what was wrapped for the processes goes before their group does
    accelerator.wait_for_everyone()
    accelerator.end_training()
    unreadable = training.reader.unreadable
    return FinetuneReport(
        folder=folder,
        epochs=config.epochs - state["epoch"],
        total=config.epochs,
        best=run.best() if run.metrics else {},
        train=sum(len(area.train) for area in areas),
        val=sum(len(area.val) for area in areas),
        unreachable=sum(area.train.unreachable + area.val.unreachable for area in areas),
        seconds=seconds,
        encoder=folder / "encoder",
        samples_per_s=samples / max(seconds, 1e-9),
        unreadable=tuple(Rejected(Path(path).name, reason) for path, reason in sorted(unreadable.items())),
    )


class _Finetuning:
    """One run: what it trains, on what, and how far it is."""

    def __init__(
        self,
        accelerator: Accelerator,
        joint: JointModel,
        encoder: Encoder,
        areas: list[TrainingArea],
        config: FinetuneConfig,
        run: Run,
    ) -> None:
        self.accelerator, self.joint, self.encoder = accelerator, joint, encoder
        self.areas, self.config, self.run = areas, config, run
        self.reader = PhotoReader(encoder.photo_shape)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(joint, config),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=accelerator.device.type == "cuda",
        )
        steps = max(1, config.epochs * len(self._plan(0)))
        self.schedule = LambdaLR(self.optimizer, lambda step: learning_rate_factor(step, steps, config.warmup))
        self.model, self.prepared = accelerator.prepare(joint, self.optimizer)
        #: What the trunk makes of every tile that is not augmented: (tile, token, feature), or None without a trunk.
        self.trunks = [self._run_trunk(area) for area in areas]
        self.saved_at = time.monotonic()
        self.interrupts: list[int] = []

    # The run

    def train(self, state: dict[str, Any]) -> int:
        """Go on from a state to the end; the number of photos that were trained on."""
        if "weights" in state:
            self._restore(state)
        samples = 0
        first, step, losses = state["epoch"], state["step"], state["losses"]
        steps = len(self._plan(0))
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
        plan = self._plan(epoch)
        self.joint.train()
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
                f"the loss is {bad[0]} in epoch {epoch}: {kept}; train with a lower finetune.learning_rate and "
                "another -o"
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
                inputs, tiles, actions = self._inputs(area, part, images, generator)
                with self.accelerator.autocast():
                    logits = self.model(inputs, tiles, actions)
                loss = F.cross_entropy(
                    logits.float().flatten(0, 1), actions.flatten(), label_smoothing=self.config.label_smoothing
                )
                self.accelerator.backward(loss * (len(part) / count))
            total += loss.detach() * (len(part) / count)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.prepared.step()
        self.schedule.step()
        self.prepared.zero_grad()
        return total

    def _finish_epoch(self, epoch: int, metrics: Metrics, bar: tqdm) -> None:
        metrics |= self._validate()
        if not self.run.metrics or rank(metrics) > max(map(rank, self.run.metrics)):
            self._keep()
        self.run.save(self._state(epoch + 1, 0, []), metrics)
        self.saved_at = time.monotonic()
        self.accelerator.log(metrics, step=epoch)
        shown = [f"{name} {100 * value:.1f} %" for name, value in metrics.items() if name.startswith("recall")]
        line = ", ".join([f"epoch {epoch + 1} of {self.config.epochs}: loss {metrics['loss']:.3f}", *shown])
        bar.write(line, file=sys.stderr)

    # A batch

    def _plan(self, epoch: int) -> list[tuple[int, Tensor]]:
        """The epoch's batches in order: which area, and which of its photos."""
        world, size = self.accelerator.num_processes, self.config.batch_size
        batches = []
        for number, area in enumerate(self.areas):
            generator = _generator(self.config.seed, epoch, number)
            order = torch.randperm(len(area.train), generator=generator)
            order = torch.cat([order, order[: -len(order) % world]])  # every process has as many
            batches += [(number, batch) for batch in order.split(size)]
        shuffled = torch.randperm(len(batches), generator=_generator(self.config.seed, epoch, len(self.areas)))
        return [batches[index] for index in shuffled.tolist()]

    def _read(
        self, plan: list[tuple[int, Tensor]]
    ) -> Iterator[tuple[int, list[Tensor], list[list[NDArray[np.uint8] | None]]]]:
        """This process's parts of the batches, and their photos, which are read ahead."""
        world, process = self.accelerator.num_processes, self.accelerator.process_index
        mine = []
        for area, batch in plan:
            own = batch[process::world]
            mine.append((area, list(own.split(math.ceil(len(own) / self.config.accumulation)))))
        paths = (
            self.areas[area].train.paths[index] for area, parts in mine for part in parts for index in part.tolist()
        )
        photos = self.reader.read(paths, 2 * self.config.batch_size)
        for area, parts in mine:
            yield area, parts, [[next(photos) for _ in part] for part in parts]

    def _inputs(
        self, area: int, index: Tensor, photos: list[NDArray[np.uint8] | None], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the joint model takes, for photos of one area that are augmented by a generator's numbers."""
        device = self.accelerator.device
        train = self.areas[area].train
        readable, stacked = _readable(photos)
        if stacked is None:
            raise TrainingError(
                f"none of {len(photos)} photos can be read, such as {train.paths[int(index[0])]}: mend queries.table"
            )
        index = index[readable]
        pixels, draws = self.encoder.to_unit(stacked), None
        if self.config.augment:
            pixels = augment_photos(pixels, torch.rand(len(pixels), DRAWS, generator=generator).to(device))
        squares = self.encoder.squares(pixels)
        if self.config.augment:
            parts = torch.rand(*squares.shape[:2], DRAWS, generator=generator).to(device)
            squares = drop_parts(squares.flatten(0, 1), parts.flatten(0, 1)).unflatten(0, squares.shape[:2])
        distinct, tiles = torch.unique(train.tiles[index], return_inverse=True)
        if self.config.augment:
            draws = torch.rand(len(distinct), DRAWS, generator=generator)
        inputs, place = self._tile_inputs(area, distinct, squares.flatten(0, 1), draws)
        return inputs, place[tiles].to(device), train.actions[index].to(device)

    def _tile_inputs(self, area: int, distinct: Tensor, squares: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """Photos' squares and different tiles as the joint model takes them, and where each tile is among the tiles.

        Args:
            area: whose tiles.
            distinct: (tile,) which.
            squares: (square, 3, S, S) 0..1.
            draws: (tile, DRAWS) for their augmentation, or None for none.
        """
        alone = torch.ones(len(distinct), dtype=torch.bool)
        if draws is not None:
            alone = tiles_left_alone(draws) | (distinct == 0)  # the whole map is never augmented
        trunk = self.trunks[area]
        kept = alone if trunk is not None else torch.zeros_like(alone)
        stored = self.areas[area].images
        images = self.encoder.to_unit(stored[distinct[~kept].to(stored.device)])
        if draws is not None:
            changed = (~alone[~kept]).to(images.device)
            images[changed] = augment_tiles(images[changed], draws[~alone].to(images.device))
        with self.accelerator.autocast():
            inputs = self.joint.trunk(self.encoder.normalise(torch.cat([squares, images])))
        if trunk is not None:
            known = trunk[distinct[kept].to(trunk.device)].to(inputs.device, non_blocking=True)
            inputs = torch.cat([inputs, known])
        order = torch.cat([(~kept).nonzero()[:, 0], kept.nonzero()[:, 0]])
        return inputs, order.argsort()

    # Validation, as in use

    @torch.inference_mode()
    def _validate(self) -> Metrics:
        """Every tile and the validation photos through the encoder as it is, then greedy search off the embeddings."""
        self.joint.eval()
        photos = sum(len(area.val) for area in self.areas)
        mean: dict[str, float] = {}
        for number, area in enumerate(self.areas):
            if not len(area.val):
                continue
            table = area.table.with_embedding(self._encode_tiles(number))
            query, readable = self._encode_photos(area.val)
            samples = Samples(
                query=query[:, None],
                tiles=area.val.tiles[readable].to(query.device),
                actions=area.val.actions[readable].to(query.device),
                latitude=area.val.latitude[readable],
                longitude=area.val.longitude[readable],
                unreachable=0,
            )
            for name, value in validate(self.joint.decoder, table, samples).items():
                mean[name] = mean.get(name, 0.0) + value * len(area.val) / photos
        return mean

    def _encode_tiles(self, number: int) -> Tensor:
        """(tile, feature) float16 of an area."""
        embedding = []
        none = torch.empty(0, 3, self.encoder.image_size, self.encoder.image_size, device=self.accelerator.device)
        for tiles in torch.arange(len(self.areas[number].images)).split(ENCODE_BATCH):
            inputs, place = self._tile_inputs(number, tiles, none, None)
            with self.accelerator.autocast():
                embedding.append(self.joint.embed(inputs)[place.to(inputs.device)])
        return torch.cat(embedding).half()

    def _encode_photos(self, photos: Photos) -> tuple[Tensor, NDArray[np.int64]]:
        """(photo, feature) float16 of those that can be read, and which those are."""
        embedding, readable = [], []
        for number, batch in enumerate(self.reader.batches(photos.paths, ENCODE_BATCH)):
            good, stacked = _readable(batch)
            if stacked is None:
                continue
            readable += [number * ENCODE_BATCH + place for place in good]
            squares = self.encoder.squares(self.encoder.to_unit(stacked))
            with self.accelerator.autocast():
                inputs = self.joint.trunk(self.encoder.normalise(squares.flatten(0, 1)))
                embedding.append(self.joint.embed(inputs).unflatten(0, squares.shape[:2]).mean(1))
        if not embedding:
            raise TrainingError(f"none of the {len(photos)} validation photos can be read: mend queries.table")
        return torch.cat(embedding).half(), np.array(readable)

    # What is kept

    def _keep(self) -> None:
        """Write encoder and decoder as they are now."""
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
        card = replace(self.encoder.card, name=str(old), from_hub=False)
        area, decoder = self.areas[0], self.joint.decoder
        create_folder(folder, decoder.config, area.pyramid, card, None, area.imagery)
        save_weights(folder, decoder)

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
            "weights": {name: value for name, value in self.joint.named_parameters() if value.requires_grad},
            "optimizer": self.prepared.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            parameters = dict(self.joint.named_parameters())
            for name, value in state["weights"].items():
                parameters[name].copy_(value)
        self.prepared.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _seed(self, epoch: int, step: int, part: int) -> torch.Generator:
        """Seed the dropout, and give a generator for the augmentation."""
        process = self.accelerator.process_index
        torch.manual_seed(_generator(self.config.seed, epoch, step, part, process, 1).initial_seed())
        return _generator(self.config.seed, epoch, step, part, process, 2)

    def _run_trunk(self, area: TrainingArea) -> Tensor | None:
        if not self.joint.has_trunk:
            return None
        device = self.accelerator.device
        shape = (len(area.images), self.joint.tokens, self.encoder.width)
        kept = find_room(shape, self.joint.trunk_dtype, device, self.run.folder)
        self.joint.eval()
        for tiles in torch.arange(len(area.images)).split(ENCODE_BATCH):
            pixels = self.encoder.normalise(self.encoder.to_unit(area.images[tiles.to(area.images.device)]))
            with self.accelerator.autocast():
                kept[tiles.to(kept.device)] = self.joint.trunk(pixels).to(kept.device)
        return kept


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


def _readable(photos: list[NDArray[np.uint8] | None]) -> tuple[list[int], Tensor | None]:
    """Which photos could be read, and those as (n, height, width, 3); None if none could."""
    places = [place for place, photo in enumerate(photos) if photo is not None]
    there = [photo for photo in photos if photo is not None]
    return places, torch.from_numpy(np.stack(there)) if there else None


def _generator(*numbers: int) -> torch.Generator:
    seed = int(np.random.SeedSequence([number & 0xFFFFFFFF for number in numbers]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed >> 1)


def _parameter_groups(joint: JointModel, config: FinetuneConfig) -> list[dict[str, Any]]:
    rate = config.learning_rate if config.encoder_learning_rate is None else config.encoder_learning_rate

    def trained(module: nn.Module) -> list[nn.Parameter]:
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    groups: list[dict[str, Any]] = [{"params": trained(joint.decoder)}, {"params": trained(joint.model), "lr": rate}]
    return [group for group in groups if group["params"]]


def _load_areas(
    sources: Sequence[tuple[Imagery, QueryTable]],
    encoder: Encoder,
    config: FinetuneConfig,
    folder: Path,
    accelerator: Accelerator,
) -> list[TrainingArea]:
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        areas = [
            TrainingArea.load(
                imagery,
                table,
                encoder.image_size,
                device=accelerator.device,
                folder=folder,
                val_photos=config.val_photos,
                progress=accelerator.is_main_process,
            )
            for imagery, table in sources
        ]
        if not sum(len(area.train) for area in areas):
            raise TrainingError("there is no photo to train on: none with split 'train' lies on the map's imagery")
        return areas
    except BaseException:
        if made:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _identity(
    sources: Sequence[tuple[Imagery, QueryTable]],
    encoder: Encoder,
    decoder_config: DecoderConfig,
    config: FinetuneConfig,
    start: ZoomModel | None,
) -> dict[str, Any]:
    """What the outcome depends on."""
    how = {f"finetune.{key}": value for key, value in asdict(config).items()}
    for without_effect in ("trackers", "save_every_s"):
        del how[f"finetune.{without_effect}"]
    identity = {
        **{f"decoder.{key}": value for key, value in decoder_config.to_dict().items()},
        **how,
        "finetune.init": told_apart(start),
        "encoder": encoder.fingerprint[:16],
    }
    for number, (imagery, table) in enumerate(sources):
        photos = table.frame[["id", "latitude", "longitude", "split"]].sort_values("id")
        digest = hashlib.sha256(photos.to_csv(index=False).encode()).hexdigest()[:16]
        area = hashlib.sha256(str(imagery.pyramid.to_dict()).encode()).hexdigest()[:8]
        identity[f"area {number}"] = f"{area}, {imagery.card().fingerprint[:16]}, {len(photos)} photos, {digest}"
    return identity
