"""What is wanted of Mapillary, and whether a folder's journal can give it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import shapely

from jzi.curate.options import FilterOptions, PrepareOptions
from jzi.errors import DatasetError
from jzi.mapillary.api import Thumbnail
from jzi.mapillary.journal import Journal
from jzi.store.geometry.region import Region


@dataclass(frozen=True)
class MapillaryRequest:
    """What is wanted.

    Attributes:
        region: where.
        folder: of the data set.
        filters: which photos are kept.
        preparation: how photos are prepared.
        thumbnail: the size in which the service gives them.
        limit: most photos to download, at random; None for all.
        keep_originals: whether files are also kept as they were downloaded.
        dry_run: whether to end with the estimate.
    """

    region: Region
    folder: Path
    filters: FilterOptions = field(default_factory=FilterOptions)
    preparation: PrepareOptions = field(default_factory=PrepareOptions)
    thumbnail: Thumbnail = "2048"
    limit: int | None = None
    keep_originals: bool = False
    dry_run: bool = False

    def listed_days(self, journal: Journal) -> tuple[date | None, date | None, date]:
        """Compare the request with the one that began a journal, and return the first and last day that it lists,
        and the day when it began.

        Raises:
            DatasetError: the journal lacks what is wanted.
        """
        since, until = self.filters.since, self.filters.until
        today = datetime.now(UTC).date()
        region = hashlib.sha256(shapely.to_wkb(shapely.normalize(self.region.geometry))).hexdigest()
        wanted = {
            "region": region, "name": self.region.name, "thumbnail": self.thumbnail,
            "since": since and since.isoformat(), "until": until and until.isoformat(), "accessed": today.isoformat(),
        }  # fmt: skip
        kept = journal.meta("request")
        if kept is None or not journal.box_states():  # nothing is listed yet, such as without a token
            journal.set_meta("request", wanted)
            return since, until, today
        try:
            first, last = (kept[each] and date.fromisoformat(kept[each]) for each in ("since", "until"))
            accessed = date.fromisoformat(kept["accessed"])
            old_region, name, thumbnail = (str(kept[each]) for each in ("region", "name", "thumbnail"))
        except (KeyError, TypeError, ValueError) as error:
            raise journal.damage("the request") from error
        if old_region != region:
            raise DatasetError(f"{self.folder} holds photos of another region ({name:.200}): give another folder")
        if thumbnail != self.thumbnail:
            raise DatasetError(
                f"{self.folder} holds photos of the size {thumbnail:.20}, not {self.thumbnail}: give --thumbnail "
                f"{thumbnail:.20}, or another folder"
            )
        if (first and (since is None or since < first)) or (last and (until is None or until > last)):
            days = " ".join([*([f"--since {first}"] if first else []), *([f"--until {last}"] if last else [])])
            raise DatasetError(
                f"{self.folder} lists the photos of {days} only: give days within these, or another folder"
            )
        return first, last, accessed
