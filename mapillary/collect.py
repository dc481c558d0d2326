"""Build a data set from the photos of Mapillary in a region: list, filter, estimate, download, prepare, filter, write.

Everything that the service answers is kept in a journal in the folder (`jzi.mapillary.journal`): a run that
was interrupted goes on where it was, and one with other filters asks for nothing that is there.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jzi.curate.filters import filter_images, filter_records
from jzi.curate.folder import DatasetFolder, DatasetInfo, FilterCount, Source
from jzi.errors import DatasetError
from jzi.mapillary.api import Mapillary, Thumbnail
from jzi.mapillary.boxes import BoxGrid
from jzi.mapillary.download import THREADS, Downloader, DownloadReport, preparation
from jzi.mapillary.journal import Journal
from jzi.mapillary.listing import ListingReport, list_photos
from jzi.mapillary.request import MapillaryRequest
from jzi.mapillary.table import INTERNAL, Selection, record_table
from jzi.store.disk.lock import WriterLock

LICENCE, ATTRIBUTION, HOME = "CC BY-SA 4.0", "© Mapillary contributors", "https://www.mapillary.com"

#: Most photos that are downloaded before the others, to estimate their size and the time that they take.
SAMPLE = THREADS


@dataclass(frozen=True)
class Estimate:
    """What is to be downloaded.

    Attributes:
        photos: number.
        bytes: of all of them, about; None if there is nothing to measure.
        seconds: that it takes, about; None likewise.
        free: bytes that are free on the disk.
    """

    photos: int
    bytes: float | None
    seconds: float | None
    free: int


@dataclass(frozen=True)
class MapillaryReport:
    """What was done.

    Attributes:
        folder: of the data set.
        found: number of photos in the region.
        kept: number of photos in the data set; with `dry_run`, of those that are to be in it before the filters on
            images.
        counts: of the filters, in their order.
        estimate: before the download.
        downloaded: number of photos that this run downloaded.
        bytes: of them.
        failed: number of photos that could not be had, and may be later.
        requests: number of requests that this run sent.
        notes: sentences about what was met.
        dry_run: whether that was all.
    """

    folder: Path
    found: int
    kept: int
    counts: tuple[FilterCount, ...]
    estimate: Estimate
    downloaded: int = 0
    bytes: int = 0
    failed: int = 0
    requests: int = 0
    notes: tuple[str, ...] = ()
    dry_run: bool = False


def collect_mapillary(
    request: MapillaryRequest,
    announce: Callable[[Estimate], None] = lambda _: None,
    connect: Callable[[Thumbnail], Mapillary] = Mapillary.from_environment,
) -> MapillaryReport:
    """Build a data set, or go on with one.

    Args:
        request: what is wanted.
        announce: called with the estimate before the download begins.
        connect: opens the service.

    Raises:
        DatasetError: the folder was made by another request, there are no photos, the service cannot be used, or the
            disk is full. What was collected is kept.
        ConfigError: there is no token.
    """
    request.folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(WriterLock(request.folder, "refuse", DatasetError))
        journal = stack.enter_context(Journal.open(request.folder))
        opened: list[Mapillary] = []

        def service() -> Mapillary:
            if not opened:
                opened.append(stack.enter_context(connect(request.thumbnail)))
            return opened[0]

        return _Run(request, journal, service, opened, announce).run()


class _Run:
    def __init__(
        self,
        request: MapillaryRequest,
        journal: Journal,
        service: Callable[[], Mapillary],
        opened: list[Mapillary],
        announce: Callable[[Estimate], None],
    ) -> None:
        self.request, self.journal, self.announce = request, journal, announce
        self._opened = opened
        self.downloader = Downloader(service, journal, request.folder, request.preparation, request.keep_originals)
        self._service = service
        self.notes: list[str] = []

    def run(self) -> MapillaryReport:
        grid = BoxGrid(self.request.region)
        since, until, accessed = self.request.listed_days(self.journal)
        listing = list_photos(self._service, self.journal, grid, since, until)
        self._note_listing(listing)
        selection = self._select(grid)
        found = len(selection.photos) + len(selection.rejected)
        estimate, downloads = self._download(selection)
        if self.request.dry_run:
            return self._report(found, len(selection.photos), selection, estimate, downloads)
        self._assemble(selection, downloads)
        if selection.photos.empty and downloads.failed:
            raise DatasetError(
                f"{len(downloads.failed):,} photos could not be had ({next(iter(downloads.failed.values()))}): run the "
                "command again later, which resumes"
            )
        if selection.photos.empty:
            raise DatasetError(f"the filters leave none of {found:,} photos ({_most(selection.counts)}): relax them")
        info = DatasetInfo(
            sources=(
                Source(kind="photos", name="Mapillary", licence=LICENCE, attribution=ATTRIBUTION, url=HOME,
                       accessed=accessed, count=found, details=self._details()),
            ),
            found=found, filters=tuple(selection.counts), notes=tuple(self.notes),
        )  # fmt: skip
        DatasetFolder(self.request.folder, selection.photos, info, selection.rejected).write()
        return self._report(found, len(selection.photos), selection, estimate, downloads)

    def _details(self) -> dict[str, str | float]:
        return {"region": self.request.region.name, "size of the downloads": self.request.thumbnail}

    def _report(
        self, found: int, kept: int, selection: Selection, estimate: Estimate, downloads: DownloadReport
    ) -> MapillaryReport:
        return MapillaryReport(
            self.request.folder, found, kept, tuple(selection.counts), estimate, downloads.photos, downloads.bytes,
            len(downloads.failed), sum(each.requests for each in self._opened), tuple(self.notes), self.request.dry_run,
        )  # fmt: skip

    def _note_listing(self, listing: ListingReport) -> None:
        if listing.full:
            self.notes.append(f"{listing.full} boxes of 4 m hold more photos than Mapillary lists: some are missing")
        for name, count in sorted(listing.odd.items()):
            self.notes.append(f"{count} values of the service's field {name} are of another type: taken as unknown")
        for name in sorted({name for each in self._opened for name in each.unknown_fields}):
            self.notes.append(f"the service does not know the field {name} any more: taken as unknown")

    def _select(self, grid: BoxGrid) -> Selection:
        """The photos of the region that metadata keep."""
        request = self.request
        frames = [record_table(records, grid) for records in self.journal.records()]
        frames = [frame for frame in frames if len(frame)]
        refused = dict(self.journal.refused())
        if not frames and not refused:
            raise DatasetError(
                f"Mapillary has no photos in {request.region.name}: look at the coverage on {HOME}/app, and give "
                "another region or other days"
            )
        selection = Selection(pd.concat(frames, ignore_index=True) if frames else record_table(None, grid))
        if refused:
            selection.remove("record", "has a position", refused)
        selection.apply(filter_records(selection.photos, request.filters))
        if request.preparation.panoramas == "skip":
            ids = selection.photos.loc[selection.photos["panorama"].astype(bool), "id"]
            selection.remove("panoramas", "skipped", dict.fromkeys(ids, "it is a panorama"))
        limit = request.limit
        if limit is not None and len(selection.photos) > limit:
            order = sorted(selection.photos["id"], key=lambda photo: hashlib.sha256(photo.encode()).digest())
            reasons = dict.fromkeys(order[limit:], f"beyond the limit of {limit:,}")
            selection.remove("limit", f"{limit:,} photos at random", reasons)
        return selection

    def _download(self, selection: Selection) -> tuple[Estimate, DownloadReport]:
        """Download what the journal lacks; some photos first, to estimate what the others take."""
        pending = self._pending(selection.photos)
        total, journal = DownloadReport(), self.journal
        if len(pending) and journal.mean_bytes() is None:
            sample = np.linspace(0, len(pending) - 1, max(1, min(SAMPLE, len(pending) // 10))).astype(int)
            self._run_download(pending.iloc[sample], "measuring", total)
            pending = pending.drop(pending.index[sample])
        size, seconds = journal.mean_bytes(), journal.meta("seconds_per_photo")
        estimate = Estimate(
            len(pending),
            None if size is None else size * len(pending),
            seconds * len(pending) if isinstance(seconds, float) else None,
            shutil.disk_usage(self.request.folder).free,
        )
        self.announce(estimate)
        if len(pending) and not self.request.dry_run:
            self._run_download(pending, "downloading", total)
        return estimate, total

    def _run_download(self, photos: pd.DataFrame, description: str, total: DownloadReport) -> None:
        report = self.downloader.run(photos, description)
        total.photos += report.photos
        total.bytes += report.bytes
        total.failed |= report.failed
        if report.bytes:
            self.journal.set_meta("seconds_per_photo", report.seconds / report.photos)

    def _pending(self, photos: pd.DataFrame) -> pd.DataFrame:
        """The photos that were not downloaded yet, or are to be prepared in another way, from their originals."""
        states = self.journal.states()
        plain, round_about = (preparation(self.request.preparation, panorama) for panorama in (False, True))
        pending, lost = [], 0
        for photo, panorama in zip(photos["id"], photos["panorama"], strict=True):
            state, done = states.get(photo, ("", ""))
            other = state == "prepared" and done != (round_about if panorama else plain)
            lost += other and not self.downloader.original(photo).is_file()
            pending.append(not state or other)
        if lost:
            raise DatasetError(
                f"{lost:,} photos in {self.request.folder} were prepared with other options (size, panoramas, crops, "
                "undistortion), and their originals were not kept: give the same options, or another folder"
            )
        return photos[np.array(pending, bool)]

    def _assemble(self, selection: Selection, downloads: DownloadReport) -> None:
        """Replace the photos by what became of them, and apply the filters on images."""
        ids, frames, rejected = set(selection.photos["id"]), [], dict(downloads.failed)
        panoramas = crops = 0
        for outcomes in self.journal.outcomes():
            rows: list[Mapping[str, Any]] = []
            for outcome in outcomes:
                if outcome.id not in ids:
                    continue
                if not outcome.rows:
                    rejected[outcome.id] = outcome.reason or "it is a panorama"
                elif len(outcome.rows) > 1:
                    panoramas, crops = panoramas + 1, crops + len(outcome.rows)
                rows += outcome.rows
            if rows:
                frames.append(pd.DataFrame(rows))
        selection.remove("image", "the service gives a whole image", rejected)
        if panoramas:
            self.notes.append(f"{panoramas:,} panorama{'s' * (panoramas > 1)} became {crops:,} photos")
        if not frames:
            return
        photos = pd.concat(frames, ignore_index=True)
        selection.photos = photos.assign(source="Mapillary", licence=LICENCE)
        selection.apply(filter_images(selection.photos, self.request.filters))
        kept = selection.photos.drop(columns=[name for name in INTERNAL if name in selection.photos])
        selection.photos = kept.sort_values(["drive", "captured_at", "id"], ignore_index=True)


def _most(counts: list[FilterCount]) -> str:
    """The filters that removed most."""
    worst = sorted((each for each in counts if each.removed), key=lambda each: -each.removed)[:3]
    return ", ".join(f"{each.name} {each.removed:,}" for each in worst)
