"""From photos to locations: an encoder, an expert, and the stages that follow it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.encode.encoders.encoder import Encoder
from jzi.encode.photo.photo_inputs import PhotoInput, as_photo, is_several
from jzi.encode.photo.photo_reader import Photo, PhotoReader, ReadPhoto
from jzi.errors import ConfigError, EncoderError, PhotoError
from jzi.locate.answer.location import DEFAULT, Candidate, LocateOptions, Location, NotLocated, to_locations
from jzi.locate.answer.photo_notes import (
    PhotoRecord,
    exif_note,
    exif_position,
    named_notes,
    too_fast_note,
    with_notes,
)
from jzi.locate.expert import Commentator, Expert, Query, Stage
from jzi.locate.inside import InsideDetector, probability_inside
from jzi.locate.joint.sequential import check_track, fuse, smooth_track
from jzi.locate.points.discs import check_radius
from jzi.locate.posterior import Posterior
from jzi.locate.priors.prior import PriorExpert
from jzi.locate.ranges import BATCH
from jzi.store.geometry.pyramid import Pyramid, as_pyramid

if TYPE_CHECKING:
    from jzi.encode.encoders.photo_encoder import PhotoEncoder
    from jzi.store.photos.exif import ExifPosition

#: Photos per forward pass.
BATCH_SIZE = 32


class Locator:
    """Locates photos: the encoder embeds them, the expert gives a posterior, stages refine its candidates.

    `jzi.load` makes one from a model folder.

    Args:
        expert: computes probabilities of cells.
        load_encoder: loads the expert's encoder; called on first use.
        stages: refiners and re-rankers, in the order in which they run.
        name: name of the model in reports.
        detector: what recognizes photos from elsewhere; None if nothing does.

    Example:
        >>> import jzi
        >>> locator = jzi.load("model")  # doctest: +SKIP
        >>> location = locator.locate("photo.jpg")  # doctest: +SKIP
        >>> print(location.latitude, location.longitude, location.confidence)  # doctest: +SKIP
    """

    def __init__(
        self,
        expert: Expert,
        load_encoder: Callable[[], PhotoEncoder],
        stages: Sequence[Stage] = (),
        *,
        name: str = "",
        detector: InsideDetector | None = None,
    ) -> None:
        self.expert, self.stages, self.name, self.detector = expert, tuple(stages), name, detector
        self._load_encoder = load_encoder

    def __repr__(self) -> str:
        cells = math.prod(self.expert.area.shape)
        stages = "".join(f", {type(each).__name__}" for each in self.stages)
        return f"Locator({self.name or self.expert.name!r}: {cells} cells{stages})"

    @cached_property
    def encoder(self) -> PhotoEncoder:
        """The expert's encoder, loaded on first use.

        Raises:
            EncoderError: it cannot be loaded.
            ModelError: it is not the one that the expert was trained with.
        """
        return self._load_encoder()

    @cached_property
    def _reader(self) -> PhotoReader:
        return PhotoReader(self.encoder.photo_shape, self.encoder.resampling, fit=self.encoder.fit)

    @property
    def pyramid(self) -> Pyramid:
        """The pyramid whose cells photos are located in.

        Raises:
            PyramidError: the expert's area is no pyramid.
        """
        return as_pyramid(self.expert.area)

    def with_prior(self, weight: NDArray[np.floating[Any]]) -> Locator:
        """The same locator with a prior; it shares the encoder.

        `jzi.locate.priors.prior_weights` computes weights from a circle, a region or a raster.

        Args:
            weight: (row, col) relative weight of each cell, 0 or more; cells of weight 0 are excluded.

        Raises:
            ConfigError: a weight is negative or not finite, or no cell with imagery has any.
        """
        expert = PriorExpert(self.expert, weight)
        return Locator(expert, lambda: self.encoder, self.stages, name=self.name, detector=self.detector)

    def with_stage(self, stage: Stage) -> Locator:
        """The same locator with another stage after those that it has; it shares the encoder."""
        stages = (*self.stages, stage)
        return Locator(self.expert, lambda: self.encoder, stages, name=self.name, detector=self.detector)

    @overload
    def locate(self, photo: PhotoInput, options: LocateOptions = DEFAULT, name: str = "") -> Location: ...

    @overload
    def locate(
        self, photo: list[PhotoInput] | tuple[PhotoInput, ...], options: LocateOptions = DEFAULT, name: str = ""
    ) -> list[Location]: ...

    def locate(
        self,
        photo: PhotoInput | list[PhotoInput] | tuple[PhotoInput, ...],
        options: LocateOptions = DEFAULT,
        name: str = "",
    ) -> Location | list[Location]:
        """Locate one photo, or each photo of a list.

        Args:
            photo: a path, bytes, an open file, a PIL image, a NumPy array (height, width, 3) or a tensor
                (3, height, width), these of uint8 or of floats from 0 to 1; or a list of these.
            options: estimate, radius and number of candidates.
            name: name of the photo in the answer; its path by default.

        Returns:
            The location; of a list, the locations in its order.

        Raises:
            PhotoError: a photo cannot be read, or is none; `locate_all` locates the others.
            ConfigError: the radius is longer than the area's side, or a list is given a name.
        """
        several = is_several(photo)
        if several and name:
            raise ConfigError(f"{name!r:.60} names one photo, but a list of {len(photo)} was given: leave it out")  # type: ignore[arg-type]
        located = []
        for location in self.locate_all(photo if several else [photo], options):  # type: ignore[arg-type, list-item]
            if isinstance(location, NotLocated):
                raise PhotoError(location.error)
            located.append(replace(location, photo=name) if name else location)
        return located if several else located[0]

    def locate_all(
        self, photos: Iterable[PhotoInput], options: LocateOptions = DEFAULT, batch_size: int = BATCH_SIZE
    ) -> Iterator[Location | NotLocated]:
        """Locate many photos, in order; yields a `NotLocated` for a photo that cannot be read.

        Args:
            photos: see `locate`.
            options: see `locate`.
            batch_size: photos per forward pass.

        Raises:
            ConfigError: the radius is longer than the area's side, or the batch size is out of range.
        """
        check_radius(self.expert.area, options.radius)
        for batch in self._batches(photos, batch_size):
            locations = iter(self._locate([pair for pair in batch if pair[1].pixels is not None], options))
            for _, read in batch:
                yield NotLocated(read.name, read.error) if read.pixels is None else next(locations)

    def locate_together(self, photos: Iterable[PhotoInput], options: LocateOptions = DEFAULT) -> Location:
        """Locate the common position of several photos, by fusing their posteriors; stages do not run.

        A prior is applied once.

        Args:
            photos: photos taken at one position; see `locate`.
            options: see `locate`.

        Raises:
            PhotoError: one cannot be read.
            ConfigError: the radius is longer than the area's side.
        """
        check_radius(self.expert.area, options.radius)
        names, query, records = self._encode_with_records(photos)
        if isinstance(self.expert, PriorExpert):
            self._check_finite(query)
            likelihood = self.expert.likelihood.posterior(query, options)
            posterior = self.expert.weighted(fuse(likelihood, self.expert.cell_mask))
        else:
            posterior = fuse(self.posterior(query, options), self.expert.cell_mask)
        location = to_locations(posterior, options, [" + ".join(names)])[0]
        inside = self._inside(query, options, records, together=True)[0]
        location = replace(location, inside=inside, exif=records[0].position)
        about = [
            (*unlike, *record.notes, *exif_note(record.position, location))
            for unlike, record in zip(self._unlike(query), records, strict=True)
        ]
        return replace(location, notes=named_notes(names, about))

    def locate_track(
        self,
        photos: Iterable[PhotoInput],
        seconds: Sequence[float],
        speed: float,
        options: LocateOptions = DEFAULT,
        *,
        rounding_s: float = 0.0,
        recorded: Sequence[ExifPosition | None] | None = None,
    ) -> list[Location]:
        """Locate each photo of a drive, given all of them; stages do not run.

        A prior applies to each photo.

        Args:
            photos: photos in the order of time; see `locate`.
            seconds: (photo,) time at which each was taken.
            speed: top speed, metres per second.
            options: see `locate`.
            rounding_s: seconds by which the time between two photos may be longer than `seconds` say, such as 1 for
                times of whole seconds.
            recorded: (photo,) positions that the photos record, where they are known; else they are read.

        Raises:
            PhotoError: one cannot be read.
            ConfigError: the speed or a time is out of range, the times decrease, the photos and cells are too many, or
                the radius is longer than the area's side.
        """
        check_radius(self.expert.area, options.radius)
        check_track(self.expert.cell_mask.size, seconds, speed)
        names, query, records = self._encode_with_records(photos, recorded)
        smoothed = smooth_track(
            self.posterior(query, options), self.expert.cell_mask, seconds, speed, rounding_s=rounding_s
        )
        inside = self._inside(query, options, records, together=True)
        located = [
            replace(to_locations(each, options, [name])[0], inside=probability, notes=unlike)
            for each, name, probability, unlike in zip(smoothed, names, inside, self._unlike(query), strict=True)
        ]
        gaps = (np.diff(np.asarray(seconds, float)) + rounding_s).tolist()
        pairs = zip(located, located[1:], gaps, strict=False)
        fast = [(), *(too_fast_note(before, each, gap, speed) for before, each, gap in pairs)]
        noted = [with_notes(each, record) for each, record in zip(located, records, strict=True)]
        return [replace(each, notes=(*each.notes, *note)) for each, note in zip(noted, fast, strict=True)]

    def encode(self, photos: Iterable[PhotoInput], batch_size: int = BATCH_SIZE) -> tuple[list[str], Tensor]:
        """Names and (photo, feature) embeddings of photos.

        Args:
            photos: see `locate`.
            batch_size: photos per forward pass.

        Raises:
            PhotoError: one cannot be read.
            ConfigError: the batch size is out of range.
        """
        names, parts = [], []
        for batch in self._readable(photos, batch_size):
            names += [read.name for _, read in batch]
            parts.append(self._embed(batch))
        return names, torch.cat(parts)

    def _encode_with_records(
        self, photos: Iterable[PhotoInput], recorded: Sequence[ExifPosition | None] | None = None
    ) -> tuple[list[str], Tensor, list[PhotoRecord]]:
        """As `encode`, and what the photos say of themselves; `recorded` as in `locate_track`."""
        names: list[str] = []
        parts: list[Tensor] = []
        records: list[PhotoRecord] = []
        for batch in self._readable(photos, BATCH_SIZE):
            for photo, read in batch:
                position = exif_position(photo) if recorded is None else recorded[len(records)]
                records.append(PhotoRecord.of(photo, read.notes, position))
                names.append(read.name)
            parts.append(self._embed(batch))
        return names, torch.cat(parts), records

    def _readable(self, photos: Iterable[PhotoInput], size: int) -> Iterator[list[tuple[Photo, ReadPhoto]]]:
        """Batches of photos; raises PhotoError if one cannot be read."""
        for batch in self._batches(photos, size):
            if errors := [read.error for _, read in batch if read.pixels is None]:
                raise PhotoError(errors[0])
            yield batch

    def locate_embeddings(
        self,
        query: Tensor,
        options: LocateOptions = DEFAULT,
        names: Sequence[str] | None = None,
        photos: Sequence[Photo] | None = None,
        tokens: Tensor | None = None,
        records: Sequence[PhotoRecord] | None = None,
    ) -> list[Location]:
        """Locate photos that are embedded already; opens no image.

        Args:
            query: (photo, feature) embeddings.
            options: see `locate`.
            names: (photo,) names in the answers; empty by default.
            photos: (photo,) sources for stages that look at photos; see `locate`.
            tokens: (photo, row, col, feature) of `embed`, for stages that read them.
            records: (photo,) what the photos say of themselves; nothing by default.
        """
        names = names or [""] * len(query)
        records = records or [PhotoRecord()] * len(query)
        queries = _queries(names, query, photos or [None] * len(query), tokens, options)
        located = self._run_stages(queries, self._locations(query, options, names, records), options.top)
        return [with_notes(location, record) for location, record in zip(located, records, strict=True)]

    @property
    def reads_tokens(self) -> bool:
        """Whether a stage reads tokens of photos."""
        return any(getattr(stage, "reads_tokens", False) for stage in self.stages)

    def embed(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor | None]:
        """Embed photos, and make their tokens in the same forward pass if a stage reads them.

        Args:
            pixels: (photo, height, width, 3) of the encoder's `photo_shape`.

        Returns:
            (photo, feature) embeddings, and (photo, row, col, feature) tokens or None.

        Raises:
            ConfigError: a stage reads tokens, but the encoder has none.
        """
        if not self.reads_tokens:
            return self.encoder.encode_photos(pixels), None
        encoder = self.encoder
        if not isinstance(encoder, Encoder):
            raise ConfigError(f"{encoder.info.name} has no patch tokens, which refining photos needs: leave it out")
        from jzi.encode.photo.photo_tokens import encode_photos_and_tokens  # loads zarr and pandas

        return encode_photos_and_tokens(encoder, pixels)

    def posterior(self, query: Tensor, options: LocateOptions = DEFAULT) -> Posterior:
        """The expert's posterior of photos with (photo, feature) embeddings.

        Raises:
            EncoderError: a value of an embedding is not finite.
        """
        self._check_finite(query)
        return self.expert.posterior(query, options)

    def _check_finite(self, query: Tensor) -> None:
        """Raise if an embedding is not finite: no expert could compare it."""
        finite = query.isfinite().all(1)
        if not finite.all():
            number = int((~finite).long().argmax()) + 1
            raise EncoderError(
                f"the encoder {self.expert.encoder.label} computed an embedding that is not finite for photo {number} "
                f"of {len(query)}: check its weights and precision, or leave the photo out"
            )

    def _locate(self, photos: list[tuple[Photo, ReadPhoto]], options: LocateOptions) -> list[Location]:
        if not photos:
            return []
        query, tokens = self._embed_with_tokens(photos)
        sources, names = [photo for photo, _ in photos], [read.name for _, read in photos]
        records = [PhotoRecord.of(photo, read.notes, exif_position(photo)) for photo, read in photos]
        return self.locate_embeddings(query, options, names, sources, tokens, records)

    def _locations(
        self, query: Tensor, options: LocateOptions, names: Sequence[str], records: Sequence[PhotoRecord]
    ) -> list[Location]:
        """The locations of photos before stages run, with at least as many candidates as these look at."""
        proposed = replace(options, top=_wanted(options.top, self.stages))
        locations = to_locations(self.posterior(query, options), proposed, names)
        inside = self._inside(query, options, records)
        return [
            replace(each, inside=probability, notes=(*each.notes, *note))
            for each, probability, note in zip(locations, inside, self._unlike(query), strict=True)
        ]

    def _unlike(self, query: Tensor) -> Sequence[tuple[str, ...]]:
        """(photo,) notes on pictures that are unlike the training photos."""
        return self.detector.notes(query) if self.detector else [()] * len(query)

    def _inside(
        self, query: Tensor, options: LocateOptions, records: Sequence[PhotoRecord], *, together: bool = False
    ) -> Sequence[float] | Sequence[None]:
        """(photo,) probability of having been taken in this area; None without a detector.

        Photos of one position or one drive are all from the area, or none is: the mean of their log-odds counts, as if
        they were one photo, for their errors are alike.
        """
        if self.detector is None or options.elsewhere == 0:
            return [None] * len(query)
        log_odds = self.detector.log_odds(query) + [record.log_odds for record in records]
        if together:
            log_odds = np.full(len(query), log_odds.mean())
        probabilities: list[float] = probability_inside(log_odds, options.elsewhere).tolist()
        return probabilities

    def _run_stages(self, queries: Sequence[Query], locations: list[Location], top: int) -> list[Location]:
        if not self.stages:
            return locations
        refined = []
        for query, location in zip(queries, locations, strict=True):
            candidates: Sequence[Candidate] = location.candidates
            notes = list(location.notes)
            for number, stage in enumerate(self.stages, 1):
                candidates = stage(query, location.posterior, candidates)[: _wanted(top, self.stages[number:])]
                notes += stage.notes(query, candidates) if isinstance(stage, Commentator) else ()
            refined.append(replace(location.with_candidates(candidates), notes=tuple(notes)))
        return refined

    def _batches(self, photos: Iterable[PhotoInput], size: int) -> Iterator[list[tuple[Photo, ReadPhoto]]]:
        """Batches of photos with their pixels, read ahead."""
        BATCH.check("batch_size", size)
        if isinstance(photos, str | Path | bytes):
            raise PhotoError("several photos are expected, not one: give a list, or use Locator.locate")
        pending: deque[Photo] = deque()

        def record_pending() -> Iterator[Photo | PhotoError]:
            for given in photos:
                try:
                    photo: Any = as_photo(given)
                except PhotoError as error:  # read as a photo that cannot be read: the others are located
                    photo = error
                pending.append(photo)
                yield photo

        for batch in self._reader.batches(record_pending(), size, ahead=size):
            yield [(pending.popleft(), read) for read in batch]

    def _embed(self, photos: list[tuple[Photo, ReadPhoto]]) -> Tensor:
        """(photo, feature) embeddings of the photos that could be read."""
        return self.encoder.encode_photos(_pixels(photos))

    def _embed_with_tokens(self, photos: list[tuple[Photo, ReadPhoto]]) -> tuple[Tensor, Tensor | None]:
        """Embeddings and tokens of the photos that could be read, as of `embed`."""
        return self.embed(_pixels(photos)) if self.reads_tokens else (self._embed(photos), None)


def _pixels(photos: list[tuple[Photo, ReadPhoto]]) -> NDArray[np.uint8]:
    return np.stack([read.pixels for _, read in photos if read.pixels is not None])


def _wanted(top: int, stages: Sequence[Stage]) -> int:
    """Number of candidates that an answer lists, or that stages look at, if that is more."""
    return max([top, *(getattr(stage, "top", 0) for stage in stages)])


def _queries(
    names: Sequence[str],
    query: Tensor,
    photos: Sequence[Photo | None],
    tokens: Tensor | None,
    options: LocateOptions,
) -> list[Query]:
    own: Iterable[Tensor | None] = [None] * len(query) if tokens is None else tokens
    each = zip(names, query, photos, own, strict=True)
    return [Query(name, embedding, photo, token, options.camera) for name, embedding, photo, token in each]
