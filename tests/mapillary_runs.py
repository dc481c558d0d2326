"""Runs of `jzi dataset mapillary` against the mock service, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jzi.curate.folder import DatasetFolder
from jzi.curate.options import FilterOptions, PrepareOptions
from jzi.mapillary.api import LIMIT, Mapillary
from jzi.mapillary.collect import Estimate, MapillaryReport, collect_mapillary
from jzi.mapillary.regions import box_region
from jzi.mapillary.request import MapillaryRequest
from jzi.tests.mock_mapillary import LATITUDE, LONGITUDE, TOKEN, MockMapillary, record
from jzi.web.client import HttpOptions

FAST = HttpOptions(timeout_s=5, total_s=10, backoff_s=0.005, retries=4)

#: Holds the drive of the mock service, in one box of the grid.
BBOX = (LONGITUDE, LATITUDE - 1e-3, LONGITUDE + 9e-3, LATITUDE + 1e-3)

#: A filter on images must not decide what these tests claim.
FILTERS = FilterOptions(
    sharpness=None, dark_share=None, bright_share=None, sky_share=None, occlusion_share=None, veil=None,
    dashboard_share=None, duplicate_bits=None,
)  # fmt: skip


def collect(
    service: MockMapillary, folder: Path, *, page: int = LIMIT, announced: list[Estimate] | None = None, **changes: Any
) -> MapillaryReport:
    values = {"region": box_region(*BBOX), "folder": folder, "filters": FILTERS, **changes}
    return collect_mapillary(
        MapillaryRequest(**{"preparation": PrepareOptions(size=96), **values}),
        [].append if announced is None else announced.append,
        lambda thumbnail: Mapillary(TOKEN, service.url, thumbnail, FAST, page),
    )


def ids(*numbers: int) -> set[str]:
    return {record(number)["id"] for number in numbers}


def kept(folder: Path) -> set[str]:
    return set(DatasetFolder.read(folder).photos["id"])


def reasons(folder: Path) -> dict[str, str]:
    return {each.id: each.reason for each in DatasetFolder.read(folder).rejected}
