"""Training an encoder for retrieval, the way of the methods that the zoom is compared with (paper, table 1).

One encoder for both views, as for the zoom; a photo and the piece of map around its cell are a pair, and the other
pairs of the batch are its negatives. All that is not the objective is that of fine-tuning.
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

from jzi.encode.augment import DRAWS
from jzi.encode.cells import CellImages
from jzi.encode.encoder import Encoder
from jzi.encode.imagery import Imagery
from jzi.evaluate.metrics import RADII, RANKS, cell_error
from jzi.retrieve.retriever import save_retriever
from jzi.retrieve.similarity import fit_temperature, nearest, ranks
from jzi.store.photo_table import PhotoTable
from jzi.train.area import CellArea, load_or_leave_nothing
from jzi.train.config import RetrieverConfig
from jzi.train.encoder import EncoderTask, EncoderTrainingReport, Part, data_fingerprint, seeded, train_encoder
from jzi.train.loop import make_accelerator
from jzi.train.losses import ALPHA, LOSSES
from jzi.train.networks import ContrastiveEncoder, trained_parameters
from jzi.train.run import Metrics, TrainingRun
from jzi.train.sampling import nearest_on_map, neighbour_batches


class RetrieverTask(EncoderTask):
    """A contrast between photos and cells."""

    label = "retriever"
    network: ContrastiveEncoder
    areas: Sequence[CellArea]
    config: RetrieverConfig

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: The order of the training photos in this epoch and in those to come before the next mining.
        self.orders: dict[int, Tensor] = {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Encoder and scale; the scale does not decay."""
        encoder, scale = trained_parameters(self.network.model), [self.network.log_scale]
        return [{"params": encoder}, {"params": [p for p in scale if p.requires_grad], "weight_decay": 0.0}]

    def steps(self) -> int:
        """Of an epoch."""
        return math.ceil(len(self.areas[0].train) / self.config.batch_size) if self.areas else 0

    # Batches

    def plan(self, epoch: int) -> list[tuple[int, Tensor]]:
        """Random batches, or batches of neighbours."""
        if epoch not in self.orders:
            self.orders = self._mined(epoch) if self.config.mines else {epoch: self._shuffled(epoch)}
        order, world = self.orders[epoch].long(), self.accelerator.num_processes
        order = torch.cat([order, order[: -len(order) % world]])  # every process has as many
        return [(0, batch) for batch in order.split(self.config.batch_size)]

    def _shuffled(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.areas[0].train), generator=seeded(self.config.seed, epoch)).int()

    def _mined(self, epoch: int) -> dict[int, Tensor]:
        """Orders up to the next mining; in the first epochs neighbours are those on the map."""
        every, train = self.config.mine_every, self.areas[0].train
        first = epoch // every * every
        cells, place = np.unique(train.tiles[:, 0].numpy(), return_inverse=True)
        if first == 0:
            side = self.areas[0].images.cells
            where = torch.from_numpy(np.stack([cells // side, cells % side], -1)).float()
            neighbours = nearest_on_map(where, self.config.neighbour_range)[place]
        else:
            neighbours = self._similar(cells, place)
        orders = {}
        for each in range(epoch, min(first + every, self.config.epochs)):
            rng = np.random.default_rng([self.config.seed, each])
            shuffled = self._shuffled(each).long().numpy()
            order = neighbour_batches(shuffled, place, neighbours, self.config.batch_size, self.config.neighbours, rng)
            orders[each] = torch.from_numpy(order).int()
        return orders

    @torch.inference_mode()
    def _similar(self, cells: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int32]:
        """(photo, range) places whose cells look most like each training photo, its own left out."""
        self.network.eval()
        count = min(self.config.neighbour_range, len(cells) - 1)
        reference = F.normalize(self.encode_tiles(0, torch.from_numpy(cells)).float(), dim=-1)
        query, readable = self.encode_photos(self.areas[0].train)
        found = nearest(F.normalize(query.float(), dim=-1), reference, count + 1)
        kept = np.empty((len(place), count), np.int32)
        kept[:] = np.arange(count)  # of photos that cannot be read, which are left out of batches anyway
        own = found == place[readable][:, None]
        own[~own.any(1), -1] = True  # one of each row goes
        kept[readable] = found[~own].reshape(len(readable), count)
        return kept

    # The objective

    def part_loss(self, model: nn.Module, part: Part, generator: torch.Generator) -> Tensor:
        """Of this process's photos among those of all processes."""
        readable, squares = self.squares(part.photos, generator)
        cells = self.areas[part.area].train.tiles[part.index[readable], 0]
        distinct, which = torch.unique(cells, return_inverse=True)
        draws = torch.rand(len(distinct), DRAWS, generator=generator) if self.config.augment else None
        pixels = self.pixels(part.area, distinct, squares.flatten(0, 1), draws)
        with self.accelerator.autocast():
            query, reference, scale = model(pixels, which.to(pixels.device))
        smoothing = self.config.label_smoothing
        world = self.accelerator.num_processes
        query, reference = (self._of_all(values, 0.0) for values in (query.float(), reference.float()))
        cells = self._of_all(cells.to(query.device), -1)
        # Wrappers take the mean of gradients over processes: each has that of its own photos alone, and all the scale's
        scale = (scale + (world - 1) * scale.detach()) / world
        loss = LOSSES[self.config.loss](query, reference, cells, scale, smoothing)
        return loss + (world - 1) * (loss - loss.detach())

    def _of_all(self, values: Tensor, empty: float) -> Tensor:
        """Rows of every process; the gradient is that of this one's."""
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return values
        padded = accelerator.pad_across_processes(values, pad_index=empty)
        parts = list(accelerator.gather(padded.detach()).split(len(padded)))
        parts[accelerator.process_index] = padded
        return torch.cat(parts)

    def validate(self) -> Metrics:
        """All cells and the validation photos through the encoder as it is, then exact search."""
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

    # What is kept

    #: What makes similarities to probabilities, fitted on the validation photos where there are any.
    temperature: float | None = None

    def keep(self) -> None:
        """Write the encoder as it is now, and what it is for."""
        area, temperature = self.areas[0], self.temperature or float(1 / self.network.log_scale.exp())
        self.keep_encoder()
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
        """The orders that a mining has made."""
        return {"orders": self.orders}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Likewise."""
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
    """Train the encoder's last blocks for retrieval; keep the epoch with the best recall at 40 m on "val" photos.

    A run with the same settings is resumed where it was stopped, in the middle of an epoch too. Under `accelerate
    launch` the processes share every batch, and each photo's negatives are those of all.

    Args:
        imagery: the map.
        table: the photos.
        encoder: where to start from; its weights are changed.
        folder: the retriever's folder to make; the database of cells is encoded after (`jzi index`).
        config: how to train.
        settings: kept as train/settings.toml.

    Raises:
        ImageryError: the map cannot be read; nothing is left behind.
        TrainingError: there is no photo to train on, or the loss is not finite.
        ModelError: the folder holds a model that was trained in another way, or the disk is full.
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

    areas = load_or_leave_nothing(folder, load) if state["epoch"] < config.epochs else []
    task = RetrieverTask(accelerator, network, encoder, areas, config, run)
    return train_encoder(task, state, settings)
