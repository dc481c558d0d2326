"""Training of the heads of the experts cells and levels from the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from jzi.errors import ConfigError
from jzi.evaluate.metrics import RADII, cell_error
from jzi.retrieve.cells import CellsExpert
from jzi.retrieve.dense import DenseExpert
from jzi.retrieve.heads import HeadsConfig, SimilarityHeads, cell_scales
from jzi.retrieve.levels import LevelsExpert, level_embeddings
from jzi.store.features.map_embeddings import NODATA
from jzi.store.model_folder import write_file
from jzi.train.cache_task import CacheTask
from jzi.train.config.training import HeadsTrainingConfig
from jzi.train.data import TrainingData
from jzi.train.run import Metrics, TrainingRun
from jzi.train.task import Batch

#: The best weights, in the folder of the run.
HEADS = "heads.safetensors"

#: Photos validated at once.
BATCH = 256


def heads_file(name: str) -> str:
    """Path in the model folder of the best weights of an expert's heads."""
    return f"train/{name}/{HEADS}"


class HeadsTask(CacheTask):
    """Training of a pair of heads, on one or several areas.

    A batch is of one area, and its photos are compared with places of that area only. The task of the first area trains
    the heads; tasks of the others compute the loss and the validation of theirs with the same heads.

    Args:
        accelerator: device, precision and processes.
        data: the map with its cells, and the photos.
        config: the settings of training.
        run: the run whose folder the best weights are written to.
        views: maximum number of augmented views to draw from beside the plain photo.
        others: the maps and photos of other areas.
        network: the heads to use; None to initialize new ones.
    """

    network: SimilarityHeads
    config: HeadsTrainingConfig
    view: Tensor

    def __init__(
        self,
        accelerator: Accelerator,
        data: TrainingData,
        config: HeadsTrainingConfig,
        run: TrainingRun,
        views: int,
        others: Sequence[TrainingData] = (),
        network: SimilarityHeads | None = None,
    ) -> None:
        self.accelerator, self.data, self.config, self.run = accelerator, data, config, run
        self.pyramid, self.device = data.info.pyramid, accelerator.device
        self.train, self.val = data.dataset.with_views(views), data.val
        self.photos = len(self.train)
        self.network = network or SimilarityHeads(self.architecture()).to(self.device)
        tasks = (type(self)(accelerator, other, config, run, views, network=self.network) for other in others)
        self.areas: list[HeadsTask] = [self, *tasks]
        self._area_of_batch: list[int] = []

    def architecture(self) -> HeadsConfig:
        """Architecture of the heads."""
        raise NotImplementedError

    def expert(self) -> DenseExpert:
        """The expert with the network's current weights, in eval mode."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The heads, and the factors of similarities, which do not decay."""
        scale = self.network.log_scale
        heads = [parameter for parameter in self.network.parameters() if parameter is not scale]
        return [{"params": heads}, {"params": [scale], "weight_decay": 0.0}]

    def batch_loss(self, model: nn.Module, part: Tensor) -> Tensor:
        """Mean loss of photos of this task's area.

        Args:
            model: the heads as wrapped by Accelerate.
            part: (photo,) indices of training photos, on the device.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, part: tuple[int, Tensor]) -> Tensor:
        """`batch_loss` of the area whose photos these are."""
        area, index = part
        return self.areas[area].batch_loss(model, index)

    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch, over all areas."""
        return sum(math.ceil(area.photos / self.config.batch_size) for area in self.areas)

    def plan_epoch(self, seed: int) -> Sequence[Tensor]:
        """Shuffled batches of one area each."""
        generator = torch.Generator().manual_seed(seed)
        batches = [
            (number, batch) for number, area in enumerate(self.areas) for batch in self.shuffle(area.photos, generator)
        ]
        if len(self.areas) > 1:
            batches = [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
        self._area_of_batch = [number for number, _ in batches]
        return [batch for _, batch in batches]

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Batches whose parts are the number of an area and (photo,) indices of its training photos."""
        batches = super().batches(epoch, first)
        areas = self._area_of_batch[first:]
        return (
            replace(batch, parts=[(area, index) for index in batch.parts])
            for area, batch in zip(areas, batches, strict=True)
        )

    def begin_epoch(self, seed: int) -> None:
        """Draw the views of the photos."""
        for area in self.areas:
            area.view = area.train.draw_views(seed)

    def query(self, part: Tensor) -> Tensor:
        """(photo, feature) float32 embeddings of a batch."""
        return self.train.query[part, self.view[part]].float()

    def validate(self) -> Metrics:
        """Recall of the most probable cells, and the negative log-likelihood of the true ones; a mean over the areas.

        Areas count by their number of validation photos.
        """
        areas = [area for area in self.areas if len(area.val)]
        photos = sum(len(area.val) for area in areas)
        mean: dict[str, float] = {}
        for area in areas:
            for name, value in area.validate_area().items():
                mean[name] = mean.get(name, 0.0) + value * (len(area.val) / photos)
        return mean

    @torch.inference_mode()
    def validate_area(self) -> Metrics:
        """Metrics on the validation photos of this task's area."""
        self.network.eval()
        expert, loss, best = self.expert(), 0.0, []
        index = np.full(self.pyramid.shape, -1)
        index[expert.row, expert.col] = np.arange(len(expert.row))
        truth = torch.from_numpy(index[self.pyramid.path_to_tile(self.val.actions.cpu().numpy())]).to(self.device)
        for query, true_cell in zip(self.val.query[:, 0].split(BATCH), truth.split(BATCH), strict=True):
            log = expert.log_probabilities(query.float()).log_softmax(-1)
            loss -= float(log.gather(1, true_cell[:, None]).clamp(min=-100.0).sum())
            best.append(log.argmax(-1).cpu().numpy())
        cell = np.concatenate(best)
        error = cell_error(self.pyramid, expert.row[cell], expert.col[cell], self.val.latitude, self.val.longitude)
        recall = {f"recall@{radius:g}m": float((error <= radius).mean()) for radius in RADII}
        return {"val_loss": loss / len(cell), **recall, "median_error_m": float(np.median(error))}

    def save(self, weights: dict[str, Tensor]) -> None:
        """Write the weights into the run's folder."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
        write_file(self.run.folder, heads_file(self.label), partial(save_file, tensors))


class CellsTask(HeadsTask):
    """Heads of the expert cells: cross-entropy over all cells of the map, with labels that are soft in distance.

    Raises:
        ConfigError: the softmax is to run over a sample that the cells of a batch's photos may exceed.
    """

    label = "cells"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        features = self.data.whole_map
        self.cell_mask = cell_mask_of(self.data)
        self.row, self.col = np.nonzero(self.cell_mask)
        batch, sampled = min(self.config.batch_size, len(self.train)), self.config.sampled
        if batch >= sampled < len(self.row):
            raise ConfigError(
                f"heads.sampled is {sampled}, but the {batch} photos of a batch may lie in as many cells, all of which "
                "must be in the softmax: set it to a multiple of heads.batch_size"
            )
        self.scales = cell_scales(features, self.row, self.col).half().to(self.device)
        self.centers = self._positions(*self.pyramid.cell_centers(self.row, self.col))
        self.position = self._positions(*self.pyramid.project(self.train.latitude, self.train.longitude))

    def architecture(self) -> HeadsConfig:
        """Two MLPs; a cell is described by its crop and the tiles that contain it."""
        config = self.config
        prototypes = int(cell_mask_of(self.data).sum()) if config.prototypes else 0
        width, levels = self.data.info.encoder.width, self.pyramid.levels
        return HeadsConfig(width, levels, config.hidden, config.features, config.dropout, prototypes=prototypes)

    def batch_loss(self, model: nn.Module, part: Tensor) -> Tensor:
        """Cross-entropy with the soft labels, over all cells or a sample of them."""
        cells, correction = self._sample(part)
        scales, centers = (self.scales, self.centers) if cells is None else (self.scales[cells], self.centers[cells])
        with self.accelerator.autocast():
            photo_codes, cell_codes = model(self.query(part), scales.float(), cells)
            logits = (photo_codes[:, 0] @ cell_codes.T).float()
        closeness, smoothing = -self._square(part, centers) / (2 * self._sigma**2), self.config.label_smoothing
        if correction is None:
            label, log = closeness.softmax(-1), logits.log_softmax(-1)
            uniform = log.mean(-1)
        else:  # a cell that stands for several counts several times in each sum over the cells
            label, log = (closeness + correction).softmax(-1), (logits + correction).log_softmax(-1) - correction
            uniform = (log * correction.exp()).sum(-1) / len(self.row)
        loss: Tensor = -(1 - smoothing) * (label * log).sum(-1) - smoothing * uniform
        return loss.mean()

    def _sample(self, part: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Indices of the cells of the softmax, and what to add to their logits; None for all cells and nothing.

        The cells near the photos are included, up to half of the sample: first those that photos lie in, then the
        nearest. Each cell of a uniform sample of the others stands for several, so the logarithm of their number is
        added to its logit (sampled softmax; Bengio and Senecal 2008).
        """
        count, sampled = len(self.row), self.config.sampled
        if count <= sampled:
            return None, None
        reach = max(4 * self._sigma, self.pyramid.cell_size)  # includes the photo's own cell, whatever sigma
        nearest = torch.full((count,), torch.inf, device=self.device)
        occupied = []
        for positions in self.position[part].split(32):
            distance = _distance(positions, self.centers)
            nearest = torch.minimum(nearest, distance.amin(0))
            occupied.append(distance.argmin(1))
        nearest[torch.cat(occupied)] = -1.0
        # How many are near is known to the device only: sizes do not depend on it, so that nothing waits for that
        distance, candidates = nearest.topk(min(max(sampled // 2, len(part)), sampled - 1), largest=False)
        is_near = (distance <= reach) & (
            (distance < 0) | (torch.arange(len(distance), device=self.device) < sampled // 2)
        )
        near = torch.zeros(count, dtype=torch.bool, device=self.device).index_put_((candidates,), is_near)
        order = torch.rand(count).to(self.device).masked_fill_(near, -1.0)  # the others at random, after those near
        chosen = order.topk(sampled, largest=False).indices
        number = near.sum()
        correction = torch.log((count - number) / (sampled - number))
        return chosen, torch.where(near[chosen], 0.0, correction)

    def _square(self, part: Tensor, centers: Tensor) -> Tensor:
        """(photo, cell) squared distances, square metres."""
        return _distance(self.position[part], centers).square()

    def expert(self) -> CellsExpert:
        """The expert with the network's current weights."""
        codes = self.network.eval().encode_places(self.scales)
        return CellsExpert(self.pyramid, self.data.info.encoder, self.cell_mask, self.network, codes)

    @property
    def _sigma(self) -> float:
        return self.config.sigma * self.pyramid.cell_size

    def _positions(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Tensor:
        """(n, 2) metres from the area's corner, which float32 holds to the millimetre."""
        corner = np.stack([x - self.pyramid.west, y - self.pyramid.north], 1)
        return torch.from_numpy(corner).float().to(self.device)


class LevelsTask(HeadsTask):
    """Heads of the expert levels: cross-entropy among the siblings of every tile of the true path."""

    label = "levels"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        embeddings, self.has_imagery = level_embeddings(self.data.whole_map)
        self.embeddings = [each.half().to(self.device) for each in embeddings]

    def architecture(self) -> HeadsConfig:
        """Two MLPs; a tile is described by its own embedding, a photo has a code for each level."""
        config, width = self.config, self.data.info.encoder.width
        return HeadsConfig(width, 1, config.hidden, config.features, config.dropout, self.pyramid.levels)

    def batch_loss(self, model: nn.Module, part: Tensor) -> Tensor:
        """Mean over the levels."""
        g, actions = self.pyramid.grid, self.train.actions[part]  # (photo, level)
        row = col = torch.zeros(len(part), dtype=torch.int64, device=self.device)
        child = torch.arange(g * g, device=self.device)
        siblings, tiles, total = [], [], 0
        for level in range(1, self.pyramid.levels + 1):
            rows, cols = row[:, None] * g + child // g, col[:, None] * g + child % g  # (photo, child)
            index = rows * g**level + cols
            distinct, place = distinct_tiles(index, len(self.embeddings[level - 1]))
            tiles.append(self.embeddings[level - 1][distinct])
            siblings.append(place + total)
            total += len(distinct)
            row, col = row * g + actions[:, level - 1] // g, col * g + actions[:, level - 1] % g
        with self.accelerator.autocast():
            photo_codes, tile_codes = model(self.query(part), torch.cat(tiles).float())
            similarity = torch.einsum("plc,plsc->pls", photo_codes, tile_codes[torch.stack(siblings, 1)])
        logits, smoothing = similarity.float().flatten(0, 1), self.config.label_smoothing
        return nn.functional.cross_entropy(logits, actions.flatten(), label_smoothing=smoothing)

    def expert(self) -> LevelsExpert:
        """The expert with the network's current weights."""
        self.network.eval()
        codes = [self.network.encode_places(level) for level in self.embeddings]
        return LevelsExpert(self.pyramid, self.data.info.encoder, self.has_imagery, self.network, codes)


#: The experts that are trained by gradient descent beside the zoom.
HEADS_TASKS: dict[str, type[HeadsTask]] = {"cells": CellsTask, "levels": LevelsTask}


def distinct_tiles(index: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
    """Tiles to encode for some indices, and the position of each index among them.

    On a CPU these are the distinct ones. A GPU would have to be waited for to know their number, so there they are all
    tiles if that is no more than there are indices, else one tile per index.

    Args:
        index: of any shape, less than `tiles`.
        tiles: number of tiles.

    Returns:
        (n,) indices of tiles, and positions among them of the shape of `index`.
    """
    if index.device.type == "cpu":
        return index.unique(return_inverse=True)
    if tiles <= index.numel():
        return torch.arange(tiles, device=index.device), index
    return index.flatten(), torch.arange(index.numel(), device=index.device).view_as(index)


def _distance(positions: Tensor, centers: Tensor) -> Tensor:
    """(photo, cell) distances, not by a matrix product, whose error grows with the size of the map."""
    return torch.cdist(positions, centers, compute_mode="donot_use_mm_for_euclid_dist")


def cell_mask_of(data: TrainingData) -> NDArray[np.bool_]:
    """(row, col) whether each cell of a map has imagery."""
    return np.asarray(data.whole_map.status[-1] != NODATA)
