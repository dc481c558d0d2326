"""Positions in metres and headings inside of the candidates' windows (UnifyGeo), from images or off the cache."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jzi.refine.config import CachedRefinerConfig as CachedRefinerConfig
    from jzi.refine.config import RefineConfig as RefineConfig
    from jzi.refine.config import UnifyGeoConfig as UnifyGeoConfig
    from jzi.refine.networks.cached import CachedRefiner as CachedRefiner
    from jzi.refine.networks.model import UnifyGeo as UnifyGeo
    from jzi.refine.outputs import PhotoInput as PhotoInput
    from jzi.refine.outputs import RefinerOutput as RefinerOutput

#: Public names and their modules, which are imported on first use: reading settings loads no torch.
_EXPORTS = {
    "CachedRefiner": "jzi.refine.networks.cached",
    "CachedRefinerConfig": "jzi.refine.config",
    "PhotoInput": "jzi.refine.outputs",
    "RefineConfig": "jzi.refine.config",
    "RefinerOutput": "jzi.refine.outputs",
    "UnifyGeo": "jzi.refine.networks.model",
    "UnifyGeoConfig": "jzi.refine.config",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'jzi.refine' has no attribute {name!r}")
