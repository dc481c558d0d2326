"""Training of a refiner: where in a window of some tens of metres a photo was taken (UnifyGeo, arXiv 2505.07622).

The same task trains on tokens of a cache and on images; what it reads is a `PairSource`. A window's offset, its flip
and turn, dropped tokens and the noise of headings are functions of the seed, the epoch and the step, so a resumed run
is the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from jzi.errors import TrainingError
from jzi.refine.config import RefineConfig
from jzi.refine.info import WEIGHTS, RefinerInfo, read_refiner_info
from jzi.refine.networks.cached import CachedRefiner
from jzi.refine.networks.files import Refiner, load_refiner, save_refiner, update_refiner
from jzi.refine.networks.model import UnifyGeo
from jzi.refine.outputs import PhotoInput, RefinerOutput
from jzi.store.trained_photos import TrainedPhotos, check_held_out
from jzi.train.cache_task import CacheTask
from jzi.train.config.refiner import RefinerTrainingConfig
from jzi.train.encoders.encoder import seeded_generator
from jzi.train.loop import TrainingLoop, make_accelerator
from jzi.train.refine.refine_data import Pairs, PairSource, prepare, read_ahead, window_tokens
from jzi.train.refine.refine_losses import LossWeights, RefinerLosses, refiner_losses
from jzi.train.refine.refine_pairs import draw_windows
from jzi.train.refine.refine_validation import Accuracy, fit_temperatures, measure, validation
from jzi.train.run import Metrics, TrainingRun, TrainReport
from jzi.train.task import Batch


@dataclass(frozen=True)
class RefinerReport(TrainReport):
    """Outcome of training a refiner.

    Attributes:
        duplicates: validation photos left out because they were taken within 5 m of a training photo.
        stopped: epoch after which training ended early; None if it did not.
    """

    duplicates: int = 0
    stopped: int | None = None


class RefinerNetwork(nn.Module):
    """A refiner whose forward pass computes what its losses need.

    Args:
        refiner: the refiner, which shares its weights.
        rerank: whether to compare photos with the windows of the whole batch.
    """

    def __init__(self, refiner: Refiner, rerank: bool = True) -> None:
        super().__init__()
        self.refiner, self.rerank = refiner, rerank

    def forward(
        self, photos: PhotoInput, windows: Tensor, mask: Tensor, grid: Tensor | None = None
    ) -> tuple[RefinerOutput, Tensor | None]:
        """The density of each photo over its own window, and level 0 of all photos with all windows."""
        refiner = self.refiner
        assert isinstance(refiner, CachedRefiner | UnifyGeo)  # others have tasks of their own
        ground = refiner.ground(photos)
        aerial = refiner.aerial(window_tokens(refiner, windows, grid))
        output = refiner.match(ground, aerial, mask)
        return output, refiner.match_level0(ground, aerial) if self.rerank else None


class RefinerTask(CacheTask):
    """Training of a refiner.

    Args:
        accelerator: device, precision and processes. Each process compares its photos with its own windows.
        refiner: the refiner to train, in place.
        source: photos and windows.
        refine: side of the windows.
        config: the settings of training.
        info: what to record beside the weights.
        run: the run whose folder the weights are written to.
    """

    label = "refiner"
    check_every = 20
    network: nn.Module
    config: RefinerTrainingConfig

    def __init__(
        self,
        accelerator: Accelerator,
        refiner: Refiner,
        source: PairSource,
        refine: RefineConfig,
        config: RefinerTrainingConfig,
        info: RefinerInfo,
        run: TrainingRun,
    ) -> None:
        self.accelerator, self.config, self.refine, self.run = accelerator, config, refine, run
        self.network = RefinerNetwork(refiner, rerank=config.rerank > 0)
        self.source, self.info = source, info
        self.device, self.photos = accelerator.device, len(source.train)
        self.fused = self.device.type == "cuda"
        self.weights = LossWeights(config.decoder, config.retrieval, config.matching, config.rerank)
        self.sums = torch.zeros(len(fields(RefinerLosses)) + 1, device=self.device)  # losses, and their number

    @property
    def refiner(self) -> Refiner:
        """The refiner."""
        refiner: Refiner = getattr(self.network, "refiner")  # noqa: B009
        return refiner

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weights of layers, and all vectors and scalars, which do not decay."""
        trained = [each for each in self.network.parameters() if each.requires_grad]
        layers, others = ([each for each in trained if (each.ndim > 1) == layer] for layer in (True, False))
        return [{"params": layers}, {"params": others, "weight_decay": 0.0}]

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """This process's pairs, read ahead; a part is the epoch, the step and the pairs."""
        world, process = self.accelerator.num_processes, self.accelerator.process_index
        if not first:
            self.sums.zero_()
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        plan = [batch.cpu().numpy()[process::world] for batch in self.shuffle(self.photos, generator)]
        windows = draw_windows(
            self.source.train,
            self.source.area,
            self.refine.window_m,
            self.refiner.config.pixels,
            self.config.offsets,
            (self.config.seed, epoch),
        )
        pairs = read_ahead(self.source, self.source.train, windows, plan[first:])
        return (Batch([(epoch, step, each)], [len(each)], len(each) * world) for step, each in enumerate(pairs, first))

    def loss(self, model: nn.Module, part: tuple[int, int, Pairs]) -> Tensor:
        """The weighted sum of the losses of a batch, with everything random seeded by the step."""
        epoch, step, pairs = part
        seed = self.config.seed, epoch, step, self.accelerator.process_index
        torch.manual_seed(seeded_generator(*seed, 1).initial_seed())  # for dropout
        generator = seeded_generator(*seed, 2)
        known = (torch.rand(len(pairs), generator=generator) < self.config.heading_known).to(self.device)
        batch = prepare(
            pairs.to(self.device),
            self.refiner.config.rolls,
            known,
            generator,
            images=self.source.images,
            augment=self.config.augment,
            gsd_jitter=self.config.gsd_jitter,
        )
        with self.accelerator.autocast():
            output, cross = model(batch.photos, batch.windows, batch.mask, batch.grid)
        losses = refiner_losses(output, batch.truth, self.sigma_px, cross=cross, semi=self.config.semi)
        self.sums += torch.cat([losses.values(), torch.ones(1, device=self.device)])
        return losses.total(self.weights)

    @property
    def sigma_px(self) -> float:
        """Standard deviation of the Gaussian around the true place, pixels."""
        return self.config.sigma_m * self.refiner.config.pixels / self.refine.window_m

    def validate(self) -> Metrics:
        """Metres, degrees and the likelihood of the validation photos, and the mean of each loss in the epoch."""
        names = [f"loss_{each.name}" for each in fields(RefinerLosses)]
        metrics: Metrics = dict(zip(names, (self.sums[:-1] / self.sums[-1].clamp(min=1)).tolist(), strict=True))
        if not len(self.source.val):
            return metrics
        with self.accelerator.autocast():
            parts = [
                measure(output, batch.truth, self.refine.window_m)
                for output, batch in validation(self.refiner, self.source, self.refine, self.config, self.device)
            ]
        return {**metrics, **Accuracy.of(parts).metrics()}

    def has_converged(self) -> bool:
        """Whether the validation loss has not fallen for `patience` epochs."""
        losses = [each["val_loss"] for each in self.run.metrics if "val_loss" in each]
        return len(losses) - 1 - int(np.argmin(losses)) >= self.config.patience if losses else False

    # Saving

    def save(self, weights: dict[str, Tensor]) -> None:
        """Write the refiner with some weights; the network's own stay as they are."""
        current = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(weights)
        save_refiner(self.run.folder, self.refiner, self.info)
        self.network.load_state_dict(current)

    def extra_state(self) -> dict[str, Any]:
        """Sums of the losses of this epoch."""
        return {"loss_sums": self.sums.cpu()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""
        self.sums.copy_(state["loss_sums"])


def check_photos(source: PairSource) -> None:
    """Refuse a source that has no photo to train on.

    Raises:
        TrainingError: it has none.
    """
    if not len(source.train):
        raise TrainingError("there is no photo to refine with: none with split 'train' has tokens and lies on the map")


def train_refiner(
    source: PairSource,
    make: Callable[[], Refiner],
    folder: Path,
    refine: RefineConfig,
    config: RefinerTrainingConfig,
    info: RefinerInfo,
    *,
    fingerprint: dict[str, Any],
    start: Path | None = None,
    settings: str = "",
    duplicates: int = 0,
    progress: bool = True,
    make_task: Callable[..., RefinerTask] = RefinerTask,
) -> RefinerReport:
    """Train a refiner, and keep the epoch with the greatest likelihood of the places of the validation photos.

    An interrupted run with the same settings and photos is resumed, also within an epoch. Training ends when the
    validation loss has not fallen for `config.patience` epochs.

    Args:
        source: photos and windows.
        make: makes the refiner to train, after the seed is set.
        folder: the refiner's folder to write.
        refine: side of the windows.
        config: the settings of training.
        info: what to record beside the weights.
        fingerprint: what the outcome depends on beside the settings: architecture, map, photos and tokens.
        start: folder of the refiner whose weights `make` gives it, if any; its photos are recorded too.
        settings: TOML to write to train/settings.toml.
        duplicates: validation photos that were left out, for the report.
        progress: whether to show a progress bar.
        make_task: makes the task that is run, with the arguments of `RefinerTask`.

    Raises:
        TrainingError: there is no photo to train on, or the loss is not finite.
        ModelError: the folder holds a refiner that was trained in another way, or cannot be written; or `start` was
            trained on validation photos.
        KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
    """
    check_photos(source)
    accelerator = make_accelerator(config, folder)
    torch.manual_seed(config.seed)
    refiner = make()
    hint = "give another folder with -o, or delete it"
    if start:
        check_held_out(start, "val", source.val.key)
    run = TrainingRun(folder, {**config.fingerprint(), **fingerprint}, hint=hint, weights=WEIGHTS, selects="")
    state = run.resume()
    began, before = time.monotonic(), state["epoch"]
    if before < config.epochs:
        task = make_task(accelerator, refiner, source, refine, config, info, run)
        if accelerator.is_main_process:
            run.start(settings)
            earlier = [TrainedPhotos.read(start)] if start else []
            TrainedPhotos(model=source.train.key).plus(earlier).write(folder)
        accelerator.wait_for_everyone()
        loop = TrainingLoop(task, run, progress=progress)
        loop.train(state)
        loop.close()
    if accelerator.is_main_process and len(source.val):
        _calibrate(folder, source, refine, config, accelerator.device)  # also if it was stopped just before this
    trained = len(run.metrics)
    return RefinerReport(
        folder=folder,
        epochs=trained - before if before < config.epochs else 0,
        total=config.epochs,
        best=run.best() if run.metrics else {},
        train=len(source.train),
        val=len(source.val),
        unreachable=0,
        seconds=time.monotonic() - began,
        duplicates=duplicates,
        stopped=trained if trained < config.epochs else None,
    )


def _calibrate(
    folder: Path, source: PairSource, refine: RefineConfig, config: RefinerTrainingConfig, device: torch.device
) -> None:
    """Fit the temperatures of the best epoch, unless they have been fitted."""
    if read_refiner_info(folder).temperature == 1.0:
        refiner, _ = load_refiner(folder, device)
        temperature, heading_temperature = fit_temperatures(refiner, source, refine, config, device)
        update_refiner(folder, temperature=temperature, heading_temperature=heading_temperature)
