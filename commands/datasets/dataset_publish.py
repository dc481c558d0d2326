"""`jzi dataset split`, `card` and `publish`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jzi.commands.shared.common import UsageError, json_option, number, print_result
from jzi.locate.ranges import DISTANCE, SEED, Range

if TYPE_CHECKING:
    from jzi.curate.splits import SplitReport
    from jzi.publish.publication import Publication

#: Parts of a whole; they need not add up to 100.
PART = Range(0, 1e9)

folder_argument = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))


def _kind(_: click.Context, __: click.Parameter, value: str) -> str:
    return "sequence" if value == "drive" else value


@click.command("split")
@folder_argument
@click.option("--by", type=click.Choice(["auto", "sequence", "drive", "block", "date"]), default="auto", callback=_kind,
              show_default=True, help="What stays together: drives (sequence, or drive), squares of ground (block), "
              "days (date), or the first of sequence and block with three groups or more.")  # fmt: skip
@click.option("--share", "shares", type=number(PART), nargs=3, default=(80, 10, 10), show_default=True,
              metavar="TRAIN VAL TEST", help="Shares of the groups.")  # fmt: skip
@click.option("--block", "block_m", type=number(DISTANCE), default=100.0, show_default=True,
              help="Side of the squares, metres.")  # fmt: skip
@click.option("--seed", type=number(SEED), default=0, show_default=True, help="Another seed gives another split.")
@click.option("--val-from", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE",
              help="With --by date: photos of that day and later ones are of val.")  # fmt: skip
@click.option("--test-from", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="The same for test.")
@json_option
def split_command(
    folder: Path,
    by: str,
    shares: tuple[float, float, float],
    block_m: float,
    seed: int,
    val_from: datetime | None,
    test_from: datetime | None,
    as_json: bool,
) -> None:
    """Split the photos of a data set into train, val and test.

    Writes the column split, and reports how far photos are from the nearest training photo.
    """
    from jzi.curate.folder import DatasetFolder
    from jzi.curate.splits import SplitOptions, split_dataset

    first, second = (each.date() if each else None for each in (val_from, test_from))
    options = SplitOptions(by, shares, block_m, seed, first, second)  # type: ignore[arg-type]
    data, report = split_dataset(DatasetFolder.read(folder), options)
    data.write()
    print_result(as_json, report, split_text(report))


def split_text(report: SplitReport) -> str:
    """A split and the distances to the nearest training photos, for people."""
    from jzi.store.plain import share_text

    counts = ", ".join(f"{name} {count}" for name, count in report.photos.items())
    lines = [f"{sum(report.photos.values())} photos split {report.text}", counts]
    for each in report.nearest:
        quantiles = ", ".join(f"{100 * share:g} %: {metres:.1f} m" for share, metres in each.quantiles_m.items())
        within = ", ".join(f"{share_text(share)} within {limit:g} m" for limit, share in each.within.items())
        lines += [f"distance from {each.split} to the nearest training photo: {quantiles}", f"  {within}"]
    return "\n".join([*lines, *(f"warning: {sentence}" for sentence in report.warnings)])


imagery_option = click.option(
    "--imagery", multiple=True, metavar="RASTER", help="A raster, glob or folder of rasters, or the JSON file that "
    "`jzi dataset imagery` wrote beside one; may be repeated.",
)  # fmt: skip

remote_option = click.option(
    "--remote", is_flag=True, help="Trust rasters that name other files, URLs or services: VRTs, XML of GDAL."
)


@click.command("card", short_help="Write the data card of a data set.")
@folder_argument
@imagery_option
@remote_option
@click.option("--title", default="", help="Title of the data set.  [default: the name of its folder]")
@json_option
def card_command(folder: Path, imagery: tuple[str, ...], remote: bool, title: str, as_json: bool) -> None:
    """Write the data card of a data set: DATASET.md, card.json and two pictures.

    With --imagery, photos are drawn on it.
    """
    from jzi.curate.folder import DatasetFolder
    from jzi.publish.card import to_json, write_card
    from jzi.publish.card_text import km2
    from jzi.publish.credits import read_imagery
    from jzi.workspace.setup.settings import find_rasters, names_url

    names, sources = read_imagery(imagery)
    rasters = find_rasters(names) if names else []
    card = write_card(DatasetFolder.read(folder), title, rasters, sources, remote=remote or names_url(names))
    lines = [f"{card.facts.photos} photos, {km2(card.facts.extent.km2)}: wrote {', '.join(card.files)} in {folder}"]
    if card.facts.split is None:
        lines.append(f"the photos are not split: jzi dataset split {folder}")
    _warn_of_unknown(rasters, any(each.kind == "imagery" for each in card.facts.sources))
    print_result(as_json, to_json(card.facts), "\n".join(lines))


def _warn_of_unknown(rasters: Sequence[str], described: bool) -> None:
    if rasters and not described:
        name = Path(rasters[0]).with_suffix(".json").name
        click.echo(f"no licence and credit of the imagery are known: put {name} beside it, which `jzi dataset imagery` "
                   "writes", err=True)  # fmt: skip


@click.command("publish", short_help="Write a data set in a layout that others read.")
@folder_argument
@click.option("--layout", type=click.Choice(["huggingface", "just-zoom-in", "vigor"]), required=True,
              help="Parquet with the photos in it; that of the paper's data set; that of VIGOR.")  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write."
)
@imagery_option
@remote_option
@click.option("--area", type=click.Path(path_type=Path, dir_okay=False), metavar="JZI.TOML",
              help="Leave out photos outside of its area, and cut tiles for it.  [default: a square around the "
              "photos]")  # fmt: skip
@click.option("--title", default="", help="Title of the data set, and VIGOR's city.  [default: the name of its folder]")
@click.option("--push", "repo", metavar="USER/NAME", help="Then publish it on the Hugging Face hub.")
@click.option("--license", "licence", metavar="ID", help="With --push: licence that you have the right to give.")
@click.option("--private", is_flag=True, help="With --push: only you, or your organization, may see it.")
@json_option
def publish_command(
    folder: Path,
    layout: str,
    output: Path,
    imagery: tuple[str, ...],
    remote: bool,
    area: Path | None,
    title: str,
    repo: str | None,
    licence: str | None,
    private: bool,
    as_json: bool,
) -> None:
    """Write a data set in a layout that others read, with its card as README.md.

    --push also publishes it, photos and all, with the licence that you give.

    just-zoom-in and vigor have tiles of imagery, which --imagery names. Photos are hard links where possible. Run again
    after an interruption: files that are complete are kept.
    """
    if (repo is None) != (licence is None) or (private and repo is None):
        raise UsageError("--push USER/NAME, --license ID and --private go together: give the first two, or none")
    from jzi.curate.folder import DatasetFolder
    from jzi.publish.credits import read_imagery
    from jzi.publish.huggingface import publish_huggingface
    from jzi.publish.just_zoom_in import publish_just_zoom_in
    from jzi.publish.publication import Request
    from jzi.publish.vigor import publish_vigor
    from jzi.workspace.setup.settings import find_rasters, names_url
    from jzi.workspace.setup.settings_file import load_settings

    names, sources = read_imagery(imagery)
    request = Request(
        DatasetFolder.read(folder),
        output,
        title,
        find_rasters(names) if names else [],
        sources,
        load_settings(area).pyramid if area else None,
        remote or names_url(names),
    )
    known = [*sources, *request.folder.info.sources]
    _warn_of_unknown(request.rasters, any(each.kind == "imagery" for each in known))
    publish = {"huggingface": publish_huggingface, "just-zoom-in": publish_just_zoom_in, "vigor": publish_vigor}[layout]
    publication = publish(request)
    if repo is None:
        print_result(as_json, publication, publication_text(publication))
        return
    from jzi.commands.datasets.push import run_push
    from jzi.publish.hub.hub import RepoName
    from jzi.publish.hub.hub_upload import HubTarget
    from jzi.workspace.push import PushRequest

    click.echo(publication_text(publication), err=True)
    target = HubTarget(RepoName.of(repo), kind="dataset", private=private)
    run_push(PushRequest(output, target, licence or "", title), dry_run=False, as_json=as_json)


def publication_text(publication: Publication) -> str:
    """A published data set, for people."""
    counts = ", ".join(f"{name} {count}" for name, count in publication.photos.items())
    lines = [f"{sum(publication.photos.values())} photos published in {publication.path}: {counts}"]
    lines += [f"{count} photos left out: {reason}" for reason, count in publication.left_out.items()]
    lines.append(f"{publication.files} {publication.what}, README.md and its pictures")
    following = {
        "huggingface": f'datasets.load_dataset("{publication.path}")',
        "just-zoom-in": f"jzi init --dataset just-zoom-in {publication.path}",
        "vigor": f"jzi init --dataset vigor FOLDER --data {publication.path}",
    }
    return "\n".join([*lines, f"next: {following[publication.layout]}"])
