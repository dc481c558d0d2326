"""jzi tells where a street-level photo was taken by zooming into an overhead map.

>>> from jzi import Locator
>>> place = Locator.load("model").locate("photo.jpg")  # doctest: +SKIP
>>> print(place.latitude, place.longitude, place.confidence)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jzi.version import __version__

if TYPE_CHECKING:
    from jzi.decode.config import DecoderConfig as DecoderConfig
    from jzi.decode.decoder import ZoomDecoder as ZoomDecoder
    from jzi.decode.model import ZoomModel as ZoomModel
    from jzi.encode.encoder import Encoder as Encoder
    from jzi.encode.imagery import Imagery as Imagery
    from jzi.locate.candidate import Candidate as Candidate
    from jzi.locate.locator import LocateOptions as LocateOptions
    from jzi.locate.locator import Location as Location
    from jzi.locate.locator import Locator as Locator
    from jzi.store.cache import FeatureCache as FeatureCache
    from jzi.store.pyramid import Pyramid as Pyramid
    from jzi.store.pyramid import TileKey as TileKey

#: What the package gives, and where it is: imported when it is asked for, so that `import jzi` costs nothing.
_EXPORTS = {
    "Candidate": "jzi.locate.candidate",
    "DecoderConfig": "jzi.decode.config",
    "Encoder": "jzi.encode.encoder",
    "FeatureCache": "jzi.store.cache",
    "Imagery": "jzi.encode.imagery",
    "Location": "jzi.locate.locator",
    "Locator": "jzi.locate.locator",
    "LocateOptions": "jzi.locate.locator",
    "Pyramid": "jzi.store.pyramid",
    "TileKey": "jzi.store.pyramid",
    "ZoomDecoder": "jzi.decode.decoder",
    "ZoomModel": "jzi.decode.model",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'jzi' has no attribute {name!r}")
