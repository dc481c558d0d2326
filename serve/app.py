"""`jzi serve`: an HTTP API over one model, and a page to drop photos on.

Photos are processed in memory; they are neither stored nor logged.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, File, HTTPException, Query, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jzi.encode.imagery import Imagery
from jzi.encode.photos import open_photo
from jzi.errors import ConfigError, JziError
from jzi.export.page import background_overlay, lat_lon_bounds, photo_data, render
from jzi.locate.geojson import parse_polygons
from jzi.locate.location import LocateOptions
from jzi.locate.locator import Locator
from jzi.locate.prior_weights import Prior
from jzi.version import __version__


@dataclass(frozen=True)
class Limits:
    """Limits on requests, and the confidence below which the service is not sure.

    Attributes:
        megabytes: largest request body, MB (10^6 bytes).
        megapixels: largest image, megapixels.
        abstain: answers below this confidence (0..1) are marked as not sure.
    """

    megabytes: float = 20.0
    megapixels: float = 60.0
    abstain: float = 0.0


class BodyLimit:
    """ASGI middleware that refuses request bodies over a limit, whether or not `content-length` declares them.

    Args:
        app: wrapped application.
        limit: largest body, bytes.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        received = int(declared) if declared.isdigit() else 0
        if received > self.limit:
            await self._refuse(scope, receive, send)
            return
        received, refused = 0, False

        async def receive_limited() -> Message:
            nonlocal received, refused
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def send_unless_refused(message: Message) -> None:
            if not refused:
                await send(message)

        try:
            await self.app(scope, receive_limited, send_unless_refused)
        except Exception:
            if not refused:
                raise
        if refused:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"the request has more than {self.limit / 1e6:g} MB; send a smaller photo"
        await JSONResponse({"detail": detail}, status_code=413)(scope, receive, send)


def make_app(locator: Locator, imagery: Imagery | None = None, limits: Limits | None = None) -> FastAPI:
    """Return the web application.

    Args:
        locator: locates the photos; its encoder is loaded when the service starts.
        imagery: background of the page's map; None for a plain one.
        limits: limits on requests; by default those of `Limits()`.
    """
    limits = limits or Limits()
    model_lock = asyncio.Lock()  # one photo at a time: the model already uses all cores
    pages: dict[str, str] = {}  # rendered once: the page contains the background of the map

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        locator.encoder  # noqa: B018 - load now rather than with the first photo
        pyramid = locator.pyramid
        data = {"grid": pyramid.grid, "bounds": lat_lon_bounds(pyramid), "imagery": background_overlay(imagery)}
        pages["/"] = render("serve.html", title="Where was this photo taken?", data=data)
        yield

    app = FastAPI(
        title="jzi",
        version=__version__,
        description="Locates street-level photos in an overhead map.",
        lifespan=lifespan,
    )
    app.add_middleware(BodyLimit, limit=int(limits.megabytes * 1e6))

    @app.exception_handler(JziError)
    async def unprocessable(_: Request, error: JziError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return pages["/"]

    @app.get("/health", summary="Whether the service is ready, and which model it uses")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "version": __version__,
            "model": locator.name,
            "encoder": locator.expert.encoder.label,
            "area_m": locator.pyramid.size,
            "cell_m": locator.pyramid.cell_size,
        }

    @app.post("/locate", summary="Where a photo was taken")
    async def locate(
        photo: UploadFile,
        region: Annotated[
            UploadFile | str | None,
            File(description="prior: GeoJSON polygons, as a file or as text, in which the photo was taken"),
        ] = None,
        estimate: Annotated[str, Query(description="radius, map or greedy")] = "radius",
        radius: Annotated[float, Query(gt=0, description="metres")] = 50.0,
        top: Annotated[int, Query(ge=1, le=50, description="number of candidates")] = 5,
        details: Annotated[bool, Query(description="also return GeoJSON features, heat map and zoom tiles")] = False,
        near: Annotated[
            str | None,
            Query(description="prior: latitude,longitude of a point, with `within`", examples=["48.2,16.37"]),
        ] = None,
        within: Annotated[float | None, Query(description="prior: largest distance from `near`, metres")] = None,
    ) -> dict[str, Any]:
        options = LocateOptions(estimate, radius, top)
        content = region if region is None or isinstance(region, str) else await region.read()
        data = await photo.read()
        async with model_lock:
            return await run_in_threadpool(
                answer, data, photo.filename or "photo", options, details, near, within, content
            )

    def answer(
        data: bytes,
        name: str,
        options: LocateOptions,
        details: bool,
        near: str | None,
        within: float | None,
        region: str | bytes | None,
    ) -> dict[str, Any]:
        polygons = () if region is None else parse_polygons(region, "region")
        prior = Prior(None if near is None else _position(near), within, polygons)
        image = open_photo(data, name, max_pixels=int(limits.megapixels * 1e6))
        with_prior = locator.with_prior(prior.weight(locator.expert.area)) if prior else locator
        location = with_prior.locate(image, options, name=name)
        values = {**location.to_dict(), "sure": location.confidence >= limits.abstain}
        if prior:
            values["prior"] = prior.to_dict()
        if details:
            values["page"] = photo_data(image, location, None, imagery)
        return values

    @app.exception_handler(404)
    async def not_found(request: Request, _: HTTPException) -> JSONResponse:
        detail = f"{request.url.path} does not exist; the page is at /, the API at /locate, its documentation at /docs"
        return JSONResponse({"detail": detail}, status_code=404)

    return app


def _position(text: str) -> tuple[float, float]:
    """Parse latitude,longitude."""
    try:
        latitude, longitude = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"near is {text!r:.40}: give latitude,longitude, such as 48.2,16.37") from error
    return latitude, longitude
