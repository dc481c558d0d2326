"""Claims about photos of an area from Mapillary: data sets of them, and what the service may answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jzi.curate.folder import DatasetFolder
from jzi.curate.options import PrepareOptions
from jzi.errors import DatasetError
from jzi.mapillary.boxes import MAX_DEPTH, SIDE_DEG
from jzi.mapillary.collect import Estimate
from jzi.mapillary.records import FIELDS, parse_page
from jzi.tests.mapillary_runs import FILTERS, collect, ids, kept, reasons
from jzi.tests.mock_mapillary import LATITUDE, LONGITUDE, Answer, MockMapillary, graph_error, record


@pytest.fixture
def service() -> Iterator[MockMapillary]:
    with MockMapillary() as service:
        yield service


# The whole way


def test_photos_become_a_data_set(service: MockMapillary, tmp_path: Path) -> None:
    report = collect(service, tmp_path)
    dataset = DatasetFolder.read(tmp_path)
    assert (report.found, report.kept, report.downloaded) == (12, 12, 12)
    assert set(dataset.photos["id"]) == ids(*range(12))
    first = dataset.photos.iloc[0]
    assert (first["latitude"], first["longitude"], first["gps_longitude"]) == (LATITUDE, LONGITUDE, LONGITUDE + 1e-5)
    assert (first["heading"], first["drive"], first["device"]) == (90.25, "AbCdEfGh", "Acme Cam 1")
    assert (first["creator"], first["captured_at"][:19]) == ("anna", "2020-06-01T10:00:00")
    assert (first["source"], first["licence"], first["camera"]) == ("Mapillary", "CC BY-SA 4.0", "perspective")
    assert all((tmp_path / path).is_file() for path in dataset.photos["path"])
    assert not {"camera_parameters", "computed_latitude", "make"} & set(dataset.photos)
    (source,) = dataset.info.sources
    assert (source.licence, source.attribution) == ("CC BY-SA 4.0", "© Mapillary contributors")
    assert dataset.info.found == 12


def test_the_token_goes_to_the_api_alone_and_into_no_file(service: MockMapillary, tmp_path: Path) -> None:
    service.cursors = True
    collect(service, tmp_path, keep_originals=True)
    for (path, params), headers in zip(service.asked, service.headers, strict=True):
        assert ("Authorization" in headers) == (service.kind(path) != "image")
        assert "secret" not in json.dumps(params)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 12 * 2 + 4
    assert not any(b"secret" in path.read_bytes() for path in files)


def test_a_second_run_asks_nothing(service: MockMapillary, tmp_path: Path) -> None:
    collect(service, tmp_path)
    before, photos = len(service.asked), DatasetFolder.read(tmp_path).photos
    announced: list[Estimate] = []
    report = collect(service, tmp_path, announced=announced)
    assert len(service.asked) == before
    assert (report.requests, report.downloaded, report.kept, announced[0].photos) == (0, 0, 12, 0)
    pd.testing.assert_frame_equal(DatasetFolder.read(tmp_path).photos, photos)


def test_other_filters_are_applied_without_asking(service: MockMapillary, tmp_path: Path) -> None:
    service.records[5]["captured_at"] += 400 * 86_400_000
    collect(service, tmp_path)
    before = len(service.asked)
    assert collect(service, tmp_path, filters=replace(FILTERS, since=date(2021, 1, 1))).kept == 1
    assert kept(tmp_path) == ids(5)
    with pytest.raises(DatasetError, match=r"the filters leave none of 12 photos \(blur 12\)"):
        collect(service, tmp_path, filters=replace(FILTERS, sharpness=1e6))
    assert collect(service, tmp_path).kept == 12
    assert len(service.asked) == before


def test_a_limit_is_a_part_of_a_larger_one(service: MockMapillary, tmp_path: Path) -> None:
    assert collect(service, tmp_path, limit=4).kept == 4
    few = kept(tmp_path)
    assert sum("beyond the limit" in reason for reason in reasons(tmp_path).values()) == 8
    assert collect(service, tmp_path, limit=7).downloaded == 3
    assert few < kept(tmp_path)
    assert max(service.image_counts.values()) == 1


def test_a_dry_run_ends_with_the_estimate(service: MockMapillary, tmp_path: Path) -> None:
    service.records = [record(number) for number in range(30)]
    announced: list[Estimate] = []
    report = collect(service, tmp_path, announced=announced, dry_run=True)
    (estimate,) = announced
    assert report.dry_run and report.found == 30 and estimate.photos == 27
    mean = np.mean([len(content) for content in service.images.values()])
    assert estimate.bytes == pytest.approx(27 * mean) and estimate.seconds is not None and estimate.seconds > 0
    assert not (tmp_path / "photos.csv").exists()
    assert collect(service, tmp_path).kept == 30
    assert service.counts["search"] == 1 and max(service.image_counts.values()) == 1


def test_panoramas_that_are_skipped_are_not_downloaded(service: MockMapillary, tmp_path: Path) -> None:
    service.records[3] |= {"camera_type": "spherical", "is_pano": True}
    report = collect(service, tmp_path, preparation=PrepareOptions(size=96, panoramas="skip"))
    assert report.kept == 11 and not ids(3) & set(service.image_counts)
    assert reasons(tmp_path)[next(iter(ids(3)))] == "it is a panorama"


# What the service does


def test_pages_that_fail_now_and_then_are_asked_again(service: MockMapillary, tmp_path: Path) -> None:
    failures = iter([Answer(500), Answer(429, headers={"Retry-After": "0"}), Answer(200, b"<html>busy"),
                     graph_error(400, "Application request limit reached", 4)])  # fmt: skip
    service.script = lambda path, _: next(failures, None) if path == "/images" else None
    assert collect(service, tmp_path).kept == 12


def test_full_pages_are_split_until_nothing_is_missing(tmp_path: Path) -> None:
    with MockMapillary([record(number) for number in range(100)], page=7) as service:
        report = collect(service, tmp_path, page=7, dry_run=True)
        assert report.found == 100 and not report.notes
        depths = {round(np.log2(SIDE_DEG / (float(w[2]) - float(w[0])))) for w in
                  (params["bbox"].split(",") for path, params in service.asked if path == "/images")}  # fmt: skip
        assert max(depths) >= 3


def test_searches_that_are_too_much_for_the_service_are_split(service: MockMapillary, tmp_path: Path) -> None:
    service.too_wide = 0.003
    assert collect(service, tmp_path).kept == 12
    assert service.counts["search"] > 5


def test_photos_of_one_spot_end_the_splitting_and_are_reported(tmp_path: Path) -> None:
    spot = {name: record(3)[name] for name in ("geometry", "computed_geometry")}
    with MockMapillary([record(number, **spot) for number in range(20)], page=7) as service:
        report = collect(service, tmp_path, page=7, filters=replace(FILTERS, spacing_m=None), dry_run=True)
        assert "boxes of 4 m hold more photos than Mapillary lists" in " ".join(report.notes)
        assert 7 <= report.found < 20 and service.counts["search"] <= 4 * (MAX_DEPTH + 1) + 1


def test_cursors_are_followed(tmp_path: Path) -> None:
    with MockMapillary([record(number) for number in range(100)], page=30) as service:
        service.cursors = True
        assert collect(service, tmp_path, page=30, dry_run=True).found == 100
        searches = [params for path, params in service.asked if path == "/images"]
        assert [params.get("after") for params in searches] == [None, "30", "60", "90"]


def test_cursors_that_lead_in_a_circle_are_given_up(tmp_path: Path) -> None:
    with MockMapillary([record(number) for number in range(100)], page=30) as service:
        service.cursors = True

        def same(path: str, params: dict[str, str]) -> None:
            params.pop("after", None)

        service.script = same
        assert collect(service, tmp_path, page=30, dry_run=True).found == 100


def test_links_that_have_expired_are_asked_for_anew(service: MockMapillary, tmp_path: Path) -> None:
    service.expired = True
    assert collect(service, tmp_path).kept == 12
    assert service.counts == {"search": 1, "image": 24, "link": 12}


def test_photos_that_cannot_be_used_are_rejected_with_a_reason(service: MockMapillary, tmp_path: Path) -> None:
    photo = [record(number)["id"] for number in range(12)]
    whole = Answer(body=b"\xff\xd8\xff\xe0" + b"x" * 300)
    service.deleted = {photo[0]}
    service.broken = {
        photo[1]: Answer(body=b"<!DOCTYPE html><html>Sorry"),
        photo[2]: Answer(body=b""),
        photo[3]: whole,
        photo[4]: Answer(body=b"", headers={"Content-Length": str(10**10)}),
        photo[5]: Answer(404, b""),
    }
    report = collect(service, tmp_path)
    assert report.kept == 6 and report.failed == 0
    found = reasons(tmp_path)
    assert found[photo[0]] == "the photo was deleted"
    assert found[photo[1]] == "the service gave a web page, not an image"
    assert found[photo[2]] == "the service gave 0 bytes"
    assert "not a photo" in found[photo[3]] or "cannot be read" in found[photo[3]]
    assert "more than 64 MiB" in found[photo[4]]
    assert "its image is gone (status 404)" in found[photo[5]]
    before = len(service.asked)
    assert collect(service, tmp_path).kept == 6 and len(service.asked) == before


def test_truncated_images_are_rejected(service: MockMapillary, tmp_path: Path) -> None:
    from jzi.tests.mock_mapillary import picture

    photo = record(0)["id"]
    service.images[photo] = picture(1)[:-3000]
    assert collect(service, tmp_path).kept == 11
    assert "truncated" in reasons(tmp_path)[photo]


def test_photos_that_may_be_had_later_are_asked_for_by_the_next_run(service: MockMapillary, tmp_path: Path) -> None:
    photo = record(0)["id"]
    service.broken[photo] = Answer(500)
    report = collect(service, tmp_path)
    assert (report.kept, report.failed) == (11, 1) and "status 500" in reasons(tmp_path)[photo]
    service.broken.clear()
    report = collect(service, tmp_path)
    assert (report.kept, report.failed, report.downloaded) == (12, 0, 1)


def test_a_service_that_gives_web_pages_only_is_not_believed(service: MockMapillary, tmp_path: Path) -> None:
    service.records = [record(number) for number in range(40)]
    service.script = lambda path, _: Answer(body=b"<html>Log in") if service.kind(path) == "image" else None
    with pytest.raises(DatasetError, match="a web page"):
        collect(service, tmp_path)
    service.script = lambda path, _: None
    assert collect(service, tmp_path).kept == 40


@pytest.mark.parametrize("field", ["captured_at", "quality_score", "creator", "camera_parameters", "compass_angle"])
@pytest.mark.parametrize("value", ["soon", {"new": [1]}, -5e9, None])
def test_optional_fields_that_change_are_unknown(field: str, value: Any) -> None:
    page = parse_page({"data": [record(1, **{field: value})]}, "thumb_2048_url")
    assert len(page.records) == 1
    assert set(page.odd) <= {field}


def test_camera_parameters_that_are_zero_are_unknown() -> None:
    page = parse_page({"data": [record(1, camera_parameters=[0.0, 0.0, 0.0]), record(2)]}, "thumb_2048_url")
    assert [each.camera_parameters for each in page.records.values()] == ["", "[0.85, 0.0, 0.0]"]


def test_optional_fields_that_are_gone_are_left_out(service: MockMapillary, tmp_path: Path) -> None:
    def script(path: str, params: dict[str, str]) -> Answer | None:
        if "quality_score" in params.get("fields", ""):
            return graph_error(400, "(#100) Tried accessing nonexisting field (quality_score)", 100)
        return None

    service.script = script
    report = collect(service, tmp_path)
    assert report.kept == 12 and "does not know the field quality_score" in " ".join(report.notes)


def test_a_service_that_always_complains_of_a_field_ends_the_run(service: MockMapillary, tmp_path: Path) -> None:
    service.script = lambda path, _: graph_error(400, "Tried accessing nonexisting field (make)", 100)
    with pytest.raises(DatasetError, match="the service changed the field make"):
        collect(service, tmp_path)
    assert service.counts["search"] == 2


@pytest.mark.parametrize("field", ["id", "geometry", "data"])
def test_essential_fields_that_change_are_one_sentence(service: MockMapillary, tmp_path: Path, field: str) -> None:
    if field == "data":
        service.script = lambda path, _: Answer(body={"images": []})
    else:
        service.change = lambda each: {**{k: v for k, v in each.items() if k != field}, f"{field}_v5": each[field]}
    with pytest.raises(DatasetError, match=f"the service changed the field {field}"):
        collect(service, tmp_path)


def test_photos_without_a_position_are_rejected(service: MockMapillary, tmp_path: Path) -> None:
    service.records[2]["geometry"] = None
    service.records[3]["geometry"] = {"type": "Point", "coordinates": [None, 3]}
    assert collect(service, tmp_path).kept == 10
    found = reasons(tmp_path)
    assert {found[photo] for photo in ids(2, 3)} == {"it has no geometry", "its geometry is not a position"}


def test_clocks_in_the_future_and_positions_at_0_0_are_rejected(service: MockMapillary, tmp_path: Path) -> None:
    service.records[1]["captured_at"] = 4_102_444_800_000
    service.change = lambda each: each if each["id"] not in ids(2) else {
        **each, "geometry": {"type": "Point", "coordinates": [0, 0]}, "computed_geometry": None}  # fmt: skip
    report = collect(service, tmp_path)
    assert report.kept == 10 and set(reasons(tmp_path)) == ids(1, 2)
    assert not ids(1, 2) & set(service.image_counts)


def test_duplicates_across_boxes_count_once(service: MockMapillary, tmp_path: Path) -> None:
    service.records.append(dict(service.records[0]))
    assert collect(service, tmp_path).found == 12


def test_days_are_asked_for_and_limit_what_a_folder_can_give(service: MockMapillary, tmp_path: Path) -> None:
    service.records[5]["captured_at"] += 400 * 86_400_000
    since = replace(FILTERS, since=date(2021, 1, 1))
    assert collect(service, tmp_path, filters=since).found == 1
    assert service.asked[0][1]["start_captured_at"] == "2021-01-01T00:00:00Z"
    before = len(service.asked)
    assert collect(service, tmp_path, filters=replace(since, since=date(2021, 2, 1))).found == 1
    with pytest.raises(DatasetError, match="lists the photos of --since 2021-01-01 only"):
        collect(service, tmp_path)
    assert len(service.asked) == before


# Pages of strangers

_VALUES = st.sampled_from([None, True, {}, [], {"type": "Point", "coordinates": [1.5, 2]}, {"coordinates": ["1", 2]},
                           {"coordinates": 3}, {"username": 5}, {"id": None}, [0.8, 0, "x"], [0.8, 0.1, 0.0]]) | (
    st.integers() | st.floats() | st.text(max_size=8)
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS[1:]), _VALUES, max_size=6), max_size=4))
def test_every_page_gives_plain_records_or_an_error(data: list[dict[str, Any]]) -> None:
    for number, each in enumerate(data):
        each["id"] = str(number)
    page = parse_page({"data": data, "paging": {"next": 3}}, "thumb_2048_url")
    assert len(page.records) + len(page.refused) == len(data)
    for each in page.records.values():
        assert all(isinstance(value, str | float | int | None) for value in each)
        json.dumps(each, allow_nan=False)


@pytest.mark.parametrize("identifier", ["../../x", "", "a" * 65, None, 3.5, "a b", "a/b", "ä"])
def test_ids_that_are_no_file_names_are_refused(identifier: Any) -> None:
    with pytest.raises(DatasetError, match="the field id"):
        parse_page({"data": [record(1, id=identifier)]}, "thumb_2048_url")
