"""The zoom steps of a photo: tiles, their children's probabilities, what was matched (the paper's figures 5, 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from jzi.decode.trace import ZoomTrace, trace_zoom
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import JziError
from jzi.evaluate.cases import Cases
from jzi.export.gallery.pool import ImagePool
from jzi.export.gallery.sources import Sources
from jzi.export.posterior_picture import percent_text
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.scale import ground_metres
from jzi.store.plain import percent

#: Side of a tile and of a crop of the map, pixels.
TILE = 224

#: Least probability of a child that is printed on it.
PRINTED = 0.01

#: Children along a side of a tile from which probabilities are printed on the chosen and the true child only.
MANY = 6

#: Colour of a tile without imagery.
_PLAIN = "#c9ced6"


@dataclass(frozen=True)
class Steps:
    """The zooms of all photos that are shown, and the true paths.

    Attributes:
        trace: greedy zooms, (photo, L).
        truth: (photo, L) actions to the true positions.
        embedding: (photo, feature) of the photos.
    """

    trace: ZoomTrace
    truth: NDArray[np.int64]
    embedding: torch.Tensor


def trace_steps(cases: Cases, sources: Sources) -> Steps | None:
    """Trace the zooms of the photos that are shown; None if there is no zoom.

    Raises:
        CacheError: the decoder reads patch tokens that cannot be read.
    """
    if sources.zoom is None or not cases.shown:
        return None
    index = torch.tensor([each.index for each in cases.shown], device=cases.photos.query.device)
    embedding = cases.photos.query[index]
    latitude, longitude = ([getattr(each, name) for each in cases.shown] for name in ("latitude", "longitude"))
    return Steps(trace_zoom(sources.zoom, embedding), sources.zoom.area.paths(latitude, longitude), embedding)


def step_cards(steps: Steps, number: int, photo: Any, sources: Sources, pool: ImagePool) -> list[dict[str, Any]]:
    """What the page shows of each step of a photo.

    Args:
        steps: the zooms.
        number: number of the photo among those that are shown.
        photo: file of the photo, None if there is none.
        sources: imagery and encoder; a note is added for what cannot be read.
        pool: the page's images.
    """
    zoom = sources.zoom
    assert zoom is not None
    area, path, truth = zoom.area, steps.trace.paths[number], steps.truth[number]
    keys = area.keys(path)[:-1]
    tiles = zoom.table.tiles_along(path[None])[0]
    on_tile: NDArray[Any] | None = None
    on_photo: NDArray[Any] | None = None
    try:
        on_tile = _attention(steps.trace, number, zoom.table.patches)
        if on_tile is None:
            on_tile = sources.tile_similarity(keys, steps.embedding[number])
        if photo is not None:
            on_photo = sources.photo_similarity(photo, zoom.table.embedding[tiles])
    except JziError as error:
        sources.notes.append(str(error))
    cards = []
    for step, (key, action) in enumerate(zip(keys, path.tolist(), strict=True)):
        inside = bool((path[:step] == truth[:step]).all())
        bounds = area.tile_bounds(key)
        probability = steps.trace.probability[number, step]
        side = (bounds.east - bounds.west) * ground_metres(area, bounds)
        true = int(truth[step]) if inside else None
        cards.append(
            {
                "number": step + 1,
                "side": f"{side:,.0f} m",
                "grid": area.grid,
                "tile": pool.add(tile_image(sources.imagery, bounds), TILE),
                "children": _children(probability, action, true, area.grid),
                "chosen": percent(float(probability[action])),
                "true": None if true is None else percent(float(probability[true])),
                "right": true == action,
                "text": _in_words(probability, action, true, area.grid),
                "on_tile": None if on_tile is None else _heat(pool, on_tile[step]),
                "on_photo": None if on_photo is None else _heat(pool, on_photo[step]),
                "attention": steps.trace.attention is not None,
            }
        )
    return cards


def tile_image(imagery: Imagery | None, bounds: Bounds, side: int = TILE) -> Image.Image:
    """A part of the map, gray if there is no imagery.

    Raises:
        ImageryError: the imagery cannot be read.
    """
    if imagery is None:
        return Image.new("RGB", (8, 8), _PLAIN)
    return Image.fromarray(imagery.render(bounds, side)[0])


def _attention(trace: ZoomTrace, number: int, patches: Any) -> NDArray[np.float64] | None:
    """(step, row, col) attention to the patch tokens that the decoder read, nan elsewhere; None if it reads none."""
    if trace.attention is None or trace.patch is None:
        return None
    side = round(patches.count**0.5)
    values = np.full((len(trace.patch[number]), side * side), np.nan)
    np.put_along_axis(values, trace.patch[number], trace.attention[number], 1)
    return values.reshape(-1, side, side)


def _heat(pool: ImagePool, values: NDArray[Any]) -> dict[str, str]:
    low, high = (f"{each:.3f}".replace("-", "\u2212") for each in (np.nanmin(values), np.nanmax(values)))
    return {"image": pool.heat(values), "low": low, "high": high}


def _children(probability: NDArray[np.float64], action: int, true: int | None, grid: int) -> list[dict[str, Any]]:
    return [
        {
            "share": round(float(each), 4),
            "text": percent_text(float(each)) if number in (action, true) or (each >= PRINTED and grid < MANY) else "",
            "chosen": number == action,
            "true": number == true,
        }
        for number, each in enumerate(probability)
    ]


def _in_words(probability: NDArray[np.float64], action: int, true: int | None, grid: int) -> str:
    def child(number: int) -> str:
        return f"row {number // grid + 1}, column {number % grid + 1} ({percent(float(probability[number]))})"

    if true is None:
        return f"chose {child(action)}; the photo was not taken in this tile"
    return (
        f"chose {child(action)}, which is right" if true == action else f"chose {child(action)}; true is {child(true)}"
    )
