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
    share = (torch.erf(edges[1].double()) - torch.erf(edges[0].double())).clamp(min=1e-300)
    log_share = share.log().masked_fill(difference.abs() > (3 * sd).clamp(min=step / 2 + 1e-4), float("-inf"))
    log_prior = (log_share - log_share.amax(1, keepdim=True)).to(heading_deg.dtype)
    return torch.where(heading_deg.isnan()[:, None], torch.zeros_like(log_prior), log_prior)
