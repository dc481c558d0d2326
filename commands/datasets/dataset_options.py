"""Options about filters and about preparing photos, which the commands that make a data set share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import date
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from jzi.commands.shared.common import number, with_options
from jzi.curate.options import CAMERAS, FilterOptions, PrepareOptions
from jzi.locate.ranges import DISTANCE, PIXELS, SEED, SHARE, Range

if TYPE_CHECKING:
    from jzi.curate.folder import FilterCount

#: Variances of a Laplacian of 8-bit values, and bits of a hash.
SHARPNESS, BITS = Range(0, 1e6), Range(0, 16, whole=True)

#: Fields of view of crops, degrees, and counts.
HFOV, COUNT = Range(10, 150, unit="degrees"), Range(1, 1_000_000, whole=True)

#: Most crops of a panorama.
CROPS = Range(1, 64, whole=True)

_FILTERS, _PREPARE = FilterOptions(), PrepareOptions()

#: Each field of `FilterOptions` has an option.
FIELDS = tuple(field.name for field in fields(FilterOptions))


class _OrOff(click.ParamType):
    """A number of a range, or "off", which is None."""

    def __init__(self, range: Range) -> None:
        self.inner = number(range)
        self.name = f"{self.inner.name}|off"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value is None or (isinstance(value, str) and value.strip().lower() == "off"):
            return None
        return self.inner.convert(value, param, ctx)


def _threshold(name: str, field: str, metavar: str, range: Range, text: str) -> Callable:
    default = getattr(_FILTERS, field)
    shown = "off" if default is None else f"{default:g}"
    return click.option(
        name, field, type=_OrOff(range), default=shown, metavar=f"{metavar}|off", show_default=True, help=text
    )


def _day(_: click.Context, __: click.Parameter, value: Any) -> date | None:
    return None if value is None else value.date()


def _cameras(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    return value or None


_FILTER_OPTIONS = (
    _threshold("--position-error", "position_error_m", "M", DISTANCE, "Most metres between GPS and SfM position."),
    click.option("--require-sfm", is_flag=True, help="Remove photos without an SfM position."),
    _threshold("--spacing", "spacing_m", "M", DISTANCE, "Least metres between consecutive photos of a drive."),
    click.option("--since", type=click.DateTime(["%Y-%m-%d"]), callback=_day, metavar="DAY", help="First day."),
    click.option("--until", type=click.DateTime(["%Y-%m-%d"]), callback=_day, metavar="DAY", help="Last day."),
    click.option("--exclude-device", "devices_excluded", multiple=True, metavar="PATTERN", help="Remove photos of "
                 "these devices, such as '*dashcam*'; may be repeated."),
    click.option("--camera", "cameras", multiple=True, type=click.Choice(CAMERAS), callback=_cameras,
                 help="Keep photos of these kinds of cameras alone; may be repeated."),
    _threshold("--min-side", "min_side", "PX", PIXELS, "Least pixels of the shorter side."),
    _threshold("--min-score", "min_quality_score", "SCORE", SHARE, "Least quality score of the service."),
    _threshold("--per-block", "per_block", "N", COUNT, "Most photos in a square of the ground."),
    click.option("--block", "block_m", type=number(DISTANCE), default=_FILTERS.block_m, show_default=True, metavar="M",
                 help="Side of these squares."),
    _threshold("--sharpness", "sharpness", "VARIANCE", SHARPNESS, "Least variance of the Laplacian: blurred photos."),
    _threshold("--max-dark", "dark_share", "SHARE", SHARE, "Most of the picture that is black."),
    _threshold("--max-bright", "bright_share", "SHARE", SHARE, "Most of the picture that is burnt out."),
    _threshold("--max-sky", "sky_share", "SHARE", SHARE, "Most of the picture that is sky."),
    _threshold("--max-occlusion", "occlusion_share", "SHARE", SHARE, "Most of the picture that is smooth and not sky."),
    _threshold("--max-veil", "veil", "SHARE", SHARE, "Most veiling glare, as of a windscreen or fog."),
    _threshold("--max-dashboard", "dashboard_share", "SHARE", SHARE, "Most of the picture below an edge that stays in "
               "place through a drive."),
    _threshold("--duplicate-bits", "duplicate_bits", "BITS", BITS, "Most bits of 64 by which duplicates' hashes "
               "differ."),
)  # fmt: skip

_PREPARE_OPTIONS = (
    click.option("--size", type=_OrOff(PIXELS), default=str(_PREPARE.size), show_default=True, metavar="PX|off",
                 help="Longest side of prepared photos."),
    click.option("--panoramas", type=click.Choice(["crop", "keep", "skip"]), default=_PREPARE.panoramas,
                 show_default=True, help="Crop panoramas to perspective photos, keep or skip them."),
    click.option("--crops", type=number(CROPS), default=_PREPARE.crops, show_default=True, help="Crops of a panorama."),
    click.option("--crop-fov", nargs=2, type=number(HFOV), default=(_PREPARE.hfov_min_deg, _PREPARE.hfov_max_deg),
                 show_default=True, metavar="MIN MAX", help="Horizontal fields of view of crops, degrees."),
    click.option("--crop-seed", type=number(SEED), default=_PREPARE.seed, show_default=True,
                 help="Seed of crops' headings and fields of view."),
    click.option("--undistort/--no-undistort", default=_PREPARE.undistort, show_default=True,
                 help="Remove lens distortion where the camera's parameters are known."),
)  # fmt: skip


def filter_options(command: Callable) -> Callable:
    """Add the options about filters, which the command takes as `filters`, a `FilterOptions`."""

    @wraps(command)
    def run(**values: Any) -> Any:
        own = {name: values.pop(name) for name in FIELDS}
        return command(filters=FilterOptions(**own), **values)

    return with_options(run, _FILTER_OPTIONS)


def prepare_options(command: Callable) -> Callable:
    """Add the options about preparing photos, which the command takes as `preparation`, a `PrepareOptions`."""

    @wraps(command)
    def run(
        *, size: int | None, panoramas: Any, crops: int, crop_fov: tuple[float, float], crop_seed: int,
        undistort: bool, **values: Any,
    ) -> Any:  # fmt: skip
        preparation = PrepareOptions(size, panoramas, crops, *crop_fov, crop_seed, undistort)
        return command(preparation=preparation, **values)

    return with_options(run, _PREPARE_OPTIONS)


def counts_text(found: int, counts: Sequence[FilterCount], kept: int) -> str:
    """The report of filters as a table: what each removed, and what is kept.

    Args:
        found: number of photos before the filters.
        counts: of the filters.
        kept: number of photos after them.
    """
    rows = [("found", found, "")]
    rows += [(each.name, -each.removed, each.setting) for each in counts]
    rows += [("kept", kept, "")]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{width}}  {count:>9,}  {setting}".rstrip() for name, count, setting in rows)
