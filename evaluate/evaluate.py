"""How good the answers are: the paper's protocol (DESIGN 7), with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.decode.dataset import load_dataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.model import ZoomModel
from jzi.decode.patch_tokens import PatchTokens
from jzi.decode.search import zoom
from jzi.decode.tile_table import TileTable
from jzi.encode.device import best_device
from jzi.errors import TrainingError
from jzi.evaluate import published
from jzi.evaluate.calibrate import Calibration, calibrate
from jzi.evaluate.published import Published, published_for
from jzi.store.cache import FeatureCache
from jzi.store.pyramid import Pyramid, geodesic_distance

#: Metres; those of the paper's tables.
RADII = (40.0, 50.0, 100.0)

#: Recall of retrieval is told at these ranks.
RANKS = (1, 5, 10)

#: Photos to a batch of search: 4096 x 9 tokens of the paper's decoder take about 0.5 GB.
BATCH = 4096


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        photos: how many were located.
        recall: radius in metres to the share of photos whose predicted cell centre lies within it.
        median_error: metres.
        sequence_accuracy: share of photos for which all L actions are right.
        prefix_accuracy: share of photos for which the first k actions are right, k = 1..L.
        step_accuracy: share of photos for which action k is right when those before it are given, k = 1..L; empty where
            an answer has no steps.
        error: (photo,) metres from the photo to the centre of the predicted cell.
        confidence: (photo,) probability of the predicted cell.
        recall_at: k to the share of photos whose own cell is among the first k, for retrieval.
        published: what others have reached in the same area, where it is a published benchmark's.
    """

    photos: int
    recall: dict[float, Interval]
    median_error: Interval
    sequence_accuracy: Interval
    prefix_accuracy: tuple[float, ...]
    step_accuracy: tuple[float, ...]
    error: NDArray[np.float64]
    confidence: NDArray[np.float64]
    recall_at: dict[int, Interval] = field(default_factory=dict)
    published: tuple[Published, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values without those of single photos, for JSON."""

        def plain(interval: Interval) -> dict[str, float]:
            return {"value": interval.value, "low": interval.low, "high": interval.high}

        return {
            "photos": self.photos,
            **{f"recall@{radius:g}m": plain(interval) for radius, interval in self.recall.items()},
            **{f"recall@{k}": plain(interval) for k, interval in self.recall_at.items()},
            "median_error_m": plain(self.median_error),
            "sequence_accuracy": plain(self.sequence_accuracy),
            "prefix_accuracy": list(self.prefix_accuracy),
            "step_accuracy": list(self.step_accuracy),
            "published": [
                {
                    "method": each.method,
                    **{f"recall@{r:g}m": v for r, v in zip(published.RADII, each.recall, strict=True)},
                }
                for each in self.published
            ],
        }


def evaluate_model(
    folder: Path,
    cache_path: str,
    split: str | None = None,
    *,
    radii: Sequence[float] = RADII,
    estimates: bool = False,
    radius: float = 50.0,
    beams: int | None = None,
) -> tuple[str, int, Evaluation, Calibration | None]:
    """Evaluate a model folder on the photos of a cache.

    Args:
        folder: the model.
        cache_path: the cache that holds the photos.
        split: "train", "val" or "test"; by default test, or val where there is no test photo.
        radii: metres.
        estimates: whether to work out posteriors too, and compare what can be answered from them.
        radius: metres, of the answer from the posterior.
        beams: as in `jzi.locate.posterior.posterior`.

    Returns:
        The split, how many of its photos the map has no imagery for, the evaluation, and that of the posteriors.

    Raises:
        ModelError: there is no model, or it is damaged.
        CacheError: there is no cache, or it is another encoder's or pyramid's.
        TrainingError: the split is empty.
    """
    device = best_device()
    model = ZoomModel.load(folder, device)
    cache = FeatureCache.open(cache_path)
    model.check(cache)
    table = TileTable(model.read_map(None if model.has_map else cache), device, PatchTokens.of(cache, device))
    for name in [split] if split else ["test", "val"]:
        samples = load_dataset(cache, table, name)
        if len(samples):
            evaluation = evaluate(
                model.decoder, table, samples.query[:, 0], samples.latitude, samples.longitude, radii=radii
            )
            calibration = None
            if estimates:
                calibration = calibrate(
                    model.decoder, table, samples, temperature=model.temperature, radius=radius, beams=beams
                )
            return name, samples.unreachable, evaluation, calibration
    wanted = f"split {split!r}" if split else "split 'test' or 'val'"
    raise TrainingError(f"{cache_path} has no photo with {wanted} to evaluate on: encode some, or give another --split")


def to_table(evaluation: Evaluation, title: str) -> str:
    """The figures for people, a line each, and those that others have published for the same area."""

    def percent(interval: Interval) -> str:
        return f"{interval.value:7.2%}   ({interval.low:.2%} .. {interval.high:.2%})"

    lines = [f"{title}; in brackets 95 % bootstrap intervals"]
    lines += [f"  recall within {radius:>4g} m   {percent(each)}" for radius, each in evaluation.recall.items()]
    lines += [f"  cell among first {k:>4}   {percent(each)}" for k, each in evaluation.recall_at.items()]
    median = evaluation.median_error
    lines.append(f"  median error          {median.value:6.1f} m   ({median.low:.1f} .. {median.high:.1f} m)")
    lines.append(f"  whole sequence right  {percent(evaluation.sequence_accuracy)}")
    for step, prefix in enumerate(evaluation.prefix_accuracy, 1):
        if evaluation.step_accuracy:
            single = evaluation.step_accuracy[step - 1]
            lines.append(f"  step {step} right          {single:7.2%}   (steps 1..{step} all right: {prefix:.2%})")
        else:
            lines.append(f"  level {step} right         {prefix:7.2%}")
    if evaluation.published:
        radii = [radius for radius in evaluation.recall if radius in published.RADII]
        header = "".join(f"{f'{radius:g} m':>9}" for radius in radii)
        ours = Published("this model", tuple(evaluation.recall[radius].value for radius in radii))
        others = [
            Published(each.method, tuple(each.recall[published.RADII.index(radius)] for radius in radii))
            for each in evaluation.published
        ]
        lines.append(f"\n  {'recall within (others as published)':<36}{header}")
        lines += [f"  {row.method:<36}" + "".join(f"{value:9.2%}" for value in row.recall) for row in [*others, ours]]
    return "\n".join(lines)


def evaluate(
    decoder: ZoomDecoder,
    table: TileTable,
    query: Tensor,
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    *,
    radii: Sequence[float] = RADII,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Locate photos by greedy search, the paper's protocol, and compare with where they were taken.

    Args:
        decoder: in eval mode, on the table's device.
        table: the map.
        query: (photo, feature) embeddings.
        latitude: (photo,) true positions, degrees.
        longitude: (photo,) likewise.
        radii: metres.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    truth = table.pyramid.paths(latitude, longitude)
    paths, confidence = predict(decoder, table, query)
    found = score(table.pyramid, paths, confidence, latitude, longitude, radii=radii, resamples=resamples, seed=seed)
    return replace(found, step_accuracy=tuple(_step_accuracy(decoder, table, query, truth)))


def score(
    pyramid: Pyramid,
    paths: NDArray[np.int64],
    confidence: NDArray[np.float64],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    *,
    rank: NDArray[np.int64] | None = None,
    radii: Sequence[float] = RADII,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Compare answers with where photos were taken.

    Args:
        pyramid: whose cells they are.
        paths: (photo, L) actions that lead to the predicted cells.
        confidence: (photo,) probability of the predicted cells.
        latitude: (photo,) true positions, degrees.
        longitude: (photo,) likewise.
        rank: (photo,) how many cells were preferred to the true one, for recall at ranks.
        radii: metres.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    error = cell_error(pyramid, paths, latitude, longitude)
    right = paths == pyramid.paths(latitude, longitude)
    rng = np.random.default_rng(seed)

    def share(hit: NDArray[np.bool_]) -> Interval:
        # Resampling hits and misses with replacement draws their number from a binomial distribution
        return _interval(float(hit.mean()), rng.binomial(len(hit), hit.mean(), resamples) / len(hit))

    recall = {float(radius): share(error <= radius) for radius in radii}
    medians = np.array([np.median(error[rng.integers(len(error), size=len(error))]) for _ in range(resamples)])
    return Evaluation(
        photos=len(error),
        recall=recall,
        median_error=_interval(float(np.median(error)), medians),
        sequence_accuracy=share(right.all(1)),
        prefix_accuracy=tuple(np.logical_and.accumulate(right, axis=1).mean(0).tolist()),
        step_accuracy=(),
        error=error,
        confidence=confidence,
        recall_at={} if rank is None else {k: share(rank < k) for k in RANKS},
        published=published_for(pyramid),
    )


def predict(decoder: ZoomDecoder, table: TileTable, query: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Greedy search's path (photo, L) of each photo and the probability (photo,) of its cell."""
    paths, confidence = [], []
    for batch in query.split(BATCH):
        zooms = zoom(decoder, table, batch.to(table.device))
        paths.append(zooms.paths[:, 0].cpu().numpy())
        confidence.append(zooms.log_probability[:, 0].sum(-1).exp().double().cpu().numpy())
    return np.concatenate(paths), np.concatenate(confidence)


def cell_error(
    pyramid: Pyramid, paths: NDArray[np.int64], latitude: NDArray[np.float64], longitude: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(photo,) geodesic metres from true positions to the centres of the cells that (photo, L) actions end in."""
    row, col = pyramid.path_to_tile(paths)
    return geodesic_distance(latitude, longitude, *pyramid.tile_positions(pyramid.levels, row, col))


@torch.inference_mode()
def _step_accuracy(decoder: ZoomDecoder, table: TileTable, query: Tensor, truth: NDArray[np.int64]) -> list[float]:
    right = torch.zeros(truth.shape[1], dtype=torch.float64)
    tiles = table.along(truth)
    actions = torch.from_numpy(truth).to(table.device)
    batch = decoder.config.batch(BATCH)
    for start in range(0, len(truth), batch):
        part = slice(start, start + batch)
        photos = query[part].to(table.device).float()
        seen, below = table.read(decoder.config, tiles[part], photos)
        logits = decoder(photos, seen, actions[part], below)
        logits = logits.masked_fill(~table.child_mask[tiles[part]], -torch.inf)
        right += (logits.argmax(-1) == actions[part]).sum(0).cpu()
    return (right / len(truth)).tolist()


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Interval(value, float(low), float(high))
