"""`serve`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import click

from jzi.commands.shared.common import (
    UsageError,
    approximate_option,
    experts_option,
    fuse_option,
    number,
    refine_options,
    refine_request,
    retriever_option,
    zoom_option,
)
from jzi.locate.ranges import SHARE, Range


@click.command(short_help="Locate photos over HTTP, with a web page.")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="A model folder, or USER/NAME[@REVISION] of the Hugging Face hub.  [default: that of jzi.toml, else model]",
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), default="jzi.toml", show_default=True)
@click.option("--cache", help="Read the map from this cache.  [default: the model's own map]")
@refine_options
@experts_option("Experts of the model to fuse.  [default: all]")
@retriever_option
@approximate_option
@zoom_option
@fuse_option
@click.option("--imagery", multiple=True, help="Rasters for the page's map.  [default: the map of jzi.toml]")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 accepts other machines; needs JZI_TOKEN.")
@click.option("--port", type=number(Range(0, 65_535, whole=True)), default=8000, show_default=True)
@click.option(
    "--allowed-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name by which the service is addressed, beside localhost, --host and IP addresses; may be repeated.",
)
@click.option(
    "--max-mb",
    type=number(Range(0, 1000, above=True)),
    default=20.0,
    show_default=True,
    help="Largest photo, MB.",
)
@click.option(
    "--max-megapixels",
    type=number(Range(0, 1000, above=True)),
    default=60.0,
    show_default=True,
    help="Largest photo, and all photos that are decoded at once.",
)
@click.option(
    "--queue",
    type=number(Range(1, 100_000, whole=True)),
    default=256,
    show_default=True,
    help="Photos that may wait; more are answered with status 503.",
)
@click.option(
    "--queue-mb",
    type=number(Range(0, 100_000, above=True)),
    default=256.0,
    show_default=True,
    help="MB of all photos that are received or wait; more are answered with status 503.",
)
@click.option(
    "--workers",
    type=number(Range(1, 64, whole=True)),
    default=1,
    show_default=True,
    help="Processes that locate, each with a model of its own; they share the cores, and use one GPU each.",
)
@click.option("--abstain", type=number(SHARE), default=0.0, help='Answer "not sure" below this confidence.')
def serve(
    model: Path | None,
    config_file: Path,
    cache: str | None,
    refine: str | None,
    refine_top: int | None,
    experts: tuple[str, ...],
    retriever: Path | None,
    approximate: bool,
    zoom: Path | None,
    fuse: bool,
    imagery: tuple[str, ...],
    host: str,
    port: int,
    hosts: tuple[str, ...],
    max_mb: float,
    max_megapixels: float,
    queue: int,
    queue_mb: float,
    workers: int,
    abstain: float,
) -> None:
    """Locate photos over HTTP, with a web page to drop them on.

    POST a photo to /locate; /docs describes the service, /metrics counts for Prometheus. Photos are not stored, and the
    log, a JSON object per line on standard error, has neither their names nor positions.

    If JZI_TOKEN is set, requests must carry it (Authorization: Bearer TOKEN), and the page asks for it. It has to be
    set for a --host that other machines can reach.

    Memory: beyond the model and the search of one photo, --queue-mb for all requests (at most --max-mb for one), 20
    bytes for each pixel of --max-megapixels, 64 MB for tiles, and about 100 MB for connections; 256 MB, 1.2 GB, 64 MB
    and 100 MB by default. Each of several --workers has a model of its own, beside the one of the process that answers
    requests, and decodes as many pixels; `map.memory` applies to each.
    """
    try:
        import uvicorn  # noqa: F401

        from jzi.serve.app import make_app
        from jzi.serve.guard import Access
        from jzi.serve.limits import Limits
        from jzi.serve.server import is_loopback, listen, run
        from jzi.serve.workers import running_workers
    except ImportError as error:
        raise UsageError(f"jzi serve needs {error.name}: pip install 'jzi[serve]'") from error
    from jzi.workspace.service import open_service, reopen_service, service_digest

    limits = Limits(max_mb, max_megapixels, abstain, queue, queue_mb)
    access = Access(os.environ.get("JZI_TOKEN", ""), (host, *hosts))
    with listen(host, port) as listener:
        if not (access.token or is_loopback(listener)):
            raise UsageError(
                f"--host {host} accepts other machines: set JZI_TOKEN to a secret that their requests must carry"
            )
        request = refine_request(refine, refine_top)
        options: dict[str, Any] = {
            "cache": cache,
            "retriever": retriever,
            "approximate": approximate,
            "experts": experts,
            "zoom": zoom,
            "fuse": fuse,
            "refine": request,
            "imagery": imagery,
        }
        digest = service_digest(model, config_file, retriever, zoom, request) if workers > 1 else ""
        locator, background, note = open_service(model, config_file, **options)
        if note:
            click.echo(f"jzi: the page has a plain map: {note}", err=True)
        open_again = partial(reopen_service, digest, model, config_file, **options)
        with running_workers(open_again, limits, workers if workers > 1 else 0) as several:
            app = make_app(locator, background, limits, access, several)
            click.echo(f"serving on http://{host}:{listener.getsockname()[1]}; stop with Ctrl-C", err=True)
            run(app, listener, limits)
