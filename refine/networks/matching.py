"""Descriptors of photos, and their cosines with the map's features at every heading (UnifyGeo; CCVPE).

A descriptor is azimuth-major: B sectors (`jzi.refine.azimuth`), c features of each. The map's features at a place are
read the same way, so that another heading of the photo is a rotation of either by whole sectors. A photo that shows
some sectors is compared with these alone; a sector that it shows in part has a weight accordingly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Least squared length of a descriptor: those of places without imagery may be 0.
_LEAST = 1e-12


class WindowNorm(nn.Module):
    """Layer norm over the part of a descriptor that a photo shows.

    Args:
        bins: number B of sectors.
        width: number c of features of a sector.
        tied: whether the affine weights are the same for all sectors. If not, a rotated panorama has no rotated
            descriptor.
    """

    def __init__(self, bins: int, width: int, tied: bool, epsilon: float = 1e-5) -> None:
        super().__init__()
        shape = (width,) if tied else (bins, width)
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.epsilon = epsilon

    def forward(self, descriptor: Tensor, window: Tensor) -> Tensor:
        """Normalise (n, B, c) descriptors by mean and variance over the sectors, weighted by the (n, B) window."""
        weight = window[:, :, None] / (window.sum(1)[:, None, None] * descriptor.shape[2])
        centred = descriptor - (descriptor * weight).sum((1, 2), keepdim=True)
        variance = (centred.square() * weight).sum((1, 2), keepdim=True)
        return centred * (variance + self.epsilon).rsqrt() * self.weight + self.bias


class GroundDescriptors(nn.Module):
    """Projections of a photo's last feature map to a descriptor for each level.

    Args:
        width: channels of the feature map.
        rows: its height H'.
        channels: length C of the descriptors of each level, multiples of `bins`.
        bins: number B of sectors.
        tied: whether the affine weights of the norms are the same for all sectors.
    """

    def __init__(self, width: int, rows: int, channels: tuple[int, ...], bins: int, tied: bool) -> None:
        super().__init__()
        features = [each // bins for each in channels]
        self.projections = nn.ModuleList(nn.Conv2d(width, each, 1) for each in features)
        self.columns = nn.ModuleList(nn.Linear(rows, 1) for _ in features)
        self.norms = nn.ModuleList(WindowNorm(bins, each, tied) for each in features)

    def forward(self, features: Tensor, sampling: Tensor, window: Tensor) -> tuple[Tensor, ...]:
        """Compute descriptors.

        Args:
            features: (n, width, H', W').
            sampling: (n, B, W') weights of the columns in each sector, which sum to 1.
            window: (n, B) share of each sector that the photo shows.

        Returns:
            A (n, B, c) float32 descriptor for each level.
        """
        descriptors = []
        for project, column, norm in zip(self.projections, self.columns, self.norms, strict=True):
            flattened = column(project(features).transpose(2, 3)).squeeze(3)  # (n, c, W')
            with torch.autocast(features.device.type, enabled=False):
                sectors = sampling @ flattened.float().transpose(1, 2)
                descriptors.append(norm(sectors, window))
        return tuple(descriptors)


def roll_cosines(descriptor: Tensor, window: Tensor, aerial: Tensor, rolls: int, *, cross: bool = False) -> Tensor:
    """Cosines of descriptors with the map's features, at R headings.

    Args:
        descriptor: (n, B, c) of photos.
        window: (n, B) share of each sector that a photo shows.
        aerial: (m, L, L, B * c) of windows.
        rolls: number R of headings, B or 1; roll r compares the photo's sector w with the map's sector w + r.
        cross: whether to compare each photo with each window; else n = m, and each with its own.

    Returns:
        (n, R, L, L) float32 in [-1, 1], up to rounding; (n, m, R, L, L) if cross.
    """
    with torch.autocast(aerial.device.type, enabled=False):
        bins, side = descriptor.shape[1], aerial.shape[1]
        places = aerial.float().flatten(1, 2)  # (m, L * L, B * c)
        turned = (torch.arange(bins) - torch.arange(rolls)[:, None]).to(aerial.device) % bins  # (R, B)
        weight = window[:, :, None]
        square = (descriptor.float().square() * weight).sum((1, 2), keepdim=True)
        unit = descriptor.float() * weight * square.clamp(min=_LEAST).rsqrt()
        equation = "nrk,mpk->nmrp" if cross else "nrk,npk->nrp"
        products = torch.einsum(equation, unit[:, turned].flatten(2), places)
        energy = places.unflatten(2, (bins, -1)).square().sum(3)  # (m, L * L, B)
        shown = torch.einsum(equation, window[:, turned], energy)
        return (products * shown.clamp(min=_LEAST).rsqrt()).unflatten(-1, (side, side))
