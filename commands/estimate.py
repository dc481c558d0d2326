"""`estimate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jzi.commands.shared.common import json_option, print_result, print_warnings, settings_options

if TYPE_CHECKING:
    from jzi.workspace.estimate import AreaEstimate


@click.command()
@settings_options
@click.option(
    "--photos", type=click.IntRange(1, 10**9), help="Photos with positions.  [default: those of the photo table]"
)
@json_option
def estimate(config_file: Path, overrides: tuple[str, ...], photos: int | None, as_json: bool) -> None:
    """Estimate what encoding, training and locating will take.

    Encodes some tiles and photos of the area, trains and locates with made embeddings, each for a few seconds (about 20
    in all), and scales the rates to the whole area. Other maps, encoders and settings are tried with --set, such as
    --set encoder.name=facebook/dinov2-base. Writes nothing.
    """
    from jzi.workspace.setup.settings_file import load_settings

    settings = load_settings(config_file, overrides, training=("train", "decoder", "heads", "queries"))
    from jzi.workspace.estimate import estimate_area

    expected = estimate_area(settings, photos)
    if not as_json:
        print_warnings(expected.warnings)
    print_result(as_json, expected, _text(expected))


def _text(expected: AreaEstimate) -> str:
    from jzi.commands.shared.reports import size_text

    rows = [("", "count", "time", "disk", "memory")]
    for step in expected.steps:
        disk = size_text(step.disk_bytes) if step.disk_bytes else "-"
        memory = size_text(step.memory_bytes + expected.program_bytes)
        rows.append((step.name, f"{step.count:,} {step.unit}", _time(step.seconds), disk, memory))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if not column else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]  # fmt: skip
    lines.append("")
    lines += [f"{step.name}: measured {step.measured}; {step.arithmetic}" for step in expected.steps]
    disk = "" if expected.free_disk_bytes is None else f", {size_text(expected.free_disk_bytes)} of the disk"
    lines.append(
        f"{expected.device}; free: {size_text(expected.free_memory_bytes)} of memory{disk}; "
        f"measured in {expected.took_s:.0f} s"
    )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds < 2:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
