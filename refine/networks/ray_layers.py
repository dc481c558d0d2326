"""Networks of the refiner that looks along rays: from pixels of the map to tokens, from those of photos to columns.

Their convolutions are plain 3 x 3 ones: on a CPU these are several times as fast as a ConvNeXt's depthwise ones, and
more so in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from jzi.errors import ConfigError
from jzi.refine.networks.backbone import ChannelNorm
from jzi.refine.ray_config import PHOTO_STRIDE, RayConfig, RayTrunkConfig


class RingConv(nn.Conv2d):
    """A 3 x 3 convolution that is padded circularly along the columns for some images of a batch."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__(channels, width, 3, stride, padding=1)

    def forward(self, features: Tensor, ring: Tensor | None = None) -> Tensor:
        """Convolve (n, channel, row, col); `ring` is (n,) bool, none by default."""
        if ring is None:
            return super().forward(features)
        left, right = features[..., -1:], features[..., :1]
        closed = ring[:, None, None, None].to(features.dtype)
        padded = torch.cat([left * closed, features, right * closed], 3)
        return functional.conv2d(padded, self.weight, self.bias, self.stride, (1, 0))


class ResidualBlock(nn.Module):
    """Two convolutions after a norm over channels.

    Args:
        width: number of channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.first, self.second = RingConv(width, width), RingConv(width, width)

    def forward(self, features: Tensor, ring: Tensor | None = None) -> Tensor:
        """(n, width, row, col) to the same."""
        return features + self.second(functional.relu(self.first(self.norm(features), ring)), ring)


class RayTrunk(nn.Module):
    """Tokens of map images.

    Args:
        config: its architecture; `config.stride` and `config.margin` say what a token sees.
    """

    def __init__(self, config: RayTrunkConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(3, config.width, config.stride, config.stride)
        self.blocks = nn.Sequential(*(ResidualBlock(config.width) for _ in range(config.blocks)))
        self.out = nn.Sequential(ChannelNorm(config.width), nn.Conv2d(config.width, config.features, 1))

    def forward(self, pixels: Tensor, margin: int = 0) -> Tensor:
        """Tokens of images.

        Args:
            pixels: (n, 3, S, S) normalised as ImageNet's, north up; S is a multiple of the stride.
            margin: pixels of the border, a multiple of the stride, whose tokens are left out. With `config.margin`, a
                tile's tokens are those of the whole map.

        Returns:
            (n, s, s, F), s = (S - 2 margin) / stride.

        Raises:
            ConfigError: the sides or the margin are no multiple of the stride, or nothing is left.
        """
        stride, (height, width) = self.config.stride, pixels.shape[2:]
        if height % stride or width % stride or margin % stride or 2 * margin >= min(height, width):
            raise ConfigError(
                f"tokens are made of {stride} x {stride} pixels, which do not fill {width} x {height} pixels with a "
                f"margin of {margin}: give multiples of {stride}"
            )
        features = self.blocks(self.stem(pixels.contiguous(memory_format=torch.channels_last)))
        crop = margin // stride
        inner = features[:, :, crop : features.shape[2] - crop, crop : features.shape[3] - crop]
        return self.out(inner).permute(0, 2, 3, 1)


class PhotoColumns(nn.Module):
    """Descriptors of the columns of photos, and one of the whole photo.

    Args:
        config: of the refiner.
    """

    def __init__(self, config: RayConfig) -> None:
        super().__init__()
        first, second = config.photo_channels
        rows, hidden = config.photo_height // PHOTO_STRIDE, 4 * config.width
        self.rows = rows
        self.patches = nn.Conv2d(3, first, 4, 4)
        self.convolution, self.down = RingConv(first, first), RingConv(first, second, 2)
        self.blocks = nn.ModuleList(ResidualBlock(second) for _ in range(config.photo_blocks))
        self.reduce = nn.Conv2d(second, first, 1)
        self.column = nn.Sequential(
            nn.LayerNorm(first * rows), nn.Linear(first * rows, 6 * config.width), nn.GELU(),
            nn.Linear(6 * config.width, hidden),
        )  # fmt: skip
        self.mix, self.out = nn.Conv1d(hidden, hidden, 3), nn.Conv1d(hidden, config.width, 3)
        self.whole = nn.Sequential(nn.Linear(hidden, 64), nn.ReLU(), nn.Linear(64, config.width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, pixels: Tensor, ring: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Descriptors of photos.

        Args:
            pixels: (n, 3, H, W) normalised as ImageNet's.
            ring: (n,) bool, whether the last column is beside the first one; none by default.

        Returns:
            (n, W / 8, width) of columns, and (n, width) of the whole photo.
        """
        features = functional.relu(self.patches(pixels.contiguous(memory_format=torch.channels_last)))
        features = self.down(functional.relu(self.convolution(features, ring)), ring)
        for block in self.blocks:
            features = block(features, ring)
        columns = self.column(self.reduce(features).permute(0, 3, 1, 2).flatten(2))
        mixed = functional.gelu(self.mix(_pad(columns.transpose(1, 2), ring)))
        out = self.dropout(self.out(_pad(mixed, ring)))
        return out.transpose(1, 2).float(), self.whole(columns.mean(1)).float()


def _pad(columns: Tensor, ring: Tensor | None) -> Tensor:
    """(n, channel, col) with a column on either side: of the other end if the photo is closed, else 0."""
    if ring is None:
        return functional.pad(columns, (1, 1))
    closed = ring[:, None, None].to(columns.dtype)
    return torch.cat([columns[..., -1:] * closed, columns, columns[..., :1] * closed], 2)
