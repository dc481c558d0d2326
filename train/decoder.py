"""Training the decoder straight off the cache (DESIGN 6).

All embeddings are put on the device once and a batch is a tensor of indices: no data loader and no copy from the host
stands between two steps. What is random in an epoch (order, dropout) is seeded by the epoch, so that a run that was
killed goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from jzi.decode.config import DecoderConfig
from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.model import ZoomModel, create_folder, read_zoom_config
from jzi.decode.temperature import fit_temperature
from jzi.decode.tile_table import TileTable
from jzi.errors import CacheError, TrainingError
from jzi.store.cache import FeatureCache
from jzi.store.model_folder import MAP, update_config, write_file
from jzi.train.common import (
    init_digest,
    learning_rate_factor,
    make_accelerator,
    make_decoder,
    start_trackers,
    validate,
)
from jzi.train.config import TrainConfig
from jzi.train.data import DataInfo, TrainingData
from jzi.train.run import Checkpointer, Metrics, TrainingRun
from jzi.train.targets import next_action_loss, own_turns


@dataclass(frozen=True)
class TrainReport:
    """What `train_decoder` did.

    Attributes:
        folder: the model.
        epochs: epochs trained by this run; 0 if all had been trained before.
        total: epochs of the whole training.
        best: the metrics of the epoch that was kept.
        train: number of training photos.
        val: number of validation photos.
        unreachable: photos left out, because the map has no imagery where they were taken.
        seconds: of this run's epochs.
    """

    folder: Path
    epochs: int
    total: int
    best: Metrics
    train: int
    val: int
    unreachable: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "folder": str(self.folder)}

    def to_text(self) -> str:
        """For people."""
        done = (
            f"trained {self.epochs} of {self.total} epochs in {self.seconds:.1f} s" if self.epochs else "trained before"
        )
        recall = self.best.get("recall@40m")
        reached = "" if recall is None else f", validation recall within 40 m {100 * recall:.1f} %"
        return f"{done}, {self.train} photos; kept epoch {self.best['epoch']:.0f}{reached}"


def train_decoder(
    cache: FeatureCache,
    folder: Path,
    decoder_config: DecoderConfig,
    config: TrainConfig,
    *,
    encoder_folder: Path | None = None,
    start: ZoomModel | None = None,
    settings: str = "",
    data: TrainingData | None = None,
    keep_map: bool = True,
    progress: bool = True,
) -> TrainReport:
    """Train on the cache's "train" photos; keep the epoch with the best recall at 40 m on its "val" photos.

    Goes on where a run with the same settings and photos was stopped. Under `accelerate launch` the processes share
    every batch.

    Args:
        cache: complete.
        folder: the model folder to make.
        decoder_config: the architecture; width and actions are taken from the cache.
        config: how to train.
        encoder_folder: the cache's encoder, for the model to carry along; None for one that the hub has.
        start: a model whose decoder to start from, such as a fine-tuned one; its architecture is taken too.
        settings: kept as train/settings.toml.
        data: what `TrainingData.load` made of the cache on this process's device, where several runs share it.
        keep_map: whether the folder is to hold the map too.
        progress: whether to show it.

    Raises:
        CacheError: the cache is incomplete or damaged.
        TrainingError: there is no photo to train on, or the loss is no number any more.
        ModelError: the folder holds a model that was trained in another way, or the disk is full.
    """
    accelerator = make_accelerator(config, folder)
    cells = decoder_config.look_ahead == "cells"
    data = data or TrainingData.load(cache, accelerator.device, config.views, cells)
    if cells and data.features.cells is None:
        raise CacheError(f"decoder.look_ahead is cells, and the cells of {data.path} were not read")
    info, table, train, val = data.info, data.table, data.train.with_views(config.views), data.val
    decoder_config = replace(decoder_config, width=info.encoder.width, actions=info.pyramid.actions)
    if not len(train):
        raise TrainingError(f"{data.path} has no photo to train on: none with split 'train' lies on the map's imagery")
    torch.manual_seed(config.seed)
    decoder = make_decoder(decoder_config, start)
    decoder_config = decoder.config
    if decoder_config.patch_tokens:
        table.require_patches(decoder_config.patch_tokens).load(accelerator.is_main_process)
    run = TrainingRun(folder, run_fingerprint(info, decoder_config, config, start))
    state = run.load()
    first = 0 if state is None else state["epoch"] + 1
    report = partial(
        TrainReport,
        folder=folder,
        epochs=config.epochs - first,
        total=config.epochs,
        train=len(train),
        val=len(val),
        unreachable=train.unreachable + val.unreachable,
    )
    if first == config.epochs:
        if accelerator.is_main_process:
            _calibrate(folder, table, val)  # in case the run was stopped just before
        return report(best=run.best(), seconds=0.0)
    if state is None and accelerator.is_main_process:
        create_folder(folder, decoder_config, info.pyramid, info.encoder, encoder_folder, info.imagery)
        if keep_map:
            features = data.features if decoder_config.look_ahead == "cells" else replace(data.features, cells=None)
            write_file(folder, MAP, features.save)
        run.start(settings)
    accelerator.wait_for_everyone()
    start_trackers(accelerator, config)

    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    steps = config.epochs * math.ceil(len(train) / config.batch_size)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, config.warmup))
    if state is not None:
        decoder.load_state_dict(state["decoder"])
    model, prepared = accelerator.prepare(decoder, optimizer)
    if state is not None:
        prepared.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])

    checkpointer = Checkpointer(run, config.save_every_s)
    began = time.monotonic()
    with tqdm(
        range(first, config.epochs),
        initial=first,
        total=config.epochs,
        unit="epoch",
        desc="decoder",
        disable=not (progress and accelerator.is_main_process),
    ) as bar:
        for epoch in bar:
            epoch_began = time.monotonic()
            loss = _train_epoch(accelerator, model, prepared, schedule, config, table, train, epoch)
            if not math.isfinite(loss):
                checkpointer.save_best()
                raise TrainingError(
                    f"the loss is {loss} in epoch {epoch}: the best epoch so far is kept in {folder}; train with a "
                    "lower train.learning_rate"
                )
            if accelerator.is_main_process:
                seconds = time.monotonic() - epoch_began
                metrics: Metrics = {
                    "epoch": epoch,
                    "loss": loss,
                    "learning_rate": float(schedule.get_last_lr()[0]),
                    "seconds": seconds,
                }
                metrics |= {"samples_per_s": len(train) / seconds, **validate(decoder, table, val)}
                checkpointer.note(metrics, decoder)
                if epoch + 1 == config.epochs:  # nothing is left to resume: three times the decoder's size
                    checkpointer.save({"epoch": epoch})
                elif checkpointer.is_due():
                    checkpointer.save(_state(decoder, prepared, schedule, epoch))
                accelerator.log(metrics, step=epoch)
                shown = {"loss": f"{loss:.3f}"}
                if "recall@40m" in metrics:
                    shown["recall@40m"] = f"{100 * metrics['recall@40m']:.1f}%"
                bar.set_postfix(shown)
            accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _calibrate(folder, table, val)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return report(best=run.best() if run.metrics else {}, seconds=time.monotonic() - began)


def _train_epoch(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    schedule: LambdaLR,
    config: TrainConfig,
    table: TileTable,
    samples: ZoomDataset,
    epoch: int,
) -> float:
    """One pass over the photos; the mean loss. Nothing waits for the device between two steps."""
    world, process = accelerator.num_processes, accelerator.process_index
    seed = config.seed * 1_000_003 + epoch
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    order = torch.cat([order, order[: -len(order) % world]]).to(table.device)  # every process has as many
    view = samples.draw_views(seed)
    torch.manual_seed(seed * world + process)  # of the dropout
    decoder: ZoomDecoder = accelerator.unwrap_model(model)
    own = config.own_turns * epoch / max(1, config.epochs - 1)
    model.train()
    losses = []
    for batch in order.split(config.batch_size):
        index = batch[process::world]
        tiles, actions = samples.tiles[index], samples.actions[index]  # (batch, step)
        query, right = samples.query[index, view[index]].float(), actions
        with accelerator.autocast():
            if own:
                tiles, actions, right = own_turns(decoder.eval(), table, query, actions, own)
                model.train()
            seen, below = table.read(decoder.config, tiles, query)
            logits = model(query, seen, actions, below)
        loss = next_action_loss(logits, right, config)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return float(accelerator.gather(torch.stack(losses).mean()[None]).mean())


def _calibrate(folder: Path, table: TileTable, val: ZoomDataset) -> None:
    """Fit the temperatures of the epoch that was kept, if that has not been done."""
    if len(val) and read_zoom_config(folder).temperature is None:
        decoder = ZoomModel.load(folder, table.device).decoder
        update_config(folder, temperature=tuple(fit_temperature(decoder, table, val)))


def run_fingerprint(
    info: DataInfo, decoder_config: DecoderConfig, config: TrainConfig, start: ZoomModel | None
) -> dict[str, Any]:
    """What the outcome of a run depends on; `decoder_config` is that of the decoder, with the cache's width.

    Options that are off are left out: a run that was begun before there were any goes on.
    """
    how = {f"train.{key}": list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    for without_effect in ("trackers", "save_every_s"):
        del how[f"train.{without_effect}"]
    if config.targets == "uniform":
        del how["train.targets"], how["train.target_sigma"]
    if not config.own_turns:
        del how["train.own_turns"]
    how["train.init"] = init_digest(start)
    return {
        **{f"decoder.{key}": value for key, value in decoder_config.to_dict().items()},
        **how,
        "encoder": info.encoder.fingerprint[:16],
        "imagery": info.imagery.fingerprint[:16] if info.imagery else "",
        "views": info.augmentation if config.views else {},
        "photos": info.photos,
        **({"cell_m": info.cell_m} if decoder_config.look_ahead == "cells" else {}),
    }


def _state(decoder: ZoomDecoder, optimizer: Any, schedule: LambdaLR, epoch: int) -> dict[str, Any]:
    weights: dict[str, Tensor] = decoder.state_dict()
    return {
        "decoder": weights,
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": epoch,
    }
