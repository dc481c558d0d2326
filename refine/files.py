"""Refiners in a folder: refiner.json, with digests of itself and of the weights in refiner.safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jzi.refine.cached import CachedRefiner
from jzi.refine.config import CachedRefinerConfig, Kind, UnifyGeoConfig
from jzi.refine.model import UnifyGeo

Refiner = UnifyGeo | CachedRefiner


@dataclass(frozen=True)
class RefinerInfo:
    """What refiner.json records.

    Attributes:
        kind: "cached" or "unifygeo".
        config: architecture of the network.
        window_m: side of the windows that it was trained on, true metres.
        temperature: divisor T_D of the logits of the density, fitted on validation photos.
        heading_temperature: divisor T_h of the cosines of headings, likewise.
        fusion: (w1, w2), weights of the front end's score and of the greatest cosine of level 0 between candidates.
        encoder: fingerprint of the encoder of the cache; empty of a refiner that sees pixels.
        detail: fingerprint of the tokens' projection and rendering; empty if there is none.
        version: version of jzi that wrote the folder.
    """

    kind: Kind
    config: UnifyGeoConfig | CachedRefinerConfig
    window_m: float
    temperature: float = 1.0
    heading_temperature: float = 0.1
    fusion: tuple[float, float] = (1.0, 0.0)
    encoder: str = ""
    detail: str = ""
    version: str = ""


def save_refiner(folder: Path, refiner: Refiner, info: RefinerInfo) -> None:
    """Write weights and refiner.json atomically.

    Raises:
        ModelError: a file cannot be written.
    """
    raise NotImplementedError


def update_refiner(folder: Path, **entries: Any) -> RefinerInfo:
    """Change entries of refiner.json, such as fitted temperatures.

    Raises:
        ModelError: there is no refiner, or the file cannot be written.
    """
    raise NotImplementedError


def read_refiner_info(folder: Path) -> RefinerInfo:
    """Read and check refiner.json.

    Raises:
        ModelError: there is no refiner in the folder, or it is damaged or of another format.
    """
    raise NotImplementedError


def load_refiner(folder: Path, device: torch.device | str = "cpu") -> tuple[Refiner, RefinerInfo]:
    """Load a refiner, in eval mode.

    Raises:
        ModelError: there is no refiner in the folder, or it is damaged or of another format.
    """
    raise NotImplementedError
