"""Visual place recognition as an expert: the positions of the training photos that look like a photo.

It compares photos with photos, so it is not cross-view, and reports list its results apart. The probability of a cell
is a kernel density estimate over the positions of training photos, weighted by the softmax of their similarities.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from jzi.errors import ConfigError, ModelError, first_line
from jzi.locate.answer.location import LocateOptions
from jzi.locate.inside import Hidden
from jzi.locate.keys import distinct
from jzi.locate.posterior import Posterior
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.store.setting_checks import check_settings
from jzi.store.tensors import check_finite, check_header

#: Most similar training photos that are weighted; the weights of the others are negligible.
NEIGHBOURS = 256

#: Number of training photos above which an HNSW graph is searched (Faiss) instead of all of them.
EXACT_PHOTOS = 1_000_000

#: Values that `VprExpert.fit` chooses from: divisors of cosine similarities, and kernel widths in cells.
TEMPERATURES = (0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.045, 0.07, 0.1)
WIDTHS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)

#: Kernel width without validation photos to fit it on, and the maximum one, in cells.
DEFAULT_WIDTH, MAX_WIDTH = 0.5, 4.0

#: Photos to locate at once, training photos whose kernels are computed at once, and a number to divide by for 0.
BATCH, PHOTOS, TINY = 256, 16_384, 1e-300

#: Cells of a map up to which the mass of all of them is summed at once: 8 MB for `BATCH` photos.
DENSE_CELLS = 4096

#: Distance at which a kernel is cut off, in widths.
REACH = 3.0


@dataclass(frozen=True)
class VprConfig:
    """Parameters that are fitted on validation photos.

    Attributes:
        width_m: standard deviation of the Gaussian kernel around a photo's position, metres.
        temperature: divisor of the cosine similarities in the softmax.

    Raises:
        ConfigError: a value is out of range.
    """

    width_m: Annotated[float, Field(gt=0, le=1e6)]
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.02

    def __post_init__(self) -> None:
        check_settings("vpr", self)


class VprExpert:
    """Embeddings and positions of training photos.

    Args:
        area: pyramid of the cells.
        encoder: encoder of the photos.
        cell_mask: (row, col) whether each cell has imagery.
        embedding: (photo, feature) of the training photos, on the device to compute on; need not be normalised.
        x: (photo,) their positions in the area's CRS, metres.
        y: (photo,) their positions, metres.
        config: temperature and kernel width.
    """

    name = "vpr"
    rules_out = False

    def __init__(
        self,
        area: Pyramid,
        encoder: EncoderInfo,
        cell_mask: NDArray[np.bool_],
        embedding: Tensor,
        x: NDArray[np.float64],
        y: NDArray[np.float64],
        config: VprConfig,
    ) -> None:
        self.area, self.encoder, self.cell_mask, self.config = area, encoder, cell_mask, config
        self.embedding = F.normalize(embedding.float(), dim=-1)
        self.x, self.y = x, y
        self.imagery_mask = cell_mask  # `cell_mask`, unless that is restricted
        self.kept: NDArray[np.int64] | None = None  # (photo,) whose kernels reach the cells of a restricted expert

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """Kernel density of the most similar training photos; for "greedy", only its most probable cell.

        Args:
            query: (photo, feature) embeddings.
            options: only the estimate is used.
        """
        parts = [self._posterior(part) for part in query.split(BATCH)]
        posterior = Posterior.concatenate(parts)
        return posterior.top(1) if options.estimate == "greedy" else posterior

    def _posterior(self, query: Tensor) -> Posterior:
        similarity, neighbours = self.nearest(query)
        weight = softmax(similarity / self.config.temperature)  # (photo, neighbour)
        if self.kept is not None and 0 < len(self.kept) < len(self.embedding):
            near, place = _most_similar(self._normalised(query), self.embedding[self.kept])
            neighbours, best = self.kept[place], similarity[:, :1]
            total = np.exp((similarity - best) / self.config.temperature).sum(1, keepdims=True)
            weight = np.exp((near - best) / self.config.temperature) / total
        photos, place = np.unique(neighbours, return_inverse=True)
        keys, kernel = self._kernel(photos, self.config.width_m)
        kernel /= np.maximum(kernel.sum(1, keepdims=True), TINY)
        place = place.reshape(neighbours.shape)
        key = keys[place].reshape(len(query), -1)
        mass = (weight[..., None] * kernel[place]).reshape(len(query), -1)
        if self.kept is not None:
            mass = mass * self.cell_mask.ravel()[key]
        size = self.cell_mask.size
        cells, probability = _sum_all(key, mass, size) if size <= DENSE_CELLS else _sum_equal(key, mass)
        cols = self.area.shape[1]
        posterior = Posterior.from_cells(self.area, cells // cols, cells % cols, probability)
        return posterior if self.kept is None else replace(posterior, residual=np.zeros(len(query)))

    def nearest(self, query: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The most similar training photos.

        Args:
            query: (photo, feature) embeddings.

        Returns:
            (photo, neighbour) cosine similarities and indices, most similar first.
        """
        count = min(NEIGHBOURS, len(self.embedding))
        query = self._normalised(query)
        if len(self.embedding) > EXACT_PHOTOS:
            similarity, index = self._graph.search(query.cpu().numpy(), count)
            return np.where(index < 0, -np.inf, similarity.astype(np.float64)), np.maximum(index, 0)
        return _most_similar(query, self.embedding)

    def evidence(self, query: Tensor, hidden: Hidden | None = None) -> NDArray[np.float64]:
        """(photo,) cosine similarity of the most similar training photo; see `jzi.locate.inside.Evidence`.

        Args:
            query: (photo, feature) embeddings.
            hidden: places whose training photos are left out; of many, only those among the most similar ones are.
        """
        if hidden is None:
            return np.concatenate([self.nearest(part)[0][:, 0] for part in query.split(BATCH)])
        parts = []
        for first in range(0, len(query), BATCH):
            photos = slice(first, first + BATCH)
            if len(self.embedding) > EXACT_PHOTOS:
                similarity, index = self.nearest(query[photos])
                covered = hidden.of(photos).covers(self.x[index], self.y[index])
                least = similarity[:, -1]
            else:
                similarity = (self._normalised(query[photos]) @ self.embedding.T).double().cpu().numpy()
                covered = hidden.of(photos).covers(self.x, self.y)
                least = np.full(len(similarity), -1.0)
            parts.append(np.where(covered, least[:, None], similarity).max(1))
        return np.concatenate(parts)

    def restricted(self, cell_mask: NDArray[np.bool_]) -> VprExpert:
        """The same expert for some of its cells; see `jzi.locate.expert.Restrictable`.

        It searches only the training photos whose kernels reach these cells.

        Args:
            cell_mask: (row, col) the cells.
        """
        if len(self.embedding) > EXACT_PHOTOS:
            self._graph  # noqa: B018 - built once, not by each copy
        expert = copy.copy(self)
        expert.cell_mask = self.cell_mask & cell_mask
        photos = np.arange(len(self.embedding)) if self.kept is None else self.kept
        parts = np.array_split(photos, range(PHOTOS, len(photos), PHOTOS))
        kernels = (self._kernel(part, self.config.width_m) for part in parts)
        reaches = [(expert.cell_mask.ravel()[keys] & (kernel > 0)).any(1) for keys, kernel in kernels]
        expert.kept = photos[np.concatenate(reaches)]
        return expert

    def uncalibrated(self) -> VprExpert | None:
        """None: without its fitted parameters there is no expert."""
        return None

    def fit(self, query: Tensor, row: NDArray[np.int64], col: NDArray[np.int64]) -> VprExpert:
        """The same photos with the temperature and the width that make the cells of validation photos most likely.

        Args:
            query: (photo, feature) embeddings of validation photos.
            row: (photo,) rows of their cells.
            col: (photo,) columns of their cells.
        """
        similarity, neighbours = self.nearest(query)
        photos, place = np.unique(neighbours, return_inverse=True)
        place = place.reshape(neighbours.shape)
        center_x, center_y = self.area.cell_centers(row, col)
        square = (center_x[:, None] - self.x[neighbours]) ** 2 + (center_y[:, None] - self.y[neighbours]) ** 2
        floor = 1e-4 / self.cell_mask.sum()
        best, config = -np.inf, self.config
        for width in np.array(WIDTHS) * self.area.cell_size:
            parts = np.array_split(photos, range(PHOTOS, len(photos), PHOTOS))
            total = np.concatenate([self._kernel(part, width)[1].sum(1) for part in parts])
            density = gaussian(square, width) / np.maximum(total, TINY)[place]
            for temperature in TEMPERATURES:
                mass = (softmax(similarity / temperature) * density).sum(1)
                likelihood = float(np.log((1 - 1e-4) * mass + floor).mean())
                if likelihood > best:
                    best, config = likelihood, VprConfig(float(width), temperature)
        return VprExpert(self.area, self.encoder, self.cell_mask, self.embedding, self.x, self.y, config)

    def entries(self) -> dict[str, Any]:
        """What config.json records of the expert."""
        return asdict(self.config)

    def save(self, path: Path) -> None:
        """Write embeddings and positions as one safetensors file."""
        positions = torch.from_numpy(np.stack([self.x, self.y], 1))
        save_file({"embedding": self.embedding.half().cpu().contiguous(), "position": positions}, path)

    @classmethod
    def load(
        cls,
        path: Path,
        entries: dict[str, Any],
        area: Pyramid,
        encoder: EncoderInfo,
        cell_mask: NDArray[np.bool_],
        device: str | torch.device,
    ) -> VprExpert:
        """Read what `save` wrote; arguments and errors as `CellsExpert.load`."""
        try:
            config = VprConfig(**entries)
            with safe_open(path, "np") as file:
                photos = file.get_slice("position").get_shape()[0]
        except (OSError, SafetensorError, TypeError, IndexError, ConfigError) as error:
            raise ModelError(f"{path} cannot be used ({first_line(error)}): copy the model again") from error
        if config.width_m > MAX_WIDTH * area.cell_size or not photos:
            raise ModelError(f"{path} has a kernel of {config.width_m:g} m and {photos} photos: copy the model again")
        check_header(path, {"embedding": (photos, encoder.width), "position": (photos, 2)}, {"position": ("F64",)})
        tensors = load_file(path)
        check_finite(path, tensors)
        embedding, position = tensors["embedding"], tensors["position"].numpy()
        x, y, (west, south, east, north) = position[:, 0], position[:, 1], area.bounds
        if not ((west <= x) & (x <= east) & (south <= y) & (y <= north)).all():
            raise ModelError(f"{path} has positions of photos that are not in the model's area: copy the model again")
        return cls(area, encoder, cell_mask, embedding.to(device), position[:, 0], position[:, 1], config)

    def _normalised(self, query: Tensor) -> Tensor:
        return F.normalize(query.to(self.embedding.device).float(), dim=-1)

    @cached_property
    def _graph(self) -> Any:
        from jzi.retrieve.search import build_graph  # loads zarr and pandas

        return build_graph(self.embedding.cpu().numpy())

    def _kernel(self, photos: NDArray[np.int64], width: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(photo, cell) keys of the cells around training photos, and their kernels; 0 where there is no imagery."""
        (rows, cols), cell_m = self.area.shape, self.area.cell_size
        x, y = self.x[photos, None], self.y[photos, None]
        reach = int(np.ceil(REACH * width / cell_m))
        offset = np.arange(-reach, reach + 1)
        row = np.floor((self.area.north - y) / cell_m).astype(np.int64) + np.repeat(offset, len(offset))
        col = np.floor((x - self.area.west) / cell_m).astype(np.int64) + np.tile(offset, len(offset))
        inside = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
        row, col = np.clip(row, 0, rows - 1), np.clip(col, 0, cols - 1)
        center_x, center_y = self.area.cell_centers(row, col)
        weight = gaussian((center_x - x) ** 2 + (center_y - y) ** 2, width) * (inside & self.imagery_mask[row, col])
        return row * cols + col, weight


def _most_similar(query: Tensor, reference: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(photo, neighbour) similarities and indices of the first `NEIGHBOURS` of (n, feature) references."""
    count = min(NEIGHBOURS, len(reference))
    similarities, indices = [], []
    for part in query.split(max(1, 2**26 // len(reference))):
        best, index = (part @ reference.T).topk(count, dim=1)
        similarities.append(best.double().cpu().numpy())
        indices.append(index.cpu().numpy())
    return np.concatenate(similarities), np.concatenate(indices)


def _sum_all(
    key: NDArray[np.int64], mass: NDArray[np.float64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(photo, cell) all keys below `size`, and the sums of their mass; of (photo, entry) keys and mass."""
    flat = np.arange(len(key))[:, None] * size + key
    total = np.bincount(flat.ravel(), mass.ravel(), len(key) * size).reshape(len(key), size).astype(np.float64)
    return np.broadcast_to(np.arange(size), total.shape), total


def _sum_equal(key: NDArray[np.int64], mass: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The same for those keys that occur, which differ by photo."""
    cells, column = distinct(key, padding=0)
    flat = (np.arange(len(key))[:, None] * cells.shape[1] + column).ravel()
    return cells, np.bincount(flat, mass.ravel(), cells.size).reshape(cells.shape).astype(np.float64)


def gaussian(square: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Gaussian of squared distances, 0 beyond `REACH` widths; the value at distance 0 is 1."""
    return np.where(square <= (REACH * width) ** 2, np.exp(-square / (2 * width**2)), 0.0)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """(photo, n) softmax over the last axis."""
    weight = np.exp(logits - logits.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)
