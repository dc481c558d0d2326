"""`encode-map` and `encode-queries`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jzi.commands.shared.common import (
    UsageError,
    allow_outside_option,
    json_option,
    list_disagreements,
    list_rejected,
    number,
    print_result,
    print_warnings,
    ray_cluster,
    ray_option,
    settings_options,
    split_by_option,
)
from jzi.locate.ranges import SEED

if TYPE_CHECKING:
    from jzi.encode.detail import DetailEstimate
    from jzi.encode.rasters.detail_tiles import TokenProducer
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.store.photos.photo_table import PhotoTable


@click.command("encode-map")
@settings_options
@click.option("--tokens", is_flag=True, help="Also store the tiles' patch tokens, which decoder.patch_tokens reads.")
@click.option("--cells", is_flag=True, help="Also encode the terminal cells, which the experts cells and levels read.")
@click.option("--detail", is_flag=True, help="Also encode the tokens at a high resolution, which refiners read.")
@click.option("--refiner", type=click.Path(path_type=Path), metavar="FOLDER",
              help="With --detail: the tokens of this refiner's own network.")  # fmt: skip
@click.option("--replace", is_flag=True, help="With --detail: remove the tokens of another network or resolution.")
@click.option("--dry-run", is_flag=True, help="With --detail: only estimate what it takes.")
@ray_option
@json_option
def encode_map_command(
    config_file: Path,
    overrides: tuple[str, ...],
    tokens: bool,
    cells: bool,
    detail: bool,
    refiner: Path | None,
    replace: bool,
    dry_run: bool,
    ray: str | None,
    as_json: bool,
) -> None:
    """Encode the tiles of the map that the cache lacks."""
    if (refiner or replace or dry_run) and not detail:
        raise UsageError("--refiner, --replace and --dry-run go with --detail: add it")
    from jzi.workspace.setup.settings_file import load_settings

    overrides = (*overrides, "map.tokens=true") if tokens else overrides
    settings = load_settings(config_file, overrides, training=())
    from jzi.commands.shared.reports import cells_text, detail_text, map_text
    from jzi.encode.device import processes
    from jzi.encode.encode_map import encode_map
    from jzi.store.plain import plain
    from jzi.workspace.inputs import load_encoder, open_cache, open_imagery
    from jzi.workspace.setup.data_checks import map_warnings
    from jzi.workspace.stages.refiner import open_producer

    with ray_cluster(ray) as on_nodes, open_imagery(settings) as imagery:
        encoder = load_encoder(settings)
        producer = open_producer(settings, encoder, refiner) if detail else None
        cache = open_cache(settings, encoder, imagery)
        if producer:
            expected = _estimate(cache, *producer, settings.encoder.batch_size, on_cluster=ray is not None)
            if dry_run:
                text = f"nothing encoded; without --dry-run: {settings.cache_path}"
                print_result(as_json, {**plain(expected), "cache": settings.cache_path}, text)
                return
        click.echo(f"reading {imagery.description}", err=True)
        pixels = max(settings.encoder.image_size, producer[1] if producer else 0)
        warnings = map_warnings(imagery, settings.pyramid, pixels)
        if processes().is_main_process:
            print_warnings(warnings)
        size, map_tokens = settings.encoder.batch_size, settings.map.tokens
        run_blocks = on_nodes(cache, lambda work: work.MapWork.of(cache, encoder, imagery, size, map_tokens))
        report = encode_map(cache, encoder, imagery, batch_size=size, tokens=map_tokens, run_blocks=run_blocks)
        values, text = {**plain(report), "warnings": list(warnings)}, map_text(report)
        if cells:
            from jzi.encode.encode_cells import index_cells

            # a cell's crop is as wide as a tile of the last level, a scale that the encoder was trained at
            context = float(settings.pyramid.grid)
            run_units = on_nodes(cache, lambda work: work.CellWork.of(cache, encoder, imagery, context, size))
            cells_report = index_cells(cache, encoder, imagery, context, batch_size=size, run_units=run_units)
            values["cells"], text = plain(cells_report), f"{text}; {cells_text(cells_report)}"
        if producer:
            from jzi.encode.detail import encode_detail

            network, side = producer
            run_units = on_nodes(cache, lambda work: work.DetailWork.of(cache, network, imagery, side, size))
            found = encode_detail(cache, network, imagery, side, batch_size=size, replace=replace, run_units=run_units)
            values["detail"], text = plain(found), f"{text}; {detail_text(found)}"
    if processes().is_main_process:
        print_result(as_json, {**values, "cache": settings.cache_path}, f"{text}: {settings.cache_path}")


def _estimate(
    cache: FeatureCache, producer: TokenProducer, pixels: int, batch_size: int, *, on_cluster: bool
) -> DetailEstimate:
    """Estimate what encoding the tokens takes, and print it if there is something to encode."""
    from jzi.commands.shared.reports import size_text, time_text
    from jzi.encode.detail import estimate_detail
    from jzi.encode.device import processes

    state = processes()
    expected = estimate_detail(cache, producer, pixels, batch_size=batch_size, processes=state.num_processes)
    if expected.tiles and state.is_main_process:
        click.echo(
            f"{expected.tiles:,} tiles of {pixels} px to encode, tokens of {expected.token_m:.2f} m: about "
            f"{time_text(expected.seconds)}{' of one process' if on_cluster else ''}, {size_text(expected.bytes)}",
            err=True,
        )
    return expected


def _copies_text(count: int, table: PhotoTable) -> str:
    photos = f"{count} photos are copies" if count > 1 else "1 photo is a copy"
    if table.split.requested:
        were = "were" if count > 1 else "was"
        return f"{photos} of files in another split under another name, and {were} moved to their split"
    return (
        f"{photos} of files in another split under another name: results on held-out photos that were trained on are "
        "too good; correct the column split"
    )


@click.command("encode-queries")
@settings_options
@click.option("--tokens", is_flag=True, help="Also store the photos' tokens and what is known of their view, which "
              "refiners are trained on.")  # fmt: skip
@click.option(
    "--views",
    type=click.IntRange(0, 255),
    help="Augmented views to store of each training photo.",
)
@click.option("--seed", type=number(SEED), help="Seed of the augmented views.")
@split_by_option
@allow_outside_option
@click.option("--retriever", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Encode with this retriever's encoder, into its index.")  # fmt: skip
@click.option("--skip-unusable", is_flag=True, help="Exit with 0 even if photos of the folder have no position.")
@ray_option
@json_option
def encode_queries_command(
    config_file: Path,
    overrides: tuple[str, ...],
    tokens: bool,
    views: int | None,
    seed: int | None,
    split_by: str | None,
    allow_outside: bool,
    retriever: Path | None,
    skip_unusable: bool,
    ray: str | None,
    as_json: bool,
) -> None:
    """Encode the photos that are new or have changed."""
    from jzi.workspace.inputs import open_photo_table
    from jzi.workspace.models.hub import local_folder
    from jzi.workspace.setup.settings import RegionSettings
    from jzi.workspace.setup.settings_file import load_area

    options = {"queries.views": views, "queries.seed": seed, "queries.split_by": split_by}
    overrides = (*overrides, *(f"{name}={value}" for name, value in options.items() if value is not None))
    overrides = (*overrides, "queries.allow_outside=true") if allow_outside else overrides
    settings = load_area(config_file, overrides, training=("queries",))
    magnetic_sd_deg = 20.0 if isinstance(settings, RegionSettings) else settings.refine.magnetic_sd_deg
    from jzi.commands.shared.reports import photos_text, split_text
    from jzi.encode.device import processes
    from jzi.encode.encode_queries import encode_queries
    from jzi.store.cache.feature_cache import ENCODED
    from jzi.store.photos.splits import SPLITS
    from jzi.store.plain import plain
    from jzi.workspace.inputs import open_photo_cache
    from jzi.workspace.regions.region import open_region

    if isinstance(settings, RegionSettings):
        if not retriever:
            raise UsageError("in a region, photos are encoded by a retriever: add --retriever FOLDER")
        cells = open_region(settings)
        table = open_photo_table(settings).inside(cells.grid, cells)
        cache, encoder = open_photo_cache(settings, local_folder(retriever), cells)
        batch_size = settings.encoding.batch_size
    else:
        if retriever and local_folder(retriever) != retriever:
            raise UsageError(
                f"{retriever} is of the hub, and photos are encoded into the folder of a flat retriever: copy it with "
                f"`hf download {retriever} --local-dir retriever`"
            )
        table = open_photo_table(settings).inside(settings.pyramid)
        cache, encoder = open_photo_cache(settings, retriever)
        batch_size = settings.encoder.batch_size
    with ray_cluster(ray) as on_nodes:
        how: dict[str, Any] = {"batch_size": batch_size, "seed": settings.queries.seed, "tokens": tokens}
        report = encode_queries(
            cache,
            encoder,
            table,
            **how,
            views=settings.queries.views,
            magnetic_sd_deg=magnetic_sd_deg,
            run_batches=on_nodes(cache, lambda work: work.PhotoWork.of(cache, encoder, **how)),
        )
    if not processes().is_main_process:
        return
    list_rejected(table.rejected, "photos left out")
    list_disagreements(table)
    list_rejected(report.unreadable, "photos cannot be read")
    list_rejected(report.off_map, "photos will not be used")
    if report.remade:
        click.echo("the stored views were made with another seed and have been replaced", err=True)
    if report.moved:
        click.echo(f"{report.moved} photos have changed their split: train again before you evaluate", err=True)
    if report.copies:
        click.echo(_copies_text(report.copies, table), err=True)
    if "queries.split_by" in settings.overridden and table.split.kind != "table":
        chosen, in_file = settings.queries.split_by, load_area(config_file).queries.split_by
        if chosen != in_file:
            click.echo(
                f"split by {chosen} in this cache only: finetune and others that open photos go by queries.split_by "
                f"of {config_file.name}, which is {in_file}, and would train on photos that are held out here: set it "
                "there",
                err=True,
            )
    listed = cache.queries.frame()
    encoded = listed[listed["status"] == ENCODED]
    counts = encoded["split"].value_counts()
    splits = {split: int(counts[split]) for split in SPLITS if split in counts}
    values = {
        **plain(report),
        "unreadable": len(report.unreadable),
        "off_map": len(report.off_map),
        "rejected": len(table.rejected),
        "disagreements": len(table.disagreements),
        "splits": splits,
        "split_by": plain(table.split),
        "cache": cache.path,
    }
    shares = ", ".join(f"{count} {split}" for split, count in splits.items())
    print_result(as_json, values, f"{photos_text(report)}; {split_text(table.split)}: {shares}; {cache.path}")
    unlocated = [row for row in table.rejected if row.reason.startswith("no GPS")]
    if unlocated and not skip_unusable:
        raise UsageError(
            f"{len(unlocated)} photos of {table.source} have no GPS position in their EXIF, such as "
            f"{unlocated[0].name}; the others were encoded: give positions in a CSV, move these photos away, or pass "
            "--skip-unusable"
        )
    if report.unreadable:
        raise SystemExit(1)
