"""List the photos of a region: search box after box, split those that are full, keep what was found."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import date

from tqdm import tqdm

from jzi.mapillary.api import Mapillary, TooMuchError
from jzi.mapillary.boxes import MAX_DEPTH, Box, BoxGrid
from jzi.mapillary.journal import Journal, State
from jzi.mapillary.records import Page

#: Searches at the same time; one takes about a second.
THREADS = 4


@dataclass
class ListingReport:
    """What listing has met.

    Attributes:
        asked: number of boxes that were asked about.
        full: number of boxes of the smallest size that hold more photos than the service gives.
        odd: number of values of unexpected types, by field.
    """

    asked: int = 0
    full: int = 0
    odd: Counter[str] = field(default_factory=Counter)


def list_photos(
    service: Callable[[], Mapillary], journal: Journal, grid: BoxGrid, since: date | None, until: date | None
) -> ListingReport:
    """Ask about the boxes of a region that the journal lacks. Nothing is sent if it lacks none.

    Args:
        service: opens the service.
        journal: where what was found is kept.
        grid: the boxes.
        since: first day.
        until: last day.

    Raises:
        DatasetError: the service cannot be used; what was found is kept.
    """
    states = journal.box_states()
    report = ListingReport(full=sum(state == "full" for state in states.values()))
    pending = _pending(grid, states)
    if not pending:
        return report
    opened = service()

    def search(box: Box) -> tuple[State, Page]:
        try:
            page = opened.search(grid.clipped(box), since, until)
        except TooMuchError:
            page = Page({}, {}, {}, is_full=True)
        return ("done" if not page.is_full else "split" if box.depth < MAX_DEPTH else "full"), page

    def keep(box: Box, state: State, page: Page) -> None:
        journal.add_page(box, state, page)
        report.asked += 1
        report.full += state == "full"
        report.odd += page.odd
        if state == "split":
            children = grid.touching(box.children())
            pending.extendleft(reversed(children))
            progress.total = (progress.total or 0) + len(children)
        progress.update()

    with tqdm(total=len(pending), desc="listing", unit="box") as progress:
        executor = ThreadPoolExecutor(THREADS, "listing")
        running: dict[Future[tuple[State, Page]], Box] = {}
        try:
            while pending or running:
                while pending and len(running) < 2 * THREADS:
                    box = pending.popleft()
                    running[executor.submit(search, box)] = box
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    keep(running.pop(future), *future.result())
        except BaseException:
            opened.close()  # ends what is under way
            raise
        finally:
            executor.shutdown(cancel_futures=True)
            for future, box in running.items():  # answered, but not kept yet
                if future.done() and not future.cancelled() and not future.exception():
                    keep(box, *future.result())
    return report


def _pending(grid: BoxGrid, states: dict[Box, State]) -> deque[Box]:
    pending: deque[Box] = deque()
    stack = list(grid)[::-1]
    while stack:
        box = stack.pop()
        state = states.get(box)
        if state is None:
            pending.append(box)
        elif state == "split":
            stack.extend(grid.touching(box.children()))
    return pending
