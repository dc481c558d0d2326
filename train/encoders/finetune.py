"""Stage one: encoder and zoom decoder trained together on the zoom's own objective (paper, section 3).

The loss is the teacher-forced cross-entropy of the next action. A contrastive loss for the experts that compare
contents can be added to it (`finetune.contrast`), and batches can be mirrored (`finetune.mirror`). A step encodes each
distinct tile of a batch once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor, nn

from jzi.decode.config import DecoderConfig
from jzi.decode.dataset import ZoomDataset
from jzi.decode.model import ZoomModel, create_folder, save_weights
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.photo.augment import DRAWS, augment_tiles
from jzi.encode.rasters.cells import CellImages
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import ConfigError
from jzi.retrieve.heads import HeadsConfig, SimilarityHeads
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.photo_table import PhotoTable
from jzi.train.config.encoders import FinetuneConfig
from jzi.train.encoders.area import TrainingArea, load_areas
from jzi.train.encoders.encoder import (
    ENCODE_BATCH,
    EncoderTask,
    EncoderTrainingReport,
    Part,
    data_fingerprint,
    seeded_generator,
    train_encoder,
)
from jzi.train.encoders.networks import JointModel, trained_parameters
from jzi.train.loop import make_accelerator
from jzi.train.losses import level_contrast
from jzi.train.run import Metrics, TrainingRun
from jzi.train.zoom import init_digest, make_decoder, validate


def finetune(
    sources: Sequence[tuple[Imagery, PhotoTable]],
    encoder: Encoder,
    folder: Path,
    decoder_config: DecoderConfig,
    config: FinetuneConfig,
    *,
    start: ZoomModel | None = None,
    settings: str = "",
) -> EncoderTrainingReport:
    """Train the encoder's last blocks and a decoder, and keep the epoch with the best recall at 40 m on "val" photos.

    With a contrast the epoch with the least loss on them is kept: it is for experts that compare contents, of which the
    zoom's recall says little.

    The model folder holds the encoder, as written by `save_pretrained`, and the decoder, but no map, which has to be
    encoded again. An interrupted run with the same settings is resumed, also within an epoch. Under `accelerate
    launch` the processes share each batch.

    Args:
        sources: map and photos of each area; a batch is of one area.
        encoder: the encoder to start from; it is trained in place.
        folder: the model folder to write.
        decoder_config: the architecture; width and number of actions are taken from encoder and pyramid.
        config: the settings of training.
        start: a model whose decoder to start from; its architecture is used too.
        settings: TOML to write to train/settings.toml.

    Raises:
        ConfigError: the decoder reads patch tokens or looks ahead.
        ImageryError: the map cannot be read; no folder is left behind.
        TrainingError: there is no photo to train on, or the loss is not finite.
        ModelError: the folder holds a model that was trained in another way, or cannot be written.
        KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
    """
    accelerator = make_accelerator(config, folder)
    decoder_config = replace(decoder_config, width=encoder.width, actions=sources[0][0].pyramid.actions)
    torch.manual_seed(config.seed)
    decoder = make_decoder(decoder_config, start)
    _check_architecture(decoder.config)
    joint = JointModel(
        encoder,
        decoder,
        config.blocks,
        checkpointing=config.checkpointing,
        heads=_make_heads(encoder, sources[0][0].pyramid.levels) if config.contrast else None,
        trunk_dtype=torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32,
    )
    fingerprint = _fingerprint(sources, encoder, decoder.config, config, start)
    selects = "" if config.contrast else "recall@40m"
    run = TrainingRun(folder, fingerprint, hint="give another folder with -o, or delete it", selects=selects)
    state = run.resume()

    def load() -> list[TrainingArea]:
        return [
            TrainingArea.load(
                imagery,
                table,
                encoder.image_size,
                device=accelerator.device,
                folder=folder,
                val_photos=config.val_photos,
                cells=config.contrast > 0,
                progress=accelerator.is_main_process,
            )
            for imagery, table in sources
        ]

    areas = load_areas(folder, load) if state["epoch"] < config.epochs else []
    task = FinetuneTask(accelerator, joint, encoder, areas, config, run)
    return train_encoder(task, state, settings, [table for _, table in sources])


def _make_heads(encoder: Encoder, levels: int) -> SimilarityHeads:
    """Heads of the architecture of the expert levels; only the encoder is kept of what is trained with them."""
    return SimilarityHeads(HeadsConfig(encoder.width, spaces=levels)).to(encoder.device)


def _check_architecture(config: DecoderConfig) -> None:
    if config.patch_tokens:
        raise ConfigError(
            f"decoder.patch_tokens is {config.patch_tokens}, which only `jzi train-decoder` supports: fine-tune with "
            "`--set decoder.patch_tokens=0` and start from a decoder that reads none"
        )


class FinetuneTask(EncoderTask):
    """Training of encoder and decoder together."""

    label = "fine-tuning"
    network: JointModel
    areas: Sequence[TrainingArea]
    config: FinetuneConfig

    @property
    def accumulation(self) -> int:  # type: ignore[override]
        """Parts into which a batch is split for gradient accumulation."""
        return self.config.accumulation

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters of decoder and heads, and of the encoder, each with its learning rate."""
        config, network = self.config, self.network
        rate = config.learning_rate if config.encoder_learning_rate is None else config.encoder_learning_rate
        decoder, encoder = trained_parameters(network.decoder), trained_parameters(network.model)
        heads = [] if network.heads is None else trained_parameters(network.heads)
        return [{"params": decoder + heads}, {"params": encoder, "lr": rate}]

    def plan_epoch(self, epoch: int) -> list[tuple[int, Tensor]]:
        """Shuffled batches, each of one area: index of the area, and (photo,) indices of its training photos."""
        world, size = self.accelerator.num_processes, self.config.batch_size
        batches = []
        for number, area in enumerate(self.areas):
            generator = seeded_generator(self.config.seed, epoch, number)
            order = torch.randperm(len(area.train), generator=generator)
            order = torch.cat([order, order[: -len(order) % world]])  # the same number for every process
            batches += [(number, batch) for batch in order.split(size)]
        shuffled = torch.randperm(len(batches), generator=seeded_generator(self.config.seed, epoch, len(self.areas)))
        return [batches[index] for index in shuffled.tolist()]

    def part_loss(self, model: nn.Module, part: Part, generator: torch.Generator) -> Tensor:
        """Cross-entropy of the next action, with teacher forcing, and the contrast with the places of this process."""
        pixels, places, actions = self.inputs(part, generator)
        with self.accelerator.autocast():
            logits, codes = model(pixels, places, actions)
        smoothing = self.config.label_smoothing
        loss = F.cross_entropy(logits.float().flatten(0, 1), actions.flatten(), label_smoothing=smoothing)
        if codes is not None:
            photo_codes, place_codes = codes
            loss = loss + self.config.contrast * level_contrast(photo_codes, place_codes, places[:, 1:])
        return loss

    def inputs(self, part: Part, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Arguments of the joint model for a part of a batch.

        Args:
            part: the photos.
            generator: source of the random numbers for augmentation.

        Returns:
            `pixels`, `places` and `actions`, as in `JointModel.forward`.
        """
        area, device = self.areas[part.area], self.accelerator.device
        train = area.train
        mirror = self._draw_mirror(generator)
        photos = [None if photo is None else np.fliplr(photo) for photo in part.photos] if mirror else part.photos
        readable, squares = self.photo_squares(photos, generator)
        index = part.index[readable]
        distinct, tiles = torch.unique(train.tiles[index], return_inverse=True)
        draws = torch.rand(len(distinct), DRAWS, generator=generator) if self.config.augment else None
        if draws is not None:
            draws[distinct == 0] = 1.0  # the whole map is never augmented
        pixels = self.input_pixels(part.area, distinct, squares.flatten(0, 1), draws)
        if area.cells is not None:
            cells, cell = torch.unique(_cell_numbers(area.pyramid, train.actions[index]), return_inverse=True)
            images = self.encoder.to_unit(area.cells[cells])
            if self.config.augment:
                images = augment_tiles(images, torch.rand(len(cells), DRAWS, generator=generator))
            pixels = torch.cat([pixels, self.encoder.normalise(images)])
            tiles = torch.cat([tiles, len(distinct) + cell[:, None].to(tiles.device)], 1)
        actions = train.actions[index]
        if mirror:
            places = len(squares) * squares.shape[1]  # the first of them, after the squares of photos
            pixels = torch.cat([pixels[:places], pixels[places:].flip(3)])
            actions = _mirrored(actions, area.pyramid.grid)
        return pixels, tiles.to(device), actions.to(device)

    def _draw_mirror(self, generator: torch.Generator) -> bool:
        """Whether a part of a batch is mirrored, with its photos, places and actions."""
        share = self.config.mirror
        return share > 0 and torch.rand((), generator=generator).item() < share

    def validate(self) -> Metrics:
        """Encode every tile and the validation photos, and run greedy search on the embeddings."""
        photos = sum(len(area.val) for area in self.areas)
        mean: dict[str, float] = {}
        for number, area in enumerate(self.areas):
            if not len(area.val):
                continue
            tiles = self.encode_tiles(number)
            table = area.table.with_embedding(tiles)
            query, readable = self.encode_photos(area.val)
            dataset = ZoomDataset(
                query=query[:, None],
                tiles=area.val.tiles[readable].to(query.device),
                actions=area.val.actions[readable].to(query.device),
                latitude=area.val.latitude[readable],
                longitude=area.val.longitude[readable],
                unreachable=0,
            )
            found = validate(self.network.decoder, table, dataset)
            if area.cells is not None:
                found["val_loss"] += self.config.contrast * self._contrast(tiles, dataset, area.cells)
            for name, value in found.items():
                mean[name] = mean.get(name, 0.0) + value * len(area.val) / photos
        return mean

    @torch.inference_mode()
    def _contrast(self, tiles: Tensor, photos: ZoomDataset, crops: CellImages) -> float:
        """The contrast of validation photos with the places of all of them, of embeddings (tile, feature)."""
        heads, device = self.network.heads, tiles.device
        assert heads is not None
        cells, cell = torch.unique(_cell_numbers(crops.pyramid, photos.actions), return_inverse=True)
        embedding = [tiles]
        for part in cells.split(ENCODE_BATCH):
            with self.accelerator.autocast():
                embedding.append(self.network.embed(self.encoder.normalise(self.encoder.to_unit(crops[part]))))
        places = torch.cat([photos.tiles[:, 1:], len(tiles) + cell[:, None].to(device)], 1)
        photo_codes, place_codes = heads(photos.query[:, 0].float(), torch.cat([each.float() for each in embedding]))
        return float(level_contrast(photo_codes, place_codes, places))

    def keep_best(self) -> None:
        """Write encoder and decoder with their current weights."""
        folder, area, decoder = self.run.folder, self.areas[0], self.network.decoder
        info = replace(self.encoder.info, name=str(self.save_encoder()), from_hub=False)
        create_folder(folder, decoder.config, area.pyramid, info, None, area.imagery)
        save_weights(folder, decoder)


def _fingerprint(
    sources: Sequence[tuple[Imagery, PhotoTable]],
    encoder: Encoder,
    decoder_config: DecoderConfig,
    config: FinetuneConfig,
    start: ZoomModel | None,
) -> dict[str, Any]:
    decoder = {f"decoder.{key}": value for key, value in decoder_config.to_dict().items()}
    return {**decoder, **data_fingerprint(sources, encoder, config), "finetune.init": init_digest(start)}


def _mirrored(actions: Tensor, grid: int) -> Tensor:
    """The same actions on the mirrored map: of the same rows, with columns from the other side."""
    col = actions % grid
    return actions - col + (grid - 1 - col)


def _cell_numbers(pyramid: Pyramid, actions: Tensor) -> Tensor:
    """(photo,) numbers of cells in row-major order, as in `CellImages`."""
    row, col = pyramid.path_to_tile(actions.cpu().numpy())
    return torch.from_numpy(row * pyramid.tiles_per_side(pyramid.levels) + col)
