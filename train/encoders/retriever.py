"""Training of an encoder for retrieval, by the methods that the zoom is compared with (paper, table 1).

One encoder embeds both views, as for the zoom. A photo and the reference crop of its cell form a positive pair; the
other crops of the batch are negatives. Everything but the objective is shared with fine-tuning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from numpy.typing import NDArray
from torch import Tensor, nn

from jzi.encode.encoders.encoder import Encoder
from jzi.encode.photo.augment import DRAWS
from jzi.encode.rasters.cells import CellImages
from jzi.encode.rasters.imagery import Imagery
from jzi.evaluate.metrics import RADII, RANKS, cell_error
from jzi.retrieve.retriever import save_retriever
from jzi.retrieve.similarity import fit_temperature, nearest, ranks
from jzi.store.photos.photo_table import PhotoTable
from jzi.train.config.encoders import RetrieverConfig
from jzi.train.encoders.area import CellArea, load_areas
from jzi.train.encoders.encoder import (
    EncoderTask,
    EncoderTrainingReport,
    Part,
    data_fingerprint,
    seeded_generator,
    train_encoder,
)
from jzi.train.encoders.networks import ContrastiveEncoder, trained_parameters
from jzi.train.encoders.sampling import nearest_on_map, neighbour_batches
from jzi.train.loop import make_accelerator
from jzi.train.losses import ALPHA, LOSSES
from jzi.train.run import Metrics, TrainingRun


class RetrieverTask(EncoderTask):
    """Contrastive training on pairs of photos and reference crops of cells."""

    label = "retriever"
    network: ContrastiveEncoder
    areas: Sequence[CellArea]
    config: RetrieverConfig

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: Order of the training photos in this epoch and in the following ones until the next mining, by epoch.
        self.orders: dict[int, Tensor] = {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters of the encoder, and the scale, without weight decay."""
        encoder, scale = trained_parameters(self.network.model), [self.network.log_scale]
        return [{"params": encoder}, {"params": [p for p in scale if p.requires_grad], "weight_decay": 0.0}]

    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return math.ceil(len(self.areas[0].train) / self.config.batch_size) if self.areas else 0

    # Batches

    def plan_epoch(self, epoch: int) -> list[tuple[int, Tensor]]:
        """Random batches, or batches of neighbours: index of the area, and (photo,) indices of its training photos."""
        if epoch not in self.orders:
            self.orders = self._mine(epoch) if self.config.mines else {epoch: self._shuffled(epoch)}
        order, world = self.orders[epoch].long(), self.accelerator.num_processes
        order = torch.cat([order, order[: -len(order) % world]])  # the same number for every process
        return [(0, batch) for batch in order.split(self.config.batch_size)]

    def _shuffled(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.areas[0].train), generator=seeded_generator(self.config.seed, epoch)).int()

    def _mine(self, epoch: int) -> dict[int, Tensor]:
        """Orders of the epochs until the next mining; in the first epochs, neighbours are those on the map."""
        every, train = self.config.mine_every, self.areas[0].train
        first = epoch // every * every
        cells, cell_index = np.unique(train.tiles[:, 0].numpy(), return_inverse=True)
        if first == 0:
            side = self.areas[0].images.cells
            rows_and_cols = torch.from_numpy(np.stack([cells // side, cells % side], -1)).float()
            neighbours = nearest_on_map(rows_and_cols, self.config.neighbour_range)[cell_index]
        else:
            neighbours = self._nearest_by_similarity(cells, cell_index)
        orders = {}
        for each in range(epoch, min(first + every, self.config.epochs)):
            rng = np.random.default_rng([self.config.seed, each])
            shuffled = self._shuffled(each).long().numpy()
            sizes = self.config.batch_size, self.config.neighbours
            order = neighbour_batches(shuffled, cell_index, neighbours, *sizes, rng)
            orders[each] = torch.from_numpy(order).int()
        return orders

    @torch.inference_mode()
    def _nearest_by_similarity(self, cells: NDArray[np.int64], cell_index: NDArray[np.int64]) -> NDArray[np.int32]:
        """(photo, range) indices into `cells` of those most similar to each training photo, except its own cell."""
        self.network.eval()
        count = min(self.config.neighbour_range, len(cells) - 1)
        reference = F.normalize(self.encode_tiles(0, torch.from_numpy(cells)).float(), dim=-1)
        query, readable = self.encode_photos(self.areas[0].train)
        candidates = nearest(F.normalize(query.float(), dim=-1), reference, count + 1)
        neighbours = np.empty((len(cell_index), count), np.int32)
        neighbours[:] = np.arange(count)  # placeholder for unreadable photos, which batches leave out
        dropped = candidates == cell_index[readable][:, None]
        dropped[~dropped.any(1), -1] = True  # drop one per row: the photo's own cell, or else the least similar
        neighbours[readable] = candidates[~dropped].reshape(len(readable), count)
        return neighbours

    # The objective

    def part_loss(self, model: nn.Module, part: Part, generator: torch.Generator) -> Tensor:
        """Loss of this process's photos, contrasted with the photos and cells of all processes."""
        readable, squares = self.photo_squares(part.photos, generator)
        cells = self.areas[part.area].train.tiles[part.index[readable], 0]
        distinct, index = torch.unique(cells, return_inverse=True)
        draws = torch.rand(len(distinct), DRAWS, generator=generator) if self.config.augment else None
        pixels = self.input_pixels(part.area, distinct, squares.flatten(0, 1), draws)
        with self.accelerator.autocast():
            query, reference, scale = model(pixels, index.to(pixels.device))
        smoothing = self.config.label_smoothing
        world = self.accelerator.num_processes
        query, reference = (self.gather_rows(values, 0.0) for values in (query.float(), reference.float()))
        cells = self.gather_rows(cells.to(query.device), -1)
        # A process has the whole gradient of the scale, which `loss_of_rows` multiplies by the number of processes
        scale = (scale + (world - 1) * scale.detach()) / world
        loss = LOSSES[self.config.loss](query, reference, cells, scale, smoothing)
        return self.loss_of_rows(loss)

    def validate(self) -> Metrics:
        """Encode all cells and the validation photos, and search exactly."""
        area = self.areas[0]
        if not len(area.val):
            return {}
        cells = torch.from_numpy(np.flatnonzero(area.images.has_imagery))
        reference = F.normalize(self.encode_tiles(0, cells).float(), dim=-1)
        query, readable = self.encode_photos(area.val)
        query = F.normalize(query.float(), dim=-1)
        truth = torch.searchsorted(cells, area.val.tiles[readable, 0])
        best = cells[nearest(query, reference, 1)[:, 0]].numpy()
        pyramid, side = area.pyramid, area.images.cells
        error = cell_error(
            pyramid, best // side, best % side, area.val.latitude[readable], area.val.longitude[readable]
        )
        rank = ranks(query, reference, truth)
        self.temperature = fit_temperature(query, reference, truth)
        return {
            **{f"recall@{radius:g}m": float((error <= radius).mean()) for radius in RADII},
            **{f"recall@{k}": float((rank < k).mean()) for k in RANKS},
            "median_error_m": float(np.median(error)),
            "temperature": self.temperature,
        }

    # Saving

    #: Temperature of the softmax of similarities, fitted on the validation photos; None if there are none.
    temperature: float | None = None

    def keep_best(self) -> None:
        """Write the encoder with its current weights, and the retriever's config.json."""
        area, temperature = self.areas[0], self.temperature or float(1 / self.network.log_scale.exp())
        self.save_encoder()
        save_retriever(
            self.run.folder,
            area.pyramid,
            self.encoder.info,
            area.imagery,
            context=self.config.context,
            temperature=temperature,
            method=self.config.method,
        )

    def extra_state(self) -> dict[str, Any]:
        """The orders of the last mining."""
        return {"orders": self.orders}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""
        self.orders = state["orders"]


def train_retriever(
    imagery: Imagery,
    table: PhotoTable,
    encoder: Encoder,
    folder: Path,
    config: RetrieverConfig,
    *,
    settings: str = "",
) -> EncoderTrainingReport:
    """Train the encoder's last blocks for retrieval, and keep the epoch with the best recall at 40 m on "val" photos.

    An interrupted run with the same settings is resumed, also within an epoch. Under `accelerate launch` the processes
    share each batch, and a photo's negatives are the cells of all processes.

    Args:
        imagery: the map.
        table: the photos.
        encoder: the encoder to start from; it is trained in place.
        folder: the retriever's folder to write; its index of cells is encoded separately (`jzi index`).
        config: the settings of training.
        settings: TOML to write to train/settings.toml.

    Raises:
        ImageryError: the map cannot be read; no folder is left behind.
        TrainingError: there is no photo to train on, or the loss is not finite.
        ModelError: the folder holds a model that was trained in another way, or cannot be written.
        KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
    """
    accelerator = make_accelerator(config, folder)
    torch.manual_seed(config.seed)
    triplets = config.loss == "triplet"
    network = ContrastiveEncoder(
        encoder,
        config.blocks,
        ALPHA if triplets else 1 / config.temperature,
        not triplets,
        checkpointing=config.checkpointing,
        trunk_dtype=torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32,
    )
    fingerprint = {**data_fingerprint([(imagery, table)], encoder, config), "kind": "retriever"}
    run = TrainingRun(folder, fingerprint, hint="give another folder with -o, or delete it")
    state = run.resume()

    def load() -> list[CellArea]:
        images = CellImages(
            imagery,
            encoder.image_size,
            config.context,
            device=accelerator.device,
            folder=folder,
            progress=accelerator.is_main_process,
        )
        return [CellArea.load(imagery, table, images, config.val_photos)]

    areas = load_areas(folder, load) if state["epoch"] < config.epochs else []
    task = RetrieverTask(accelerator, network, encoder, areas, config, run)
    return train_encoder(task, state, settings, [table])
