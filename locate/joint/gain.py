"""What a part of a fit is worth: the log-likelihood that it adds per validation photo, and whether that is clear."""

from __future__ import annotations

from torch import Tensor

#: Standard errors by which the gain of a part must exceed zero to keep the part.
CLEAR = 1.64

#: Fewest photos on which it can be clear whether a part of the fusion has a gain.
MIN_PHOTOS = 50


def mean_and_error(gain: Tensor) -> tuple[float, float]:
    """Mean of (photo,) gains, and its standard error; of one photo, as large as the mean."""
    mean = float(gain.mean())
    return mean, float(gain.std() / len(gain) ** 0.5) if len(gain) > 1 else abs(mean)


def is_clear(mean: float, error: float) -> bool:
    """Whether a gain exceeds zero by `CLEAR` standard errors."""
    return mean > CLEAR * error
