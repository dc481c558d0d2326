"""Azimuths of photos: from columns to sectors of azimuth, and priors of headings.

A photo's descriptor has one part for each of B sectors of 360 / B degrees. Sector w spans the azimuths from
(w - B / 2) * 360 / B on, clockwise from the photo's centre column. Roll r is the heading of 360 r / R degrees: sector w
of the photo is then sector w + r of the map, whose sector B / 2 begins in the north.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Widest field of view of an image plane, degrees: its edges would be at infinity at 180.
MAX_PLANE_DEG = 170.0


def log_heading_prior(heading_deg: Tensor, sd_deg: Tensor, rolls: int) -> Tensor:
    """Log prior of R headings from a compass: a wrapped normal, cut off at three standard deviations.

    Args:
        heading_deg: (n,) of the photo's centre column, clockwise from true north, degrees; nan if unknown.
        sd_deg: (n,) its standard deviation, degrees.
        rolls: number R of headings.

    Returns:
        (n, R): 0 = flat, if the heading is unknown; else at most 0, -inf for excluded headings. The heading next to the
        given one is never excluded.
    """
    step = 360 / rolls
    centres = torch.arange(rolls, device=heading_deg.device) * step
    difference = (centres - heading_deg[:, None] + 180) % 360 - 180  # (n, R)
    sd = sd_deg[:, None].clamp(min=1e-3)
    edges = torch.stack([difference - step / 2, difference + step / 2]) / (sd * 2**0.5)
    low, high = _precise(edges)
    share = torch.erf(high) - torch.erf(low)
    far = difference.abs() > (3 * sd).clamp(min=step / 2 + 1e-4)
    log_share = share.clamp(min=torch.finfo(share.dtype).tiny).log().masked_fill(far, float("-inf"))
    log_prior = (log_share - log_share.amax(1, keepdim=True)).to(heading_deg.dtype)
    return torch.where(heading_deg.isnan()[:, None], torch.zeros_like(log_prior), log_prior)


def sector_sampling(
    hfov_deg: Tensor, panorama: Tensor, fill: Tensor | None, columns: int, bins: int
) -> tuple[Tensor, Tensor]:
    """Which columns of a photo, or of a feature map of it, show which sectors of azimuth.

    A sector is the mean of the columns between its edges, or, if it is narrower than a column, interpolated linearly.
    Columns of an image plane are at u = tan(azimuth), those of a panorama are equidistant.

    Args:
        hfov_deg: (n,) horizontal field of view of what the photo shows, degrees; at most 170 counts of a plane.
        panorama: (n,) bool, whether columns are equidistant in azimuth.
        fill: (n,) share of the width that the photo fills, in the middle; None = all of it.
        columns: number W' of columns.
        bins: number B of sectors.

    Returns:
        (n, B, W') weights of the columns in each sector, which sum to 1, and the (n, B) share of the sector that the
        photo shows, 0..1. The weights of a sector that is not shown are those of the photo's edge.
    """
    hfov = _precise(torch.where(panorama, hfov_deg.clamp(1.0, 360.0), hfov_deg.clamp(1.0, MAX_PLANE_DEG)))
    step = 360 / bins
    edges = (torch.arange(bins + 1, device=hfov.device, dtype=hfov.dtype) - bins / 2) * step
    shown = edges.clamp(-hfov[:, None] / 2, hfov[:, None] / 2)  # (n, B + 1) azimuths
    plane = hfov.clamp(max=MAX_PLANE_DEG)[:, None].deg2rad() / 2
    on_plane = shown.deg2rad().clamp(-plane, plane).tan() / (2 * plane.tan())
    share = torch.where(panorama[:, None], shown / hfov[:, None], on_plane)  # of the photo's width, from its middle
    filled = torch.ones_like(hfov)[:, None] if fill is None else fill[:, None].to(hfov)
    position = (columns * (0.5 + share * filled)).round(decimals=9)  # whole columns exactly
    middle, half = (position[:, 1:] + position[:, :-1]) / 2, (position[:, 1:] - position[:, :-1]).clamp(min=1.0) / 2
    low, high = middle - half, middle + half
    ring = (panorama & (hfov_deg >= 360))[:, None]
    edge = columns * (0.5 - 0.5 * filled)  # of the photo in its columns
    low, high = torch.where(ring, low, low.clamp(min=edge)), torch.where(ring, high, high.clamp(max=columns - edge))
    left = torch.arange(columns, device=hfov.device)
    weights = _overlap(low, high, left)
    for lap in (-columns, columns):
        weights = weights + ring[:, :, None] * _overlap(low, high, left + lap)
    weights = weights / weights.sum(2, keepdim=True)
    window = (shown[:, 1:] - shown[:, :-1]) / step
    return weights.to(hfov_deg.dtype), window.to(hfov_deg.dtype)


def _overlap(low: Tensor, high: Tensor, left: Tensor) -> Tensor:
    """(n, B, W') length that the intervals from low to high, (n, B), share with those from left to left + 1, (W',)."""
    return (torch.minimum(high[:, :, None], left + 1) - torch.maximum(low[:, :, None], left)).clamp(min=0.0)


def _precise(values: Tensor) -> Tensor:
    """In float64, where the device has it: sectors of whole columns shall have their weights and no others."""
    return values if values.device.type == "mps" else values.double()
