"""Warnings about data that cannot lead to a good model; nothing is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.plain import share_text

if TYPE_CHECKING:
    from jzi.encode.rasters.imagery import Imagery

#: Photos below which training is warned about. A tenth are validation photos, on which temperatures and the weights of
#: four experts are fitted: with fewer than 20, these numbers are noise.
FEW_PHOTOS = 200

#: Share of an area with imagery below which it is warned about: photos outside of it cannot be located, and the first
#: zoom steps look at empty tiles.
LITTLE_IMAGERY = 0.2

#: Enlargement from which imagery is too coarse: at two, a quarter of the encoder's pixels hold information.
ENLARGED = 2.0


def photo_warnings(photos: int) -> tuple[str, ...]:
    """A warning if there are too few photos to train on.

    Args:
        photos: number of photos of the training, validation and test splits.
    """
    if photos >= FEW_PHOTOS:
        return ()
    return (
        f"{photos} photo{'' if photos == 1 else 's'}: too few to train on and to evaluate; at least {FEW_PHOTOS} are "
        "needed to fit confidences, and thousands for good recall (without photos of the area: `jzi transfer -h`)",
    )


def map_warnings(imagery: Imagery, pyramid: Pyramid, image_size: int) -> tuple[str, ...]:
    """Warnings if imagery is coarser than the encoder's input, or covers little of the area.

    Args:
        imagery: the opened map.
        pyramid: geometry of the area.
        image_size: side of the encoder's input, pixels.
    """
    found = []
    pixels = _finest_pixels(imagery, pyramid)
    side = pyramid.footprint(pyramid.levels - 1)
    if pixels and image_size / pixels >= ENLARGED:
        found.append(
            f"the imagery is coarse: a tile of {side:.0f} m has {pixels:.0f} pixels, which are enlarged to "
            f"{image_size}; use imagery of at most {side / image_size:.2f} m per pixel, fewer levels, or smaller "
            "images"
        )
    share = _extent_share(imagery, pyramid)
    if share < LITTLE_IMAGERY:
        found.append(imagery_warning(share))
    return tuple(found)


def imagery_warning(share: float) -> str:
    """The warning about an area of which a share, 0..1, has imagery."""
    return (
        f"only {share_text(share)} of the area has imagery: photos are located there alone; give a smaller area with "
        "`jzi init --center LAT LON --size METRES`, or more imagery"
    )


def _finest_pixels(imagery: Imagery, pyramid: Pyramid) -> float | None:
    """Source pixels along the side of a tile of the last encoded level, where imagery is finest."""
    half, counts = pyramid.footprint(pyramid.levels - 1) / 2, []
    for raster, extent in zip(imagery.rasters, imagery.extents, strict=True):
        inside = _intersection(extent, pyramid)
        if inside is None:
            continue
        x, y = (inside.west + inside.east) / 2, (inside.south + inside.north) / 2
        pixels = raster.pixels_across(pyramid.crs, Bounds(x - half, y - half, x + half, y + half))
        counts += [pixels] if pixels else []
    return max(counts, default=None)


def _extent_share(imagery: Imagery, pyramid: Pyramid) -> float:
    """Share of the area that the extents of the rasters cover, at most: those that overlap count twice."""
    areas = (_intersection(extent, pyramid) for extent in imagery.extents)
    covered = sum((each.east - each.west) * (each.north - each.south) for each in areas if each)
    return min(1.0, covered / pyramid.size**2)


def _intersection(extent: Bounds, pyramid: Pyramid) -> Bounds | None:
    area = pyramid.bounds
    west, south = max(extent.west, area.west), max(extent.south, area.south)
    east, north = min(extent.east, area.east), min(extent.north, area.north)
    return Bounds(west, south, east, north) if west < east and south < north else None
