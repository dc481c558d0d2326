"""From photos to places: the model folder's decoder and map, with its encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from jzi.decode.model import ZoomModel
from jzi.decode.search import Zooms, zoom
from jzi.decode.tile_table import TileTable
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.errors import PhotoError
from jzi.store.cache import FeatureCache
from jzi.store.candidate import Candidate
from jzi.store.pyramid import Pyramid

if TYPE_CHECKING:
    from jzi.encode.encoder import Encoder


@dataclass(frozen=True)
class Location:
    """Where a photo was taken.

    Attributes:
        photo: its name.
        candidates: places, the most probable first; greedy search gives one.
        cell_m: side of a cell, metres.
    """

    photo: str
    candidates: tuple[Candidate, ...]
    cell_m: float

    @property
    def best(self) -> Candidate:
        """The answer."""
        return self.candidates[0]

    @property
    def latitude(self) -> float:
        """Degrees (WGS 84)."""
        return self.best.latitude

    @property
    def longitude(self) -> float:
        """Degrees."""
        return self.best.longitude

    @property
    def confidence(self) -> float:
        """Probability of the cell, 0..1."""
        return self.best.probability

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "photo": self.photo,
            "latitude": self.latitude,
            "longitude": self.longitude,
            "confidence": self.confidence,
            "cell_m": self.cell_m,
            "path": list(self.best.path),
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }

    def to_text(self) -> str:
        """For people: a line for the answer, and one for each other candidate."""
        lines = [
            f"{self.photo}: {self.latitude:.6f}, {self.longitude:.6f}  (cell of {self.cell_m:.0f} m, confidence "
            f"{self.confidence:.1%}, path {list(self.best.path)})"
        ]
        lines += [
            f"    or {other.latitude:.6f}, {other.longitude:.6f}  ({other.probability:.1%}, path {list(other.path)})"
            for other in self.candidates[1:5]
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class NotLocated:
    """A photo that cannot be read, and why."""

    photo: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"photo": self.photo, "error": self.error}


class Locator:
    """Locates photos on the map of a model.

    Example:
        >>> locator = Locator.load("model")  # doctest: +SKIP
        >>> place = locator.locate("photo.jpg")  # doctest: +SKIP
        >>> print(place.latitude, place.longitude, place.confidence)  # doctest: +SKIP
    """

    def __init__(self, model: ZoomModel, table: TileTable, encoder: Encoder | None = None) -> None:
        self.model, self.table = model, table
        if encoder is not None:
            self.encoder = encoder

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None, cache: str | Path | None = None) -> Locator:
        """From a model folder. The encoder is loaded when the first photo comes.

        Args:
            folder: the model.
            device: where to compute; by default the best there is.
            cache: take the map from this cache rather than from the folder (an imported model has none).

        Raises:
            ModelError: the folder is no model, or is damaged.
            CacheError: the cache cannot be used, or belongs to another encoder or pyramid.
        """
        if device is None:
            from jzi.encode.encoder import best_device

            device = best_device()
        model = ZoomModel.load(folder, device)
        features = model.read_map(FeatureCache.open(cache) if cache is not None else None)
        return cls(model, TileTable(features, device))

    @cached_property
    def encoder(self) -> Encoder:
        """The model's encoder, on the map's device."""
        return self.model.load_encoder(str(self.table.device))

    @property
    def pyramid(self) -> Pyramid:
        """How the map is cut."""
        return self.model.pyramid

    def locate(self, photo: Any, beams: int = 1) -> Location:
        """Where one photo was taken.

        Args:
            photo: a path, bytes, an open file or a PIL image.
            beams: 1 for greedy search, the paper's protocol; more to see more of the map.

        Raises:
            PhotoError: it cannot be read.
        """
        (answer,) = self.locate_all([photo], beams)
        if isinstance(answer, NotLocated):
            raise PhotoError(answer.error)
        return answer

    def locate_all(
        self, photos: Iterable[Any], beams: int = 1, batch_size: int = 32
    ) -> Iterator[Location | NotLocated]:
        """Where each of many photos was taken, in their order; one that cannot be read costs only itself."""
        _ = self.encoder  # loaded once, before the threads ask for it
        read = prefetch(self._read, photos, reader_threads(), ahead=batch_size)
        while batch := list(islice(read, batch_size)):
            pixels = [image for _, image in batch if not isinstance(image, PhotoError)]
            located: Iterator[list[Candidate]] = iter(())
            if pixels:
                located = iter(self.locate_embeddings(self.encoder.encode_photos(np.stack(pixels)), beams))
            for name, image in batch:
                if isinstance(image, PhotoError):
                    yield NotLocated(name, str(image))
                else:
                    yield Location(name, tuple(next(located)), self.pyramid.cell_size)

    def locate_embeddings(self, query: Tensor, beams: int = 1) -> list[list[Candidate]]:
        """Candidates, best first, for each of (photo, feature) embeddings; off the cache, no image is opened."""
        zooms = zoom(self.model.decoder, self.table, query.to(self.table.device), beams)
        return to_candidates(zooms, self.pyramid)

    def _read(self, photo: Any) -> tuple[str, Any]:
        from jzi.encode.photos import open_photo, resize_photo

        name = str(photo) if isinstance(photo, str | Path) else str(getattr(photo, "filename", "") or "photo")
        height, width = self.encoder.photo_shape
        try:
            return name, resize_photo(open_photo(photo, name), width, height)
        except PhotoError as error:
            return name, error


def to_candidates(zooms: Zooms, pyramid: Pyramid) -> list[list[Candidate]]:
    """What a search found as candidates, photo by photo, best first; beams that reached no imagery are left out."""
    paths = zooms.paths.cpu().numpy()  # (photo, beam, L)
    steps = zooms.log_probability.double().exp().cpu().numpy()
    row, col = pyramid.path_to_tile(paths)
    x, y = pyramid.tile_centers(pyramid.levels, row, col)
    latitude, longitude = pyramid.unproject(x, y)
    source = "greedy" if paths.shape[1] == 1 else "beam"

    def candidate(photo: int, beam: int) -> Candidate:
        at = photo, beam
        return Candidate(
            latitude=float(latitude[at]),
            longitude=float(longitude[at]),
            x=float(x[at]),
            y=float(y[at]),
            cell=(int(row[at]), int(col[at])),
            path=tuple(int(action) for action in paths[at]),
            probability=float(steps[at].prod()),
            step_probabilities=tuple(float(step) for step in steps[at]),
            source=source,
        )

    return [
        [candidate(photo, beam) for beam in range(paths.shape[1]) if beam == 0 or steps[photo, beam].prod() > 0]
        for photo in range(len(paths))
    ]
