"""Photos and their candidates on which re-ranking is evaluated: of an area, of a data set of pairs, or of a list."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jzi.errors import PairsError, PhotoTableError, RerankError
from jzi.rerank.config import RerankConfig
from jzi.store.trained_photos import check_held_out, photo_keys
from jzi.workspace.inputs import open_photo_files
from jzi.workspace.models.evaluated import open_experts, open_retriever
from jzi.workspace.models.hub import local_folder
from jzi.workspace.setup.settings import RegionSettings, Settings

if TYPE_CHECKING:
    import pandas as pd

    from jzi.evaluate.stages.reranking import RerankCase
    from jzi.locate.expert import Expert
    from jzi.rerank.crops import Crops
    from jzi.rerank.question import Picture
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.store.photos.pairs import PairDataset
    from jzi.workspace.pairs import PairSettings

#: Metres within which a candidate is right; the first is what weights are fitted to.
RADII = (50.0, 40.0, 100.0)

#: Photos whose posteriors are computed at once.
BATCH = 32

#: Most rows and characters of a line of a list of candidates.
MAX_ROWS, MAX_LINE = 10_000_000, 10_000

#: Share of a side of the square that is outlined in the aerial images of pairs: photos of VIGOR lie in it.
CENTRAL = 0.5


@dataclass(frozen=True)
class Listed:
    """The candidates of a photo in a list, the best first.

    Attributes:
        ids: names of aerial images, or cells as "row_col".
        score: similarity of each, or None.
    """

    ids: tuple[str, ...]
    score: tuple[float, ...] | None


@dataclass(frozen=True)
class CandidateList:
    """The candidates of several photos.

    Attributes:
        photos: by the photos' names in the list.
    """

    photos: dict[str, Listed]

    def of(self, name: str) -> Listed | None:
        """The candidates of a photo, given its id or path, else the only photo with this file name; None if none is."""
        if name in self.photos:
            return self.photos[name]
        named = self._by_file.get(name.rpartition("/")[2], ())
        return self.photos[named[0]] if len(named) == 1 else None

    @cached_property
    def _by_file(self) -> dict[str, list[str]]:
        files: dict[str, list[str]] = {}
        for name in self.photos:
            files.setdefault(name.rpartition("/")[2], []).append(name)
        return files


def open_front(
    settings: Settings | RegionSettings, retriever: Path | None, experts: Sequence[str]
) -> tuple[Expert, FeatureCache, Path]:
    """The front end whose candidates are compared, the cache with photos, and the front end's folder.

    Args:
        settings: of the area.
        retriever: folder of the retriever to use; None for the area's model.
        experts: of the model; all by default.

    Raises:
        JziError: the model, the retriever or the cache cannot be used, or a region has no retriever.
    """
    if isinstance(settings, RegionSettings):
        from jzi.workspace.regions.region_index import open_region_expert

        if retriever is None:
            raise RerankError("a region has no zoom model: name its retriever with --retriever")
        folder = local_folder(retriever)
        return *open_region_expert(settings, folder), folder
    if retriever is not None:
        folder = local_folder(retriever)
        return *open_retriever(folder, approximate=False), folder
    model, cache = open_experts(settings)
    return model.fused(experts), cache, settings.path(settings.model.path)


def area_cases(
    settings: Settings | RegionSettings,
    expert: Expert,
    cache: FeatureCache,
    crops: Crops,
    config: RerankConfig,
    *,
    model: Path,
    split: str | None = None,
    count: int = 500,
    listed: Path | None = None,
) -> list[RerankCase]:
    """Photos of a split with the front end's candidates; nothing is opened yet but the table of photos.

    Args:
        settings: of the area.
        expert: the front end.
        cache: with the embeddings of the photos.
        crops: what is shown of cells.
        config: number of candidates, and pixels of photos.
        model: folder of the front end, which must be trained on none of the photos, unless they are training photos or
            the candidates are of a list.
        split: "train", "val" or "test"; by default test, or val if there is no test photo.
        count: most photos, evenly spaced.
        listed: a list of candidates to take instead, whose ids are cells: "row_col".

    Raises:
        RerankError: no photo is left.
        ModelError: the front end, or its encoder, was trained on some of the photos.
        CacheError: the cache cannot be read.
        PhotoTableError: the photos or the list cannot be read.
    """
    from jzi.store.geometry.cell_grid import longer_side

    frame = cache.queries.encoded()
    row, col = expert.area.cells_at(frame["latitude"].to_numpy(float), frame["longitude"].to_numpy(float))
    frame = frame.assign(row=row, col=col)[row >= 0]
    frame = frame[expert.cell_mask[frame["row"], frame["col"]]]
    paths = open_photo_files(settings)
    frame = frame[frame["id"].isin(paths.keys())]
    splits = [split] if split else ["test", "val"]
    frame = next((part for name in splits if len(part := frame[frame["split"] == name])), frame[:0])
    names = read_candidates(listed) if listed else CandidateList({})
    if listed:
        frame = frame[[names.of(str(name)) is not None for name in frame["id"]]]
    if frame.empty:
        where = f"of {listed} " if listed else ""
        raise RerankError(
            f"{cache.path} has no photo {where}with split {' or '.join(splits)} and a file: give another --split"
        )
    if listed is None:
        check_held_out(model, str(frame["split"].iloc[0]), photo_keys(frame))
    frame = frame.iloc[np.linspace(0, len(frame) - 1, min(count, len(frame))).astype(int)]
    radius = min(RADII[0], longer_side(expert.area))
    found = _listed_cells(frame, names, expert) if listed else _candidates(frame, expert, cache, config.top, radius)
    return [
        _area_case(str(entry["id"]), Path(paths[str(entry["id"])]), entry, *each, expert, crops, config)
        for (_, entry), each in zip(frame.iterrows(), found, strict=True)
    ]


def _candidates(
    frame: pd.DataFrame, expert: Expert, cache: FeatureCache, top: int, radius: float
) -> list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]:
    """(k, 2) cells, (k, 2) latitudes and longitudes, and (k,) probabilities of the candidates of each photo."""
    import torch

    from jzi.locate.answer.location import LocateOptions, to_locations
    from jzi.rerank.stage import distinct

    options, found = LocateOptions(radius=radius, top=top), []
    for start in range(0, len(frame), BATCH):
        rows = frame.index[start : start + BATCH].to_numpy(np.int64)
        query = torch.from_numpy(cache.queries.embedding(rows)[:, 0])
        for location in to_locations(expert.posterior(query, options), options, [""] * len(rows)):
            kept = [location.candidates[each] for each in distinct(location.candidates, location.cell_m, top)]
            found.append(
                (
                    np.array([each.cell for each in kept], np.int64).reshape(-1, 2),
                    np.array([(each.latitude, each.longitude) for each in kept]),
                    np.array([each.probability for each in kept]),
                )
            )
    return found


def _listed_cells(
    frame: pd.DataFrame, names: CandidateList, expert: Expert
) -> list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]:
    """As `_candidates`, of a list."""
    found = []
    for name in frame["id"]:
        listed = names.of(str(name))
        assert listed
        try:
            cells = np.array([[int(part) for part in each.split("_")] for each in listed.ids], np.int64)
            inside = cells.shape[1:] == (2,) and bool((cells >= 0).all() and (cells < expert.area.shape).all())
        except (ValueError, OverflowError):
            inside = False
        if not inside:
            raise PhotoTableError(f"the candidates of {name} are not cells of this area: give ids such as 12_34")
        position = np.stack(expert.area.unproject(*expert.area.cell_centers(cells[:, 0], cells[:, 1])), 1)
        found.append((cells, position, probabilities(listed)))
    return found


def _area_case(
    name: str,
    path: Path,
    entry: Any,
    cells: NDArray[np.int64],
    position: NDArray[np.float64],
    probability: NDArray[np.float64],
    expert: Expert,
    crops: Crops,
    config: RerankConfig,
) -> RerankCase:
    from jzi.evaluate.stages.reranking import RerankCase
    from jzi.rerank.photo import picture
    from jzi.store.geometry.pyramid import geodesic_distance

    there = np.full(len(cells), float(entry["latitude"])), np.full(len(cells), float(entry["longitude"]))
    distance = geodesic_distance(*there, position[:, 0], position[:, 1])
    correct = {f"within {radius:g} m": distance <= radius for radius in RADII}
    correct["in the cell"] = (cells == (int(entry["row"]), int(entry["col"]))).all(1)
    where = [(int(row), int(col)) for row, col in cells[: config.top]]
    return RerankCase(name, partial(picture, path, config.photo_pixels), partial(crops.of, where), probability, correct)


def pair_cases(
    settings: PairSettings, split: str | None, config: RerankConfig, *, count: int = 500, listed: Path | None = None
) -> list[RerankCase]:
    """Photos of a data set of pairs, with candidates of its trained network or of a list.

    Args:
        settings: of the data set.
        split: as of `jzi.workspace.pairs.evaluation_pairs`.
        config: number of candidates, pixels of photos and aerial images.
        count: most photos, evenly spaced.
        listed: a list whose photos and ids are file names of the data set; None for the network's own candidates.

    Raises:
        JziError: the data set, the network or the list cannot be used, or no photo is left.
    """
    from jzi.evaluate.stages.reranking import RerankCase
    from jzi.rerank.photo import picture
    from jzi.workspace.pairs import evaluation_pairs

    dataset = evaluation_pairs(settings, split)
    if listed is None:
        found = _retrieved(settings, dataset, config.top, count)
    else:
        found = _listed_references(dataset, read_candidates(listed), listed, count)
    shown = partial(_aerial, config=config)
    cases = []
    for photo, references, probability in found:
        positive = references == dataset.positive[photo]
        correct = {"the positive": positive, "hit": positive | np.isin(references, dataset.semi[photo])}
        paths = [str(dataset.references[each]) for each in references[: config.top]]
        crops: Callable[[], Sequence[Picture | None]] = partial(_all, shown, paths)
        name = Path(str(dataset.photos[photo])).name
        read = partial(picture, str(dataset.photos[photo]), config.photo_pixels)
        cases.append(RerankCase(name, read, crops, probability, correct))
    return cases


def _retrieved(
    settings: PairSettings, dataset: PairDataset, top: int, count: int
) -> list[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    """Photo, references and probabilities by the trained network."""
    from jzi.workspace.pair_runs import retrieve_on_pairs

    readable, references, similarity, temperature = retrieve_on_pairs(settings, dataset, top, count)
    return [
        (int(photo), row, probabilities(Listed(("",) * len(row), tuple((score / temperature).tolist()))))
        for photo, row, score in zip(readable, references, similarity, strict=True)
    ]


def _listed_references(
    dataset: PairDataset, names: CandidateList, file: Path, count: int
) -> list[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    number = {Path(str(path)).name: index for index, path in enumerate(dataset.references)}
    photos = [index for index, path in enumerate(dataset.photos) if names.of(Path(str(path)).name)]
    if not photos:
        raise PairsError(f"{file} names no photo of the {dataset.split} split of {dataset.name}: give another --split")
    found = []
    for photo in (photos[each] for each in np.linspace(0, len(photos) - 1, min(count, len(photos))).astype(int)):
        listed = names.of(Path(str(dataset.photos[photo])).name)
        assert listed
        if unknown := [each for each in listed.ids if each not in number]:
            raise PairsError(f"{file} has {unknown[0]:.100}, which {dataset.name} has not: give its file names")
        found.append((photo, np.array([number[each] for each in listed.ids], np.int64), probabilities(listed)))
    return found


def _all(read: Callable[[str], Picture | None], paths: Sequence[str]) -> list[Picture | None]:
    return [read(path) for path in paths]


def _aerial(path: str, config: RerankConfig) -> Picture | None:
    """An aerial image as judges see it, with its central part outlined; None if it cannot be read."""
    from PIL import Image, ImageDraw

    from jzi.encode.photo.photos import read_photo
    from jzi.errors import PhotoError
    from jzi.rerank.crops import OUTLINE, OUTLINE_PX
    from jzi.rerank.question import Picture

    side = config.crop_pixels
    try:
        pixels, _ = read_photo(path, side, side)
    except PhotoError:
        return None
    if config.outline:
        image, edge = Image.fromarray(pixels), round(side * (1 - CENTRAL) / 2)
        ImageDraw.Draw(image).rectangle((edge, edge, side - edge, side - edge), outline=OUTLINE, width=OUTLINE_PX)
        pixels = np.asarray(image)
    return Picture(pixels)


def probabilities(listed: Listed) -> NDArray[np.float64]:
    """(k,) probabilities of listed candidates: softmax of their scores, or in proportion to 1 / rank without scores."""
    if listed.score is None:
        weight = 1 / (1 + np.arange(len(listed.ids)))
    else:
        score = np.array(listed.score)
        weight = np.exp(score - score.max())
    return np.asarray(weight / weight.sum())


def read_candidates(file: Path) -> CandidateList:
    """Read a CSV of candidates with the columns photo, rank, id and, if it is there, score.

    Args:
        file: the CSV. Photos are ids or file names; of ids, folders before a file name are ignored.

    Raises:
        PhotoTableError: it cannot be read, lacks a column, or a value is invalid.
    """
    rows: dict[str, dict[int, tuple[str, float | None]]] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(_short(lines, file))
            columns = reader.fieldnames or ()
            if missing := [name for name in ("photo", "rank", "id") if name not in columns]:
                raise PhotoTableError(f"{file} has no column {missing[0]!r}: give photo, rank, id and score")
            for line, row in enumerate(islice(reader, MAX_ROWS + 1), 2):
                if line > MAX_ROWS + 1:
                    raise PhotoTableError(f"{file} has more than {MAX_ROWS:,} rows: split it")
                _add(rows, row, file, line, scored="score" in columns)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PhotoTableError(f"{file} cannot be read: {error}") from error
    if not rows:
        raise PhotoTableError(f"{file} has no candidates: give rows of photo, rank, id and score")
    found = {}
    for photo, ranked in rows.items():
        ordered = [ranked[rank] for rank in sorted(ranked)]
        scores = [score for _, score in ordered if score is not None]
        listed = tuple(name for name, _ in ordered)
        found[photo] = Listed(listed, tuple(scores) if len(scores) == len(ordered) else None)
    return CandidateList(found)


def _add(
    rows: dict[str, dict[int, tuple[str, float | None]]], row: dict[str, str], file: Path, line: int, *, scored: bool
) -> None:
    photo, name = ((row[column] or "").replace("\\", "/") for column in ("photo", "id"))
    name = name.rpartition("/")[2]
    try:
        rank = int(row["rank"])
        score = float(row["score"]) if scored else None
        valid = rank >= 0 and bool(photo) and bool(name) and (score is None or abs(score) < 1e9)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise PhotoTableError(f"line {line} of {file} is no candidate: give photo, a whole rank, id and a finite score")
    ranked = rows.setdefault(photo, {})
    if rank in ranked or any(name == other for other, _ in ranked.values()):
        raise PhotoTableError(f"line {line} of {file} repeats a rank or an id of {photo:.100}: give each once")
    ranked[rank] = (name, score)


def _short(lines: Any, file: Path) -> Any:
    """Lines of a file, none longer than `MAX_LINE`."""
    while line := lines.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise PhotoTableError(f"{file} has a line of more than {MAX_LINE:,} characters: shorten it")
        yield line
