"""Projection of tokens to few 8-bit features: a principal component analysis and a scale for each feature."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jzi.errors import CacheError

#: Most features that are kept: those of 768 that a refiner of 192 channels reads.
MAX_FEATURES = 128

#: Largest magnitude of a stored value; -128 stands for a token that is not there.
LARGEST, ABSENT = 127, -128

#: Values beyond this many standard deviations are clipped: DINOv2 has a few tokens of ten times the usual length,
#: which would leave a handful of steps to all others.
DEVIATIONS = 6.0

#: Least scale of a feature, as a share of the largest: what did not vary in the sample must not be amplified.
LEAST_SCALE = 1e-3


@dataclass(frozen=True)
class Projection:
    """How tokens of a producer become the 8-bit features of a cache.

    Attributes:
        mean: (source,) float32, subtracted from a token.
        basis: (source, feature) float32, orthonormal columns.
        scale: (feature,) float32, value of one step of a feature.
    """

    mean: NDArray[np.float32]
    basis: NDArray[np.float32]
    scale: NDArray[np.float32]

    @property
    def digest(self) -> str:
        """SHA-256 over the values."""
        digest = hashlib.sha256()
        for array in (self.mean, self.basis, self.scale):
            digest.update(np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()

    @classmethod
    def fit(cls, tokens: NDArray[np.floating], width: int = MAX_FEATURES, *, rotate: bool = True) -> Projection:
        """Fit the projection to a sample of tokens; the same sample gives the same bytes.

        Args:
            tokens: (token, source), at least one.
            width: most features to keep.
            rotate: whether to keep the principal components; else the features as they are, all of them.

        Raises:
            CacheError: there is no token, or a value is not finite.
        """
        sample = np.asarray(tokens, np.float64)
        if not len(sample) or not np.isfinite(sample).all():
            raise CacheError(
                "tokens of no tile, or values that are not finite, cannot be projected: use another encoder"
            )
        if rotate:
            mean = sample.mean(0)
            centred = sample - mean
            _, vectors = np.linalg.eigh(centred.T @ centred)  # in the order of ascending variance
            basis = vectors[:, ::-1][:, :width]
            largest = np.abs(basis).argmax(0)  # the sign of an eigenvector is not determined
            basis = basis * np.where(basis[largest, np.arange(basis.shape[1])] < 0, -1, 1)
        else:
            mean, basis = np.zeros(sample.shape[1]), np.eye(sample.shape[1])
        values = (sample - mean) @ basis
        reach = np.minimum(np.abs(values).max(0), DEVIATIONS * np.sqrt((values**2).mean(0)))
        scale = np.maximum(reach, LEAST_SCALE * max(reach.max(), np.finfo(np.float32).tiny)) / LARGEST
        return cls(*(np.ascontiguousarray(array, np.float32) for array in (mean, basis, scale)))

    def quantise(self, tokens: NDArray[np.floating]) -> NDArray[np.int8]:
        """Project (..., source) tokens to (..., feature) int8 in -127..127.

        Raises:
            CacheError: a value is not finite.
        """
        values = (np.asarray(tokens, np.float32) - self.mean) @ self.basis / self.scale
        if not np.isfinite(values).all():
            raise CacheError("a token has a value that is not finite: use another encoder")
        return np.clip(np.rint(values), -LARGEST, LARGEST).astype(np.int8)

    def to_float(self, values: NDArray[np.int8]) -> NDArray[np.float32]:
        """(..., feature) float32 of stored values; those of absent tokens mean nothing."""
        return values.astype(np.float32) * self.scale

    def restore(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Approximate (..., source) tokens from (..., feature) of `to_float`."""
        return np.asarray(features @ self.basis.T + self.mean, np.float32)
