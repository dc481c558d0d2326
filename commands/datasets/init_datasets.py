"""`init --dataset` for the published data sets VIGOR-M and state-wide."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from jzi.commands.shared.common import UsageError, list_disagreements, list_rejected, print_result


def init_vigor_m_command(
    folder: Path, data: Path | None, area: Literal["same", "cross"] | None, force: bool, as_json: bool, **options: Any
) -> None:
    """Set up a working directory for each city of VIGOR-M."""
    from jzi.commands.shared.reports import split_text
    from jzi.datasets.geomoe import compare, protocol_of
    from jzi.store.plain import plain
    from jzi.workspace.setup.published_sets import vigor_m_areas
    from jzi.workspace.setup.settings import FILE
    from jzi.workspace.setup.settings_file import write_settings
    from jzi.workspace.zoom import describe_area

    encoder, image_size = options.pop("encoder", None), options.pop("image_size", None)
    if unused := [f"--{name.replace('_', '-')}" for name, value in options.items() if value]:
        raise UsageError(f"{', '.join(unused).replace('--rasters', '--map')} is not for VIGOR-M: leave it out")
    chosen = area or "same"
    areas = vigor_m_areas(folder, data, chosen, encoder=encoder, image_size=image_size, force=force)
    photos: dict[str, int] = {}
    cities = []
    for each in areas:
        name, width, height = each.city.name, *each.city.cell_m
        list_rejected(each.table.rejected, f"photos of {name} cannot be used")
        list_disagreements(each.table)
        for split, count in each.table.frame["split"].value_counts().items():
            photos[str(split)] = photos.get(str(split), 0) + int(count)
        write_settings(each.settings)
        cities.append({"city": name, "photos": len(each.table), "cell_m": [width, height],
                       "file": each.settings.folder / FILE})  # fmt: skip
        if not as_json:
            click.echo(f"{name}: {describe_area(each.settings.pyramid)}; on the ground, a cell is {width:.1f} by "
                       f"{height:.1f} m; {len(each.table)} photos, {split_text(each.table.split)}")  # fmt: skip
    protocol = protocol_of("vigor-m", chosen)
    note = compare(protocol, photos) if protocol else ""
    steps = f"cd {folder / areas[0].city.name}; jzi encode-map; ... jzi evaluate --split test --gallery occupied"
    text = (
        f"wrote {', '.join(str(folder / each.city.name / FILE) for each in areas)}\n{note}; each city is an area of "
        f"its own, while the published gallery is that of all cities\nnext, in each: {steps}"
    )
    print_result(as_json, plain({"cities": cities, "photos": photos, "protocol": note}), text)


def statewide_sources(
    folder: Path, data: Path | None, rasters: tuple[str, ...], options: dict[str, Any]
) -> tuple[tuple[str, ...], bool, str, str]:
    """The rasters, whether they name files elsewhere, the table and the photos of a state, which are written."""
    from jzi.workspace.setup.published_sets import statewide_photos, statewide_rasters

    if given := [f"--{name.replace('_', '-')}" for name in ("queries", "photos", "download") if options.get(name)]:
        raise UsageError(f"{', '.join(given)} is not for the state-wide data set, which is in --data: leave it out")
    if not rasters:
        raise UsageError("the state-wide data set is photos only: name the imagery of the state by --map")
    files, outside = statewide_rasters(folder, rasters)
    table, photos, missing = statewide_photos(folder, data)
    list_rejected(missing, "photos of the data set left out")
    return tuple(files), outside, table, photos
