"""Stage one: `finetune`, `encode-map`, `encode-queries`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jzi.commands.common import (
    UsageError,
    json_option,
    list_disagreements,
    list_rejected,
    print_result,
    report_left_out,
    settings_options,
)


@click.command()
@settings_options
@click.option("--blocks", help="How many of the encoder's last blocks are trained, or all.  [default: 4]")
@click.option("--also", "others", multiple=True, type=click.Path(path_type=Path), metavar="FOLDER",
              help="Another area's folder, with a jzi.toml, to train on as well; may be repeated.")  # fmt: skip
@click.option("-o", "--output", default="finetuned", show_default=True, help="The model folder to make.")
@json_option
def finetune(
    config_file: Path,
    overrides: tuple[str, ...],
    blocks: str | None,
    others: tuple[Path, ...],
    output: str,
    as_json: bool,
) -> None:
    """Train the encoder's last blocks and a decoder together.

    A run that was stopped goes on where it was; one that is done is left alone. Then encode map and photos with the
    encoder that it made.
    """
    from jzi.workspace.settings import FILE, load_settings

    if blocks is not None:
        overrides = (*overrides, f"finetune.blocks={blocks}")
    settings = load_settings(config_file, overrides)
    areas = [settings, *(load_settings(folder / FILE) for folder in others)]
    from jzi.encode.device import processes
    from jzi.workspace.open import finetune_areas

    report, rejected = finetune_areas(areas, settings.path(output))
    if not processes().is_main_process:
        return
    list_rejected(rejected, "photos left out")
    list_rejected(report.unreadable, "photos cannot be read")
    report_left_out(report)
    print_result(as_json, report.to_dict(), f"{report.to_text()}: {report.folder}")
    if not as_json:
        click.echo(
            f'to go on from it, put name = "{output}/encoder" under [encoder] of {config_file} and path = '
            '"finetuned.zarr" under [cache]; then jzi encode-map, encode-queries, train-decoder'
        )


@click.command("encode-map")
@settings_options
@click.option("--tokens", is_flag=True, help="Keep the patch tokens of tiles too, for decoder.patch_tokens.")
@click.option("--cells", is_flag=True, help='The terminal cells too, for `decoder.look_ahead = "cells"`.')
@json_option
def encode_map_command(config_file: Path, overrides: tuple[str, ...], tokens: bool, cells: bool, as_json: bool) -> None:
    """Encode the map: the tiles that the cache lacks."""
    from jzi.workspace.settings import load_settings

    overrides = (*overrides, "map.tokens=true") if tokens else overrides
    settings = load_settings(config_file, overrides)
    from jzi.encode.device import processes
    from jzi.encode.encode_map import encode_map
    from jzi.workspace.open import load_encoder, open_cache, open_imagery

    with open_imagery(settings) as imagery:
        encoder = load_encoder(settings)
        cache = open_cache(settings, encoder, imagery)
        click.echo(f"reading {imagery.description}", err=True)
        report = encode_map(cache, encoder, imagery, batch_size=settings.encoder.batch_size, tokens=settings.map.tokens)
        values: dict[str, Any] = report.to_dict()
        text = report.to_text()
        if cells:
            from jzi.encode.encode_cells import index_cells

            # a cell is seen as wide as a tile of the last level, a scale that the encoder knows
            context = float(settings.pyramid.grid)
            indexed = index_cells(cache, encoder, imagery, context, batch_size=settings.encoder.batch_size)
            values["cells"], text = indexed.to_dict(), f"{text}; {indexed.to_text()}"
    if processes().is_main_process:
        print_result(as_json, {**values, "cache": settings.cache_path}, f"{text}: {settings.cache_path}")


@click.command("encode-queries")
@settings_options
@click.option("--views", type=click.IntRange(0, 255), help="Augmented views of each training photo, for train-decoder.")
@click.option("--seed", type=click.IntRange(0), help="Of the views.")
@click.option("--retriever", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Encode with a retriever's encoder, into its index.")  # fmt: skip
@click.option("--skip-unusable", is_flag=True, help="Exit with 0 although photos of the folder have no position.")
@json_option
def encode_queries_command(
    config_file: Path,
    overrides: tuple[str, ...],
    views: int | None,
    seed: int | None,
    retriever: Path | None,
    skip_unusable: bool,
    as_json: bool,
) -> None:
    """Encode the photos: those that are new or have changed."""
    from jzi.workspace.open import open_photo_table
    from jzi.workspace.settings import load_settings

    given = {"queries.views": views, "queries.seed": seed}
    overrides = (*overrides, *(f"{name}={value}" for name, value in given.items() if value is not None))
    settings = load_settings(config_file, overrides)
    table = open_photo_table(settings).inside(settings.pyramid)
    from jzi.encode.device import processes
    from jzi.encode.encode_queries import encode_queries
    from jzi.store.cache import ENCODED
    from jzi.workspace.open import load_encoder, open_cache, open_cache_of

    if retriever:
        from jzi.retrieve.retriever import Retriever

        found = Retriever.load(retriever)
        encoder = found.load_encoder()
        cache = open_cache_of(found.cache_path, settings.pyramid, encoder)
    else:
        encoder = load_encoder(settings)
        cache = open_cache(settings, encoder)
    report = encode_queries(
        cache,
        encoder,
        table,
        batch_size=settings.encoder.batch_size,
        views=settings.queries.views,
        seed=settings.queries.seed,
    )
    if not processes().is_main_process:
        return
    list_rejected(table.rejected, "photos left out")
    list_disagreements(table)
    list_rejected(report.unreadable, "photos cannot be read")
    list_rejected(report.off_map, "photos will not be used")
    if report.remade:
        click.echo("the views that were there had another seed, and were made anew", err=True)
    listed = cache.queries.frame()
    encoded = listed[listed["status"] == ENCODED]
    splits = {split: int(count) for split, count in encoded["split"].value_counts().items()}
    told = {"rejected": len(table.rejected), "disagreements": len(table.disagreements), "splits": splits}
    shares = ", ".join(f"{count} {split}" for split, count in splits.items())
    values = {**report.to_dict(), **told, "cache": cache.path}
    print_result(as_json, values, f"{report.to_text()} ({shares}): {cache.path}")
    nowhere = [each for each in table.rejected if each.reason.startswith("no GPS")]
    if nowhere and not skip_unusable:
        raise UsageError(
            f"{len(nowhere)} photos of {table.source} have no GPS position in their EXIF, such as {nowhere[0].name}: "
            "the others are encoded; give positions in a CSV, move them away, or pass --skip-unusable"
        )
    if report.unreadable:
        raise SystemExit(1)
