"""One photo of the report: what it was, where it was placed, and what it was compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from jzi.encode.photo.photos import open_photo
from jzi.errors import JziError
from jzi.evaluate.cases import Case, Cases
from jzi.export.gallery.panels import fix_panels
from jzi.export.gallery.pool import ImagePool
from jzi.export.gallery.sources import Sources
from jzi.export.gallery.steps import Steps, step_cards, tile_image
from jzi.export.posterior_picture import all_squares, coloured, dimmed, percent_text
from jzi.export.scale_bar import LONGEST
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.lengths import length_text, round_length
from jzi.store.geometry.pyramid import geodesic_distance
from jzi.store.geometry.scale import ground_metres, units_per_metre
from jzi.store.plain import percent

#: Longest side of a photo, of a training photo, and side of the map of the posterior, pixels.
PHOTO, NEIGHBOUR, MAP = 480, 180, 360

#: Candidates and training photos that are shown, and side of a candidate's crop, pixels and cells.
CANDIDATES, NEIGHBOURS, CROP, CROP_CELLS = 3, 4, 144, 3.0


def card(
    case: Case, number: int, cases: Cases, steps: Steps | None, sources: Sources, pool: ImagePool
) -> dict[str, Any]:
    """What the page shows of a photo.

    Args:
        case: the photo.
        number: its number among those that are shown.
        cases: all of them.
        steps: the zooms; None if there is no zoom.
        sources: what can be read besides; notes are added for what cannot.
        pool: the page's images.
    """
    location = case.location
    path = sources.photos.get(location.photo)
    photo, missing = _photo(path)
    zoom = step_cards(steps, number, path if photo else None, sources, pool) if steps else []
    wrong = next((each["number"] for each in zoom if not each["right"]), None)
    return {
        "name": location.photo,
        "rank": case.rank,
        "worst": case.worst,
        "error_m": round(case.error, 1),
        "error": f"{case.error:,.{1 if case.error < 10 else 0}f} m",
        "confidence": round(location.confidence, 4),
        "confidence_text": f"{percent(location.confidence)} {location.extent}",
        "inside": None if location.inside is None else percent(location.inside),
        "notes": list(location.notes),
        "answer": f"{location.latitude:.5f}, {location.longitude:.5f}",
        "truth": f"{case.latitude:.5f}, {case.longitude:.5f}",
        "photo": pool.add(photo, PHOTO) if photo else None,
        "shape": [photo.width, photo.height] if photo else [4, 3],
        "missing": missing,
        "map": _map(case, sources, pool),
        "panels": fix_panels(case, sources, pool),
        "steps": zoom,
        "wrong": wrong,
        "crops": _crops(case, sources, pool),
        "neighbours": _neighbours(case, cases, sources, pool),
    }


def _photo(path: Path | None) -> tuple[Image.Image | None, str]:
    if path is None:
        return None, "The table of photos has no file of this photo."
    try:
        return open_photo(path), ""
    except JziError as error:
        return None, str(error)


def _map(case: Case, sources: Sources, pool: ImagePool) -> dict[str, Any]:
    """The posterior around the answer and the true position, and where the marks lie on it, in percent of its side."""
    location, area = case.location, case.location.posterior.area
    x, y = (float(each) for each in area.project(case.latitude, case.longitude))
    squares = all_squares(location, (x, y))
    bounds = squares.bounds
    width, height = bounds.east - bounds.west, bounds.north - bounds.south
    pixels = max(8, round(MAP * height / width)), MAP
    if sources.imagery is None:
        base = np.full((*pixels, 3), 80, np.uint8)
    else:
        base = dimmed(sources.imagery.render(bounds, pixels)[0])
    greatest = max(float(squares.probability.max(initial=0.0)), 1e-12)
    colours = coloured(squares.probability, greatest)
    rows, cols = (np.arange(count) * size // count for count, size in zip(pixels, colours.shape[:2], strict=True))
    drawn = colours[rows][:, cols]
    image = base * (1 - drawn[..., 3:]) + 255 * drawn[..., :3] * drawn[..., 3:]
    scale = ground_metres(area, bounds)
    bar = round_length(LONGEST * width * scale)

    def at(x: float, y: float) -> list[float]:
        return [round(100 * (x - bounds.west) / width, 2), round(100 * (bounds.north - y) / width, 2)]

    def radius(metres: float) -> float | None:
        return round(100 * metres * units_per_metre(area) / width, 2) if np.isfinite(metres) else None

    truth = at(x, y)
    high = round(100 * height / width, 2)
    return {
        "image": pool.add(Image.fromarray(image.astype(np.uint8)), MAP),
        "height": high,
        "answer": at(location.best.x, location.best.y),
        "truth": truth if 0 <= truth[0] <= 100 and 0 <= truth[1] <= high else None,
        "radii": [radius(location.radius_68), radius(location.radius_95)],
        "bar": [round(100 * bar / scale / width, 2), length_text(bar)],
        "scale": [percent_text(greatest / 100), percent_text(greatest)],
        "side": f"{squares.side * scale:.0f} m",
        "outside": percent(squares.outside) if squares.outside >= 0.005 else "",
    }


def _crops(case: Case, sources: Sources, pool: ImagePool) -> list[dict[str, Any]]:
    """The map around the true position and around the candidates, with their probabilities."""
    if sources.imagery is None:
        return []
    location, area = case.location, case.location.posterior.area
    side = CROP_CELLS * area.cell_size

    def around(x: float, y: float) -> str:
        bounds = Bounds(x - side / 2, y - side / 2, x + side / 2, y + side / 2)
        return pool.add(tile_image(sources.imagery, bounds, CROP), CROP)

    x, y = (float(each) for each in area.project(case.latitude, case.longitude))
    crops = [{"image": around(x, y), "title": "True position", "text": _true_probability(case), "true": True}]
    for rank, candidate in enumerate(location.candidates[:CANDIDATES], 1):
        away = float(geodesic_distance(candidate.latitude, candidate.longitude, case.latitude, case.longitude))
        crops.append(
            {
                "image": around(candidate.x, candidate.y),
                "title": "Answer" if rank == 1 else f"Candidate {rank}",
                "text": f"{percent(location.overall(candidate.probability))}, {away:,.0f} m off",
                "true": False,
            }
        )
    return crops


def _true_probability(case: Case) -> str:
    """The probability of the true cell, and its rank."""
    posterior = case.location.posterior
    row, col = posterior.area.cells_at(case.latitude, case.longitude)
    probability = float(posterior.at(np.atleast_1d(row), np.atleast_1d(col))[0])
    if probability <= 0:
        return "cell not reached by search"
    rank = int((posterior.probability[0] > probability).sum()) + 1
    return f"cell {percent_text(probability)}, rank {rank:,}"


def _neighbours(case: Case, cases: Cases, sources: Sources, pool: ImagePool) -> list[dict[str, Any]]:
    """The training photos that are most similar to a photo, if the model compares with them."""
    if sources.vpr is None:
        return []
    similarity, index = sources.vpr.nearest(cases.photos.query[torch.tensor([case.index])])
    found = []
    for value, each in list(zip(similarity[0].tolist(), index[0].tolist(), strict=True))[:NEIGHBOURS]:
        latitude, longitude = sources.vpr.area.unproject(sources.vpr.x[each], sources.vpr.y[each])
        away = float(geodesic_distance(latitude, longitude, case.latitude, case.longitude))
        training = sources.training_photo(each)
        name = training[0] if training and training[1] < 1.0 else ""  # float32 positions, to a metre
        image, missing = _photo(sources.photos.get(name))
        found.append(
            {
                "name": name or "training photo",
                "image": pool.add(image, NEIGHBOUR) if image else None,
                "shape": [image.width, image.height] if image else [4, 3],
                "missing": missing,
                "text": f"similarity {value:.2f}, taken {away:,.0f} m from the true position",
            }
        )
    return found
