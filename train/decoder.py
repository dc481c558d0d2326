"""Training of the decoder from the cache (stage two).

All embeddings are copied to the device once, and a batch is a tensor of indices, so there is no data loader and no
copy from the host between two steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from accelerate import Accelerator
from torch import Tensor, nn

from jzi.decode.config import DecoderConfig
from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.model import ZoomModel, create_folder, read_zoom_config, save_tensors
from jzi.decode.temperature import fit_temperature
from jzi.decode.tile_table import TileTable
from jzi.errors import ModelError, TrainingError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.map_embeddings import MapEmbeddings
from jzi.store.features.map_pages import PagedMap
from jzi.store.model_folder import MAP, update_config, write_file
from jzi.store.trained_photos import TrainedPhotos, check_held_out, check_held_out_from_encoder
from jzi.train.cache_task import CacheTask
from jzi.train.config.training import TrainConfig
from jzi.train.data import DataInfo, TrainingData
from jzi.train.loop import TrainingLoop, make_accelerator
from jzi.train.photo_shards import PhotoShards, ZoomBatch
from jzi.train.run import Metrics, TrainingRun, TrainReport
from jzi.train.task import Batch
from jzi.train.zoom import init_digest, make_decoder, validate

#: Entry of a saved state: the number of shards of photos in a buffer.
TOGETHER = "shards_together"


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
    experts_follow: bool = False,
    progress: bool = True,
) -> TrainReport:
    """Train on the cache's "train" photos, and keep the epoch with the best recall at 40 m on its "val" photos.

    An interrupted run with the same settings and photos is resumed. Under `accelerate launch` the processes share each
    batch.

    Args:
        cache: a complete cache.
        folder: the model folder to write.
        decoder_config: the architecture; width and number of actions are taken from the cache.
        config: the settings of training.
        encoder_folder: folder of the cache's encoder, to copy into the model; None if the encoder is on the hub.
        start: a model whose decoder to start from, such as a fine-tuned one; its architecture is used too.
        settings: TOML to write to train/settings.toml.
        data: the cache's data on this process's device, if several runs share it; None to load it.
        keep_map: whether to write the map into the folder too.
        experts_follow: whether `train_experts` is called next, by all processes.
        progress: whether to show a progress bar.

    Raises:
        CacheError: the cache is incomplete or damaged.
        TrainingError: there is no photo to train on, or the loss is not finite.
        ModelError: the folder holds a model that was trained in another way, or cannot be written; or the encoder or
            `start` was trained on validation photos.
        KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
    """
    accelerator = make_accelerator(config, folder)
    data = data or TrainingData.load(cache, accelerator.device, config.views)
    if not len(data.train):
        raise TrainingError(f"{data.path} has no photo to train on: none with split 'train' lies on the map's imagery")
    info, table, train, val = data.info, data.table, data.train.with_views(config.views), data.val
    decoder_config = replace(decoder_config, width=info.encoder.width, actions=info.pyramid.actions)
    torch.manual_seed(config.seed)
    decoder = make_decoder(decoder_config, start)
    decoder_config = decoder.config
    if decoder_config.patch_tokens:
        table.require_patches(decoder_config.patch_tokens).load(accelerator.is_main_process)
    run = TrainingRun(folder, run_fingerprint(info, decoder_config, config, start))
    state = run.resume()
    seconds = 0.0
    if state["epoch"] < config.epochs:
        check_held_out_from_encoder(encoder_folder, "val", info.validation)
        if start:
            check_held_out(start.folder, "val", info.validation)
        if accelerator.is_main_process:
            if "weights" not in state:
                _create_model(folder, decoder_config, data, encoder_folder, keep_map)
            earlier = [TrainedPhotos.of_encoder(encoder_folder), *([TrainedPhotos.read(start.folder)] if start else [])]
            info.trained.plus(earlier).write(folder)
            run.start(settings)
        accelerator.wait_for_everyone()
        if keep_map and isinstance(data.map_embeddings, PagedMap) and not decoder_config.patch_tokens:
            table = _mapped_table(folder, data)  # tiles of a file in no compressed chunks are read in any order
        kind = ShardedDecoderTask if isinstance(train, PhotoShards) else DecoderTask
        loop = TrainingLoop(kind(accelerator, decoder, table, train, val, config, run), run, progress=progress)
        began = time.monotonic()
        loop.train(state)
        seconds = time.monotonic() - began
    if accelerator.is_main_process:
        _calibrate(folder, table, val)  # also if a complete run was stopped just before this
    if state["epoch"] < config.epochs:
        loop.close(leave=not experts_follow)
    return TrainReport(
        folder=folder,
        epochs=config.epochs - state["epoch"],
        total=config.epochs,
        best=run.best() if run.metrics else {},
        train=len(train),
        val=len(val),
        unreachable=train.unreachable + val.unreachable,
        seconds=seconds,
    )


def _create_model(
    folder: Path, decoder_config: DecoderConfig, data: TrainingData, encoder_folder: Path | None, keep_map: bool
) -> None:
    info = data.info
    create_folder(folder, decoder_config, info.pyramid, info.encoder, encoder_folder, info.imagery)
    if keep_map:
        features = data.map_embeddings
        features = replace(features, cells=None) if isinstance(features, MapEmbeddings) else features
        write_file(folder, MAP, features.save)


def _mapped_table(folder: Path, data: TrainingData) -> TileTable:
    """The map of the model folder, which holds that of the cache."""
    features = data.map_embeddings
    assert isinstance(features, PagedMap)
    return TileTable(
        PagedMap.of_file(folder / MAP, features.pyramid, features.width, features.limit), data.table.device
    )


class DecoderTask(CacheTask):
    """Training of the decoder from the cache.

    Args:
        accelerator: device, precision and processes.
        decoder: the decoder to train, in place.
        table: the map, on the device.
        train: training photos, on the device.
        val: validation photos, which select the epoch, on the device.
        config: the settings of training.
        run: the run whose folder the best weights are written to.
    """

    label = "decoder"
    network: ZoomDecoder
    config: TrainConfig
    view: Tensor | None = None  # (photo,) view of each photo in an epoch

    def __init__(
        self,
        accelerator: Accelerator,
        decoder: ZoomDecoder,
        table: TileTable,
        train: Any,
        val: ZoomDataset,
        config: TrainConfig,
        run: TrainingRun,
    ) -> None:
        self.accelerator, self.network, self.config, self.run = accelerator, decoder, config, run
        self.table, self.train, self.val = table, train, val
        self.device, self.photos = table.device, len(train)

    @property
    def compile(self) -> bool | Literal["auto"]:  # type: ignore[override]
        """`train.compile`."""
        return self.config.compile

    def full_batches(self) -> int:
        """Number of optimizer steps in the run whose batch is full."""
        return self.config.epochs * (self.photos // self.config.batch_size)

    def obstacle(self) -> str:
        """What is read from disk within a step."""
        if self.network.config.patch_tokens:
            return "patch tokens may be read from the cache within a step"
        if not isinstance(self.table.embedding, Tensor):
            return "the map is larger than memory, and read within a step"
        return ""

    def fixed_tensors(self) -> list[Tensor]:
        """The map, the photos and their views."""
        tensors = self.train.query, self.train.tiles, self.train.actions, self.view, self.table.embedding
        return [tensor for tensor in tensors if isinstance(tensor, Tensor)]

    def validates(self, epoch: int) -> bool:
        """Whether `train.validate_every` epochs have passed, or all."""
        return (epoch + 1) % self.config.validate_every == 0 or epoch + 1 == self.config.epochs

    def inputs(self, part: Any) -> tuple[Tensor, Tensor, Tensor]:
        """(photo, feature) float32 queries, (photo, L) tiles and (photo, L) actions of a part of a batch."""
        assert self.view is not None  # drawn by `begin_epoch`
        return self.train.query[part, self.view[part]].float(), self.train.tiles[part], self.train.actions[part]

    def begin_epoch(self, seed: int) -> None:
        """Draw the views of the photos, into the same tensor in every epoch (`fixed_tensors`)."""
        view = self.train.draw_views(seed)
        self.view = view if self.view is None else self.view.copy_(view)

    def loss(self, model: nn.Module, part: Any) -> Tensor:
        """Cross-entropy of the next action, with teacher forcing."""
        query, tiles, actions = self.inputs(part)
        with self.accelerator.autocast():
            logits = model(query, self.table.tokens(tiles, query, self.network.config.patch_tokens), actions)
        smoothing = self.config.label_smoothing
        return F.cross_entropy(logits.float().flatten(0, 1), actions.flatten(), label_smoothing=smoothing)

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned.

        Raises:
            ModelError: the run began with photos that were read in shards.
        """
        if TOGETHER in state:
            raise ModelError(
                f"{self.run.folder} was trained with photos read in shards, in another order than in memory: go on so "
                "with `--set train.memory=1MB`, or delete the folder to train from scratch"
            )
        super().load_extra_state(state)

    def validate(self) -> Metrics:
        """Recall and median error of greedy search, and the teacher-forced loss."""
        return validate(self.network, self.table, self.val)

    def save(self, weights: dict[str, Tensor]) -> None:
        """Write decoder.safetensors."""
        save_tensors(self.run.folder, weights)


class ShardedDecoderTask(DecoderTask):
    """Training of the decoder on photos that do not fit into memory; a part of a batch is a `ZoomBatch`."""

    train: PhotoShards

    def obstacle(self) -> str:
        """Photos are no indices of tensors on the device."""
        return "the photos are larger than train.memory, and read from the cache in shards"

    def plan_epoch(self, seed: int) -> Sequence[Tensor]:
        """Nothing: `batches` plans an epoch while its photos are read."""
        return ()

    def begin_epoch(self, seed: int) -> None:
        """Nothing: views are drawn where the photos are read."""

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Photos read from the cache in shuffled shards; the epoch seeds their order, their views and dropout."""
        world, process = self.accelerator.num_processes, self.accelerator.process_index
        super().batches(epoch, first)  # seeds dropout

        def read() -> Iterator[Batch]:
            seed = self.config.seed * 1_000_003 + epoch
            for photos in self.train.batches(seed, self.config.batch_size, first, world):
                own = photos.of(torch.arange(process, len(photos), world)).to(self.device)
                yield Batch([own], [len(own)], len(photos))

        return read()

    def inputs(self, part: ZoomBatch) -> tuple[Tensor, Tensor, Tensor]:
        """See `DecoderTask.inputs`."""
        return part.query.float(), part.tiles, part.actions

    def extra_state(self) -> dict[str, Any]:
        """The state of `CacheTask`, and the number of shards in a buffer, on which the order of the photos depends."""
        return {**super().extra_state(), TOGETHER: self.train.together}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned; a run that began with other buffers keeps theirs.

        Raises:
            ModelError: the run began with its photos in memory.
        """
        if TOGETHER not in state:
            raise ModelError(
                f"{self.run.folder} was trained with all photos in memory, which they do not fit into now: give "
                "train.memory (`--set train.memory=40GB`), or delete the folder to train from scratch"
            )
        CacheTask.load_extra_state(self, state)
        self.train = replace(self.train, together=state[TOGETHER])


def _calibrate(folder: Path, table: TileTable, val: ZoomDataset) -> None:
    """Fit the temperatures of the best epoch, unless they have been fitted."""
    if len(val) and read_zoom_config(folder).temperature is None:
        decoder = ZoomModel.load(folder, table.device).decoder
        update_config(folder, temperature=tuple(fit_temperature(decoder, table, val)))


def run_fingerprint(
    info: DataInfo, decoder_config: DecoderConfig, config: TrainConfig, start: ZoomModel | None
) -> dict[str, Any]:
    """What the outcome of a run depends on.

    Args:
        info: provenance of the data.
        decoder_config: the architecture, with the width of the cache's encoder.
        config: the settings of training.
        start: the model to start from; None for a run from scratch.
    """
    return {
        **{f"decoder.{key}": value for key, value in decoder_config.to_dict().items()},
        **config.fingerprint(),
        "train.init": init_digest(start),
        "encoder": info.encoder.fingerprint[:16],
        "imagery": info.imagery.fingerprint[:16] if info.imagery else "",
        "views": info.augmentation if config.views else {},
        "photos": info.photos,
    }
