"""`jzi dataset split`: groups stay together, later days are the test, and leaks are reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jzi.curate.folder import DatasetFolder, DatasetInfo
from jzi.curate.splits import SplitOptions, nearest_training, split_dataset, split_report
from jzi.errors import DatasetError
from jzi.store.photos.splits import SHARES, solar_time, split_by_hash, split_photos


def dataset(photos: int = 400, folder: Path = Path("set"), **columns: Any) -> DatasetFolder:
    """Photos ten metres apart on a road to the east, ten a drive and four drives a day."""
    number = np.arange(photos)
    start = datetime(2023, 5, 1, 8)
    frame = pd.DataFrame({"id": [f"p{index}" for index in number], "path": [f"images/{index}.jpg" for index in number]})
    frame = frame.assign(latitude=48.2, longitude=16.37 + 1.35e-4 * number, drive=[f"d{n}" for n in number // 10])
    times = [(start + timedelta(days=n // 40, minutes=n % 40)).isoformat() + "Z" for n in number.tolist()]
    return DatasetFolder(folder, frame.assign(captured_at=times).assign(**columns), DatasetInfo())


def mixed(folder: DatasetFolder, groups: pd.Series | list) -> int:
    """Number of groups with photos in more than one split."""
    return int((folder.photos["split"].groupby(np.asarray(groups)).nunique() > 1).sum())


@pytest.mark.parametrize(("by", "kind"), [("auto", "sequence"), ("sequence", "sequence"), ("date", "date")])
def test_drives_and_days_stay_together(by: Any, kind: str) -> None:
    data, report = split_dataset(dataset(), SplitOptions(by))
    assert report.text.startswith(f"by {kind}: ") and report.text == data.info.split
    assert mixed(data, data.photos["drive"]) == 0
    assert (mixed(data, data.photos["captured_at"].str[:10]) == 0) == (by == "date")
    assert sum(report.photos.values()) == 400 and min(report.photos.values()) > 0


def test_blocks_of_ground_stay_together_and_their_side_counts() -> None:
    narrow, _ = split_dataset(dataset(2000), SplitOptions("block"))
    wide, report = split_dataset(dataset(2000), SplitOptions("block", block_m=500))
    changes = [(each.photos["split"] != each.photos["split"].shift()).sum() for each in (narrow, wide)]
    assert changes[1] < changes[0] / 2 and "blocks of 500 m" in report.text


def test_the_split_is_that_of_tables_unless_a_seed_or_shares_are_given() -> None:
    data = dataset()
    assert split_dataset(data, SplitOptions())[0].photos["split"].equals(split_photos(data.photos, "auto")[0])
    other = split_dataset(data, SplitOptions(seed=1))[0].photos["split"]
    assert not other.equals(split_photos(data.photos, "auto")[0])
    assert other.equals(split_dataset(data, SplitOptions(seed=1))[0].photos["split"])


def test_a_new_split_replaces_the_old_one() -> None:
    once, _ = split_dataset(dataset(), SplitOptions())
    again, report = split_dataset(split_dataset(once, SplitOptions("date", seed=3))[0], SplitOptions())
    assert again.photos.equals(once.photos) and again.info.split == report.text


def test_shares_are_those_of_the_groups_and_a_split_without_a_share_is_empty() -> None:
    data, report = split_dataset(dataset(20_000), SplitOptions(shares=(50, 0, 50)))
    assert report.photos["val"] == 0 and report.photos["train"] == pytest.approx(10_000, rel=0.1)
    assert "no photo is in val" in report.warnings
    assert set(data.photos["split"]) == {"train", "test"}


@settings(deadline=None)
@given(st.integers(3, 30), st.tuples(*[st.integers(0, 100)] * 3), st.integers(0, 2**31 - 1))
def test_no_split_with_a_share_is_empty(keys: int, shares: tuple[int, int, int], seed: int) -> None:
    if sum(shares):
        parts = tuple(share / sum(shares) for share in shares)
        split = split_by_hash(pd.Series([f"k{key}" for key in range(keys)]), parts, seed)
        wanted = {name for name, share in zip(("train", "val", "test"), shares, strict=True) if share}
        assert set(split) == wanted or len(wanted) > keys


def test_later_photos_are_the_test_by_local_solar_days() -> None:
    options = SplitOptions("date", val_from=date(2023, 5, 7), test_from=date(2023, 5, 9))
    data, report = split_dataset(dataset(), options)
    day = data.photos["captured_at"].str[8:10].astype(int)
    assert day[data.photos["split"] == "train"].max() == 6 and day[data.photos["split"] == "test"].min() == 9
    assert report.photos == {"train": 240, "val": 80, "test": 80}
    assert "val from 2023-05-07, test from 2023-05-09" in report.text
    # by the sun, midnight in Vienna is at 22:54 UTC
    late = dataset(2, captured_at=["2023-05-08T22:50Z", "2023-05-08T22:58Z"], longitude=[16.4, 16.4])
    assert split_dataset(late, options)[1].photos == {"train": 0, "val": 1, "test": 1}


def test_photos_without_a_time_are_of_train_and_counted() -> None:
    times = dataset().photos["captured_at"].where(np.arange(400) % 4 > 0, "")
    _, report = split_dataset(dataset(captured_at=times), SplitOptions("date", test_from=date(2023, 5, 2)))
    assert "100 photos have no capture time: they are in train" in report.warnings
    assert report.photos == {"train": 130, "val": 0, "test": 270}
    by_day, _ = split_dataset(dataset(captured_at=times), SplitOptions("date"))  # by the block of ground
    assert len(by_day.photos) == 400


def test_solar_time_is_four_minutes_a_degree() -> None:
    seconds = pd.Series([0.0, 0.0, np.nan, 1e300])
    times = solar_time(seconds, pd.Series([15.0, -90.0, 0.0, 0.0]))
    assert times[0] == pd.Timestamp("1970-01-01 01:00") and times[1] == pd.Timestamp("1969-12-31 18:00")
    assert times.isna().tolist() == [False, False, True, True]


# Distances


def test_distances_to_the_nearest_training_photo_are_those_on_the_ground() -> None:
    frame = pd.DataFrame({"latitude": 0.0, "longitude": np.array([0, 1, 20, 60, 0.5]) / 111_319.5})
    found = nearest_training(frame.assign(split=["train", "val", "test", "test", "train"]))
    assert [each.split for each in found] == ["val", "test"]
    assert found[0].median_m == pytest.approx(0.5, abs=0.01)
    assert found[1].median_m == pytest.approx((19.5 + 59.5) / 2, abs=0.1)
    assert found[1].within == {10.0: 0.0, 25.0: 0.5, 50.0: 0.5, 100.0: 1.0}


def test_a_split_photo_by_photo_leaks_and_one_by_large_blocks_does_not() -> None:
    rng = np.random.default_rng(0)
    everywhere = dataset(300, drive="", captured_at="", longitude=16.37 + rng.uniform(0, 0.02, 300))
    one_drive = split_dataset(dataset(300, drive="same", longitude=16.37 + 1e-6 * np.arange(300)), SplitOptions())[1]
    assert any("the split leaks: half of the photos of val" in sentence for sentence in one_drive.warnings)
    assert any("there is only 1 drive" in sentence for sentence in one_drive.warnings)
    blocks = split_dataset(everywhere, SplitOptions("block", block_m=500))[1]
    assert not blocks.warnings and min(each.median_m for each in blocks.nearest) > 20


# Bad input, and the command


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shares": (0, 1, 1)}, "train is not 0"),
        ({"shares": (1, -1, 1)}, "none is negative"),
        ({"shares": (1, float("nan"), 1)}, "none is negative"),
        ({"by": "block", "test_from": date(2023, 1, 1)}, 'they go with "date"'),
        ({"by": "date", "val_from": date(2023, 1, 2), "test_from": date(2023, 1, 1)}, "not before test"),
    ],
)
def test_options_that_contradict_one_another_are_refused(options: dict, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        SplitOptions(**options)


def test_photos_without_drives_times_or_any_photo_are_refused() -> None:
    bare = dataset(drive="", captured_at="")
    for options, says in (
        (SplitOptions("sequence"), "have a drive or captured_at: split by block"),
        (SplitOptions("date"), "have a captured_at: split by block"),
        (SplitOptions("date", test_from=date(2023, 1, 1)), "have a captured_at: split by block"),
    ):
        with pytest.raises(DatasetError, match=says):
            split_dataset(bare, options)
    with pytest.raises(DatasetError, match="has no photos"):
        split_dataset(DatasetFolder(Path("x"), bare.photos[:0], DatasetInfo()), SplitOptions())
    with pytest.raises(DatasetError, match="are not split: run `jzi dataset split set` first"):
        split_report(bare)
    with pytest.raises(DatasetError, match="1 photos of set are in no split"):
        split_report(dataset(3, split=["train", "", "val"]))


def test_the_command_writes_the_split_and_says_what_it_did(jzi: Callable[..., Any], tmp_path: Path) -> None:
    dataset(folder=tmp_path / "set").write()
    output = jzi("dataset split set --by drive --share 70 15 15").stdout
    assert "400 photos split by sequence: 40 drives of the column drive, shared 70 : 15 : 15" in output
    assert "distance from test to the nearest training photo: 5 %:" in output and "within 100 m" in output
    read = DatasetFolder.read(tmp_path / "set")
    assert set(read.photos["split"]) == {"train", "val", "test"} and read.info.split.startswith("by sequence")
    result = json.loads(jzi("dataset split set --by date --test-from 2023-05-09 --json").stdout)
    assert result["photos"] == {"train": 320, "val": 0, "test": 80} and result["nearest"][0]["split"] == "test"
    before = (tmp_path / "set" / "photos.csv").read_bytes()
    assert 'they go with "date"' in jzi("dataset split set --test-from 2023-05-09", code=2).stderr
    assert "is not the folder of a data set" in jzi("dataset split other", code=2).stderr
    assert (tmp_path / "set" / "photos.csv").read_bytes() == before


def test_shares_of_the_project_are_the_defaults() -> None:
    assert SplitOptions(shares=(80, 10, 10)).shares == SHARES
