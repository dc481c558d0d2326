"""The commands: each parses, calls one function and prints. Heavy imports stay inside, so that --help is instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jzi import __version__
from jzi.errors import JziError

if TYPE_CHECKING:
    from jzi.store.queries import QueryTable, Rejected


class Sentence(click.ClickException):
    """An error as one sentence on standard error, with exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print it."""
        click.echo(f"jzi: {self.format_message()}", err=True)


class Commands(click.Group):
    """Turns the errors that a user can mend into sentences, here and nowhere else."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are used."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except JziError as error:
            raise Sentence(str(error)) from error
        except BrokenPipeError:
            raise  # `jzi ... | head`: click ends quietly
        except OSError as error:
            if error.errno is None:
                raise
            raise Sentence(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)) from error
        except KeyboardInterrupt:
            resumes = ctx.invoked_subcommand in ("encode-map", "encode-queries", "train-decoder", "demo")
            more = "; what was done is kept, run the same command to go on" if resumes else ""
            click.echo(f"jzi: interrupted{more}", err=True)
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Tell where a street-level photo was taken by zooming into an overhead map.

    \b
    Once for an area:   jzi init --map ortho.tif --queries photos/
                        jzi encode-map, encode-queries, train-decoder, evaluate
    Then for a photo:   jzi locate photo.jpg
    To see it all run:  jzi demo
    """


# Options that several commands share


def settings_options(command: Callable) -> Callable:
    """--config and --set."""
    command = click.option(
        "--config", "config_file", type=click.Path(path_type=Path), default="jzi.toml", show_default=True,
        help="The settings of the area.",
    )(command)  # fmt: skip
    return click.option(
        "--set", "overrides", multiple=True, metavar="SECTION.NAME=VALUE", help="Override a setting; may be repeated."
    )(command)


beams_option = click.option(
    "--beams", type=click.IntRange(1), default=1, show_default=True, help="1 is greedy, the paper's protocol."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON objects, one to a line.")


def _print(as_json: bool, values: dict[str, Any], text: str) -> None:
    click.echo(json.dumps(values) if as_json else text)


def _list_rejected(rejected: tuple[Rejected, ...], what: str) -> None:
    """Count them, and name the first of each reason: a list of thousands helps nobody."""
    if not rejected:
        return
    click.echo(f"{len(rejected)} {what}:", err=True)
    reasons: dict[str, list[str]] = {}
    for each in rejected:
        reasons.setdefault(each.reason, []).append(each.name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        click.echo(f"  {reason}: {', '.join(names[:5])}{more}", err=True)


def _list_disagreements(table: QueryTable) -> None:
    for each in table.disagreements[:10]:
        click.echo(f"  {each.name}: {each.reason}", err=True)
    if table.disagreements:
        click.echo(f"{len(table.disagreements)} photos have another zoom sequence than their position", err=True)


# Setting up


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option("--map", "rasters", multiple=True, help="A raster, glob or folder of rasters; may be repeated.")
@click.option("--queries", help="A folder of photos with EXIF positions, or a CSV or Parquet table.")
@click.option("--photos", help="The folder where a table's photos are looked up.")
@click.option("--encoder", help="A Hugging Face id or a folder.  [default: facebook/dinov2-base]")
@click.option("--image-size", type=int, help="Side of a tile as the encoder sees it, pixels.  [default: 384]")
@click.option("--preset", help="A published area, such as just-zoom-in-dc.")
@click.option("--center", type=float, nargs=2, metavar="LAT LON", help="Centre of the area.  [default: the map's]")
@click.option("--size", type=float, help="Side of the area, metres.  [default: so that it holds the map]")
@click.option("--grid", type=int, help="A tile has grid x grid children.  [default: 4]")
@click.option("--levels", type=int, help="Zoom steps.  [default: as many as make cells of 40 m or less]")
@click.option("--map-crs", help="CRS of rasters that do not say theirs.")
@click.option("--dataset", help="A published data set instead: just-zoom-in, a copy of which lies in FOLDER.")
@click.option("--data", type=click.Path(path_type=Path), help="Where that copy lies.  [default: FOLDER]")
@click.option("--download", is_flag=True, help="Download it from the Hugging Face hub first.")
@click.option("--force", is_flag=True, help="Replace a jzi.toml that is there.")
def init(
    folder: Path,
    rasters: tuple[str, ...],
    force: bool,
    dataset: str | None,
    data: Path | None,
    download: bool,
    **options: Any,
) -> None:
    """Set a working directory up: write jzi.toml for an area."""
    from jzi.config import FILE, write_settings
    from jzi.workspace import dataset_settings, describe_area, new_settings

    if (folder / FILE).exists() and not force:
        raise Sentence(f"{folder / FILE} is there already: edit it, or pass --force to replace it")
    table: QueryTable | None
    if dataset:
        settings, table = dataset_settings(dataset, folder, data, download, rasters=rasters, **options)
    elif data or download:
        raise Sentence("--data and --download go with --dataset")
    else:
        settings, table = new_settings(folder, rasters, **options)
    click.echo(describe_area(settings.pyramid))
    if table is not None:
        table = table.inside(settings.pyramid)
        _list_rejected(table.rejected, "photos cannot be used")
        _list_disagreements(table)
        click.echo(f"{len(table)} photos in the area")
    write_settings(settings)
    go = "" if folder == Path() else f"cd {folder}; "
    go += "jzi encode-map" if settings.map.rasters else "name the map (map.rasters) and the photos in it"
    click.echo(f"wrote {folder / FILE}; next: {go}")


@main.command(context_settings={"ignore_unknown_options": True})  # so that a minus sign is no option
@click.argument("latitude", type=float)
@click.argument("longitude", type=float)
@click.option("--preset", help="A published area.  [default: the area of jzi.toml, else just-zoom-in-dc]")
@click.option("--config", "config_file", type=click.Path(path_type=Path), default="jzi.toml", show_default=True)
@json_option
def tile(latitude: float, longitude: float, preset: str | None, config_file: Path, as_json: bool) -> None:
    """Print the zoom to a position: path, tiles and bounds."""
    from jzi.workspace import area_for_tile, describe_zoom

    values, text = describe_zoom(area_for_tile(preset, config_file), latitude, longitude)
    _print(as_json, values, text)


@main.command()
@click.argument("paths", nargs=-1, required=True)
@json_option
def info(paths: tuple[str, ...], as_json: bool) -> None:
    """Say what caches, models and rasters are.

    Of several, say whether they belong together: the exit code is 1 if not.
    """
    from jzi.decode.describe import describe, disagreements

    descriptions = [describe(path) for path in paths]
    for description in descriptions:
        _print(as_json, description.to_dict(), description.to_text())
    if len(descriptions) > 1:
        problems = disagreements(descriptions)
        _print(
            as_json,
            {"belong_together": not problems, "problems": problems},
            "They belong together." if not problems else "They do not belong together: " + "; ".join(problems) + ".",
        )
        if problems:
            raise SystemExit(1)


# Stage one


@main.command("encode-map")
@settings_options
@json_option
def encode_map_command(config_file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Encode the map: the tiles that the cache lacks."""
    from jzi.config import load_settings

    settings = load_settings(config_file, overrides)
    from jzi.encode.encode_map import encode_map
    from jzi.encode.processes import processes
    from jzi.workspace import load_encoder, open_cache, open_imagery

    with open_imagery(settings) as imagery:
        encoder = load_encoder(settings)
        cache = open_cache(settings, encoder, imagery)
        click.echo(f"reading {imagery.description}", err=True)
        report = encode_map(cache, encoder, imagery, batch_size=settings.encoder.batch_size)
    if processes().is_main_process:
        values = {**report.to_dict(), "cache": settings.cache_path}
        _print(as_json, values, f"{report.to_text()}: {settings.cache_path}")


@main.command("encode-queries")
@settings_options
@click.option("--skip-unusable", is_flag=True, help="Exit with 0 although photos of the folder have no position.")
@json_option
def encode_queries_command(config_file: Path, overrides: tuple[str, ...], skip_unusable: bool, as_json: bool) -> None:
    """Encode the photos: those that are new or have changed."""
    from jzi.config import load_settings
    from jzi.workspace import read_query_table

    settings = load_settings(config_file, overrides)
    table = read_query_table(settings).inside(settings.pyramid)
    from jzi.encode.encode_queries import encode_queries
    from jzi.encode.processes import processes
    from jzi.store.cache import ENCODED
    from jzi.workspace import load_encoder, open_cache

    encoder = load_encoder(settings)
    cache = open_cache(settings, encoder)
    report = encode_queries(cache, encoder, table, batch_size=settings.encoder.batch_size)
    if not processes().is_main_process:
        return
    _list_rejected(table.rejected, "photos left out")
    _list_disagreements(table)
    _list_rejected(report.unreadable, "photos cannot be read")
    _list_rejected(report.off_map, "photos will not be used")
    listed = cache.queries.frame()
    encoded = listed[listed["status"] == ENCODED]
    splits = {split: int(count) for split, count in encoded["split"].value_counts().items()}
    told = {"rejected": len(table.rejected), "disagreements": len(table.disagreements), "splits": splits}
    shares = ", ".join(f"{count} {split}" for split, count in splits.items())
    values = {**report.to_dict(), **told, "cache": settings.cache_path}
    _print(as_json, values, f"{report.to_text()} ({shares}): {settings.cache_path}")
    nowhere = [each for each in table.rejected if each.reason.startswith("no GPS")]
    if nowhere and not skip_unusable:
        raise Sentence(
            f"{len(nowhere)} photos of {table.source} have no GPS position in their EXIF, such as {nowhere[0].name}: "
            "the others are encoded; give positions in a CSV, move them away, or pass --skip-unusable"
        )
    if report.unreadable:
        raise SystemExit(1)


# Stage two


@main.command("train-decoder")
@settings_options
@json_option
def train_decoder_command(config_file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train the decoder off the cache.

    A run that was stopped goes on where it was; one that is done is left alone.
    """
    from jzi.config import load_settings

    settings = load_settings(config_file, overrides)
    from jzi.decode.train import train_decoder
    from jzi.encode.processes import processes
    from jzi.store.cache import FeatureCache
    from jzi.workspace import load_encoder

    cache = FeatureCache.open(settings.cache_path)
    if settings.encoder_folder is None and not cache.encoder.from_hub:
        raise Sentence(
            f"there is no encoder in {settings.encoder.name} any more, and the model must carry it: set encoder.name "
            f"to the folder of {cache.encoder.label}"
        )
    cache.check(pyramid=settings.pyramid, encoder=load_encoder(settings).card)
    report = train_decoder(
        cache,
        settings.path(settings.model.path),
        settings.decoder,
        settings.train,
        encoder_folder=settings.encoder_folder,
        settings=settings.to_toml(),
    )
    if not processes().is_main_process:
        return
    if report.unreachable:
        click.echo(f"{report.unreachable} photos left out: the map has no imagery where they were taken", err=True)
    if not report.val:
        click.echo("there is no photo with split 'val': the last epoch is kept", err=True)
    _print(as_json, report.to_dict(), f"{report.to_text()}: {report.folder}")


@main.command()
@settings_options
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="[default: test, or val if there is none]")
@click.option("--radii", default="40,50,100", show_default=True, help="Metres, separated by commas.")
@beams_option
@json_option
def evaluate(
    config_file: Path, overrides: tuple[str, ...], split: str | None, radii: str, beams: int, as_json: bool
) -> None:
    """Measure recall on held-out photos, off the cache."""
    from jzi.config import load_settings

    settings = load_settings(config_file, overrides)
    try:
        metres = [float(radius) for radius in radii.split(",")]
    except ValueError:
        metres = []
    if not metres or min(metres) <= 0:
        raise Sentence(f"--radii takes metres separated by commas, not {radii!r}")
    from jzi.decode.evaluate import evaluate_model, to_table

    split, unreachable, evaluation = evaluate_model(
        settings.path(settings.model.path), settings.cache_path, split, radii=metres, beams=beams
    )
    if unreachable:
        click.echo(f"{unreachable} photos left out: the map has no imagery where they were taken", err=True)
    values = {"split": split, "beams": beams, "unreachable": unreachable, **evaluation.to_dict()}
    _print(as_json, values, to_table(evaluation, f"{evaluation.photos} photos of the {split} split"))


@main.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path, readable=False))
@click.option("--model", type=click.Path(path_type=Path), help="A model folder.  [default: that of jzi.toml, or model]")
@click.option("--config", "config_file", type=click.Path(path_type=Path), default="jzi.toml", show_default=True)
@click.option("--cache", help="A cache to take the map from.  [default: the model's own map]")
@beams_option
@json_option
def locate(
    photos: tuple[Path, ...], model: Path | None, cache: str | None, config_file: Path, beams: int, as_json: bool
) -> None:
    """Tell where photos were taken.

    A folder stands for the photos in it.
    """
    from jzi.workspace import expand_photos, model_folder

    files = expand_photos(photos)
    folder = model_folder(model, config_file)
    from jzi.decode.locate import Location, Locator

    failed = 0
    for answer in Locator.load(folder, cache=cache).locate_all(files, beams):
        if isinstance(answer, Location):
            _print(as_json, answer.to_dict(), answer.to_text())
        else:
            failed += 1
            if as_json:
                click.echo(json.dumps(answer.to_dict()))
            click.echo(f"jzi: {answer.error}", err=True)
    if failed:
        sys.exit(2 if failed == len(files) else 1)


@main.command("import-checkpoint")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The model folder to make.")
@click.option("--encoder", default="facebook/dinov2-base", show_default=True, help="Id or folder of its config.json.")
@click.option("--heads", type=int, help="Of the decoder.  [default: what the checkpoint says, or 8]")
@click.option("--image-size", type=int, default=384, show_default=True, help="Side of a tile as it saw it, pixels.")
@click.option("--layout", default="halves", show_default=True, help="How a photo becomes squares.")
@click.option("--preset", default="just-zoom-in-dc", show_default=True, help="The area that it was trained on.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Take the area from a jzi.toml instead.")
def import_checkpoint_command(
    checkpoint: Path, output: Path, preset: str, config_file: Path | None, **options: Any
) -> None:
    """Make a model of a checkpoint of the reference implementation."""
    from jzi.config import load_settings
    from jzi.store.pyramid import preset as published

    pyramid = load_settings(config_file).pyramid if config_file else published(preset)
    from jzi.decode.import_checkpoint import import_checkpoint

    import_checkpoint(checkpoint, output, pyramid, **options)
    sets = f"--set encoder.name={output / 'encoder'} --set encoder.image_size={options['image_size']}"
    click.echo(f"wrote {output}; for its map: jzi encode-map {sets}, then jzi locate --model {output} --cache CACHE")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default="jzi-demo")
@click.option("--photos", type=click.IntRange(20), default=4096, show_default=True, help="How many to render.")
@click.option("--epochs", type=click.IntRange(1), default=20, show_default=True, help="Of the decoder's training.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed makes another town.")
@click.option("--size", type=float, default=1280.0, show_default=True, help="Side of the town, metres.")
@click.option("--encoder", help="A Hugging Face id or a folder.  [default: a tiny one with random weights]")
def demo(folder: Path, photos: int, epochs: int, seed: int, size: float, encoder: str | None) -> None:
    """Make a small town and run every command on it."""
    from jzi.demo.tour import run_demo

    run_demo(folder, photos=photos, epochs=epochs, seed=seed, size_m=size, encoder=encoder)


if __name__ == "__main__":
    main()
