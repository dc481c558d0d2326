"""An epoch's batches hold every photo once, whatever the photos and however they are drawn."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from jzi.train.encoders.sampling import neighbour_batches


@st.composite
def photos_at_places(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(photo,) places, each of which has a photo, and (photo, range) neighbours of each photo's place."""
    count = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    _, place = np.unique(rng.integers(0, draw(st.integers(1, 60)), count), return_inverse=True)
    places = int(place.max()) + 1
    position = rng.random((places, 2))
    distance = np.linalg.norm(position[:, None] - position, axis=-1)
    np.fill_diagonal(distance, np.inf)
    near = distance.argsort(1)[:, : min(draw(st.integers(0, 20)), places - 1)]
    return place.astype(np.int64), near.astype(np.int32)[place]


@given(photos_at_places(), st.integers(1, 16), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_batches_of_neighbours_are_a_permutation_of_the_photos(
    photos: tuple[NDArray[np.int64], NDArray[np.int32]], size: int, select: int, seed: int
) -> None:
    place, neighbours = photos
    shuffled = np.random.default_rng(seed).permutation(len(place))
    order = neighbour_batches(shuffled, place, neighbours, size, select, np.random.default_rng(seed))
    assert np.array_equal(np.sort(order), np.arange(len(place)))
    again = neighbour_batches(shuffled, place, neighbours, size, select, np.random.default_rng(seed))
    assert np.array_equal(order, again)


@given(photos_at_places(), st.integers(2, 16), st.integers(0, 2**32 - 1))
def test_a_place_comes_twice_in_a_batch_only_when_no_other_is_left(
    photos: tuple[NDArray[np.int64], NDArray[np.int32]], size: int, seed: int
) -> None:
    place, neighbours = photos
    shuffled = np.random.default_rng(seed).permutation(len(place))
    order = neighbour_batches(shuffled, place, neighbours, size, 4, np.random.default_rng(seed))
    for start in range(0, len(order), size):
        batch = place[order[start : start + size]]
        if len(np.unique(batch)) < len(batch):  # then all that comes later was taken at this batch's places
            assert set(place[order[start + size :]].tolist()) <= set(batch.tolist())
