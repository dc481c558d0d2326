"""Splits of photos into train, val and test that keep what belongs together in one split.

Photos of one drive are near-copies of one another: a split photo by photo puts the neighbours of a test photo into
training. Photos are therefore grouped, by drives or by blocks of the map, and each group is assigned to a split by a
hash of its key: adding photos of other groups does not move a group.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jzi.errors import PhotoTableError
from jzi.store.geometry.pyramid import geodesic_distance
from jzi.store.geometry.space import in_space

SPLITS = ("train", "val", "test")

#: What `split_photos` can keep together; "auto" is the first of them that gives three groups or more, "date" apart,
#: which is only used where it is asked for.
SPLIT_BY = ("auto", "sequence", "block", "photo", "date")

#: Kinds of groups and where they come from, the coarsest first; every photo is a group of its own before "date".
_GROUPINGS = (("sequence", "column"), ("sequence", "time"), ("block", None), ("photo", None), ("date", "time"))

#: Shares of the groups that go to train, val and test.
SHARES = (0.8, 0.1, 0.1)

#: A pause between two photos of a device that begins a new drive, seconds.
GAP_S = 600.0

#: Between two photos of one drive lie at most `SLACK_M` and `SPEED` times the time between them: 180 km/h, and the
#: error of two GPS positions with the time in whole seconds.
SPEED, SLACK_M = 50.0, 100.0

#: Maximum number of cars that are followed at the same time; beyond it, the car with the oldest last photo is dropped.
MOST_CARS = 1000

#: Side of map blocks, metres, and the least number of blocks along a side of the area.
BLOCK_M, BLOCKS = 100.0, 8

_EARTH_RADIUS_M = 6_371_008.8
_ZOOM_SEQUENCE = r"\[\s*\d+(\s*,\s*\d+)*\s*\]"


@dataclass(frozen=True)
class SplitInfo:
    """How the photos of a table were split.

    Attributes:
        requested: one of `SPLIT_BY`; empty if the table has its own splits.
        kind: "sequence", "block", "photo" or "date"; "table" if the table has its own splits.
        groups: number of drives, blocks, photos or days.
        source: for drives and days, "column" or "time".
        block_m: for blocks, their side in metres.
        note: why a coarser kind was not used; empty if there is no reason to give.
    """

    requested: str = ""
    kind: str = "table"
    groups: int = 0
    source: str | None = None
    block_m: float | None = None
    note: str = ""


#: Of a table that has its own splits.
TABLE_SPLIT = SplitInfo()


def split_photos(
    frame: pd.DataFrame,
    by: str,
    block_m: float = BLOCK_M,
    shares: tuple[float, float, float] = SHARES,
    seed: int = 0,
) -> tuple[pd.Series, SplitInfo]:
    """Assign photos to splits: by default 80 % of the groups to train, 10 % to val and 10 % to test.

    With few and large groups the shares of photos can be far from that. With three groups or more no split is empty
    whose share is not 0.

    Args:
        frame: columns id, latitude, longitude, and optionally drive, sequence, captured_at and device, as in
            `jzi.store.photos.photo_table.PhotoTable.frame`.
        by: "sequence": by the column of drives, else by drives that gaps in the capture times separate; "block": by
            squares of the map; "photo": each photo alone; "date": by days; "auto": the first of sequence, block and
            photo with three groups or more. Photos without a drive or a time are kept together by blocks.
        block_m: side of the squares, metres.
        shares: of the groups, for train, val and test; they add up to 1.
        seed: another seed gives another split.

    Returns:
        (photo,) "train", "val" or "test", and how the photos were grouped.

    Raises:
        PhotoTableError: drives or days are requested, but fewer than half of the photos have one or a capture time.
    """
    note = ""
    for kind, source in _GROUPINGS:
        if by not in ("auto", kind):
            continue
        key = _keys(frame, kind, source, block_m)
        if key is None:
            continue
        groups = int(key.nunique())
        if by == "auto" and kind != "photo" and groups < len(SPLITS):
            noun = "map block" if kind == "block" else "drive"
            note = f"there is only 1 {noun}" if groups == 1 else f"there are only {groups} {noun}s"
            continue
        split = key.map(split_by_hash(pd.Series(key.unique(), index=key.unique()), shares, seed))
        return split, SplitInfo(by, kind, groups, source, block_m if kind == "block" else None, note)
    what = "a" if by == "date" else "a drive (column drive or sequence_id) or a"
    raise PhotoTableError(
        f'queries.split_by is "{by}", but fewer than half of the photos have {what} capture time (column captured_at, '
        "or EXIF): set it to block or photo"
    )


def _keys(frame: pd.DataFrame, kind: str, source: str | None, block_m: float) -> pd.Series | None:
    if kind == "photo":
        return frame["id"]
    blocks = map_blocks(frame, block_m)
    if kind == "block":
        return blocks
    if source == "column":
        groups = drives_of_column(frame)
    else:
        groups = drives_by_time(frame) if kind == "sequence" else days(frame)
    return None if groups is None else groups.where(groups != "", blocks)  # blocks for photos without one


def split_by_hash(keys: pd.Series, shares: tuple[float, float, float] = SHARES, seed: int = 0) -> pd.Series:
    """Assign keys, by default 80 % to train, 10 % to val and 10 % to test, by a hash of each.

    The split of a key does not depend on the others; but with three keys or more no split whose share is not 0 is left
    empty: it gets the key with the nearest hash.

    Args:
        keys: (key,) distinct text, such as ids of photos.
        shares: of train, val and test; they add up to 1.
        seed: another seed gives another split.

    Returns:
        (key,) "train", "val" or "test".
    """
    prefix = f"{seed} " if seed else ""  # the splits of tables are those of seed 0
    position = keys.map(lambda name: int.from_bytes(hashlib.sha256((prefix + name).encode()).digest()[:8]) / 2**64)
    train, val = shares[0], shares[0] + shares[1]
    split = pd.Series(np.select([position < train, position < val], ["train", "val"], "test"), index=keys.index)
    wanted = [name for name, share in zip(SPLITS, shares, strict=True) if share > 0]
    if len(keys) >= len(SPLITS):
        order = position.sort_values().index
        nearest = {"train": order[0], "val": order[-2] if "test" in wanted else order[-1], "test": order[-1]}
        for name in ("test", "train", "val"):  # val last: the key of another split is then not its only one
            if name in wanted and not (split == name).any():
                split[nearest[name]] = name
    return split


def copies_together(split: pd.Series, digest: pd.Series) -> pd.Series:
    """Assign copies of a file to one split: train if one of them is in it, else val, else test.

    Args:
        split: (photo,) "train", "val" or "test".
        digest: (photo,) digest of each photo's file; empty if it is not known.

    Returns:
        (photo,) the splits.

    Example:
        >>> copies_together(pd.Series(["test", "train", "val"]), pd.Series(["a", "a", ""])).tolist()
        ['train', 'train', 'val']
    """
    known = digest != ""
    rank = split[known].map({name: rank for rank, name in enumerate(SPLITS)})
    first = rank.groupby(digest[known]).transform("min").map(dict(enumerate(SPLITS)))
    return split.where(~known, first.reindex(split.index))


def is_zoom_sequence(values: pd.Series) -> NDArray[np.bool_]:
    """(photo,) whether values of a column `sequence` are published zoom sequences, lists of actions, not ids."""
    return text(values).str.fullmatch(_ZOOM_SEQUENCE).to_numpy(bool)


def drives_of_column(frame: pd.DataFrame) -> pd.Series | None:
    """(photo,) id of each photo's drive, empty if it has none; None if fewer than half have one."""
    if "drive" in frame:
        drive = text(frame["drive"])
    elif "sequence" in frame:
        drive = text(frame["sequence"])
        drive = drive.where(~drive.str.startswith("["), "")  # published zoom sequences
    else:
        return None
    return drive if (drive != "").mean() >= 0.5 else None


def drives_by_time(frame: pd.DataFrame) -> pd.Series | None:
    """(photo,) key of drives separated by gaps in the capture times; None if fewer than half of the photos have one.

    A drive is a series of photos of one device without a gap of `GAP_S` and without a jump that no car makes. Where
    several cars, of one device or of unknown ones, were under way at the same time, each photo belongs to the one that
    was nearest of those that can have come there. A drive's key is the device and the time of its first photo. Photos
    without a time have an empty key.
    """
    if "captured_at" not in frame:
        return None
    seconds = capture_seconds(frame["captured_at"])
    if seconds.notna().mean() < 0.5:
        return None
    device = text(frame["device"]) if "device" in frame else pd.Series("", index=frame.index)
    columns = {"device": device, "seconds": seconds, "id": frame["id"]}
    rows = pd.DataFrame(columns).dropna(subset=["seconds"]).sort_values(list(columns), kind="stable")
    latitude, longitude = (frame[name][rows.index].to_numpy(float) for name in ("latitude", "longitude"))
    gap = np.diff(rows["seconds"])
    distance = geodesic_distance(latitude[:-1], longitude[:-1], latitude[1:], longitude[1:])
    pauses = (gap > GAP_S) | (rows["device"].to_numpy()[1:] != rows["device"].to_numpy()[:-1])
    jumps = ~pauses & (distance > SLACK_M + SPEED * gap)
    series = np.concatenate([[0], np.cumsum(pauses)])  # of one or of several cars
    drive = np.zeros(len(rows), np.int64)
    position = in_space(latitude, longitude)
    for number in np.unique(series[1:][jumps]):
        part = slice(*np.searchsorted(series, [number, number + 1]))
        drive[part] = _cars(rows["seconds"].to_numpy()[part], position[part])
    drive = np.unique(np.stack([series, drive]), axis=1, return_inverse=True)[1].ravel()
    first = rows.iloc[np.unique(drive, return_index=True)[1]]
    keys = np.array([f"{name} {start:.3f}" for name, start in zip(first["device"], first["seconds"], strict=True)])
    return pd.Series(keys[drive], index=rows.index, dtype=object).reindex(frame.index, fill_value="")


def _cars(seconds: NDArray[np.float64], position: NDArray[np.float64]) -> NDArray[np.int64]:
    """(photo,) number of the car that took each of several photos, in the order of time; a jump begins a new one.

    Args:
        seconds: (photo,) ascending.
        position: (photo, 3) metres.
    """
    car = np.zeros(len(seconds), np.int64)
    last = np.zeros(1, np.int64)  # (car,) last photo of each car that may still be under way
    names, count = np.zeros(1, np.int64), 1
    for photo in range(1, len(seconds)):
        gap = seconds[photo] - seconds[last]
        if gap.max() > GAP_S:
            under_way = gap <= GAP_S
            last, names, gap = last[under_way], names[under_way], gap[under_way]
        distance = np.linalg.norm(position[photo] - position[last], axis=1)
        distance[distance > SLACK_M + SPEED * gap] = np.inf
        nearest = int(distance.argmin())
        if np.isfinite(distance[nearest]):
            last[nearest], car[photo] = photo, names[nearest]
        else:
            if len(last) == MOST_CARS:
                oldest = last.argmin()
                last, names = np.delete(last, oldest), np.delete(names, oldest)
            last, names = np.append(last, photo), np.append(names, count)
            car[photo], count = count, count + 1
    return car


def days(frame: pd.DataFrame) -> pd.Series | None:
    """(photo,) day on which each photo was taken, such as 2023-05-02, empty if it is unknown.

    None if fewer than half of the photos have a capture time. A day is one of local mean solar time: no drive by
    daylight crosses its midnight, as it would that of UTC in other time zones.
    """
    if "captured_at" not in frame:
        return None
    seconds = capture_seconds(frame["captured_at"])
    if seconds.notna().mean() < 0.5:
        return None
    written: pd.Series = solar_time(seconds, frame["longitude"]).dt.strftime("%Y-%m-%d")
    return written.fillna("").astype(object)


def solar_time(seconds: pd.Series, longitude: pd.Series) -> pd.Series:
    """(photo,) local mean solar time: UTC and an hour for 15 degrees eastwards, without time zones; NaT if unknown.

    Args:
        seconds: (photo,) since 1970, from `capture_seconds`.
        longitude: (photo,) degrees.
    """
    # pandas holds the years 1678 to 2261
    local = (seconds + longitude.astype(float) * 240.0).where(seconds.abs() < 9e9)
    return pd.to_datetime(local, unit="s", errors="coerce")


def capture_seconds(values: pd.Series) -> pd.Series:
    """(photo,) capture times in seconds since 1970; nan if they are not a date and a time.

    Args:
        values: times, numbers of seconds, milliseconds, microseconds or nanoseconds since 1970, ISO 8601 or EXIF text.
    """
    moments, numbers = values, pd.Series(np.nan, index=values.index)
    if not pd.api.types.is_datetime64_any_dtype(values):
        numbers = pd.to_numeric(values, errors="coerce").astype(float)
        for limit, per_second in ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3)):  # 1e11 seconds are the year 5138
            numbers = numbers.where(~(numbers.abs() >= limit), numbers / per_second)
        written = text(values).str.replace(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", regex=True)
        written = written.where(written.str.match(r"\d{4}-"), None)  # without a date, pandas would take today's
        moments = pd.to_datetime(written, errors="coerce", utc=True, format="ISO8601")
    seconds = (pd.to_datetime(moments, utc=True) - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    return numbers.where(np.isfinite(numbers), seconds.astype(float))


def block_side(size: float) -> float:
    """Side of the blocks of an area, metres: `BLOCK_M`, halved until there are at least `BLOCKS` along its side.

    It depends on the area alone, so that adding photos does not change it.

    Args:
        size: side of the area, metres.
    """
    side = BLOCK_M
    while size / side < BLOCKS:
        side /= 2
    return side


def map_blocks(frame: pd.DataFrame, side: float) -> pd.Series:
    """(photo,) key of the square of ground that each photo was taken in.

    Squares are in rows along parallels and do not depend on the photos.

    Args:
        frame: columns latitude and longitude, degrees (WGS 84).
        side: of the squares, metres.
    """
    latitude, longitude = (np.radians(frame[name].to_numpy(float)) for name in ("latitude", "longitude"))
    row = np.floor(latitude * _EARTH_RADIUS_M / side)
    middle = np.clip((row + 0.5) * side / _EARTH_RADIUS_M, -np.pi / 2, np.pi / 2)
    col = np.floor(longitude * np.cos(middle) * _EARTH_RADIUS_M / side)
    blocks, block = np.unique(row + 1j * col, return_inverse=True)
    keys = np.array([f"block {side:g} {int(each.real)} {int(each.imag)}" for each in blocks], object)
    return pd.Series(keys[block], index=frame.index, dtype=object)


def text(column: pd.Series) -> pd.Series:
    """Strip text; missing values become empty."""
    return column.astype("string").fillna("").str.strip().astype(object)
