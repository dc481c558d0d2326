"""Claims about folders of Mapillary's photos: runs that are interrupted, and other requests to the same folder."""

from __future__ import annotations

import errno
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jzi.curate.folder import DatasetFolder
from jzi.curate.options import PrepareOptions
from jzi.errors import DatasetError
from jzi.mapillary import download as mapillary_download
from jzi.mapillary.journal import FILE, Journal
from jzi.mapillary.regions import box_region
from jzi.tests.children import Child
from jzi.tests.mapillary_runs import BBOX, collect
from jzi.tests.mock_mapillary import LATITUDE, LONGITUDE, TOKEN, Answer, MockMapillary, record


@pytest.fixture
def service() -> Iterator[MockMapillary]:
    with MockMapillary() as service:
        yield service


# Interruptions

_RUN = """
import sys
from pathlib import Path
from jzi.mapillary.collect import collect_mapillary
from jzi.mapillary.api import OPTIONS, Mapillary
from jzi.mapillary.request import MapillaryRequest
from jzi.mapillary.regions import box_region
from jzi.curate.options import PrepareOptions

token, url, folder, *box = sys.argv[1:]
request = MapillaryRequest(box_region(*map(float, box)), Path(folder), preparation=PrepareOptions(size=96))
collect_mapillary(request, connect=lambda thumbnail: Mapillary(token, url, thumbnail, OPTIONS, 20))
"""


def test_a_killed_run_asks_again_only_what_was_under_way(tmp_path: Path) -> None:
    with MockMapillary([record(number) for number in range(60)], page=20) as service:
        service.delay_s = 0.02
        with Child([sys.executable, "-c", _RUN, TOKEN, service.url, tmp_path, *BBOX]) as child:
            child.wait_until(lambda: len(service.asked) >= 30)
        assert not (tmp_path / "photos.csv").exists()
        assert collect(service, tmp_path, page=20).kept == 60
        searches = Counter(params["bbox"] for path, params in service.asked if path == "/images")
        assert len(searches) > 3 and sum(searches.values()) - len(searches) <= 4
        assert sum(service.image_counts.values()) - 60 <= 2 * mapillary_download.THREADS
        assert service.counts["link"] == 0


def test_a_full_disk_is_one_sentence_and_what_was_written_is_kept(
    service: MockMapillary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, write = [], mapillary_download.write_prepared

    def fails(folder: Path, prepared: Any) -> dict[str, Any]:
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(prepared.row["id"])
        return write(folder, prepared)

    monkeypatch.setattr(mapillary_download, "write_prepared", fails)
    with pytest.raises(DatasetError, match=r"No space left on device.*free some space and run the command again"):
        collect(service, tmp_path)
    assert not (tmp_path / "photos.csv").exists()
    monkeypatch.undo()
    assert collect(service, tmp_path).downloaded == 7
    assert sum(service.image_counts.values()) <= 12 + 2 * mapillary_download.THREADS


def test_a_full_disk_under_the_journal_is_one_sentence(service: MockMapillary, tmp_path: Path) -> None:
    collect(service, tmp_path, limit=1)
    with Journal.open(tmp_path) as journal:
        pages = journal._file._connection.execute("PRAGMA page_count").fetchone()[0]
        journal._file._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(DatasetError, match=r"full.*make room"):
            journal.set_meta("large", "x" * 100_000)
        assert journal.meta("large") is None


def test_a_service_that_dies_ends_the_run_and_keeps_the_work(service: MockMapillary, tmp_path: Path) -> None:
    service.records = [record(number) for number in range(40)]
    service.script = lambda path, _: Answer(503) if len(service.image_counts) > 15 else None
    with pytest.raises(DatasetError, match=r"could not be had \(status 503\).*run the command again later"):
        collect(service, tmp_path)
    with Journal.open(tmp_path) as journal:
        done = len(journal.states())
    assert 5 <= done <= 16
    service.script = lambda path, _: None
    service.asked.clear()
    assert collect(service, tmp_path).downloaded == 40 - done
    assert service.counts["image"] == 40 - done and service.counts["search"] == 0


def test_pages_that_fail_for_good_end_the_listing_and_keep_the_others(tmp_path: Path) -> None:
    with MockMapillary([record(number) for number in range(100)], page=40) as service:
        service.script = lambda path, _: Answer(500) if len(service.asked) > 3 else None
        with pytest.raises(DatasetError, match=r"does not answer \(status 500\)"):
            collect(service, tmp_path, page=40)
        with Journal.open(tmp_path) as journal:
            assert len(journal.box_states()) >= 1
        service.script = lambda path, _: None
        assert collect(service, tmp_path, page=40, dry_run=True).found == 100


# Other requests to the same folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region": box_region(LONGITUDE, LATITUDE, LONGITUDE + 0.001, LATITUDE + 0.001)}, "photos of another region"),
        ({"thumbnail": "1024"}, "photos of the size 2048, not 1024"),
        ({"preparation": PrepareOptions(size=64)}, "prepared with other options"),
    ],
)
def test_another_request_is_refused(
    service: MockMapillary, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    collect(service, tmp_path)
    before = len(service.asked)
    with pytest.raises(DatasetError, match=message):
        collect(service, tmp_path, **changes)
    assert len(service.asked) == before


def test_a_folder_in_which_nothing_was_listed_takes_another_request(service: MockMapillary, tmp_path: Path) -> None:
    service.script = lambda path, _: Answer(401)
    with pytest.raises(DatasetError, match="does not accept the token"):
        collect(service, tmp_path, region=box_region(1, 2, 1.001, 2.001))
    service.script = lambda path, _: None
    assert collect(service, tmp_path).kept == 12


def test_originals_are_prepared_anew_without_asking(service: MockMapillary, tmp_path: Path) -> None:
    collect(service, tmp_path, keep_originals=True)
    before = len(service.asked)
    assert collect(service, tmp_path, preparation=PrepareOptions(size=64)).kept == 12
    assert set(DatasetFolder.read(tmp_path).photos["width"]) == {64}
    assert len(service.asked) == before


def test_a_journal_that_is_none_is_refused(service: MockMapillary, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(DatasetError, match="cannot be used"):
        collect(service, tmp_path)
    (tmp_path / FILE).unlink()
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("CREATE TABLE mine (x)")
    with pytest.raises(DatasetError, match="another SQLite file"):
        collect(service, tmp_path)
    assert not service.asked


@pytest.mark.parametrize(
    "statement",
    [
        """UPDATE photos SET rows = '[{"path": "images/../../../etc/passwd"}]'""",
        "UPDATE photos SET rows = '{'",
        "UPDATE photos SET state = 'unknown'",
        "UPDATE records SET latitude = 'north'",
        "UPDATE boxes SET state = 7",
        "UPDATE records SET id = '../../x' WHERE id LIKE '%01'",
        "UPDATE meta SET value = '[]' WHERE name = 'request'",
        "PRAGMA user_version = 9",
    ],
)
def test_a_damaged_journal_is_one_sentence(service: MockMapillary, tmp_path: Path, statement: str) -> None:
    collect(service, tmp_path)
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(DatasetError, match=r"damaged|version"):
        collect(service, tmp_path)
