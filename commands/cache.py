"""`cache ls`, `cache rm`, `cache merge`, `cache verify`."""

from __future__ import annotations

from pathlib import Path

import click

from jzi.commands.common import UsageError, json_option, print_result


@click.group()
def cache() -> None:
    """Look after feature caches."""


@cache.command("ls")
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@json_option
def list_caches(folder: Path, as_json: bool) -> None:
    """List the caches in a folder and those below it, and the models there that belong to them."""
    from jzi.workspace.caches import scan_folder

    caches, models = scan_folder(folder)
    for each in caches:
        print_result(as_json, each.to_dict(models), each.to_text(models))
    if not caches and not as_json:
        click.echo(f"there is no feature cache in {folder}", err=True)


@cache.command("rm")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--among", type=click.Path(path_type=Path), default=".", show_default=True,
              help="Where to look for models that need them.")  # fmt: skip
@click.option("--force", is_flag=True, help="Delete them although a model needs them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(paths: tuple[Path, ...], among: Path, force: bool, yes: bool) -> None:
    """Delete caches.

    One that a model needs, because it carries no map of its own and no other cache has it, is kept.
    """
    from jzi.workspace.caches import inspect_cache, models_needing, remove_cache, scan_folder

    doomed = [inspect_cache(path) for path in paths]
    named = {Path(each.path).resolve() for each in doomed}
    caches, models = scan_folder(among)
    others = [each for each in caches if Path(each.path).resolve() not in named]
    for each in doomed:
        needing = models_needing(each, models, others)
        if needing and not force:
            raise UsageError(
                f"{each.path} is needed by {needing[0].folder}, which has no map of its own: delete that model first, "
                "or pass --force"
            )
    for each in doomed:
        click.echo(each.to_text(models))
    size = sum(each.size for each in doomed) / 1e6
    if not yes and not click.confirm(f"Delete {len(doomed)} cache{'s' if len(doomed) > 1 else ''}, {size:.1f} MB?"):
        click.echo("nothing was deleted", err=True)
        return
    for each in doomed:
        remove_cache(Path(each.path))
        click.echo(f"deleted {each.path}")


@cache.command()
@click.argument("sources", nargs=-1, required=True)
@click.argument("target")
@json_option
def merge(sources: tuple[str, ...], target: str, as_json: bool) -> None:
    """Copy into TARGET the tiles and photos that SOURCES have and it lacks.

    All must be of the same encoder, pyramid and imagery. What TARGET has stays as it is.
    """
    from jzi.store.cache import FeatureCache
    from jzi.store.maintenance import merge_caches

    opened = [FeatureCache.open(source) for source in sources]
    for source in opened:
        report = merge_caches(source, FeatureCache.open(target, "r+"))
        values = {**report.to_dict(), "source": source.path, "target": target}
        print_result(as_json, values, f"{report.to_text()}: {source.path} into {target}")


@cache.command()
@click.argument("paths", nargs=-1, required=True)
@json_option
def verify(paths: tuple[str, ...], as_json: bool) -> None:
    """Read every chunk of caches against its checksum.

    Says what is damaged or missing; the exit code is 1 if anything is.
    """
    from jzi.store.cache import FeatureCache
    from jzi.store.maintenance import verify_cache

    reports = [verify_cache(FeatureCache.open(path)) for path in paths]
    for report in reports:
        print_result(as_json, report.to_dict(), report.to_text())
    if not all(report.sound for report in reports):
        raise SystemExit(1)
