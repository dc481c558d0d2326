"""The trained network of a refiner as the producer of a cache's tokens."""

from __future__ import annotations

import hashlib
import json
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import ConfigError
from jzi.refine.info import RefinerInfo
from jzi.refine.networks.files import Refiner
from jzi.refine.networks.ray_layers import RayTrunk
from jzi.refine.networks.trunks import AerialTrunk
from jzi.refine.photos import normalised
from jzi.refine.windows.window import Window
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import MAX_IMAGE_SIZE
from jzi.store.plain import plain


class TrunkTokens:
    """Tokens of a refiner's network for the map, a `jzi.encode.rasters.detail_tiles.TokenProducer`.

    Tiles are rendered with a margin, so that the tokens of adjacent tiles are those of the whole map.

    Args:
        refiner: with a trunk, on some device.

    Raises:
        ConfigError: the refiner reads tokens of an encoder, or images.
    """

    kind: Literal["encoder", "refiner"] = "refiner"

    def __init__(self, refiner: Refiner) -> None:
        trunk = getattr(refiner, "aerial_trunk", None)  # UnifyGeo has none
        if trunk is None:
            raise ConfigError("the refiner has no network of its own for the map: leave --refiner out")
        self.trunk: AerialTrunk | RayTrunk = trunk.eval()
        config = self.trunk.config
        self.patch, self.width, self.margin = config.stride, config.features, config.margin
        digest = hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode())
        for name, tensor in sorted(self.trunk.state_dict().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy(), "<f4").tobytes())
        self.fingerprint = digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """See `TokenProducer`."""
        return next(self.trunk.parameters()).device

    def to(self, device: str) -> Self:
        """See `TokenProducer`."""
        self.trunk.to(device)
        return self

    @torch.inference_mode()
    def tokens(self, images: NDArray[np.uint8]) -> Tensor:
        """See `TokenProducer`."""
        return self.trunk(normalised(images).to(self.device), self.margin)


def tile_pixels(info: RefinerInfo, pyramid: Pyramid) -> int:
    """Side of a tile of the last level, in pixels of the windows of a refiner that sees images of the map.

    Args:
        info: of the refiner.
        pyramid: geometry of the area.
    """
    return round(_tile_m(info, pyramid) / info.window_m * info.config.pixels)


def trunk_pixels(info: RefinerInfo, patch: int, pyramid: Pyramid) -> int:
    """Side of a tile's image, pixels, at about the resolution of the windows that a refiner was trained on.

    Args:
        info: of the refiner.
        patch: side of a token, pixels.
        pyramid: geometry of the area.
    """
    token_m = info.window_m / getattr(info.config, "side", 1)
    count = round(_tile_m(info, pyramid) / token_m)
    return min(max(1, count), MAX_IMAGE_SIZE // patch) * patch


def _tile_m(info: RefinerInfo, pyramid: Pyramid) -> float:
    """Side of a tile of the last level in the middle of the area, metres on the ground."""
    west, south, east, north = pyramid.bounds
    scale = Window(pyramid, (west + east) / 2, (south + north) / 2, info.window_m, 1).scale
    return pyramid.footprint(pyramid.levels - 1) / scale
