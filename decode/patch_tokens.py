"""Patch tokens beside a tile's embedding: the paper's ablation "[CLS] + k most similar patch tokens".

The paper gives its table and no details. What is assumed: similarity is the cosine of a patch token and the query's
embedding, both as the encoder gives them; the k best follow the tile's embedding, the most similar first, so that the
decoder reads [query, tile_0, its k, action_0, tile_1, its k, action_1, ...], rotary positions counted through; and
a step's logits are read at the last token of its tile, which alone sees all k. Nothing is added to the parameters.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.encode.device import SHARE, free_bytes
from jzi.errors import CacheError, ConfigError
from jzi.store.map_embeddings import ENCODED
from jzi.store.pyramid import TileKey

if TYPE_CHECKING:
    from jzi.store.cache import FeatureCache

#: Most pairs of photo and tile that are compared at once: with 729 tokens of 768 features they are 143 MB in float32.
PAIRS = 64


class PatchTokens:
    """The patch tokens of every tile, read from a cache when a tile is first looked at.

    They are kept on the device or else in memory, as many tiles as a quarter of what is free has room for: all 4369 of
    the paper's map at 384 pixels take 4.9 GB. Where there is less room, the tiles that were not looked at for longest
    make place.

    Args:
        cache: with patch tokens.
        device: where they are compared.
        room: tiles to keep at most; as many as fit if not given.

    Raises:
        CacheError: the cache holds no patch tokens.
    """

    def __init__(self, cache: FeatureCache, device: torch.device | str, room: int | None = None) -> None:
        self.cache, self.features, self.device, self.room = cache, cache.patch_tokens, torch.device(device), room
        self.count = self.features.count
        sides = [cache.pyramid.tiles_per_side(level) for level in range(cache.pyramid.levels)]
        self.keys = [TileKey(level, *at) for level, side in enumerate(sides) for at in np.ndindex(side, side)]
        self._held: OrderedDict[int, int] = OrderedDict()  # tile to slot, the one not looked at for longest first
        self._whole = self._sound = False  # all kept; all read once
        self._lock = threading.Lock()  # a service looks tiles up from several threads

    @classmethod
    def of(cls, cache: FeatureCache, device: torch.device | str) -> PatchTokens | None:
        """Those of a cache, if it holds any."""
        return cls(cache, device) if cache.has_tokens else None

    @cached_property
    def kept(self) -> Tensor:
        """(slot, token, feature) float16; made when it is first needed."""
        one = self.count * self.features.width * torch.float16.itemsize
        places = dict.fromkeys((self.device, torch.device("cpu")))
        fitting = {place: int(SHARE * free_bytes(place)) // one for place in places}
        place = next((each for each, tiles in fitting.items() if tiles >= len(self.keys)), torch.device("cpu"))
        slots = min(len(self.keys), max(fitting[place] if self.room is None else self.room, PAIRS))
        with torch.inference_mode(False):  # it may be filled further outside of that mode
            return torch.empty(slots, self.count, self.features.width, dtype=torch.float16, device=place)

    @cached_property
    def _slot(self) -> Tensor:
        """(tile,) where each is in `kept`."""
        with torch.inference_mode(False):
            return torch.full((len(self.keys),), -1, dtype=torch.int64, device=self.kept.device)

    @cached_property
    def _encoded(self) -> NDArray[np.bool_]:
        """(tile,) whether each has imagery."""
        levels = range(self.cache.pyramid.levels)
        return np.concatenate([self.cache.status(level).ravel() == ENCODED for level in levels])

    def check(self, k: int) -> None:
        """Raise ConfigError where a tile has not as many patches."""
        if k > self.count:
            path = self.cache.path
            raise ConfigError(f"decoder.patch_tokens is {k}, and a tile of {path} has {self.count} patch tokens")

    def load(self, progress: bool = False) -> None:
        """Read all, so that what is missing or damaged is found before it is needed.

        Args:
            progress: show how far it is.

        Raises:
            CacheError: tiles lack their patch tokens.
            CacheCorruptError: a chunk does not match its checksum.
        """
        if self._sound:
            return
        with tqdm(total=len(self.keys), unit="tile", desc="patch tokens", disable=not progress) as bar:
            for tiles in torch.arange(len(self.keys)).split(PAIRS):
                self._hold(tiles.tolist())
                bar.update(len(tiles))
        self._whole, self._sound = len(self._held) == len(self.keys), True

    def nearest(self, tile: Tensor, query: Tensor, k: int) -> Tensor:
        """The k patch tokens of each tile that are most similar to a photo's embedding, the most similar first.

        Args:
            tile: (photo, n) indices, as `TileTable` has them.
            query: (photo, feature).
            k: how many.

        Returns:
            (photo, n, k, feature) float32; zeros of tiles that have no imagery.

        Raises:
            CacheError: as `load`.
            ConfigError: as `check`.
        """
        self.check(k)
        wanted = query.float()[:, None].expand(-1, tile.shape[1], -1).flatten(0, 1)
        pairs = zip(tile.flatten().split(PAIRS), wanted.split(PAIRS), strict=True)
        return torch.cat([self._nearest(*pair, k) for pair in pairs]).view(*tile.shape, k, -1)

    def _nearest(self, tile: Tensor, query: Tensor, k: int) -> Tensor:
        with self._lock:
            if not self._whole:
                self._hold(tile.unique().tolist())
            kept = self.kept[self._slot[tile.to(self.kept.device)]]
        tokens = kept.to(self.device).float()  # (pair, token, feature)
        best = F.cosine_similarity(tokens, query[:, None].to(self.device), dim=-1).topk(k, dim=1).indices
        return tokens.gather(1, best[..., None].expand(-1, -1, tokens.shape[-1]))

    def _hold(self, tiles: list[int]) -> None:
        """Have tiles, as many as `PAIRS` at most, among those that are kept."""
        absent = []
        for tile in tiles:
            if tile in self._held:
                self._held.move_to_end(tile)
            else:
                absent.append(tile)
        for tile, values in zip(absent, self._read(absent), strict=True):
            slot = len(self._held)
            if slot == len(self.kept):
                _, slot = self._held.popitem(last=False)
            self._held[tile] = slot
            self._slot[tile] = slot
            self.kept[slot] = torch.from_numpy(values)

    def _read(self, tiles: list[int]) -> list[NDArray[np.float16]]:
        there = [tile for tile in tiles if self._encoded[tile]]
        found = dict(zip(there, self.features.read_many([self.keys[tile] for tile in there]), strict=True))
        if lacking := [self.keys[tile] for tile, values in found.items() if np.isnan(values[0, 0])]:
            level, row, col = lacking[0]
            raise CacheError(
                f"{self.cache.path} lacks the patch tokens of tiles, such as level {level}, row {row}, col {col}: run "
                "`jzi encode-map --tokens`"
            )
        nothing = np.zeros((self.count, self.features.width), np.float16)
        return [found.get(tile, nothing) for tile in tiles]
