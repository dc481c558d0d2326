"""Photos are filtered by their metadata and by what was measured of them, each for a reason."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jzi.curate.filters import FilterOptions, FilterResult, filter_images, filter_records
from jzi.curate.options import PrepareOptions
from jzi.errors import DatasetError
from jzi.store.geometry.pyramid import geodesic_distance

NOW = datetime(2025, 6, 1, tzinfo=UTC)
OFF = FilterOptions(
    position_error_m=None, spacing_m=None, min_side=None, sharpness=None, dark_share=None, bright_share=None,
    sky_share=None, occlusion_share=None, veil=None, dashboard_share=None, duplicate_bits=None,
)  # fmt: skip

#: Metres per degree of latitude near the equator, about.
DEGREE_M = 110_574.0


def photos(count: int = 4, **columns) -> pd.DataFrame:
    frame = pd.DataFrame({"id": [f"p{n}" for n in range(count)], "latitude": 0.5, "longitude": 10.0})
    return frame.assign(**columns)


def measured(count: int = 4, **columns) -> pd.DataFrame:
    frame = photos(
        count, sharpness=1000.0, dark_share=0.0, bright_share=0.0, sky_share=0.2, occlusion_share=0.1, veil=0.0
    )
    return frame.assign(phash=[f"{n * 0x0F0F_1234_5678_9ABD % 2**64:016x}" for n in range(1, count + 1)], **columns)


def kept(result: FilterResult) -> list[str]:
    return result.photos["id"].tolist()


def count(result: FilterResult, name: str) -> int:
    return next(each.removed for each in result.counts if each.name == name)


def reasons(result: FilterResult) -> dict[str, str]:
    return {each.id: f"{each.filter}: {each.reason}" for each in result.rejected}


def test_positions_that_are_none_are_removed() -> None:
    frame = photos(6, latitude=[0.0, 91.0, np.nan, 50.0, 0.0, -90.0], longitude=[0.0, 5.0, 5.0, 181.0, 5.0, 180.0])
    result = filter_records(frame, OFF, NOW)
    assert kept(result) == ["p4", "p5"] and count(result, "position") == 4
    assert reasons(result)["p0"] == "position: latitude 0, longitude 0"


def test_clocks_in_the_future_are_removed_but_for_time_zones() -> None:
    times = ["2025-06-01T12:00:00", "2031-01-01T00:00:00Z", "", "2020-05-05T10:00:00+02:00"]
    result = filter_records(photos(captured_at=times), OFF, NOW)
    assert kept(result) == ["p0", "p2", "p3"]
    assert reasons(result) == {"p1": "time: taken on 2031-01-01"}
    odd = filter_records(photos(captured_at=["99999-01-01", 1e300, "x", None]), OFF, NOW)
    assert len(odd.photos) + len(odd.rejected) == 4


def test_ages_are_inclusive_and_need_a_time() -> None:
    times = ["2019-12-31T23:59:59Z", "2020-01-01T00:00:00Z", "2021-12-31T23:59:59Z", None]
    result = filter_records(
        photos(captured_at=times), replace(OFF, since=date(2020, 1, 1), until=date(2021, 12, 31)), NOW
    )
    assert kept(result) == ["p1", "p2"]
    assert reasons(result) == {"p0": "age: taken on 2019-12-31", "p3": "age: its time is unknown"}
    assert filter_records(photos(), replace(OFF, since=date(2020, 1, 1)), NOW).photos.empty


def test_positions_far_from_the_sfm_position_are_removed() -> None:
    frame = photos(
        gps_latitude=[0.5, 0.5 + 31 / DEGREE_M, 0.5, 0.5], gps_longitude=10.0,
        computed_latitude=[0.5, 0.5, np.nan, 0.5 + 14 / DEGREE_M], computed_longitude=[10.0, 10.0, np.nan, 10.0],
    )  # fmt: skip
    result = filter_records(frame, replace(OFF, position_error_m=15.0), NOW)
    assert kept(result) == ["p0", "p2", "p3"]
    assert reasons(result) == {"p1": "gps: GPS 31 m from the SfM position"}
    assert result.photos["position_error_m"].round(1).tolist()[::2] == [0.0, 14.0]
    assert np.isnan(result.photos["position_error_m"][1])
    strict = filter_records(frame, replace(OFF, position_error_m=15.0, require_sfm=True), NOW)
    assert kept(strict) == ["p0", "p3"] and count(strict, "sfm") == 1
    assert filter_records(photos(), replace(OFF, require_sfm=True), NOW).photos.empty


def test_devices_and_cameras() -> None:
    frame = photos(
        device=["ACME DashCam 3", "", "Nikon D3", "acme [x]"], make=["", "Acme", "", ""], model=["", "dashcam", "", ""],
        camera=["fisheye", "Perspective", "", "tilt-shift"], panorama=[False, False, True, False],
    )  # fmt: skip
    result = filter_records(frame, replace(OFF, devices_excluded=("*dashcam*", "acme [[]x]")), NOW)
    assert kept(result) == ["p2"] and reasons(result)["p1"] == "device: taken by Acme dashcam"
    assert kept(filter_records(frame, replace(OFF, cameras=("perspective", "spherical")), NOW)) == ["p1", "p2"]
    assert kept(filter_records(frame, replace(OFF, cameras=("unknown",)), NOW)) == ["p3"]


def test_small_photos_and_bad_scores_are_removed_and_unknown_ones_kept() -> None:
    frame = photos(width=[640, 300, np.nan, 4000], height=[480, 4000, 100, 479], quality_score=[0.9, 0.9, None, 0.1])
    assert kept(filter_records(frame, replace(OFF, min_side=480), NOW)) == ["p0", "p2"]
    assert kept(filter_records(frame, replace(OFF, min_quality_score=0.5), NOW)) == ["p0", "p1", "p2"]


def test_consecutive_photos_of_a_drive_are_apart() -> None:
    """1.5 m a photo: of 0, 1.5, 3, 4.5, ... the first that is 4 m from the last kept is the third after it."""
    steps = 10
    frame = photos(
        steps, latitude=[0.5 + 1.5 * n / DEGREE_M for n in range(steps)], drive="a",
        captured_at=[f"2024-01-01T00:00:{n:02}Z" for n in range(steps)],
    )  # fmt: skip
    result = filter_records(frame, replace(OFF, spacing_m=4.0), NOW)
    assert kept(result) == ["p0", "p3", "p6", "p9"]
    assert reasons(result)["p1"] == "spacing: 1.5 m from the photo before"
    twice = pd.concat([frame, frame.assign(id=frame["id"] + "b", drive="b")], ignore_index=True)
    assert len(filter_records(twice, replace(OFF, spacing_m=4.0), NOW).photos) == 8, "across drives not"
    assert len(filter_records(frame.assign(drive=""), replace(OFF, spacing_m=4.0), NOW).photos) == steps
    assert len(filter_records(photos(2, drive=["a", "b"]), replace(OFF, spacing_m=4.0), NOW).photos) == 2


def test_spacing_counts_from_photos_that_other_filters_keep() -> None:
    frame = photos(
        2, drive="a", captured_at=["2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z"], width=[100, 1000], height=1000
    )
    assert kept(filter_records(frame, replace(OFF, spacing_m=4.0, min_side=480), NOW)) == ["p1"]


def test_blocks_keep_the_best() -> None:
    frame = photos(6, quality_score=[0.1, 0.9, np.nan, 0.5, 0.9, 0.8], latitude=[0.5] * 5 + [0.6])
    result = filter_records(frame, replace(OFF, per_block=2, block_m=100.0), NOW)
    assert kept(result) == ["p1", "p4", "p5"] and count(result, "block") == 3


@st.composite
def drives(draw) -> pd.DataFrame:
    size = draw(st.integers(1, 25))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    far = rng.random(size) < 0.3
    return pd.DataFrame(
        {
            "id": [f"p{n}" for n in range(size)],
            "latitude": 0.5 + rng.integers(0, 40, size) / DEGREE_M,
            "longitude": 10.0 + rng.integers(0, 40, size) / DEGREE_M,
            "drive": rng.choice(["", "a", "b"], size),
            "captured_at": rng.choice(
                ["2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z", "2030-01-01T00:00:00Z", ""], size
            ),
            "device": rng.choice(["x", "y"], size),
            "quality_score": rng.choice([0.1, 0.5, 0.9, np.nan], size),
            "width": rng.choice([300, 500, 900], size),
            "height": 600,
            "computed_latitude": 0.5 + np.where(far, rng.integers(0, 60, size), 20) / DEGREE_M,
            "computed_longitude": 10.0,
            "sharpness": rng.integers(0, 400, size).astype(float),
            "dark_share": rng.random(size),
            "bright_share": rng.random(size),
            "sky_share": rng.random(size),
            "occlusion_share": rng.random(size),
            "veil": rng.random(size),
            "phash": [f"{value:016x}" for value in rng.integers(0, 2**6, size)],
        }
    )


ALL = FilterOptions(per_block=3, block_m=20.0, min_quality_score=0.2, devices_excluded=("y",), since=date(2024, 1, 15))


@settings(max_examples=20, deadline=None)
@given(drives(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(frame: pd.DataFrame, random) -> None:
    order = list(range(len(frame)))
    random.shuffle(order)
    shuffled = frame.iloc[order].reset_index(drop=True)
    few, spaced = replace(OFF, per_block=2, block_m=50.0), replace(OFF, spacing_m=20.0)
    runs = [partial(filter_records, options=options, now=NOW) for options in (ALL, few, spaced)]
    runs += [partial(filter_images, options=options) for options in (ALL, replace(OFF, duplicate_bits=1))]
    for run in runs:
        first, second = run(frame), run(shuffled)
        assert sorted(kept(first)) == sorted(kept(second))
        assert reasons(first) == reasons(second)
        assert first.counts == second.counts


@settings(max_examples=20, deadline=None)
@given(drives())
def test_every_photo_is_kept_or_rejected_once(frame: pd.DataFrame) -> None:
    for result in (filter_records(frame, ALL, NOW), filter_images(frame, ALL)):
        assert sorted([*kept(result), *(each.id for each in result.rejected)]) == sorted(frame["id"])
        assert sum(each.removed for each in result.counts) == len(result.rejected)
        assert result.photos.index.tolist() == list(range(len(result.photos)))


@settings(max_examples=20, deadline=None)
@given(drives(), st.data())
def test_a_looser_threshold_keeps_a_superset(frame: pd.DataFrame, data) -> None:
    """Of each filter by itself; spacing and duplicates depend on which photos are kept before."""
    name, low, high = data.draw(
        st.sampled_from([
            ("position_error_m", 1.0, 60.0), ("min_side", 300, 900), ("min_quality_score", 0.0, 1.0),
            ("per_block", 1, 5), ("sharpness", 0.0, 400.0), ("dark_share", 0.0, 1.0), ("bright_share", 0.0, 1.0),
            ("sky_share", 0.0, 1.0), ("occlusion_share", 0.0, 1.0), ("veil", 0.0, 1.0),
        ])
    )  # fmt: skip
    numbers = st.integers(low, high) if isinstance(low, int) else st.floats(low, high)
    one, other = sorted([data.draw(numbers), data.draw(numbers)])
    strict, loose = (other, one) if name in ("min_side", "min_quality_score", "sharpness") else (one, other)

    def run(threshold) -> set[str]:
        options = replace(OFF, **{name: threshold})
        return set(kept(filter_images(filter_records(frame, options, NOW).photos, options)))

    assert run(strict) <= run(loose) <= run(None)


@settings(max_examples=20, deadline=None)
@given(drives(), st.floats(1, 30))
def test_kept_neighbours_are_as_far_apart_as_asked(frame: pd.DataFrame, spacing: float) -> None:
    photos = filter_records(frame, replace(OFF, spacing_m=spacing), NOW).photos
    order = photos.assign(time=photos["captured_at"].replace("", "9")).sort_values(["drive", "time", "id"])
    for drive, rows in order.groupby("drive"):
        if drive and len(rows) > 1:
            a, b = rows.iloc[:-1], rows.iloc[1:]
            assert (
                geodesic_distance(a["latitude"], a["longitude"], b["latitude"], b["longitude"]).min() > spacing - 1e-3
            )


def test_what_was_measured_decides_and_what_was_not_passes() -> None:
    frame = measured(7)
    for row, name, value in [(0, "sharpness", 10.0), (1, "dark_share", 0.9), (2, "bright_share", 0.8),
                             (3, "sky_share", 0.95), (4, "occlusion_share", 0.6), (5, "veil", 0.5)]:  # fmt: skip
        frame.loc[row, name] = value
    frame.loc[6, ["sharpness", "veil"]] = np.nan
    result = filter_images(frame, FilterOptions())
    assert kept(result) == ["p6"]
    assert reasons(result)["p0"] == "blur: variance of the Laplacian 10"
    assert reasons(result)["p3"] == "sky: 95.0 % sky"
    assert [each.name for each in result.counts] == [
        "dark",
        "bright",
        "blur",
        "sky",
        "occlusion",
        "veil",
        "dashboard",
        "duplicate",
    ]
    assert kept(filter_images(frame, OFF)) == frame["id"].tolist() and filter_images(frame, OFF).counts == []


def test_of_duplicates_the_largest_is_kept() -> None:
    frame = measured(4, width=[100, 400, 100, 100], height=100)
    frame["phash"] = ["00000000000000ff", "00000000000000fe", "ffffffffffffffff", "00000000000000ff"]
    result = filter_images(frame, FilterOptions())
    assert kept(result) == ["p1", "p2"]
    assert reasons(result)["p0"] == "duplicate: the same picture as p1"


def test_nothing_is_filtered_without_an_error() -> None:
    assert filter_records(photos(0), ALL, NOW).photos.empty
    assert filter_images(measured(0), FilterOptions()).photos.empty


def test_options_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(DatasetError, match="after until"):
        FilterOptions(since=date(2021, 1, 1), until=date(2020, 1, 1))
    with pytest.raises(DatasetError, match="no camera 'drone'"):
        FilterOptions(cameras=("drone",))
    with pytest.raises(DatasetError, match="exchange"):
        PrepareOptions(hfov_min_deg=90, hfov_max_deg=60)
