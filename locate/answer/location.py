"""Options of locating, candidates, and the location of a photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from jzi.errors import ConfigError
from jzi.locate.answer.figure import location_html
from jzi.locate.answer.fix import Fix
from jzi.locate.answer.geojson import answer_feature, feature_collection, to_features
from jzi.locate.answer.judged import Judged
from jzi.locate.points.discs import check_radius, most_probable_discs
from jzi.locate.posterior import Posterior, credible_radius, most_probable_cells
from jzi.locate.ranges import BEAMS, CANDIDATES, DISTANCE, ELSEWHERE, HEADING, HEADING_SD, SHARE
from jzi.store.geometry.pyramid import Pyramid, as_pyramid
from jzi.store.geometry.scale import units_per_metre
from jzi.store.photos.exif import ExifPosition
from jzi.store.plain import percent, plain, rounded
from jzi.store.printable import printable

#: Greedy search (the paper's protocol), the most probable cell, the point with the most probability in a radius, or the
#: mean of the posterior in that radius.
ESTIMATES = ("greedy", "map", "radius", "mean")


@dataclass(frozen=True)
class Camera:
    """What the user knows of how photos were taken, which stages go by rather than by the photos' metadata.

    Attributes:
        heading_deg: azimuth of the centre column, degrees clockwise from true north.
        heading_sd_deg: standard deviation of the heading, degrees; also of one that the metadata have.
        panorama: whether the photos are 360 degree panoramas.

    Raises:
        ConfigError: a number is out of range.
    """

    heading_deg: float | None = None
    heading_sd_deg: float | None = None
    panorama: bool | None = None

    def __post_init__(self) -> None:
        if self.heading_deg is not None:
            HEADING.check("heading", self.heading_deg)
        if self.heading_sd_deg is not None:
            HEADING_SD.check("heading-sd", self.heading_sd_deg)

    def __bool__(self) -> bool:
        return (self.heading_deg, self.heading_sd_deg, self.panorama) != (None, None, None)


@dataclass(frozen=True)
class LocateOptions:
    """How a posterior becomes an answer.

    Attributes:
        estimate: "mean": the mean of the posterior within `radius` of the point with the most probability there;
            "radius": that point; "map": the most probable cell; "greedy": the cell that greedy search ends in, as in
            the paper.
        radius: metres, at most the area's side; no two candidates lie within it of each other.
        top: number of candidates, 1..1000.
        beams: tiles of each level that a zoom expands, 1..4096; by default what matters of a small pyramid, else 64.
        abstain: answers below this confidence are withheld, 0..1.
        camera: what is known of how the photos were taken; for stages.
        elsewhere: share of photos that were not taken in the area, before they are seen, 0..1; 0 where all were.

    Raises:
        ConfigError: there is no such estimate, or a number is out of range.

    Example:
        >>> LocateOptions(estimate="map", top=3)
        LocateOptions(estimate='map', radius=50.0, top=3, beams=None, abstain=0.0, elsewhere=0.2)
    """

    estimate: str = "mean"
    radius: float = 50.0
    top: int = 5
    beams: int | None = None
    abstain: float = 0.0
    camera: Camera = field(default_factory=Camera, repr=False)
    elsewhere: float = ELSEWHERE

    def __post_init__(self) -> None:
        SHARE.check("abstain", self.abstain)
        SHARE.check("elsewhere", self.elsewhere)
        if self.estimate not in ESTIMATES:
            raise ConfigError(f"there is no estimate {self.estimate!r}: it is one of {', '.join(ESTIMATES)}")
        DISTANCE.check("radius", self.radius)
        CANDIDATES.check("top", self.top)
        if self.beams is not None:
            BEAMS.check("beams", self.beams)


DEFAULT = LocateOptions()


@dataclass(frozen=True)
class Candidate:
    """A position where a photo may have been taken.

    Attributes:
        latitude: of the point, degrees (WGS 84).
        longitude: of the point, degrees.
        x: of the point in the area's CRS, metres.
        y: of the point, metres.
        cell: row and column of the cell that the point lies in.
        path: the L actions of a zoom to the cell; empty if the area is no pyramid.
        probability: probability that the photo was taken in the cell, or within `radius_m` of the point, 0..1.
        step_probabilities: probability of each of the L actions given those before it.
        source: where the candidate comes from: an estimate ("greedy", "map", "radius", "mean") or the name of a stage.
        radius_m: metres; None if the probability is that of the cell.
        fix: the point to metres, if a stage refined the candidate; latitude, longitude, x and y are then those of it.
        judged: its place before it was compared with others, and these comparisons, if a stage re-ranked candidates.
    """

    latitude: float
    longitude: float
    x: float
    y: float
    cell: tuple[int, int]
    path: tuple[int, ...]
    probability: float
    step_probabilities: tuple[float, ...]
    source: str
    radius_m: float | None = None
    fix: Fix | None = None
    judged: Judged | None = None

    @property
    def radii(self) -> tuple[float, float] | None:
        """Radii around it that contain 68 and 95 % of the probability, metres, if a stage has changed them."""
        if self.fix:
            return self.fix.radius_68_m, self.fix.radius_95_m
        return (self.judged.radius_68_m, self.judged.radius_95_m) if self.judged else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `rounded`."""
        entries = {each.name: getattr(self, each.name) for each in fields(self)}
        values: dict[str, Any] = rounded(plain({**entries, "fix": self.fix and self.fix.to_dict()}))
        return values


@dataclass(frozen=True)
class Location:
    """Where a photo was taken.

    Attributes:
        photo: name of the photo, `printable`.
        candidates: the most probable first, no two within the radius of each other.
        cell_m: side of a cell, metres on the ground.
        radius_68: radius around the answer that contains 68 % of the probability, metres; inf if search reached less.
        radius_95: the same for 95 %.
        posterior: the probability of every cell that search reached, and the residual.
        notes: warnings about the photo, such as the aspect ratio of a panorama.
        abstain: confidence below which the answer is not `sure`, 0..1.
        inside: probability that the photo was taken in this area at all, 0..1; None without an
            estimate. All probabilities of candidates, radii and the posterior are those given that it was.
        exif: position that the photo's file records; None if it has none, or is no file.
    """

    photo: str
    candidates: tuple[Candidate, ...]
    cell_m: float
    radius_68: float
    radius_95: float
    posterior: Posterior = field(repr=False, compare=False)
    notes: tuple[str, ...] = ()
    abstain: float = 0.0
    inside: float | None = None
    exif: ExifPosition | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "photo", printable(self.photo))

    @property
    def sure(self) -> bool:
        """Whether the confidence is high enough; the files that are written withhold the positions of other answers."""
        return self.confidence >= self.abstain

    @property
    def elsewhere(self) -> bool:
        """Whether the photo is more probably from elsewhere than from this area; False without an estimate."""
        return self.inside is not None and self.inside < 0.5

    @property
    def doubt(self) -> str:
        """What stands before the probability of being from this area, in words; empty if it is probable."""
        return "probably not from this area: " if self.elsewhere else ""

    @property
    def best(self) -> Candidate:
        """The answer."""
        return self.candidates[0]

    @property
    def fix(self) -> Fix | None:
        """The answer to metres; None if no stage refined it."""
        return self.best.fix

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
        """Probability that the photo was taken within the radius of the answer, or in its cell, 0..1.

        It is the answer's probability in this area times that of the photo being from this area, where that is known.
        """
        return self.overall(self.best.probability)

    def overall(self, probability: float) -> float:
        """A probability of a candidate, which holds given that the photo is from this area, times that it is."""
        return probability * (1.0 if self.inside is None else self.inside)

    @property
    def extent(self) -> str:
        """The region that the confidence refers to, in words."""
        radius = self.best.radius_m
        return f"within {radius:g} m" if radius else f"in this cell of {self.cell_m:.0f} m"

    @property
    def pyramid(self) -> Pyramid:
        """The pyramid whose cells these are.

        Raises:
            PyramidError: the area is no pyramid.
        """
        return as_pyramid(self.posterior.area)

    def with_candidates(self, candidates: Sequence[Candidate]) -> Location:
        """The location with the candidates of a stage, and the radii that it has changed.

        Args:
            candidates: the most probable first; the location is unchanged if there are none.
        """
        if not candidates:
            return self
        radii = candidates[0].radii or (self.radius_68, self.radius_95)
        return replace(self, candidates=tuple(candidates), radius_68=radii[0], radius_95=radii[1])

    @property
    def residual(self) -> float:
        """Probability that search did not reach."""
        return float(self.posterior.residual[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `rounded`: names of values in metres end in `_m`, an infinite radius is None.

        Of an answer that is not `sure`, every position is None.
        """
        best = self.best if self.sure else None
        entries: dict[str, Any] = plain(
            {
                "photo": self.photo,
                "latitude": best and best.latitude,
                "longitude": best and best.longitude,
                "sure": self.sure,
                "confidence": self.confidence,
                "inside": self.inside,
                "elsewhere": self.elsewhere,
                "estimate": self.best.source,
                "radius_m": self.best.radius_m,
                "radius_68_m": self.radius_68,
                "radius_95_m": self.radius_95,
                "residual": self.residual,
                "cell_m": self.cell_m,
                "path": best and best.path,
                "fix": best and best.fix and best.fix.to_dict(),
                "candidates": [each.to_dict() for each in self.candidates] if best else [],
                "notes": self.notes,
            }
        )
        values: dict[str, Any] = rounded(entries)
        return values

    # Representations for Python: a line, a map, GeoJSON

    def __repr__(self) -> str:
        confidence = f"{percent(self.confidence)} {self.extent}"
        where = f"{self.latitude:.6f}, {self.longitude:.6f}, {confidence}" if self.sure else f"not sure, {confidence}"
        return f"Location({self.photo!r}: {where})"

    def _repr_html_(self) -> str:
        """A small map for notebooks, without scripts and without the network (`jzi.locate.answer.figure`)."""
        return location_html(self)

    @property
    def __geo_interface__(self) -> dict[str, Any]:
        """The answer as a GeoJSON Feature, which GeoPandas, Shapely, Folium and others read.

        Its properties are those of `to_dict` that have no position; its geometry is None if the answer is not `sure`.
        """
        return answer_feature(self)

    def to_geojson(self) -> dict[str, Any]:
        """The answer, candidates, circles and tiles as a GeoJSON FeatureCollection.

        These are the features that `jzi locate --geojson` writes. Of an answer that is not `sure` there is one, without
        a geometry.
        """
        return feature_collection(to_features(self))


@dataclass(frozen=True)
class NotLocated:
    """A photo that cannot be read, and the reason."""

    photo: str
    error: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "photo", printable(self.photo))
        object.__setattr__(self, "error", printable(self.error))


def to_locations(posterior: Posterior, options: LocateOptions, names: Sequence[str]) -> list[Location]:
    """The locations of photos, given their posterior.

    Args:
        posterior: posterior of the photos.
        options: estimate, radius and number of candidates.
        names: (photo,) names of the photos.

    Raises:
        ConfigError: the radius is longer than the area's side.
    """
    check_radius(posterior.area, options.radius)
    within_radius = options.estimate in ("radius", "mean")
    if within_radius:
        points = most_probable_discs(posterior, options.radius, options.top, mean=options.estimate == "mean")
    else:
        points = most_probable_cells(posterior, options.top, apart=options.radius)
    latitude, longitude = posterior.area.unproject(points.x, points.y)
    radii = credible_radius(posterior, points.x[:, 0], points.y[:, 0], 0.68, 0.95)
    cell_m = posterior.area.cell_size / units_per_metre(posterior.area)

    def candidate(photo: int, rank: int) -> Candidate:
        at, cell = (photo, rank), int(points.cell[photo, rank])
        row, col = int(posterior.row[photo, cell]), int(posterior.col[photo, cell])
        path, steps = path_to(posterior, photo, row, col)
        return Candidate(
            latitude=float(latitude[at]),
            longitude=float(longitude[at]),
            x=float(points.x[at]),
            y=float(points.y[at]),
            cell=(row, col),
            path=path,
            probability=min(1.0, float(points.probability[at])),
            step_probabilities=steps,
            source=options.estimate,
            radius_m=options.radius if within_radius else None,
        )

    return [
        Location(
            photo=name,
            candidates=tuple(
                candidate(photo, rank)
                for rank in range(points.x.shape[1])
                if rank == 0 or points.probability[photo, rank] > 0
            ),
            cell_m=cell_m,
            radius_68=float(radii[0][photo]),
            radius_95=float(radii[1][photo]),
            posterior=posterior.of(photo),
            abstain=options.abstain,
        )
        for photo, name in enumerate(names)
    ]


def path_to(posterior: Posterior, photo: int, row: int, col: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The L actions to a cell of a pyramid, and the probability of each given those before it; empty in other areas.

    If the posterior has no `steps` for the cell, the probability of a tile is the sum over its cells.

    Args:
        posterior: posterior of the photos.
        photo: index of the photo.
        row: row of the cell.
        col: column.
    """
    area = posterior.area
    if not isinstance(area, Pyramid):
        return (), ()
    path = area.cell_to_path(row, col)
    reached = np.flatnonzero((posterior.row[photo] == row) & (posterior.col[photo] == col))
    if posterior.steps is not None and len(reached):
        return tuple(path.tolist()), tuple(posterior.steps[photo, reached[0]].tolist())
    cells = area.grid ** np.arange(area.levels - 1, -1, -1)[:, None]  # along the side of a tile of each step
    match = (posterior.row[photo] // cells == row // cells) & (posterior.col[photo] // cells == col // cells)
    tile = match @ posterior.probability[photo]  # (L,)
    parent = np.concatenate([[1.0], tile[:-1]])
    steps = np.divide(tile, parent, out=np.zeros_like(tile), where=parent > 0)
    return tuple(path.tolist()), tuple(steps.tolist())
