"""Locate street-level photos by zooming into an overhead map.

>>> import jzi
>>> location = jzi.load("model").locate("photo.jpg")  # doctest: +SKIP
>>> print(location.latitude, location.longitude, location.confidence)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jzi.version import __version__

if TYPE_CHECKING:
    from jzi import export as export
    from jzi.decode.config import DecoderConfig as DecoderConfig
    from jzi.decode.dataset import ZoomDataset as ZoomDataset
    from jzi.decode.decoder import ZoomDecoder as ZoomDecoder
    from jzi.decode.model import ZoomModel as ZoomModel
    from jzi.decode.tile_table import TileTable as TileTable
    from jzi.encode.encoders.encoder import Encoder as Encoder
    from jzi.encode.encoders.families import Family as Family
    from jzi.encode.rasters.imagery import Imagery as Imagery
    from jzi.locate.answer.location import Candidate as Candidate
    from jzi.locate.answer.location import LocateOptions as LocateOptions
    from jzi.locate.answer.location import Location as Location
    from jzi.locate.expert import Expert as Expert
    from jzi.locate.expert import Stage as Stage
    from jzi.locate.locator import Locator as Locator
    from jzi.locate.posterior import Posterior as Posterior
    from jzi.store.cache.feature_cache import FeatureCache as FeatureCache
    from jzi.store.geometry.pyramid import Pyramid as Pyramid
    from jzi.store.geometry.pyramid import TileKey as TileKey
    from jzi.workspace.models.expert_plugins import ExpertContext as ExpertContext
    from jzi.workspace.models.locators import load as load

#: Public names and their modules, which are imported on first use: `import jzi` loads nothing heavy.
_EXPORTS = {
    "Candidate": "jzi.locate.answer.location",
    "DecoderConfig": "jzi.decode.config",
    "Encoder": "jzi.encode.encoders.encoder",
    "Expert": "jzi.locate.expert",
    "ExpertContext": "jzi.workspace.models.expert_plugins",
    "Family": "jzi.encode.encoders.families",
    "FeatureCache": "jzi.store.cache.feature_cache",
    "Imagery": "jzi.encode.rasters.imagery",
    "LocateOptions": "jzi.locate.answer.location",
    "Location": "jzi.locate.answer.location",
    "Locator": "jzi.locate.locator",
    "Posterior": "jzi.locate.posterior",
    "Pyramid": "jzi.store.geometry.pyramid",
    "Stage": "jzi.locate.expert",
    "TileKey": "jzi.store.geometry.pyramid",
    "TileTable": "jzi.decode.tile_table",
    "ZoomDecoder": "jzi.decode.decoder",
    "ZoomDataset": "jzi.decode.dataset",
    "ZoomModel": "jzi.decode.model",
    "load": "jzi.workspace.models.locators",
}

#: Packages that are names of their own, such as `jzi.export.write_geojson`.
_PACKAGES = ("export",)

__all__ = ["__version__", *_EXPORTS, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"jzi.{name}")
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'jzi' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
