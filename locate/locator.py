"""From photos to places: the model folder's decoder and map, with its encoder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.decode.model import ZoomModel
from jzi.decode.tile_table import TileTable
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.errors import ConfigError, ModelError, PhotoError
from jzi.locate.candidate import Candidate
from jzi.locate.fusion import along_track, together
from jzi.locate.posterior import (
    ESTIMATES,
    Posterior,
    credible_radius,
    greedy_posterior,
    most_probable_cells,
    most_probable_discs,
    posterior,
)
from jzi.store.info import EncoderInfo
from jzi.store.pyramid import Pyramid

if TYPE_CHECKING:
    from jzi.encode.encoder import Encoder


@dataclass(frozen=True)
class LocateOptions:
    """What to answer with.

    Attributes:
        estimate: "radius": the point with the most probability within `radius`; "map": the most probable cell;
            "greedy": the cell that greedy search ends in, the paper's protocol.
        radius: metres; no two candidates lie within it of each other.
        top: how many candidates.
        beams: tiles of each level that are looked into; by default all of a small pyramid, 64 of a large one.

    Raises:
        ConfigError: there is no such estimate, or a number is out of range.

    Example:
        >>> LocateOptions(estimate="map", top=3)
        LocateOptions(estimate='map', radius=50.0, top=3, beams=None)
    """

    estimate: str = "radius"
    radius: float = 50.0
    top: int = 5
    beams: int | None = None

    def __post_init__(self) -> None:
        if self.estimate not in ESTIMATES:
            raise ConfigError(f"there is no estimate {self.estimate!r}: it is one of {', '.join(ESTIMATES)}")
        if not self.radius > 0 or self.top < 1 or (self.beams is not None and self.beams < 1):
            raise ConfigError(
                f"radius, top and beams must be more than 0, not {self.radius}, {self.top} and {self.beams}"
            )


DEFAULT = LocateOptions()

PANORAMA = "it is twice as wide as high, as panoramas all round are, and was taken for a plain photo"


@dataclass(frozen=True)
class Location:
    """Where a photo was taken.

    Attributes:
        photo: its name.
        candidates: places, the most probable first, no two within the radius of each other.
        cell_m: side of a cell, metres.
        radius_68: metres around the answer that hold 68 % of the probability; inf where search did not reach as much.
        radius_95: the same for 95 %.
        posterior: the probability of every cell that search reached, and of what it did not.
        notes: what the user should know of how the photo was taken for what it is not.
    """

    photo: str
    candidates: tuple[Candidate, ...]
    cell_m: float
    radius_68: float
    radius_95: float
    posterior: Posterior = field(repr=False, compare=False)
    notes: tuple[str, ...] = ()

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
        """Probability that the photo was taken within the radius of the answer, or in its cell, 0..1."""
        return self.best.probability

    @property
    def extent(self) -> str:
        """What the confidence is about, for people."""
        radius = self.best.radius_m
        return f"within {radius:g} m" if radius else f"in this cell of {self.cell_m:.0f} m"

    @property
    def residual(self) -> float:
        """Probability of all that search did not reach."""
        return float(self.posterior.residual[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; a radius that is not known is None."""
        return {
            "photo": self.photo,
            "latitude": self.latitude,
            "longitude": self.longitude,
            "confidence": self.confidence,
            "estimate": self.best.source,
            "radius_m": self.best.radius_m,
            "radius_68_m": self.radius_68 if math.isfinite(self.radius_68) else None,
            "radius_95_m": self.radius_95 if math.isfinite(self.radius_95) else None,
            "residual": self.residual,
            "cell_m": self.cell_m,
            "path": list(self.best.path),
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """For people: a line for the answer, and one for each other candidate."""
        others = self.candidates[1:]
        spread = f"68 % within {self.radius_68:.0f} m, 95 % within {self.radius_95:.0f} m".replace("inf m", "more")
        lines = [
            f"{self.photo}: {self.latitude:.6f}, {self.longitude:.6f}  "
            f"(confidence {self.confidence:.1%} {self.extent}; {spread})",
            *(f"    or {each.latitude:.6f}, {each.longitude:.6f}  ({each.probability:.1%})" for each in others),
        ]
        if self.residual >= 0.01:
            lines.append(f"    search did not look into {self.residual:.1%} of the probability")
        lines += [f"    note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class NotLocated:
    """A photo that cannot be read, and why."""

    photo: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"photo": self.photo, "error": self.error}


@dataclass(frozen=True)
class _Photo:
    """A photo that was read: its pixels at the encoder's size, or what is wrong with it."""

    name: str
    pixels: NDArray[np.uint8] | None
    error: str = ""
    notes: tuple[str, ...] = ()


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
            cache: take the map from this cache rather than from the folder (an imported model has none, and none has
                the patch tokens of tiles, which a decoder may read).

        Raises:
            ModelError: the folder is no model, or is damaged.
            CacheError: the cache cannot be used, or belongs to another encoder or pyramid.
        """
        if device is None:
            from jzi.encode.device import best_device

            device = best_device()
        model = ZoomModel.load(folder, device)
        if cache is None:
            if model.decoder.config.patch_tokens:
                raise ModelError(
                    f"the decoder of {folder} reads patch tokens of tiles, which a model folder does not carry: give "
                    "the cache that holds them (`--cache features.zarr`)"
                )
            return cls(model, TileTable(model.read_map(), device))
        from jzi.decode.patch_tokens import PatchTokens
        from jzi.store.cache import FeatureCache  # imports zarr, which a model with its own map can do without

        opened = FeatureCache.open(cache)
        return cls(model, TileTable(model.read_map(opened), device, PatchTokens.of(opened, device)))

    @cached_property
    def encoder(self) -> Encoder:
        """The model's encoder, on the map's device."""
        return self.model.load_encoder(str(self.table.device))

    @property
    def folder(self) -> Path:
        """Of the model."""
        return self.model.folder

    @property
    def encoder_info(self) -> EncoderInfo:
        """Of the model's encoder, without loading it."""
        return self.model.encoder

    @property
    def pyramid(self) -> Pyramid:
        """How the map is cut."""
        return self.model.pyramid

    def locate(self, photo: Any, options: LocateOptions = DEFAULT, name: str = "") -> Location:
        """Where one photo was taken.

        Args:
            photo: a path, bytes, an open file or a PIL image.
            options: what to answer with.
            name: what to call it in the answer; the path by default.

        Raises:
            PhotoError: it cannot be read.
        """
        (answer,) = self.locate_all([photo], options)
        if isinstance(answer, NotLocated):
            raise PhotoError(answer.error)
        return replace(answer, photo=name) if name else answer

    def locate_all(
        self, photos: Iterable[Any], options: LocateOptions = DEFAULT, batch_size: int = 32
    ) -> Iterator[Location | NotLocated]:
        """Where each of many photos was taken, in their order; one that cannot be read costs only itself."""
        for batch in self._batches(photos, batch_size):
            names = [photo.name for photo in batch if photo.pixels is not None]
            located: Iterator[Location] = iter(())
            if names:
                located = iter(self.locate_embeddings(self._embed(batch), options, names))
            for photo in batch:
                if photo.pixels is None:
                    yield NotLocated(photo.name, photo.error)
                else:
                    yield replace(next(located), notes=photo.notes)

    def locate_together(self, photos: Iterable[Any], options: LocateOptions = DEFAULT) -> Location:
        """Where photos of one place were taken, by what all of them say.

        Raises:
            PhotoError: one cannot be read.
        """
        names, query = self.encode(photos)
        found = together(self.posterior(query, options), self.cell_mask)
        return to_locations(found, options, [" + ".join(names)])[0]

    def locate_track(
        self, photos: Iterable[Any], seconds: Sequence[float], speed: float, options: LocateOptions = DEFAULT
    ) -> list[Location]:
        """Where each photo of a drive was taken, by what all of them say.

        Args:
            photos: in the order of time.
            seconds: when each was taken.
            speed: top speed, metres per second.
            options: what to answer with.

        Raises:
            PhotoError: one cannot be read.
            ConfigError: the speed or the times make no sense.
        """
        names, query = self.encode(photos)
        smoothed = along_track(self.posterior(query, options), self.cell_mask, seconds, speed)
        return [to_locations(found, options, [name])[0] for found, name in zip(smoothed, names, strict=True)]

    def encode(self, photos: Iterable[Any], batch_size: int = 32) -> tuple[list[str], Tensor]:
        """Names and (photo, feature) embeddings of photos.

        Raises:
            PhotoError: one cannot be read.
        """
        names, parts = [], []
        for batch in self._batches(photos, batch_size):
            if errors := [photo.error for photo in batch if photo.pixels is None]:
                raise PhotoError(errors[0])
            names += [photo.name for photo in batch]
            parts.append(self._embed(batch))
        return names, torch.cat(parts)

    @cached_property
    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) whether each cell has imagery."""
        pyramid, table = self.pyramid, self.table
        last = pyramid.levels - 1
        side, g = pyramid.tiles_per_side(last), pyramid.grid
        below = table.child_mask[table.offsets[last] :].cpu().numpy().reshape(side, side, g, g)
        return below.swapaxes(1, 2).reshape(side * g, side * g)

    def locate_embeddings(
        self, query: Tensor, options: LocateOptions = DEFAULT, names: Sequence[str] | None = None
    ) -> list[Location]:
        """Where photos with (photo, feature) embeddings were taken; off the cache, no image is opened."""
        found = self.posterior(query, options)
        return to_locations(found, options, names or [""] * len(query))

    def posterior(self, query: Tensor, options: LocateOptions = DEFAULT) -> Posterior:
        """Probabilities of cells for photos with (photo, feature) embeddings; the one cell of greedy search alone."""
        decoder, temperature = self.model.decoder, self.model.temperature
        if options.estimate == "greedy":
            return greedy_posterior(decoder, self.table, query, temperature)
        return posterior(decoder, self.table, query, beams=options.beams, temperature=temperature)

    def _batches(self, photos: Iterable[Any], size: int) -> Iterator[list[_Photo]]:
        """Photos, read ahead."""
        _ = self.encoder  # loaded once, before the threads ask for it
        read = prefetch(self._read, photos, reader_threads(), ahead=size)
        while batch := list(islice(read, size)):
            yield batch

    def _embed(self, photos: list[_Photo]) -> Tensor:
        """(photo, feature) of those that could be read."""
        return self.encoder.encode_photos(np.stack([photo.pixels for photo in photos if photo.pixels is not None]))

    def _read(self, photo: Any) -> _Photo:
        from jzi.encode.photos import looks_like_panorama, open_photo, resize_photo

        name = str(photo) if isinstance(photo, str | Path) else str(getattr(photo, "filename", "") or "photo")
        height, width = self.encoder.photo_shape
        try:
            image = open_photo(photo, name)
        except PhotoError as error:
            return _Photo(name, None, str(error))
        notes = (PANORAMA,) if looks_like_panorama(image) else ()
        return _Photo(name, resize_photo(image, width, height), notes=notes)


def to_locations(found: Posterior, options: LocateOptions, names: Sequence[str]) -> list[Location]:
    """Answers from posteriors, photo by photo."""
    if options.estimate == "radius":
        points = most_probable_discs(found, options.radius, options.top)
    else:
        points = most_probable_cells(found, options.top, apart=options.radius)
    pyramid = found.pyramid
    latitude, longitude = pyramid.unproject(points.x, points.y)
    radii = credible_radius(found, points.x[:, 0], points.y[:, 0], 0.68, 0.95)

    def candidate(photo: int, place: int) -> Candidate:
        at, cell = (photo, place), (photo, points.cell[photo, place])
        return Candidate(
            latitude=float(latitude[at]),
            longitude=float(longitude[at]),
            x=float(points.x[at]),
            y=float(points.y[at]),
            cell=(int(found.cells[0][cell]), int(found.cells[1][cell])),
            path=tuple(int(action) for action in found.paths[cell]),
            probability=min(1.0, float(points.probability[at])),
            step_probabilities=tuple(float(step) for step in found.steps[cell]),
            source=options.estimate,
            radius_m=options.radius if options.estimate == "radius" else None,
        )

    return [
        Location(
            photo=name,
            candidates=tuple(
                candidate(photo, place)
                for place in range(points.x.shape[1])
                if place == 0 or points.probability[photo, place] > 0
            ),
            cell_m=pyramid.cell_size,
            radius_68=float(radii[0][photo]),
            radius_95=float(radii[1][photo]),
            posterior=found.of(photo),
        )
        for photo, name in enumerate(names)
    ]
