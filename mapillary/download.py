"""Download photos and prepare them, several at a time; what became of each is kept at once."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from jzi.curate.options import PrepareOptions
from jzi.curate.prepare import prepare, write_prepared
from jzi.errors import DatasetError, PhotoError
from jzi.mapillary.api import GoneError, Mapillary, is_about_all
from jzi.mapillary.journal import Journal, PhotoOutcome
from jzi.store.disk.files import write_whole
from jzi.store.plain import plain
from jzi.web.rules import HttpError

#: Photos at the same time: a download takes some tenths of a second, preparing one a tenth.
THREADS = 8

#: Photos in a row that fail, from which on the service does: each was asked for again for a minute.
FAILURES = THREADS

#: Folder of the files as they were downloaded, if they are kept.
ORIGINALS = "originals"

#: Photos whose links are read from the journal at once.
_BLOCK = 500


@dataclass
class DownloadReport:
    """What downloading has done.

    Attributes:
        photos: number of photos that were downloaded and prepared, or rejected.
        bytes: that were downloaded.
        seconds: that it took.
        failed: reasons, by id, of photos that may be had later.
    """

    photos: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Failure:
    """A photo that may be had later."""

    id: str
    reason: str


def preparation(options: PrepareOptions, panorama: bool) -> str:
    """The options that a prepared photo depends on, as text."""
    values = plain(options)
    if not panorama:
        values = {name: values[name] for name in ("size", "undistort")}
    return json.dumps(values, sort_keys=True)


class Downloader:
    """Downloads photos into the folder of a data set.

    Args:
        service: opens the service, which is asked only if there is something to download.
        journal: where what became of the photos is kept.
        folder: of the data set.
        options: how photos are prepared.
        keep_originals: whether the files are kept as they were downloaded.
    """

    def __init__(
        self,
        service: Callable[[], Mapillary],
        journal: Journal,
        folder: Path,
        options: PrepareOptions,
        keep_originals: bool,
    ) -> None:
        self._open, self._journal, self._folder = service, journal, folder
        self._options, self._keep_originals = options, keep_originals
        self._failures: list[PhotoOutcome | _Failure] = []  # in a row

    def original(self, photo: str) -> Path:
        """Where the file of a photo is, or would be, kept."""
        return self._folder / ORIGINALS / photo[-2:] / f"{photo}.jpg"

    def run(self, photos: pd.DataFrame, description: str = "downloading") -> DownloadReport:
        """Download and prepare photos.

        Args:
            photos: rows as `jzi.curate.prepare.prepare` takes them.
            description: for the progress.

        Raises:
            DatasetError: the service cannot be used, or the disk is full; what was prepared is kept.
        """
        report, began = DownloadReport(), time.monotonic()
        service = self._open()
        executor = ThreadPoolExecutor(THREADS, "photos")
        running: set[Future[PhotoOutcome | _Failure]] = set()

        def take(outcome: PhotoOutcome | _Failure) -> None:
            progress.update()
            if isinstance(outcome, _Failure):
                report.failed[outcome.id] = outcome.reason
            else:
                self._journal.add_outcome(outcome)
                report.photos += 1
                report.bytes += outcome.size
            if isinstance(outcome, _Failure) or outcome.reason in _SUSPECT:
                self._failures.append(outcome)
            else:
                self._failures.clear()

        with tqdm(total=len(photos), desc=description, unit="photo") as progress:
            rows = self._rows(photos)
            try:
                while True:
                    while len(running) < 2 * THREADS and (row := next(rows, None)) is not None:
                        running.add(executor.submit(self._photo, service, *row))
                    if not running:
                        break
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    _take_all(done, take)
                    if len(self._failures) >= FAILURES:
                        raise self._disbelief()
            except BaseException:
                service.close()  # ends what is under way
                raise
            finally:
                executor.shutdown(cancel_futures=True)
                _take_all([each for each in running if each.done() and not each.cancelled() and not each.exception()],
                          take)  # fmt: skip
                if len(self._failures) >= FAILURES:  # so that the next run asks for them again
                    self._journal.forget(each.id for each in self._failures if isinstance(each, PhotoOutcome))
                report.seconds = time.monotonic() - began
        return report

    def _disbelief(self) -> DatasetError:
        """The error about photos that failed in a row."""
        return DatasetError(
            f"the last {len(self._failures)} photos could not be had ({self._failures[-1].reason}): what was "
            "downloaded before is kept, run the command again later to resume"
        )

    def _rows(self, photos: pd.DataFrame) -> Iterator[tuple[dict[str, Any], str | None]]:
        """Rows, and the links to their images."""
        for start in range(0, len(photos), _BLOCK):
            block = photos.iloc[start : start + _BLOCK].to_dict("records")
            links = self._journal.links([str(row["id"]) for row in block])
            for row in block:
                yield {str(name): value for name, value in row.items()}, links.get(str(row["id"]))

    def _photo(self, service: Mapillary, row: dict[str, Any], link: str | None) -> PhotoOutcome | _Failure:
        photo, original = str(row["id"]), self.original(str(row["id"]))
        size = 0
        try:
            if original.is_file():
                content: bytes | Path = original
            else:
                content = service.image(photo, link)
                size = len(content)
                if reason := _no_image(content):
                    return PhotoOutcome(photo, "rejected", reason, size)
                if self._keep_originals:
                    self._keep(original, content)
            parameters = str(row.get("camera_parameters") or "")
            row = {**row, "camera_parameters": json.loads(parameters) if parameters else None}
            prepared = prepare(content, row, self._options)
            rows: list[Mapping[str, Any]] = [write_prepared(self._folder, each) for each in prepared]
        except GoneError as error:
            return PhotoOutcome(photo, "rejected", str(error))
        except HttpError as error:
            if is_about_all(error):
                raise
            return _Failure(photo, error.reason) if error.passes else PhotoOutcome(photo, "rejected", str(error))
        except PhotoError as error:
            return PhotoOutcome(photo, "rejected", str(error), size)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "free some space" if full else "change its permissions"
            raise DatasetError(
                f"{self._folder} cannot be written ({error.strerror or error}): {hint} and run the command again, "
                "which resumes; what was downloaded is kept"
            ) from error
        return PhotoOutcome(
            photo, "prepared", size=size, preparation=preparation(self._options, bool(row.get("panorama"))), rows=rows
        )

    def _keep(self, original: Path, content: bytes) -> None:
        original.parent.mkdir(parents=True, exist_ok=True)
        write_whole(original, lambda file: file.write_bytes(content))


_EMPTY, _WEB_PAGE = "the service gave 0 bytes", "the service gave a web page, not an image"

#: Reasons that are the service's fault rather than the photo's if they are those of many photos in a row.
_SUSPECT = (_EMPTY, _WEB_PAGE)


def _no_image(content: bytes) -> str:
    if not content:
        return _EMPTY
    return _WEB_PAGE if content[:512].lstrip()[:1] == b"<" else ""


def _take_all(
    futures: Iterator[Future[PhotoOutcome | _Failure]] | set[Any] | list[Any],
    take: Callable[[PhotoOutcome | _Failure], None],
) -> None:
    """Hand results over, and then raise the first error, so that no result is lost."""
    errors: list[BaseException] = []
    for future in futures:
        error = future.exception()
        if error:
            errors.append(error)
        else:
            take(future.result())
    if errors:
        raise errors[0]
