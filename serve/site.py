"""The pages of the service: the map to drop photos on, and the reference of the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader
from starlette.exceptions import HTTPException

from jzi.encode.rasters.imagery import Imagery
from jzi.export.map_tiles import MapTiles
from jzi.export.overlay import lat_lon_bounds
from jzi.export.page import SCRIPTS, STYLES, area_data
from jzi.export.page import WEB as MAP_WEB
from jzi.serve.limits import RefusedError
from jzi.serve.tiles import TileService, tile_response
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.pyramid import Pyramid
from jzi.version import __version__

WEB = Path(__file__).parent / "web"

#: Files of the page and of the reference, by their names under /static/.
STATIC = {name: MAP_WEB / name for name in (*SCRIPTS, *STYLES)} | {
    name: WEB / name for name in ("page.js", "upload.js", "prior.js", "page.css", "docs.css")
}
TEMPLATES = ("page.html", "docs.html")
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css"}


class Site:
    """The pages, rendered once; they load scripts and styles from /static/ alone, as their security policy requires.

    Args:
        area: the area that the page's map shows.
    """

    def __init__(self, area: CellGrid) -> None:
        self.area = area
        self._area: dict[str, Any] = {}
        self._tiles: TileService | None = None
        self._static = {name: file.read_bytes() for name, file in STATIC.items()}

    def render(self, imagery: Imagery | None) -> None:
        """Read the picture of the area, which the map shows where there are no tiles.

        Args:
            imagery: the background; None for a plain one.
        """
        tiles = MapTiles(imagery) if imagery else None
        self._tiles = TileService(tiles) if tiles else None
        self._area = {
            "grid": self.area.grid if isinstance(self.area, Pyramid) else 1,
            "bounds": lat_lon_bounds(self.area),
            **area_data(imagery, tiles),
        }

    def close(self) -> None:
        """End the threads that render tiles."""
        if self._tiles:
            self._tiles.close()

    def router(self, app: FastAPI) -> APIRouter:
        """Return the routes.

        Args:
            app: the application that /docs describes.
        """
        router = APIRouter()
        environment = Environment(autoescape=True, loader=FileSystemLoader([WEB, MAP_WEB]))
        templates = {name: environment.get_template(name) for name in TEMPLATES}

        @router.get("/", response_class=HTMLResponse, include_in_schema=False)
        async def page() -> str:
            return templates["page.html"].render(title="Where was this photo taken?", version=__version__)

        @router.get("/area", summary="The area, and how its imagery is shown")
        async def area() -> JSONResponse:
            return JSONResponse(self._area)

        @router.get(
            "/tiles/{z}/{x}/{y}",
            summary="A tile of the imagery, for maps in Web Mercator",
            responses={404: {"description": "There is no imagery."}},
        )
        async def tile(request: Request, z: int, x: int, y: int) -> Response:
            if self._tiles is None:
                raise RefusedError(404, "this service has no tiles: its map is the picture of the area, or plain")
            return tile_response(await self._tiles.get(z, x, y), request.headers.get("if-none-match"))

        @router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
        async def docs(request: Request) -> str:
            base = str(request.base_url)  # its host is one that the guard accepts
            api = app.openapi()
            paths = dict(sorted(api["paths"].items(), key=lambda each: each[0] != "/locate"))  # what it is for, first
            return templates["docs.html"].render(api={**api, "paths": paths}, base=base, resolve=_resolve,
                                                 version=__version__)  # fmt: skip

        @router.get("/static/{name}", include_in_schema=False)
        async def static(name: str) -> Response:
            if name not in self._static:
                raise HTTPException(404)
            return Response(self._static[name], media_type=MEDIA_TYPES[STATIC[name].suffix])

        return router


def _resolve(schema: dict[str, Any]) -> str:
    """The type and range of a value in words, from its JSON schema."""
    options = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    schema = {**schema, **options[0]} if options else schema
    words = ["file" if schema.get("format") == "binary" else str(schema.get("type", "object"))]
    unit = " bytes" if schema.get("format") == "binary" else " characters"
    names = {"exclusiveMinimum": "more than", "minimum": "at least", "maximum": "at most", "maxLength": "at most"}
    for key, phrase in names.items():
        if key in schema:
            words.append(f"{phrase} {schema[key]:.12g}" + (unit if key == "maxLength" else ""))
    if "enum" in schema:
        words.append("one of " + ", ".join(map(str, schema["enum"])))
    if schema.get("default") is not None:
        default = schema["default"]
        words.append(f"default {str(default).lower() if isinstance(default, bool) else default}")
    return ", ".join(words)
