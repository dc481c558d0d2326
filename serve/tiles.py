"""Tiles of the imagery over HTTP: rendered in threads, each once, and kept in memory within a bound."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from fastapi.responses import Response

from jzi.encode.rasters.raster import GDAL_ERRORS
from jzi.errors import ImageryError
from jzi.export.map_tiles import MapTiles
from jzi.serve.limits import RefusedError, StoppingError

#: Bytes of the tiles that are kept: about 5000, the neighbourhoods of a hundred answers.
CACHE_BYTES = 64_000_000

#: Threads that render, so that most cores are left to the model, and tiles that may wait for them.
THREADS, WAITING = 2, 256

#: Seconds for which a browser need not ask again; then it asks whether a tile has changed.
MAX_AGE_S = 3600

Key = tuple[int, int, int]


class TileService:
    """Tiles by zoom, column and row.

    Args:
        tiles: renders them; no other raster than those of its imagery is read.
    """

    def __init__(self, tiles: MapTiles) -> None:
        self.tiles = tiles
        self.held = 0
        self._kept: OrderedDict[Key, bytes] = OrderedDict()
        self._rendering: dict[Key, asyncio.Task[bytes]] = {}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="jzi-tiles")

    async def get(self, z: int, x: int, y: int) -> bytes:
        """Return a tile as WebP; empty bytes where the area has no imagery.

        Raises:
            RefusedError: the tile is not of the area, too many wait, or the imagery cannot be read any more.
        """
        key = z, x, y
        if not self.tiles.covers(*key):
            low, high = self.tiles.low, self.tiles.high
            raise RefusedError(
                404, f"there is no such tile: tiles are of the map's area and of the zooms {low}..{high}"
            )
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if key not in self._rendering:
            if len(self._rendering) >= WAITING:
                raise RefusedError(503, f"{WAITING} tiles wait already: try again later", 1)
            self._rendering[key] = asyncio.ensure_future(self._render(key))
        try:
            return await asyncio.shield(self._rendering[key])  # another request may wait for it too
        except asyncio.CancelledError:
            raise StoppingError() from None

    async def _render(self, key: Key) -> bytes:
        try:
            loop = asyncio.get_running_loop()
            tile = await loop.run_in_executor(self._pool, self.tiles.render, *key) or b""
        except (ImageryError, OSError, *GDAL_ERRORS) as error:  # the file may have gone
            raise RefusedError(404, "the imagery cannot be read there: see the picture of the area") from error
        finally:
            del self._rendering[key]
        self._kept[key] = tile
        self.held += len(tile)
        while self.held > CACHE_BYTES:
            self.held -= len(self._kept.popitem(last=False)[1])
        return tile

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def tile_response(tile: bytes, if_none_match: str | None) -> Response:
    """Return the response of a tile: status 204 where it is empty, 304 where the client has it."""
    headers = {"cache-control": f"private, max-age={MAX_AGE_S}"}
    if not tile:
        return Response(status_code=204, headers=headers)
    headers["etag"] = f'"{hashlib.sha256(tile).hexdigest()[:16]}"'
    if if_none_match == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(tile, media_type="image/webp", headers=headers)
