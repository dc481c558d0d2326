"""Pairs of a photo and the aerial image that it was taken in: what the readers of cross-view data sets return.

An aerial image is square, with north up. Positions in it are metres right (east) and up (north) of its centre, so that
they do not depend on the size at which the image is read. A photo may be compared with a part of its aerial image, a
*view*: a square with another centre, turned about it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.store.geometry.pyramid import WGS84
from jzi.store.photos.photo_table import Rejected

#: Mean radius of the earth, metres; and a distance beyond every aerial image, for places that are not known to be near.
RADIUS_M, FAR_M = 6_371_009.0, 1e6


@dataclass(frozen=True, eq=False)
class PairDataset:
    """The photos of one split of a cross-view data set, and the aerial images that are searched for them.

    Attributes:
        name: name of the data set and of its variant, for people.
        split: "train", "val" or "test".
        references: (reference,) paths of the aerial images.
        side_m: (reference,) sides of the aerial images, metres.
        position: (reference, 2) latitude and longitude of their centres, degrees; NaN if the data set has none.
        photos: (photo,) paths of the photos.
        positive: (photo,) index of the aerial image of each photo.
        offset: (photo, 2) metres right and up of the centre of that image at which the photo was taken.
        semi: (photo, semi) indices of other aerial images that the photo was taken in or near; -1 for none.
        semi_offset: (photo, semi, 2) as `offset`, in those images.
        heading: (photo,) compass direction of the middle column of the photo, degrees clockwise from up.
        hfov_deg: (photo,) horizontal field of view; 360 for panoramas.
        view: (photo, 3) centre of the photo's view, metres right and up of the image's centre, and the angle by which
            the view shows the image turned, degrees counter-clockwise; zeros for the whole image.
        view_side_m: side of the views, metres; None for the whole image.
        shift_m: training draws views whose centre is up to that far from the camera in each direction; 0 for none.
        turn_deg: training turns views by up to that angle either way.
        expected_deg: heading in the view that is known of all photos, within `turn_deg`.
        not_metric: why offsets are no ground truth to train and measure metres with; empty if they are.
        rejected: entries of the data set that were left out.
    """

    name: str
    split: str
    references: NDArray[np.object_]
    side_m: NDArray[np.float64]
    position: NDArray[np.float64]
    photos: NDArray[np.object_]
    positive: NDArray[np.int64]
    offset: NDArray[np.float64]
    semi: NDArray[np.int64]
    semi_offset: NDArray[np.float64]
    heading: NDArray[np.float64]
    hfov_deg: NDArray[np.float64]
    view: NDArray[np.float64]
    view_side_m: float | None = None
    shift_m: float = 0.0
    turn_deg: float = 0.0
    expected_deg: float = 0.0
    not_metric: str = ""
    rejected: tuple[Rejected, ...] = ()

    def __len__(self) -> int:
        return len(self.photos)

    def take(self, photos: NDArray[Any], split: str | None = None) -> PairDataset:
        """The same data set with some of its photos; the aerial images stay.

        Args:
            photos: indices of the photos, or a mask.
            split: another name of the split.
        """
        names = ("photos", "positive", "offset", "semi", "semi_offset", "heading", "hfov_deg", "view")
        return replace(self, **{name: getattr(self, name)[photos] for name in names}, split=split or self.split)

    def sides(self, references: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sides of the views of aerial images, metres, in the shape of their indices."""
        if self.view_side_m is None:
            return self.side_m[references]
        return np.full(np.shape(references), self.view_side_m)

    def in_view(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(photo, 2) metres right and up of each view's centre at which the photo was taken, and its heading there."""
        return to_view(self.offset, self.heading, self.view)

    @property
    def located(self) -> bool:
        """Whether positions of the aerial images are known."""
        return bool(len(self.position)) and bool(np.isfinite(self.position).all())

    def camera(self, photos: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float64]:
        """(photo, 2) latitude and longitude of photos, degrees; NaN where the data set has no positions."""
        latitude, longitude = self.position[self.positive[photos]].T
        east, north = self.offset[photos].T
        return moved(latitude, longitude, east, north)

    def places(self, photos: NDArray[np.int64], references: NDArray[np.int64]) -> NDArray[np.float64]:
        """Where photos were taken in aerial images, their own and others.

        Args:
            photos: (n,) indices of photos.
            references: (m,) indices of aerial images.

        Returns:
            (n, m, 2) metres right and up of the images' centres, by the labels in positives and semi-positives and else
            by positions; `FAR_M` where neither says it.
        """
        places = np.full((len(photos), len(references), 2), FAR_M)
        if self.located:
            camera = self.camera(photos)
            # on a sphere: within 0.4 % of the ellipsoid, and centimetres within an aerial image
            north = np.radians(camera[:, None, 0] - self.position[references, 0])
            east = np.radians(camera[:, None, 1] - self.position[references, 1])
            east = east * np.cos(np.radians(camera[:, None, 0]))
            places = RADIUS_M * np.stack([east, north], -1)
        for column in range(self.semi.shape[1]):
            photo, reference = np.nonzero(self.semi[photos, column][:, None] == references)
            places[photo, reference] = self.semi_offset[photos[photo], column]
        photo, reference = np.nonzero(self.positive[photos][:, None] == references)
        places[photo, reference] = self.offset[photos[photo]]
        return places


def to_view(
    offset: NDArray[np.float64], heading: NDArray[np.float64], view: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Convert places and headings in aerial images to those in views of them.

    Args:
        offset: (n, 2) metres right and up of the image's centre.
        heading: (n,) degrees clockwise from up.
        view: (n, 3) as `PairDataset.view`.

    Returns:
        (n, 2) metres right and up of the view's centre, and (n,) degrees clockwise from the view's up, 0..360.
    """
    right, up = (offset - view[:, :2]).T
    cos, sin = np.cos(np.radians(view[:, 2])), np.sin(np.radians(view[:, 2]))
    return np.stack([cos * right - sin * up, sin * right + cos * up], -1), (heading - view[:, 2]) % 360


def from_view(offset: NDArray[np.float64], view: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert places in views to those in their aerial images: the inverse of `to_view`.

    Args:
        offset: (n, 2) metres right and up of the view's centre.
        view: (n, 3) as `PairDataset.view`.
    """
    right, up = offset.T
    cos, sin = np.cos(np.radians(view[:, 2])), np.sin(np.radians(view[:, 2]))
    return np.stack([cos * right + sin * up, cos * up - sin * right], -1) + view[:, :2]


def moved(
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    east: NDArray[np.float64],
    north: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(n, 2) latitude and longitude, degrees (WGS 84), of the places some metres east and north of others.

    All arguments are (n,); NaN gives NaN.
    """
    azimuth = np.degrees(np.arctan2(east, north))
    known = np.isfinite(latitude) & np.isfinite(longitude) & np.isfinite(azimuth)
    place = np.full((len(latitude), 2), np.nan)
    if known.any():
        start = longitude[known], latitude[known]
        there = WGS84.fwd(*start, azimuth[known], np.hypot(east, north)[known])
        place[known] = np.stack([there[1], there[0]], -1)
    return place
