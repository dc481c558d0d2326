"""`serve`."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from jzi.commands.common import UsageError, approximate_option, experts_option, retriever_option


@click.command()
@click.option(
    "--model", type=click.Path(path_type=Path), help="A model folder.  [default: that of jzi.toml, else model]"
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), default="jzi.toml", show_default=True)
@click.option("--cache", help="Read the map from this cache.  [default: the model's own map]")
@experts_option("Experts of the model to fuse.  [default: all]")
@retriever_option
@approximate_option
@click.option("--imagery", multiple=True, help="Rasters for the page's map.  [default: the map of jzi.toml]")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 accepts other machines.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--max-mb", type=click.FloatRange(0, min_open=True), default=20.0, show_default=True, help="Largest photo, MB."
)
@click.option("--max-megapixels", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True)
@click.option("--abstain", type=click.FloatRange(0, 1), default=0.0, help='Answer "not sure" below this confidence.')
def serve(
    model: Path | None,
    config_file: Path,
    cache: str | None,
    experts: tuple[str, ...],
    retriever: Path | None,
    approximate: bool,
    imagery: tuple[str, ...],
    host: str,
    port: int,
    max_mb: float,
    max_megapixels: float,
    abstain: float,
) -> None:
    """Locate photos over HTTP, with a web page to drop them on.

    POST a photo to /locate; /docs describes the service. Photos are not stored.
    """
    try:
        import uvicorn

        from jzi.serve.app import Limits, make_app
    except ImportError as error:
        raise UsageError(f"jzi serve needs {error.name}: pip install 'jzi[serve]'") from error
    from jzi.workspace.open import imagery_of, open_locator

    locator = open_locator(
        model, config_file, cache=cache, retriever=retriever, approximate=approximate, experts=experts
    )
    background = imagery_of(locator.pyramid, imagery, config_file)
    app = make_app(locator, background, Limits(max_mb, max_megapixels, abstain))
    click.echo(f"serving on http://{host}:{port}; stop with Ctrl-C", err=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # uvicorn finishes open requests, then re-raises the signal
    uvicorn.run(app, host=host, port=port, log_level="warning")
