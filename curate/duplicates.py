"""Pairs of photos whose perceptual hashes differ in a few bits, among hundreds of thousands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

#: Most pairs that are compared at a time: 16 MB of differences.
PAIRS = 2**21


def near_pairs(hashes: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    """(pair, 2) indices of distinct hashes that differ in a few bits, the smaller index first, sorted.

    Hashes are cut into `bits + 1` bands. Two that differ in `bits` bits at most agree in one band at least, so that
    only those with an equal band are compared.

    Args:
        hashes: (hash,) distinct.
        bits: most bits, 0 to 63.
    """
    found = [np.zeros((0, 2), np.int64)]
    edges = np.linspace(0, 64, bits + 2).round().astype(int)
    for low, high in pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=~band[order[:1]]))
        for group in np.split(order, starts[1:]):
            found += _close(hashes, group, bits)
    return np.unique(np.concatenate(found), axis=0)


def _close(hashes: NDArray[np.uint64], group: NDArray[np.int64], bits: int) -> Iterator[NDArray[np.int64]]:
    """Pairs of a group that are close; rows of the triangle of pairs are compared by the block."""
    step = max(1, PAIRS // max(1, len(group)))
    for start in range(0, len(group) - 1, step):
        rows, others = group[start : start + step], group[start + 1 :]
        row, other = np.nonzero(np.bitwise_count(hashes[rows][:, None] ^ hashes[others]) <= bits)
        later = other >= row  # others begin one after the first row
        yield np.sort(np.stack([rows[row[later]], others[other[later]]], 1), 1)


def duplicates_of(hashes: NDArray[np.uint64], bits: int) -> dict[int, int]:
    """Photos that are duplicates of a photo before them, which is kept.

    Args:
        hashes: (photo,) in the order of preference.
        bits: most bits in which duplicates differ.

    Returns:
        The index of each duplicate, and that of the kept photo, the first that is so close.
    """
    distinct, first, member = np.unique(hashes, return_index=True, return_inverse=True)
    neighbours: dict[int, list[int]] = defaultdict(list)
    for one, other in near_pairs(distinct, bits):
        neighbours[int(one)].append(int(other))
        neighbours[int(other)].append(int(one))
    original: dict[int, int] = {}  # kept photo of each distinct hash
    for each in np.argsort(first).tolist():
        kept = [int(first[near]) for near in neighbours[each] if original.get(near) == first[near]]
        original[each] = min(kept, default=int(first[each]))
    return {photo: original[each] for photo, each in enumerate(member.ravel().tolist()) if original[each] != photo}
