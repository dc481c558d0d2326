"""A refiner that compares what each column of a photo shows with what lies in its direction on the map.

It is ours, not UnifyGeo's. A small network makes tokens of the map, which a cache stores. For a place and a direction,
the tokens at fixed distances along the ray make a descriptor, by a network that all places and directions share. The
score of a place and a heading is the sum over the photo's sectors of azimuth of the products of their descriptors with
those of the rays, and a term for the place itself. A photo that is turned together with the map has the same scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jzi.errors import ConfigError
from jzi.refine.azimuth import sector_sampling
from jzi.refine.networks.ray_layers import PhotoColumns, RayTrunk
from jzi.refine.networks.ray_shifts import Places, along_rays, between_tokens, ray_shifts
from jzi.refine.outputs import AerialFeatures, GroundFeatures, PhotoInput, RefinerOutput
from jzi.refine.ray_config import RayConfig


class RayRefiner(nn.Module):
    """A refiner that looks along rays, with random weights.

    Args:
        config: its architecture.
    """

    def __init__(self, config: RayConfig) -> None:
        super().__init__()
        self.config = config
        features, width = config.trunk.features, config.width
        self.aerial_trunk = RayTrunk(config.trunk)
        self.columns = PhotoColumns(config)
        self.ray = nn.Sequential(
            nn.Linear(len(config.distances) * features, config.hidden), nn.ReLU(),
            nn.Linear(config.hidden, config.hidden), nn.ReLU(), nn.Linear(config.hidden, width),
        )  # fmt: skip
        self.place = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, width + 1))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.fine: int = config.fine  #: points along a side of a token; fewer are faster
        self.shifts = ray_shifts(config.bins, [far / config.token_m for far in config.distances])
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # several times as fast on a CPU
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)

    def ground(self, photos: PhotoInput) -> GroundFeatures:
        """Descriptors of the sectors of photos, (n, R, width), and of whole photos, (n, 1, width).

        Args:
            photos: with `pixels` of the size in the config.

        Raises:
            ConfigError: there are no pixels, or of another size.
        """
        config, pixels = self.config, photos.pixels
        shape = None if pixels is None else tuple(pixels.shape[2:])
        if pixels is None or shape != (config.photo_height, config.photo_width):
            raise ConfigError(
                f"the refiner reads photos of {config.photo_width} x {config.photo_height} pixels, not "
                f"{'tokens' if shape is None else f'{shape[1]} x {shape[0]}'}: read them with refine.kind = 'rays'"
            )
        ring = photos.ring
        columns, whole = self.columns(pixels, ring if bool(ring.any()) else None)
        sampling, window = sector_sampling(photos.hfov_deg, photos.panorama, photos.fill, columns.shape[1], config.bins)
        sectors = sampling @ columns * (window * window.sum(1, keepdim=True).rsqrt())[:, :, None]
        return GroundFeatures((sectors, whole[:, None]), window, photos.log_heading)

    def aerial(self, windows: Tensor) -> AerialFeatures:
        """Tokens of windows with a margin of `config.margin` tokens around them, north up.

        Args:
            windows: (n, T, T, F) tokens, T = `config.outer`; or (n, 3, 4 T, 4 T) pixels, normalised as ImageNet's.

        Raises:
            ConfigError: they are of another size.
        """
        outer, trunk = self.config.outer, self.config.trunk
        if windows.shape[1:] == (3, outer * trunk.stride, outer * trunk.stride):
            windows = self.aerial_trunk(windows)
        if windows.shape[1:] != (outer, outer, trunk.features):
            raise ConfigError(
                f"the refiner reads windows of {outer} x {outer} tokens of {trunk.features} features, not of "
                f"{tuple(windows.shape[1:])}: run `jzi encode-map --detail --refiner` with this refiner"
            )
        return AerialFeatures((windows.permute(0, 3, 1, 2),))

    def match(self, ground: GroundFeatures, aerial: AerialFeatures, mask: Tensor | None = None) -> RefinerOutput:
        """Density of each photo over its window, summed over the headings that its prior allows.

        Args:
            ground: of n photos.
            aerial: of n windows.
            mask: (n, T, T) bool, which tokens have imagery; all by default.

        Returns:
            Its one level is the (n, R, P, P) scores, 0 at headings that are excluded.
        """
        (maps,) = aerial.maps
        tokens, config = maps.permute(0, 2, 3, 1), self.config
        if mask is None:
            mask = torch.ones(tokens.shape[:3], dtype=torch.bool, device=tokens.device)
        tokens = tokens * mask[..., None]
        inner = mask[:, config.margin : -config.margin, config.margin : -config.margin]
        pixels = inner.repeat_interleave(self.fine, 1).repeat_interleave(self.fine, 2)
        steps = [(step + 0.5) / self.fine - 0.5 for step in range(self.fine)]
        rows = []
        for down in steps:
            row = [self._scores(ground, between_tokens(tokens, down, right)) for right in steps]
            rows.append(torch.stack(row, -1).flatten(-2))
        scores = torch.stack(rows, -2).flatten(-3, -2)  # points north to south within a token, then west to east
        scores = scores.masked_fill(~pixels[:, None], 0.0)
        prior = ground.log_heading.log_softmax(1)[..., None, None]
        logits = (scores + prior).logsumexp(1).masked_fill(~pixels, float("-inf"))
        return RefinerOutput(logits, (scores,), pixels, ground.log_heading, temperature=1.0, additive=True)

    def _scores(self, ground: GroundFeatures, tokens: Tensor) -> Tensor:
        """(n, R, side, side) float32 scores at the centres of the tokens of windows; 0 at excluded headings."""
        bins, side = self.config.bins, self.config.side
        places = Places((self.config.margin, self.config.margin), side)
        scores = tokens.new_zeros(len(tokens), bins, side, side, dtype=torch.float32)
        for index in range(len(tokens)):  # the azimuths that are needed depend on the photo
            roll = ground.log_heading[index].isfinite().nonzero()[:, 0]
            sector = ground.window[index].nonzero()[:, 0]
            azimuth, of = ((roll[:, None] + sector - bins // 2) % bins).unique(return_inverse=True)
            rays = self.describe(tokens[index : index + 1], [0], [azimuth.tolist()], places)[0]
            with torch.autocast(tokens.device.type, enabled=False):
                products = rays @ ground.descriptors[0][index, sector].T  # (azimuth, side, side, sector)
            turned = products[of, :, :, torch.arange(len(sector), device=of.device)].sum(1)  # (roll, side, side)
            scores[index, roll] = turned * self.log_scale.exp()
        return scores + self.place_scores(ground.descriptors[1][:, 0], tokens, places)[:, None]

    def describe(
        self, tokens: Tensor, window: Sequence[int], azimuths: Sequence[Sequence[int]], places: Places
    ) -> Tensor:
        """Descriptors of rays.

        Args:
            tokens: (n, T, T, F).
            window: (m,) which of the n grids to look at.
            azimuths: (m, K) indices of sectors of azimuth from north.
            places: P x P places where rays start.

        Returns:
            (m, K, P, P, width) float32.
        """
        kind = tokens.device.type
        if torch.is_autocast_enabled(kind):
            tokens = tokens.to(torch.get_autocast_dtype(kind))
        shifts = [tuple(self.shifts[each] for each in row) for row in azimuths]
        return self.ray(along_rays(tokens, window, shifts, places)).float()

    def place_scores(
        self, whole: Tensor, tokens: Tensor, places: Places, window: Sequence[int] | None = None
    ) -> Tensor:
        """(m, P, P) float32 scores of places as such.

        Args:
            whole: (m, width) of whole photos.
            tokens: (n, T, T, F).
            places: P x P places.
            window: (m,) which of the n grids to look at; all in order by default.
        """
        own = self.place(tokens[(slice(None), *places.shifted((0, 0)))]).float()
        own = own if window is None else own[list(window)]
        return (_products(own[..., :-1], whole[:, None]) + own[..., -1]) * self.log_scale.exp()

    def pair_scores(
        self,
        ground: GroundFeatures,
        tokens: Tensor,
        photo: Sequence[int],
        window: Sequence[int],
        roll: Sequence[int],
        places: Places,
    ) -> Tensor:
        """Scores of some photos in some windows at one heading each, for training.

        Args:
            ground: of photos.
            tokens: (n, T, T, F) of windows.
            photo: (m,) which photo.
            window: (m,) which window.
            roll: (m,) heading of the photo, 360 roll / R degrees from the window's north.
            places: P x P places.

        Returns:
            (m, P, P) float32.
        """
        bins = self.config.bins
        shown = ground.window.any(0).nonzero()[:, 0].tolist()
        azimuths = [[(each + sector - bins // 2) % bins for sector in shown] for each in roll]
        rays = self.describe(tokens, window, azimuths, places)
        sectors = ground.descriptors[0][:, shown][list(photo)]
        scores = _products(rays, sectors[:, :, None]).sum(1) * self.log_scale.exp()
        return scores + self.place_scores(ground.descriptors[1][list(photo), 0], tokens, places, window)


def _products(rays: Tensor, descriptor: Tensor) -> Tensor:
    """(..., P, P) products of (..., P, P, width) descriptors of places with (..., 1, width) ones, in float32."""
    with torch.autocast(rays.device.type, enabled=False):
        return (rays.flatten(-3, -2) @ descriptor.transpose(-1, -2)).unflatten(-2, rays.shape[-3:-1]).squeeze(-1)
