"""Losses of the refiner that looks along rays: likelihood of the place in its window, and among windows.

A photo is scored at its true heading. One whose heading the refiner is not given is scored at some wrong headings too,
which stand for all wrong ones, and in other windows at any heading, so that the sum over headings is a likelihood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Other windows of the batch that each photo is compared with: more did not help after 500 steps on made towns.
OTHERS = 1

#: Wrong headings that an unknown heading is compared with.
WRONG = 2


@dataclass(frozen=True)
class RayPairs:
    """What the photos of a batch are compared with; the first n are the photos with their windows, in order.

    Attributes:
        photo: (m,) index of the photo.
        window: (m,) index of the window.
        roll: (m,) heading from the window's north, in steps of 360 / R degrees.
        log_weight: (m,) log of the number of candidates that each stands for; -inf leaves it out.
    """

    photo: Tensor
    window: Tensor
    roll: Tensor
    log_weight: Tensor

    @classmethod
    def draw(
        cls, heading_deg: Tensor, known: Tensor, shown: Tensor, rolls: int, generator: torch.Generator
    ) -> RayPairs:
        """Draw what photos are compared with.

        Args:
            heading_deg: (n,) true headings from the windows' north, on the CPU.
            known: (n,) bool, whose heading the refiner is given.
            shown: (n, n) bool, windows b' that show the place of photo b, which are no negatives.
            rolls: number R of headings.
            generator: source of the random numbers, on the CPU.
        """
        count = len(heading_deg)
        photo, own = torch.arange(count), (heading_deg * rolls / 360).round().long() % rolls
        parts = [(photo, photo, own, torch.zeros(count))]
        any_roll = torch.randint(rolls, (OTHERS, count), generator=generator)
        for number in range(1, min(OTHERS, count - 1) + 1):
            window = (photo + number) % count
            weight = torch.where(known, 0.0, math.log(rolls)).masked_fill(shown[photo, window], -math.inf)
            parts.append((photo, window, torch.where(known, own, any_roll[number - 1]), weight))
        unknown = (~known).nonzero()[:, 0]
        away = torch.randint(1, rolls, (WRONG, count), generator=generator)
        for each in away[:, unknown]:
            weight = torch.full((len(unknown),), math.log((rolls - 1) / WRONG))
            parts.append((unknown, unknown, (own[unknown] + each) % rolls, weight))
        return cls(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def __len__(self) -> int:
        return len(self.photo)


def place_weights(place: Tensor, points: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """(n, P, P) Gaussian of sum 1 around each place, over the points with imagery.

    Args:
        place: (n, 2) column and row.
        points: (P, 2) columns and rows of the points; all combinations are meant.
        mask: (n, P, P) bool; a photo without any imagery at points has nan.
        sigma: standard deviation, in the same unit.
    """
    col, row = (-((points[:, axis] - place[:, axis, None]) ** 2) / (2 * sigma**2) for axis in (0, 1))
    scores = (row[:, :, None] + col[:, None, :]).masked_fill(~mask, -math.inf)
    return scores.flatten(1).softmax(1).view_as(scores)


def ray_losses(scores: Tensor, mask: Tensor, weights: Tensor, pairs: RayPairs) -> tuple[Tensor, Tensor]:
    """L_D and L_R, means over the photos.

    Args:
        scores: (m, P, P) of the pairs.
        mask: (n, P, P) bool of the windows, points with imagery.
        weights: (n, P, P) of `place_weights`.
        pairs: the pairs, on the device of the scores.

    Returns:
        Negative log-likelihood of the place, and heading, in the photo's own window, and among all windows.
    """
    count = len(weights)
    allowed = mask[pairs.window]
    total = scores.masked_fill(~allowed, -math.inf).flatten(1).logsumexp(1) + pairs.log_weight
    true = (weights * scores[:count].masked_fill(~mask, 0.0)).sum((1, 2))
    own = pairs.photo == pairs.window
    losses = []
    for part in (own, torch.ones_like(own)):
        table = scores.new_full((count, len(pairs)), -math.inf)
        index = part.nonzero()[:, 0]
        table[pairs.photo[index], index] = total[index]
        losses.append((table.logsumexp(1) - true).mean())
    return losses[0], losses[1]
