"""`jzi serve`: an HTTP API over one model, and a page to drop photos on.

Photos are processed in memory; they are neither stored nor logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from jzi.encode.rasters.imagery import Imagery
from jzi.errors import ConfigError, JziError
from jzi.locate.answer.location import DEFAULT, Camera, LocateOptions
from jzi.locate.locator import Locator
from jzi.locate.ranges import DISTANCE, HEADING, HEADING_SD, SHARE
from jzi.serve.batch import BatchLocator, batch_size
from jzi.serve.guard import Access, Guard
from jzi.serve.limits import Limits, RefusedError, StoppingError
from jzi.serve.metrics import Metrics
from jzi.serve.parameters import BODY, check_names, parse_position, sentence
from jzi.serve.queue import Job, PhotoQueue
from jzi.serve.site import Site
from jzi.serve.uploads import Reservation, Upload, Uploads
from jzi.serve.workers import Worker
from jzi.store.geometry.cell_grid import longer_side
from jzi.version import __version__

PARAMETERS = {
    "estimate", "radius", "top", "details", "near", "within", "abstain", "elsewhere", "heading", "heading_sd",
    "panorama",
}  # fmt: skip


class Problem(BaseModel):
    """Why a request was refused: one sentence."""

    detail: str


#: What each status means, for the reference.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request is no valid form, or names another host."},
    401: {"model": Problem, "description": "The token is missing or wrong."},
    403: {"model": Problem, "description": "The request comes from another site's page."},
    408: {"model": Problem, "description": "The photo arrived too slowly."},
    413: {"model": Problem, "description": "The request is too large."},
    422: {"model": Problem, "description": "The photo cannot be read, or a value is out of its range."},
    503: {"model": Problem, "description": "Too many photos wait; `Retry-After` has seconds."},
}


def make_app(
    locator: Locator,
    imagery: Imagery | None = None,
    limits: Limits | None = None,
    access: Access | None = None,
    workers: Sequence[Worker] = (),
) -> FastAPI:
    """Return the web application.

    Args:
        locator: locates the photos; its encoder is loaded when the service starts.
        imagery: background of the page's map; None for a plain one.
        limits: limits on requests; by default those of `Limits()`.
        access: who may use the service; by default anyone who can connect.
        workers: running processes that locate the photos with the same model; by default this one does.
    """
    limits, side = limits or Limits(), longer_side(locator.expert.area)
    service = _Service(limits)
    site = Site(locator.expert.area)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        size = batch_size(locator.encoder.device)  # loads the encoder now rather than with the first photo
        service.start(workers or [BatchLocator(locator, imagery, limits)], size)
        site.render(imagery)
        yield
        service.close()
        site.close()

    app = FastAPI(
        title="jzi",
        version=__version__,
        description="Locates street-level photos in an overhead map.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Guard, access=access or Access(), metrics=service.metrics)
    app.state.stop = service.stop
    app.include_router(site.router(app))

    @app.get("/health", summary="Whether the service is ready, and which model it uses")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "version": __version__,
            "model": locator.name,
            "encoder": locator.expert.encoder.label,
            "area_m": side,
            "cell_m": locator.expert.area.cell_size,
        }

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    @app.post("/locate", summary="Where a photo was taken", responses=PROBLEMS, openapi_extra=BODY)
    async def locate(
        request: Request,
        estimate: Literal["mean", "radius", "map", "greedy"] = Query(
            DEFAULT.estimate,
            description="what the answer is: the mean around the best point, that point, cell or greedy path",
        ),
        radius: float = Query(
            min(50.0, side), gt=0, le=side, allow_inf_nan=False, description="metres, at most the side of the area"
        ),
        top: int = Query(5, ge=1, le=50, description="number of candidates"),
        details: bool = Query(False, description="also return GeoJSON features, heat map and zoom tiles"),
        near: str | None = Query(
            None,
            max_length=64,
            description="prior: latitude,longitude of a point, degrees in -90..90 and -180..180, with `within`",
            examples=["48.2,16.37"],
        ),
        within: float | None = Query(
            None, gt=0, le=DISTANCE.high, allow_inf_nan=False, description="prior: largest distance from `near`, metres"
        ),
        abstain: float = Query(
            limits.abstain,
            ge=SHARE.low,
            le=SHARE.high,
            allow_inf_nan=False,
            description='below this confidence, answer "not sure" and withhold the position',
        ),
        elsewhere: float = Query(
            DEFAULT.elsewhere,
            ge=SHARE.low,
            le=SHARE.high,
            allow_inf_nan=False,
            description="share of photos that were not taken in this area, before they are seen; 0 if all were",
        ),
        heading: float | None = Query(
            None,
            ge=HEADING.low,
            le=HEADING.high,
            allow_inf_nan=False,
            description="of a service that refines: azimuth of the photo's centre from true north, degrees",
        ),
        heading_sd: float | None = Query(
            None, gt=0, le=HEADING_SD.high, allow_inf_nan=False, description="its standard deviation, degrees"
        ),
        panorama: bool | None = Query(None, description="of a service that refines: the photo is a 360° panorama"),
    ) -> Response:
        check_names(set(request.query_params), PARAMETERS)
        camera = Camera(heading, heading_sd, panorama)
        if camera and not locator.stages:
            raise ConfigError("heading, heading_sd and panorama are for a service that refines: leave them out")
        options = LocateOptions(estimate, radius, top, abstain=abstain, camera=camera, elsewhere=elsewhere)
        position = parse_position(near, within)

        def make_job(upload: Upload) -> Job:
            return Job(upload.photo, upload.name, options, position, within, upload.region, details)

        try:
            return JSONResponse(await service.locate(request, make_job))
        except ClientDisconnect:
            return Response(status_code=499)  # for the log: nobody receives it

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        headers = None if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return JSONResponse({"detail": str(error)}, error.status, headers)

    @app.exception_handler(JziError)
    async def unprocessable(_: Request, error: JziError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def out_of_range(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": sentence(error)}, 422)

    @app.exception_handler(404)
    async def not_found(request: Request, _: HTTPException) -> JSONResponse:
        detail = (
            f"{request.url.path[:100]} does not exist: the page is at /, the API at /locate, its reference at /docs"
        )
        return JSONResponse({"detail": detail}, 404)

    @app.exception_handler(405)
    async def other_method(request: Request, error: HTTPException) -> JSONResponse:
        path, allowed = request.url.path[:100], (error.headers or {}).get("Allow", "another method")
        detail = f"{path} does not answer {request.method:.20}: use {allowed}; the reference is at /docs"
        return JSONResponse({"detail": detail}, 405, error.headers)

    return app


class _Service:
    """The way of a photo: received, queued, located; dropped as soon as its client has gone."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.uploads = limits, Uploads(limits)
        self.metrics = Metrics(lambda: len(self.queue), lambda: self.uploads.held)
        self._open: set[asyncio.Task[dict[str, Any]]] = set()  # requests that are being received or wait
        self._stopping = False

    def start(self, locators: Sequence[BatchLocator] | Sequence[Worker], batch: int) -> None:
        self._locators = locators
        self.queue = PhotoQueue([partial(self._compute, each) for each in locators], self.limits.queue, batch)
        self.queue.start()

    def _compute(self, locate: BatchLocator | Worker, jobs: Sequence[Job]) -> None:
        self.metrics.batches.observe(len(jobs))
        locate(jobs)

    async def locate(self, request: Request, make_job: Callable[[Upload], Job]) -> dict[str, Any]:
        self.queue.check()  # before the photo is received
        with self.uploads.reserve() as reservation:
            task = asyncio.ensure_future(self._receive_and_locate(request, reservation, make_job))
            self._open.add(task)
            try:
                return await task
            except asyncio.CancelledError:
                if self._stopping:
                    raise StoppingError() from None
                raise
            finally:
                self._open.discard(task)

    async def _receive_and_locate(
        self, request: Request, reservation: Reservation, make_job: Callable[[Upload], Job]
    ) -> dict[str, Any]:
        job = make_job(await self.uploads.receive(request, reservation))
        answer, gone = asyncio.ensure_future(self.queue.locate(job)), asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            self.metrics.waited.observe(job.waited_s)
            request.state.record |= {"waited": round(job.waited_s, 4), "batch": job.batch}
            return answer.result()
        finally:
            answer.cancel()
            gone.cancel()

    def stop(self) -> None:
        """Let open requests go on for `Limits.shutdown_s` seconds, and refuse those that are left then."""
        asyncio.get_running_loop().call_later(self.limits.shutdown_s, self._refuse_open)

    def close(self) -> None:
        self.queue.close()
        for each in self._locators:
            each.close()

    def _refuse_open(self) -> None:
        self._stopping = True
        self.queue.close()
        for task in list(self._open):
            task.cancel()


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection; its body has been received."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
