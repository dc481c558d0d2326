"""Export locations as GeoJSON, GeoTIFF, CSV, HTML and PNG.

>>> import jzi
>>> location = jzi.load("model").locate("photo.jpg")  # doctest: +SKIP
>>> jzi.export.write_geojson("answer.geojson", [location])  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jzi.export.files import write_csv as write_csv
    from jzi.export.files import write_geojson as write_geojson
    from jzi.export.heatmap import write_heatmap as write_heatmap
    from jzi.export.page import write_page as write_page
    from jzi.export.picture import draw_zoom as draw_zoom

#: Public names and their modules, which are imported on first use: writing GeoJSON loads no Matplotlib.
_EXPORTS = {
    "draw_zoom": "jzi.export.picture",
    "write_csv": "jzi.export.files",
    "write_geojson": "jzi.export.files",
    "write_heatmap": "jzi.export.heatmap",
    "write_page": "jzi.export.page",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'jzi.export' has no attribute {name!r}")
