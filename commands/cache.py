"""`cache ls`, `cache rm`, `cache merge`, `cache verify`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jzi.commands.shared.common import Suggesting, UsageError, json_option, print_result

if TYPE_CHECKING:
    from jzi.workspace.caches import CacheInfo, ModelInfo


@click.group(cls=Suggesting)
def cache() -> None:
    """Inspect, merge, verify and delete feature caches."""


@cache.command("ls", short_help="List the caches in a folder.")
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@json_option
def list_caches(folder: Path, as_json: bool) -> None:
    """List the caches in a folder and its subfolders, with the models there that belong to them."""
    from jzi.commands.shared.reports import cache_text
    from jzi.workspace.caches import scan_folder

    caches, models = scan_folder(folder)
    for info in caches:
        print_result(as_json, _values(info, models), cache_text(info, models))
    if not caches and not as_json:
        click.echo(f"there is no feature cache in {folder}", err=True)


@cache.command("rm")
@click.argument("paths", nargs=-1, required=True)
@click.option("--among", type=click.Path(path_type=Path), default=".", show_default=True,
              help="Folder to search for models that need them.")  # fmt: skip
@click.option("--force", is_flag=True, help="Delete them even if a model needs them.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def remove(paths: tuple[str, ...], among: Path, force: bool, yes: bool) -> None:
    """Delete caches.

    A cache is kept if a model needs it: the model folder has no map, or has a refiner that reads tokens of the map, and
    no other cache has them either.
    """
    from jzi.commands.shared.reports import cache_text
    from jzi.workspace.caches import inspect_cache, models_needing, remove_cache, scan_folder

    selected = [inspect_cache(path) for path in paths]
    resolved = {Path(info.path).resolve() for info in selected}
    caches, models = scan_folder(among)
    others = [info for info in caches if Path(info.path).resolve() not in resolved]
    for info in selected:
        users = models_needing(info, models, others)
        if users and not force:
            raise UsageError(
                f"{info.path} is needed by {users[0].folder}, "
                f"{'whose refiner reads its tokens' if users[0].has_map else 'which has no map of its own'}: delete "
                "that model first, or pass --force"
            )
    for info in selected:
        click.echo(cache_text(info, models))
    size = sum(info.size for info in selected) / 1e6
    if not yes and not click.confirm(f"Delete {len(selected)} cache{'s' if len(selected) > 1 else ''}, {size:.1f} MB?"):
        click.echo("nothing was deleted", err=True)
        return
    for info in selected:
        remove_cache(info.path)
        click.echo(f"deleted {info.path}")


@cache.command(short_help="Copy what TARGET lacks from SOURCES.")
@click.argument("sources", nargs=-1, required=True)
@click.argument("target")
@json_option
def merge(sources: tuple[str, ...], target: str, as_json: bool) -> None:
    """Copy the tiles and photos that TARGET lacks from SOURCES, with their tokens.

    All must have the same encoder, pyramid and imagery. Entries of TARGET are not changed. Tokens for refiners are
    copied if TARGET has none of its own, or those of the same projection.
    """
    from jzi.commands.shared.reports import merge_text
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.store.cache.maintenance import merge_caches
    from jzi.store.plain import plain

    opened = [FeatureCache.open(source) for source in sources]
    for source in opened:
        report = merge_caches(source, FeatureCache.open(target, "r+"))
        values = {**plain(report), "source": source.path, "target": target}
        print_result(as_json, values, f"{merge_text(report)}: {source.path} into {target}")


@cache.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--repair", is_flag=True, help="Rewrite damaged metadata; embeddings are not changed.")
@json_option
def verify(paths: tuple[str, ...], repair: bool, as_json: bool) -> None:
    """Verify the metadata and the checksum of every chunk of caches.

    Lists what is damaged or missing; the exit code is 1 if anything is.
    """
    from dataclasses import replace

    from jzi.commands.shared.reports import verify_text
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.store.cache.verify import repair_cache, verify_cache
    from jzi.store.plain import plain

    reports = []
    for path in paths:
        repaired = repair_cache(path) if repair else ()
        reports.append(replace(verify_cache(FeatureCache.open(path)), repaired=repaired))
    for report in reports:
        print_result(as_json, {**plain(report), "sound": report.sound}, verify_text(report))
    if not all(report.sound for report in reports):
        raise SystemExit(1)


def _values(cache: CacheInfo, models: Iterable[ModelInfo]) -> dict[str, Any]:
    """A cache and the models that belong to it, for JSON."""
    return {
        "path": cache.path,
        "encoder": cache.encoder,
        "imagery": cache.imagery,
        "pyramid": cache.pyramid,
        "region": cache.region,
        "bytes": cache.size,
        "tiles": sum(cache.tiles.values()),
        "missing_tiles": cache.tiles["missing"],
        "photos": cache.photos,
        "missing_photos": cache.missing_photos,
        "cells": cache.encoded_cells,
        "missing_cells": cache.missing_cells,
        "detail": cache.detail["encoded"] if cache.detail else 0,
        "missing_detail": cache.missing_detail,
        "photo_tokens": cache.photo_tokens or None,
        "missing_photo_tokens": cache.missing_photo_tokens,
        "complete": cache.complete,
        "models": [{"folder": model.folder, "has_map": model.has_map} for model in models if cache.belongs_to(model)],
    }
