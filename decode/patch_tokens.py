"""Patch tokens in addition to a tile's embedding: the paper's ablation "[CLS] + k most similar patch tokens".

The paper reports results without details. Assumptions: similarity is the cosine of a patch token and the photo's
embedding, both as computed by the encoder; the k most similar tokens follow the tile's embedding in descending order,
so the decoder reads [query, tile_0, k tokens, action_0, tile_1, k tokens, action_1, ...] at consecutive rotary
positions; a step's logits are computed at the last token of its tile, which attends to all k. There are no further
parameters.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.encode.device import SHARE, free_bytes
from jzi.errors import CacheError, ConfigError
from jzi.store.features.map_embeddings import ENCODED
from jzi.store.geometry.pyramid import TileKey

if TYPE_CHECKING:
    from jzi.store.cache.feature_cache import FeatureCache

#: Maximum pairs of photo and tile that are compared at once: 143 MB in float32 with 729 tokens of 768 features.
MAX_PAIRS = 64


class PatchTokens:
    """Patch tokens of all tiles, read from a cache on first use and kept in a least-recently-used buffer.

    The buffer is on the device if all tiles fit into a quarter of its free memory, else in main memory, of which it
    takes at most a quarter; all 4369 tiles of the paper's map take 4.9 GB at 384 pixels.

    Args:
        cache: cache with patch tokens.
        device: device of the result.
        capacity: maximum number of tiles in the buffer; limited by the free memory by default.

    Raises:
        CacheError: the cache has no patch tokens.
    """

    def __init__(self, cache: FeatureCache, device: torch.device | str, capacity: int | None = None) -> None:
        self.cache, self.features, self.device, self.capacity = (
            cache,
            cache.patch_tokens,
            torch.device(device),
            capacity,
        )
        self.count = self.features.count
        sides = [cache.pyramid.tiles_per_side(level) for level in range(cache.pyramid.levels)]
        self._ends = np.cumsum([side**2 for side in sides])  # index after the last tile of each level
        self.tiles = int(self._ends[-1])
        self._slots: OrderedDict[int, int] = OrderedDict()  # tile to slot, least recently used first
        self._complete = False  # all tiles are in the buffer
        self._verified = False  # all tiles were read once
        self._lock = threading.Lock()  # the web service calls `nearest` from several threads

    @classmethod
    def of(cls, cache: FeatureCache, device: torch.device | str) -> PatchTokens | None:
        """Return the patch tokens of a cache, or None if it has none."""
        return cls(cache, device) if cache.has_tokens else None

    def key(self, tile: int) -> TileKey:
        """The key of a tile by its index, as in `TileTable`."""
        level = int(np.searchsorted(self._ends, tile, "right"))
        side = self.cache.pyramid.tiles_per_side(level)
        return TileKey(level, *divmod(tile - int(self._ends[level]) + side**2, side))

    @cached_property
    def _buffer(self) -> Tensor:
        """(slot, token, feature) float16."""
        tile_bytes = self.count * self.features.width * torch.float16.itemsize
        devices = dict.fromkeys((self.device, torch.device("cpu")))
        tiles_that_fit = {device: int(SHARE * free_bytes(device)) // tile_bytes for device in devices}
        device = next((each for each, n in tiles_that_fit.items() if n >= self.tiles), torch.device("cpu"))
        capacity = tiles_that_fit[device] if self.capacity is None else self.capacity
        slots = min(self.tiles, max(capacity, MAX_PAIRS))
        with torch.inference_mode(False):  # later writes may happen outside of inference mode
            return torch.empty(slots, self.count, self.features.width, dtype=torch.float16, device=device)

    @cached_property
    def _slot_of_tile(self) -> Tensor:
        """(tile,) slot of each tile in the buffer."""
        with torch.inference_mode(False):
            return torch.full((self.tiles,), -1, dtype=torch.int64, device=self._buffer.device)

    @cached_property
    def _encoded(self) -> NDArray[np.bool_]:
        """(tile,) bool, whether each tile is encoded."""
        levels = range(self.cache.pyramid.levels)
        return np.concatenate([self.cache.tiles.status(level).ravel() == ENCODED for level in levels])

    def check(self, k: int) -> None:
        """Check that tiles have at least k patch tokens.

        Raises:
            ConfigError: they have fewer.
        """
        if k > self.count:
            path = self.cache.path
            raise ConfigError(f"decoder.patch_tokens is {k}, but a tile of {path} has {self.count} patch tokens")

    def load(self, progress: bool = False) -> None:
        """Read all tiles, so that missing and damaged ones are reported before training.

        Args:
            progress: whether to show a progress bar.

        Raises:
            CacheError: patch tokens of a tile are missing.
            CacheCorruptError: a chunk does not match its checksum.
        """
        if self._verified:
            return
        with tqdm(total=self.tiles, unit="tile", desc="patch tokens", disable=not progress) as bar:
            for tiles in torch.arange(self.tiles).split(MAX_PAIRS):
                self._require(tiles.tolist())
                bar.update(len(tiles))
        self._complete, self._verified = len(self._slots) == self.tiles, True

    def nearest(self, tile: Tensor, query: Tensor, k: int) -> Tensor:
        """Select the k patch tokens of each tile that are most similar to a photo, in descending order.

        Args:
            tile: (photo, n) indices as in `TileTable`.
            query: (photo, feature) embeddings of photos.
            k: number of patch tokens.

        Returns:
            (photo, n, k, feature) float32; zeros for tiles without imagery.

        Raises:
            CacheError: patch tokens of a tile are missing.
            CacheCorruptError: a chunk does not match its checksum.
            ConfigError: tiles have fewer than k patch tokens.
        """
        self.check(k)
        queries = query.float()[:, None].expand(-1, tile.shape[1], -1).flatten(0, 1)
        pairs = zip(tile.flatten().split(MAX_PAIRS), queries.split(MAX_PAIRS), strict=True)
        return torch.cat([self._nearest(*pair, k) for pair in pairs]).view(*tile.shape, k, -1)

    def similarity(self, tile: Tensor, query: Tensor) -> Tensor:
        """Cosine similarity of a photo to every patch token of a tile, by which `nearest` selects.

        Args:
            tile: (pair,) indices as in `TileTable`, at most `MAX_PAIRS`.
            query: (pair, feature) embeddings of photos.

        Returns:
            (pair, token) float32, -1..1.

        Raises:
            CacheError: patch tokens of a tile are missing.
            CacheCorruptError: a chunk does not match its checksum.
        """
        return F.cosine_similarity(self._stored(tile), query.float()[:, None].to(self.device), dim=-1)

    def _stored(self, tile: Tensor) -> Tensor:
        """(pair, token, feature) float32 of (pair,) tiles."""
        with self._lock:
            if not self._complete:
                self._require(tile.unique().tolist())
            stored = self._buffer[self._slot_of_tile[tile.to(self._buffer.device)]]
        return stored.to(self.device).float()

    def _nearest(self, tile: Tensor, query: Tensor, k: int) -> Tensor:
        tokens = self._stored(tile)  # (pair, token, feature)
        best = F.cosine_similarity(tokens, query[:, None].to(self.device), dim=-1).topk(k, dim=1).indices
        return tokens.gather(1, best[..., None].expand(-1, -1, tokens.shape[-1]))

    def _require(self, tiles: list[int]) -> None:
        """Read the tiles that are not in the buffer, of at most `MAX_PAIRS`."""
        missing = []
        for tile in tiles:
            if tile in self._slots:
                self._slots.move_to_end(tile)
            else:
                missing.append(tile)
        for tile, values in zip(missing, self._read(missing), strict=True):
            slot = len(self._slots)
            if slot == len(self._buffer):
                _, slot = self._slots.popitem(last=False)
            self._slots[tile] = slot
            self._slot_of_tile[tile] = slot
            self._buffer[slot] = torch.from_numpy(values)

    def _read(self, tiles: list[int]) -> list[NDArray[np.float16]]:
        encoded = [tile for tile in tiles if self._encoded[tile]]
        tokens = dict(zip(encoded, self.features.read_many([self.key(tile) for tile in encoded]), strict=True))
        if missing := [self.key(tile) for tile, values in tokens.items() if np.isnan(values[0, 0])]:
            level, row, col = missing[0]
            raise CacheError(
                f"{self.cache.path} lacks the patch tokens of tiles, such as level {level}, row {row}, col {col}: run "
                "`jzi encode-map --tokens`"
            )
        zeros = np.zeros((self.count, self.features.width), np.float16)
        return [tokens.get(tile, zeros) for tile in tiles]
