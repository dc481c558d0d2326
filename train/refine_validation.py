"""Metres, degrees and likelihood of a refiner's output on windows that contain their photos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from jzi.evaluate.metres import RADII
from jzi.refine.outputs import RefinerOutput
from jzi.train.refine_losses import PairTruth
from jzi.train.run import Metrics

#: Least log-likelihood of a pixel, for a place without imagery.
LEAST = -30.0


@dataclass(frozen=True)
class Accuracy:
    """How near the most probable pixels are to the true places.

    Attributes:
        error_m: (photo,) distance in the window's plane, metres.
        heading_error_deg: (photo,) of the most probable heading, 0..180; nan where none is known.
        nll: (photo,) negative log-likelihood of the true place, nats, of a density per square metre.
    """

    error_m: Tensor
    heading_error_deg: Tensor
    nll: Tensor

    @classmethod
    def of(cls, parts: Sequence[Accuracy]) -> Accuracy:
        """Of several batches."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    def metrics(self) -> Metrics:
        """Means and medians over the photos, for the log of training."""
        known = self.heading_error_deg[~self.heading_error_deg.isnan()]
        heading = {"heading_error_deg": float(known.median())} if len(known) else {}
        return {
            "val_loss": float(self.nll.mean()),
            **{f"recall@{radius:g}m": float((self.error_m <= radius).float().mean()) for radius in RADII},
            "median_error_m": float(self.error_m.median()),
            **heading,
        }


def measure(output: RefinerOutput, truth: PairTruth, window_m: float) -> Accuracy:
    """Compare a refiner's output with the truth.

    Args:
        output: of each photo and its own window.
        truth: where the photos were taken.
        window_m: side of a window, metres.
    """
    size = output.logits.shape[-1]
    pixel_m = window_m / size
    log_density = output.log_density().float().flatten(1)
    best = log_density.argmax(1)
    found = torch.stack([best % size, best // size], 1) + 0.5
    place = (truth.place + 0.5) * size
    col, row = place.floor().long().clamp(0, size - 1).unbind(1)
    log_share = log_density.gather(1, (row * size + col)[:, None])[:, 0].clamp(min=LEAST)
    heading = output.heading_posterior().argmax(1) * (360 / output.log_heading.shape[1])
    away = ((heading - truth.heading_deg + 180) % 360 - 180).abs()
    return Accuracy(
        ((found - place).norm(dim=1) * pixel_m).cpu(),
        away.cpu(),
        (2 * math.log(pixel_m) - log_share).cpu(),
    )
