"""The filters of the paper's section 3.1.1: which photos become part of a data set, and why the others do not.

What metadata can decide is decided before a photo is downloaded or opened (`filter_records`), the rest by what
`jzi.curate.quality` has measured (`filter_images`). A photo counts for the first filter that removes it. The result
does not depend on the order of the rows.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jzi.curate.columns import by_time, numbers, on_ellipsoid, texts, times
from jzi.curate.dashboard import dashboard_shares
from jzi.curate.duplicates import duplicates_of
from jzi.curate.folder import FilterCount, Rejection
from jzi.curate.options import CAMERAS
from jzi.curate.options import FilterOptions as FilterOptions
from jzi.store.geometry.pyramid import geodesic_distance
from jzi.store.photos.splits import map_blocks
from jzi.store.plain import share_text

#: Clocks without a time zone are up to 14 hours ahead of UTC.
AHEAD = timedelta(days=1)

#: Degrees around latitude 0, longitude 0 in which a position is a missing one: 111 m of the Gulf of Guinea.
NULL_ISLAND_DEG = 1e-3

#: Filters by what was measured: name, column and option, whether the option is the least value, texts of the setting
#: and the reason, of a share as text. Exposure is first, since nothing is sharp in the dark.
_MEASURED = (
    ("dark", "dark_share", False, "at most {} black", "{} black"),
    ("bright", "bright_share", False, "at most {} burnt out", "{} burnt out"),
    ("blur", "sharpness", True, "variance of the Laplacian at least {:g}", "variance of the Laplacian {:.0f}"),
    ("sky", "sky_share", False, "at most {} sky", "{} sky"),
    ("occlusion", "occlusion_share", False, "at most {} smooth and not sky", "{} smooth and not sky"),
    ("veil", "veil", False, "veiling glare at most {:g}", "veiling glare {:.2f}"),
)


@dataclass(frozen=True)
class FilterResult:
    """What filters have kept and removed.

    Attributes:
        photos: the kept rows, in their order, with a new index.
        rejected: the others, in their order.
        counts: one per filter that was on, in the order in which they ran, also of those that removed nothing.
    """

    photos: pd.DataFrame
    rejected: list[Rejection]
    counts: list[FilterCount]


def filter_records(frame: pd.DataFrame, options: FilterOptions, now: datetime | None = None) -> FilterResult:
    """Filter photos by their metadata: position, time, SfM, age, device, camera, size, score, spacing, blocks.

    Args:
        frame: columns id, latitude and longitude; optionally gps_latitude, gps_longitude, computed_latitude,
            computed_longitude, position_error_m, captured_at (ISO 8601 or a number, as
            `jzi.store.photos.splits.capture_seconds`), drive, device (or make and model), camera, panorama, width,
            height, quality_score. Ids are distinct texts.
        options: thresholds.
        now: the time beyond which clocks are wrong; that of the machine by default.

    Returns:
        The kept photos, with a column position_error_m (metres, nan if unknown) where SfM positions are given.
    """
    error = _position_error(frame)
    if error is not None:
        frame = frame.assign(position_error_m=error)
    run = _Run(frame)
    _filter_position(run)
    _filter_time(run, options, now or datetime.now(UTC))
    if options.require_sfm:
        missing = np.ones(len(frame), bool) if error is None else np.isnan(error)
        run.remove("sfm", "with an SfM position", missing, "without an SfM position")
    if options.position_error_m is not None and error is not None:
        setting = f"GPS at most {options.position_error_m:g} m from the SfM position"
        far = error > options.position_error_m
        run.remove("gps", setting, far, lambda row: f"GPS {error[row]:.0f} m from the SfM position")
    _filter_device(run, options)
    _filter_size(run, options)
    score = numbers(frame, "quality_score")
    if options.min_quality_score is not None:
        setting = f"quality score at least {options.min_quality_score:g}"
        run.remove("score", setting, score < options.min_quality_score, lambda row: f"quality score {score[row]:.2f}")
    if options.spacing_m is not None:
        _filter_spacing(run, options.spacing_m)
    if options.per_block is not None:
        _filter_blocks(run, options.per_block, options.block_m, score)
    return run.result()


def filter_images(frame: pd.DataFrame, options: FilterOptions) -> FilterResult:
    """Filter photos by what was measured of them: exposure, blur, sky, occlusion, veil, dashboard, duplicates.

    Args:
        frame: columns id and `jzi.curate.quality.QUALITY_COLUMNS` (as of `Quality.to_columns`); optionally drive,
            captured_at, width, height and quality_score.
        options: thresholds.

    Returns:
        The kept photos; dashboard_share is filled, and `lower_half`, which it is computed from, dropped.
    """
    shares = np.full(len(frame), np.nan)
    run = _Run(frame)
    for measure in _MEASURED:
        _filter_measure(run, options, *measure)
    if options.dashboard_share is not None:
        if "lower_half" in frame:
            drives = frame.assign(drive=texts(frame, "drive"))
            rows = by_time(drives, run.kept)
            shares[rows] = dashboard_shares(drives.iloc[rows]).to_numpy()
        edge = "below an edge that stays in place through the drive"
        setting = f"at most {share_text(options.dashboard_share)} {edge}"
        run.remove(
            "dashboard", setting, shares > options.dashboard_share, lambda row: f"{share_text(shares[row])} {edge}"
        )
    if options.duplicate_bits is not None:
        _filter_duplicates(run, options.duplicate_bits)
    result = run.result()
    photos = result.photos.assign(dashboard_share=shares[run.kept]).drop(columns="lower_half", errors="ignore")
    return FilterResult(photos, result.rejected, result.counts)


class _Run:
    """Filters that run one after the other on a frame."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self.kept = np.ones(len(frame), bool)
        self.counts: list[FilterCount] = []
        self._rejections: dict[int, Rejection] = {}

    def remove(self, name: str, setting: str, rows: NDArray[np.bool_], reason: str | Callable[[int], str]) -> None:
        """Remove rows that are still there, all for one reason, or each for that of its number."""
        removed, ids = np.flatnonzero(rows & self.kept), self.frame["id"].to_numpy()
        for row in removed.tolist():
            text = reason if isinstance(reason, str) else reason(row)
            self._rejections[row] = Rejection(str(ids[row]), name, text)
        self.kept[removed] = False
        self.counts.append(FilterCount(name=name, setting=setting, removed=len(removed)))

    def result(self) -> FilterResult:
        photos = self.frame[self.kept].reset_index(drop=True)
        return FilterResult(photos, [self._rejections[row] for row in sorted(self._rejections)], self.counts)


def _filter_position(run: _Run) -> None:
    latitude, longitude = numbers(run.frame, "latitude"), numbers(run.frame, "longitude")
    bad = ~((np.abs(latitude) <= 90) & (np.abs(longitude) <= 180))
    bad |= (np.abs(latitude) < NULL_ISLAND_DEG) & (np.abs(longitude) < NULL_ISLAND_DEG)
    setting = "a position on the Earth, and not 0, 0"
    run.remove("position", setting, bad, lambda row: f"latitude {latitude[row]:g}, longitude {longitude[row]:g}")


def _filter_measure(
    run: _Run, options: FilterOptions, name: str, column: str, least: bool, setting: str, reason: str
) -> None:
    threshold, values = getattr(options, column), numbers(run.frame, column)
    if threshold is not None:
        outside = values < threshold if least else values > threshold
        value = share_text if column.endswith("_share") else float
        run.remove(name, setting.format(value(threshold)), outside, lambda row: reason.format(value(values[row])))


def _filter_time(run: _Run, options: FilterOptions, now: datetime) -> None:
    seconds = times(run.frame)
    latest = (now if now.tzinfo else now.replace(tzinfo=UTC)) + AHEAD
    run.remove("time", "not in the future", seconds > latest.timestamp(), lambda row: _taken(seconds[row]))
    if options.since is None and options.until is None:
        return
    first = -np.inf if options.since is None else _seconds(options.since)
    end = np.inf if options.until is None else _seconds(options.until) + 86_400
    words = [f"since {options.since}" if options.since else "", f"until {options.until}" if options.until else ""]
    run.remove(
        "age", " ".join(filter(None, words)), ~((seconds >= first) & (seconds < end)), lambda row: _taken(seconds[row])
    )


def _seconds(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


def _taken(seconds: float) -> str:
    if np.isnan(seconds):
        return "its time is unknown"
    try:
        return f"taken on {datetime.fromtimestamp(seconds, UTC).date()}"
    except (ValueError, OverflowError, OSError):  # years beyond 9999
        return f"taken {seconds:g} s after 1970"


def _position_error(frame: pd.DataFrame) -> NDArray[np.float64] | None:
    """(photo,) metres from the camera's GPS to the SfM position; None if no photo has one."""
    given = numbers(frame, "position_error_m")
    if "computed_latitude" in frame and "computed_longitude" in frame:
        kind = "gps_" if "gps_latitude" in frame and "gps_longitude" in frame else ""
        ends = [
            numbers(frame, name)
            for name in (f"{kind}latitude", f"{kind}longitude", "computed_latitude", "computed_longitude")
        ]
        known = np.all([np.isfinite(end) for end in ends], 0) & (np.abs(ends[0]) <= 90) & (np.abs(ends[2]) <= 90)
        if known.any():
            given[known] = geodesic_distance(*(end[known] for end in ends))
        return given
    return given if "position_error_m" in frame else None


def _filter_device(run: _Run, options: FilterOptions) -> None:
    frame = run.frame
    if options.devices_excluded:
        device = texts(frame, "device")
        if "make" in frame or "model" in frame:
            both = (texts(frame, "make") + " " + texts(frame, "model")).str.strip()
            device = device.where(device != "", both)
        patterns = [re.compile(fnmatch.translate(pattern.lower())) for pattern in options.devices_excluded]
        excluded = {name for name in device.unique() if any(each.match(name.lower()) for each in patterns)}
        setting = f"no device {' or '.join(options.devices_excluded)}"
        run.remove("device", setting, device.isin(excluded).to_numpy(), lambda row: f"taken by {device.iloc[row]}")
    if options.cameras is not None:
        camera = texts(frame, "camera").str.lower()
        panorama = texts(frame, "panorama").str.lower().isin(("true", "1", "1.0", "yes"))
        camera = camera.where(camera != "", panorama.map({True: "spherical", False: "unknown"}))
        camera = camera.where(camera.isin(CAMERAS), "unknown")
        setting = f"cameras: {', '.join(options.cameras)}"
        run.remove(
            "camera", setting, ~camera.isin(options.cameras).to_numpy(), lambda row: f"camera {camera.iloc[row]}"
        )


def _filter_size(run: _Run, options: FilterOptions) -> None:
    if options.min_side is not None:
        width, height = numbers(run.frame, "width"), numbers(run.frame, "height")
        small = np.minimum(width, height) < options.min_side
        setting = f"shorter side at least {options.min_side} pixels"
        run.remove("size", setting, small, lambda row: f"{width[row]:g} x {height[row]:g} pixels")


def _filter_spacing(run: _Run, spacing_m: float) -> None:
    drive = texts(run.frame, "drive")
    rows = by_time(run.frame.assign(drive=drive), run.kept & (drive != "").to_numpy())
    points = on_ellipsoid(numbers(run.frame, "latitude")[rows], numbers(run.frame, "longitude")[rows])
    close = np.zeros(len(run.frame), bool)
    reasons: dict[int, str] = {}
    last_drive, last = None, points[:0]
    for row, name, point in zip(rows.tolist(), drive.iloc[rows], points, strict=True):
        metres = float(np.linalg.norm(point - last)) if name == last_drive else np.inf
        if metres < spacing_m:
            close[row], reasons[row] = True, f"{metres:.1f} m from the photo before"
        else:
            last_drive, last = name, point
    run.remove("spacing", f"at least {spacing_m:g} m from the photo before in a drive", close, reasons.__getitem__)


def _filter_blocks(run: _Run, per_block: int, block_m: float, score: NDArray[np.float64]) -> None:
    frame = run.frame[run.kept]
    order = pd.DataFrame({
        "block": map_blocks(frame, block_m).to_numpy(),
        "score": -np.nan_to_num(score[run.kept], nan=-1.0),
        "draw": [hashlib.sha256(str(name).encode("utf-8", "replace")).hexdigest() for name in frame["id"]],
        "row": np.flatnonzero(run.kept),
    }).sort_values(["block", "score", "draw"])  # fmt: skip
    surplus = order["row"][(order.groupby("block").cumcount() >= per_block).to_numpy()].to_numpy()
    over = np.zeros(len(run.frame), bool)
    over[surplus] = True
    setting = f"at most {per_block} in a square of {block_m:g} m"
    run.remove("block", setting, over, f"more than {per_block} in its square of {block_m:g} m")


def _filter_duplicates(run: _Run, bits: int) -> None:
    """Of duplicates, the one with the most pixels is kept, then that of the best score, then the earliest."""
    frame = run.frame.assign(
        pixels=-np.nan_to_num(numbers(run.frame, "width") * numbers(run.frame, "height")),
        score=-np.nan_to_num(numbers(run.frame, "quality_score"), nan=-1.0),
        seconds=times(run.frame),
        id=run.frame["id"].astype(str),
        row=np.arange(len(run.frame)),
        phash=texts(run.frame, "phash"),
    )
    frame = frame[run.kept & frame["phash"].str.fullmatch(r"[0-9a-f]{16}").to_numpy(bool)]
    frame = frame.sort_values(["pixels", "score", "seconds", "id"])
    hashes = np.array([int(each, 16) for each in frame["phash"]], np.uint64)
    duplicate = np.zeros(len(run.frame), bool)
    reasons: dict[int, str] = {}
    rows, ids = frame["row"].tolist(), frame["id"].tolist()
    for photo, original in duplicates_of(hashes, bits).items():
        duplicate[rows[photo]], reasons[rows[photo]] = True, f"the same picture as {ids[original]}"
    run.remove("duplicate", f"hashes differ in more than {bits} of 64 bits", duplicate, reasons.__getitem__)
