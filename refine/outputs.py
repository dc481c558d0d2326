"""What refiners take and return: photos, and densities over windows with the cosines that they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

#: Match of a window without imagery by log-likelihoods.
LEAST_MATCH = -1e4

Batch = TypeVar("Batch", "PhotoInput", "GroundFeatures", "AerialFeatures", "RefinerOutput")


@dataclass(frozen=True)
class PhotoInput:
    """A batch of n photos for a refiner; either `tokens` or `pixels` are given.

    Attributes:
        tokens: (n, H', W', F) tokens of a photo, row by row from the top left; of a cached refiner.
        pixels: (n, 3, H, W) normalised as ImageNet's; of UnifyGeo, and of a cached refiner that makes its own tokens.
        hfov_deg: (n,) horizontal field of view of what the photo shows, degrees; 360 of a whole panorama.
        panorama: (n,) bool, whether columns are equidistant in azimuth rather than on an image plane.
        log_heading: (n, R) log prior of headings 360 r / R degrees of the photo's centre column, clockwise from north:
            0 = flat, -inf = excluded (`jzi.refine.azimuth.log_heading_prior`). R is 1 of an aligned UnifyGeo.
        fill: (n,) share of the width that the photo fills, in the middle, if it is letterboxed; None = all of it.
    """

    hfov_deg: Tensor
    panorama: Tensor
    log_heading: Tensor
    tokens: Tensor | None = None
    pixels: Tensor | None = None
    fill: Tensor | None = None

    @property
    def ring(self) -> Tensor:
        """(n,) bool, whether the last column is beside the first one."""
        return self.panorama & (self.hfov_deg >= 360)

    def to(self, device: torch.device | str) -> PhotoInput:
        """The same on a device."""
        return _map_tensors(self, lambda value: value.to(device))

    def select(self, index: Tensor) -> PhotoInput:
        """The photos of an index or a mask, such as one photo for each of its candidates."""
        return _map_tensors(self, lambda value: value[index])

    def __len__(self) -> int:
        return len(self.hfov_deg)


@dataclass(frozen=True)
class GroundFeatures:
    """Features of n photos.

    Attributes:
        descriptors: four of (n, B, c), coarse to fine: B sectors of azimuth, c features of each.
        window: (n, B) share of each sector that the photo shows, 0..1; all 1 of a panorama.
        log_heading: (n, R) log prior of headings.
        embedding: (n, C) of unit length, to retrieve by; None of a cached refiner.
    """

    descriptors: tuple[Tensor, ...]
    window: Tensor
    log_heading: Tensor
    embedding: Tensor | None = None

    def select(self, index: Tensor) -> GroundFeatures:
        """The photos of an index or a mask, such as one photo for each of its candidates."""
        return _map_tensors(self, lambda value: value[index])


@dataclass(frozen=True)
class AerialFeatures:
    """Features of n windows.

    Attributes:
        maps: (n, C, L, L) of each level that the decoder reads, coarse to fine: four of UnifyGeo, else one.
        embedding: (n, C) of unit length, to retrieve by; None of a cached refiner.
    """

    maps: tuple[Tensor, ...]
    embedding: Tensor | None = None

    def select(self, index: Tensor) -> AerialFeatures:
        """The windows of an index or a mask."""
        return _map_tensors(self, lambda value: value[index])


@dataclass(frozen=True)
class RefinerOutput:
    """Densities of n photos over their windows. Row 0 is north, column 0 is west.

    Attributes:
        logits: (n, P, P) of the photo's position, -inf where masked.
        levels: of (n, R, L, L), coarse to fine: cosines in [-1, 1] of the photo's descriptor at R headings and of the
            map at L x L places; 0 where masked. Four of UnifyGeo and of refiners like it. If `additive`, one: scores.
        mask: (n, P, P) bool, whether a pixel has imagery.
        log_heading: (n, R) log prior of headings, as of the photos.
        temperature: divisor of cosines by which the prior is weighted against them; 1 if `additive`.
        additive: whether `levels` are log-likelihoods of places and headings up to a constant that is the same in all
            windows, rather than cosines.
    """

    logits: Tensor
    levels: tuple[Tensor, ...]
    mask: Tensor
    log_heading: Tensor
    temperature: float = 0.1
    additive: bool = False

    @cached_property
    def level_masks(self) -> tuple[Tensor, ...]:
        """For each level (n, L, L) bool: whether a place of a level has any imagery."""
        return tuple(pool_mask(self.mask, level.shape[-1]) for level in self.levels)

    @property
    def level0_max(self) -> Tensor:
        """(n,) greatest cosine of level 0 over headings and places with imagery, as eq. 4 of the paper takes it.

        A prior of headings lowers the cosines of unlikely ones (`roll_scores`). -1 where there is no imagery.
        """
        return level0_max(self.levels[0], self.level_masks[0], self.log_heading, self.temperature)

    @property
    def match(self) -> Tensor:
        """(n,) how well each photo fits its window, by which windows of a photo are compared.

        The greatest cosine of level 0; if `additive`, the log-sum-exp of the scores over the window, `LEAST_MATCH`
        without imagery.
        """
        if not self.additive:
            return self.level0_max
        return self.logits.flatten(1).logsumexp(1).clamp(min=LEAST_MATCH)

    def log_density(self, temperature: float | Tensor = 1.0) -> Tensor:
        """(n, P, P) log of the probability of each pixel, given the window; -inf where masked.

        Args:
            temperature: divisor of the logits.

        Returns:
            Without imagery in the window, -inf everywhere rather than nan.
        """
        logits = self.logits.masked_fill(~self.mask, 0.0)  # -inf would make the temperature's gradient nan
        return masked_log_softmax(logits / temperature, self.mask, (1, 2))

    def density(self, temperature: float | Tensor = 1.0) -> Tensor:
        """(n, P, P) probability of each pixel: sums to 1, is exactly 0 where masked, and 0 without any imagery."""
        return self.log_density(temperature).exp()

    def heading_posterior(self, temperature: float = 1.0, heading_temperature: float | None = None) -> Tensor:
        """(n, R) probability of each heading: that at each place by the finest level, weighted with the density.

        Args:
            temperature: divisor of the logits.
            heading_temperature: divisor of cosines; the output's own by default.

        Returns:
            Sums to 1 where the window has imagery, else 0.
        """
        cosines = self.levels[-1]
        scores = cosines / (heading_temperature or self.temperature) + self.log_heading[:, :, None, None]
        density = functional.adaptive_avg_pool2d(self.density(temperature), cosines.shape[-1])
        stride = self.mask.shape[-1] // cosines.shape[-1]
        return torch.einsum("nrij,nij->nr", scores.softmax(1), density * stride**2)

    def select(self, index: Tensor) -> RefinerOutput:
        """The photos of an index or a mask."""
        return _map_tensors(self, lambda value: value[index])

    def __len__(self) -> int:
        return len(self.logits)


def roll_scores(cosines: Tensor, log_heading: Tensor, temperature: float) -> Tensor:
    """Greatest cosine over headings, each lowered by how unlikely its heading is.

    Args:
        cosines: (n, ..., R, L, L).
        log_heading: (n, R) log prior.
        temperature: divisor of cosines in a softmax over headings.

    Returns:
        (n, ..., L, L) in [-1, 1]; the most likely heading's cosine is not lowered.
    """
    prior = log_heading - log_heading.amax(1, keepdim=True)
    shape = (len(prior), *[1] * (cosines.dim() - 4), prior.shape[1], 1, 1)
    return (cosines + temperature * prior.view(shape)).amax(-3)


def level0_max(cosines: Tensor, mask: Tensor, log_heading: Tensor, temperature: float) -> Tensor:
    """Greatest cosine of level 0 over headings and places with imagery.

    Args:
        cosines: (n, ..., R, L, L) of level 0.
        mask: (n, ..., L, L) bool.
        log_heading: (n, R) log prior.
        temperature: as of `roll_scores`.

    Returns:
        (n, ...); -1 where there is no imagery.
    """
    scores = roll_scores(cosines, log_heading, temperature)
    return scores.masked_fill(~mask, -1.0).amax((-2, -1))


def pool_mask(mask: Tensor, side: int) -> Tensor:
    """(n, side, side) bool, whether any pixel of a (n, P, P) mask is set in each place; P is a multiple of the side."""
    stride = mask.shape[-1] // side
    return functional.max_pool2d(mask.float(), stride).bool()


def masked_log_softmax(logits: Tensor, mask: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Log-softmax over the places of a mask: -inf elsewhere, and everywhere if the mask is empty; never nan.

    Args:
        logits: of any shape.
        mask: bool, of a shape that broadcasts with the logits.
        dim: the dimensions to normalise over.
    """
    infinite = float("-inf")
    empty = ~mask.any(dim=dim, keepdim=True)
    inside = torch.where(mask | empty, logits.masked_fill(~mask, 0.0), infinite)
    normalised = inside - torch.logsumexp(inside, dim, keepdim=True)
    return torch.where(mask, normalised, infinite)


def _map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The same with each tensor, and each tensor of a tuple, changed."""

    def changed(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(changed, value))
        return change(value) if isinstance(value, Tensor) else value

    return replace(batch, **{each.name: changed(getattr(batch, each.name)) for each in fields(batch)})
