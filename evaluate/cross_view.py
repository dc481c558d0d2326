"""Figures on pairs of photos and aerial images: retrieval as VIGOR and Sample4Geo measure it, and metres.

The rank of a photo is the number of references that are strictly more similar than its positive. Semi-positives count
against recall; the hit rate passes over them. Recall at 1 % takes k = references // 100. With re-ranking, recall at 1
and the metres of the final place are those after it, recall at 5 and more and the hit rate those before (UnifyGeo,
table V).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.evaluate.intervals import Interval, share_interval
from jzi.evaluate.published import CROSS, CVACT_TEST, CVACT_VAL, CVUSA, SAME, PublishedPairs, published_pairs
from jzi.store.geometry.pyramid import geodesic_distance
from jzi.store.photos.pairs import PairDataset, moved

#: Ranks of recall.
RANKS = (1, 5, 10)
#: Radii of recall, metres, and limits of the recall of headings, degrees.
RADII, LIMITS_DEG = (1.0, 3.0, 5.0, 10.0), (1.0, 3.0, 5.0)

#: Photos whose similarities to all references are in memory at once.
BATCH = 512

#: Bootstrap resamples of means and medians, and their seed.
RESAMPLED, SEED = 200, 0


@dataclass(frozen=True)
class Ranking:
    """Where the positives of photos stand among the references.

    Attributes:
        rank: (photo,) references that are strictly more similar than the positive.
        hit: (photo,) whether none of these is anything but a semi-positive.
        top: (photo, k) indices of the most similar references, the best first.
        similarity: (photo, k) their similarity.
        references: number of references.
    """

    rank: NDArray[np.int64]
    hit: NDArray[np.bool_]
    top: NDArray[np.int64]
    similarity: NDArray[np.float64]
    references: int


def rank_references(
    query: Tensor, reference: Tensor, positive: NDArray[np.int64], semi: NDArray[np.int64], top: int
) -> Ranking:
    """Rank all references for each photo, by inner product.

    Args:
        query: (photo, feature) embeddings of photos, of unit length.
        reference: (reference, feature) embeddings of aerial images, of unit length.
        positive: (photo,) index of each photo's reference.
        semi: (photo, semi) indices of its semi-positives; -1 for none.
        top: number of references to return.
    """
    top = min(top, len(reference))
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for start in range(0, len(query), BATCH):
        rows = slice(start, start + BATCH)
        similarity = (query[rows] @ reference.T).float()
        right = torch.from_numpy(positive[rows]).to(similarity.device)[:, None]
        higher = similarity > similarity.gather(1, right)
        rank = higher.sum(1)
        near = torch.from_numpy(semi[rows]).to(similarity.device)
        if near.shape[1]:  # a column of its own for -1
            padded = torch.cat([higher, torch.zeros_like(higher[:, :1])], 1)
            padded.scatter_(1, torch.where(near < 0, len(reference), near), False)
            higher = padded
        values, index = similarity.topk(top, 1)
        parts.append((rank.cpu(), ~higher.any(1).cpu(), index.cpu(), values.cpu()))
    if not parts:
        return Ranking(
            np.zeros(0, np.int64), np.zeros(0, bool), np.zeros((0, top), np.int64), np.zeros((0, top)), len(reference)
        )
    ranks, hits, tops, similarities = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
    return Ranking(ranks, hits, tops, similarities.astype(np.float64), len(reference))


@dataclass(frozen=True)
class Retrieval:
    """Recall of the positive among the references.

    Attributes:
        recall: k to the share of photos whose rank is below it, before re-ranking.
        one_percent: the same for k = references // 100.
        hit_rate: share of photos with no other reference than semi-positives above the positive.
        reranked: share of photos whose positive is first after re-ranking; None without re-ranking.
        references: number of references.
    """

    recall: dict[int, Interval]
    one_percent: Interval
    hit_rate: Interval
    reranked: Interval | None
    references: int

    @property
    def first(self) -> Interval:
        """Recall at 1 of the final choice."""
        return self.reranked or self.recall[1]

    @classmethod
    def of(cls, ranking: Ranking, right: NDArray[np.bool_] | None = None) -> Retrieval:
        """From ranks, of at least one photo.

        Args:
            ranking: the ranks before re-ranking.
            right: (photo,) whether re-ranking chose the positive; None without it.
        """
        return cls(
            recall={k: share_interval(ranking.rank < k) for k in RANKS},
            one_percent=share_interval(ranking.rank < ranking.references // 100),
            hit_rate=share_interval(ranking.hit),
            reranked=None if right is None else share_interval(right),
            references=ranking.references,
        )

    def figures(self) -> dict[str, Interval]:
        """The figures by their names in `jzi.evaluate.published.RETRIEVED`."""
        return {
            **{f"recall@{k}": value for k, value in self.recall.items()},
            "recall@1": self.first,
            "recall@1_before": self.recall[1],
            "recall@1%": self.one_percent,
            "hit_rate": self.hit_rate,
        }


@dataclass(frozen=True)
class Errors:
    """Errors of photos, metres or degrees.

    Attributes:
        mean: their mean.
        median: their median.
        recall: limit to the share of photos whose error is not beyond it.
    """

    mean: Interval
    median: Interval
    recall: dict[float, Interval]

    @classmethod
    def of(cls, error: NDArray[np.float64], limits: Sequence[float]) -> Errors:
        """From the errors of at least one photo.

        Args:
            error: (photo,) not negative; inf where there is no answer.
            limits: limits of recall.
        """
        rng = np.random.default_rng(SEED)
        resampled = np.empty((2, RESAMPLED))
        with np.errstate(invalid="ignore"):
            for column in range(RESAMPLED):
                sample = rng.choice(error, len(error))
                resampled[:, column] = sample.mean(), np.median(sample)
            mean, median = (
                Interval.of_photos(float(value), each, len(error))
                for value, each in zip((error.mean(), np.median(error)), resampled, strict=True)
            )
        recall = {limit: share_interval(error <= limit) for limit in limits}
        return cls(mean, median, recall)

    def figures(self, unit: str) -> dict[str, Interval]:
        """The figures by name, such as `mean_m` and `recall@1m` for the unit "m"."""
        recall = {f"recall@{limit:g}{unit}": value for limit, value in self.recall.items()}
        return {f"mean_{unit}": self.mean, f"median_{unit}": self.median, **recall}


@dataclass(frozen=True)
class CrossViewEvaluation:
    """Figures of a model on a split of a data set of pairs.

    Attributes:
        dataset: name of the data set.
        split: the split.
        photos: number of photos.
        retrieval: recall among all references; None if the model does not retrieve, or each photo has its own view.
        final: errors of the final places, in the image that was chosen among all; None if places are not metric.
        localized: errors of the places in the positives; None if the model has no decoder or places are not metric.
        heading: errors of headings in the positives, degrees; None if headings were given.
        lateral: errors across the heading, metres; of photos with a view of their own (KITTI), else None.
        longitudinal: errors along the heading.
        notes: remarks, such as why there are no metres.
        unreadable: photos and aerial images that could not be read, with reasons; their photos are left out.
    """

    dataset: str
    split: str
    photos: int
    retrieval: Retrieval | None = None
    final: Errors | None = None
    localized: Errors | None = None
    heading: Errors | None = None
    lateral: Errors | None = None
    longitudinal: Errors | None = None
    notes: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def area(self) -> str:
        """Its area in the published tables; that of no table if cities of VIGOR are missing or labels are partial."""
        return published_area(self.dataset, self.split)

    @property
    def published(self) -> tuple[PublishedPairs, ...]:
        """Published results of the same data set and protocol."""
        return published_pairs(self.area)

    def figures(self) -> dict[str, dict[str, Interval]]:
        """All figures by group and name."""
        groups = {
            "retrieval": self.retrieval.figures() if self.retrieval else {},
            "final": self.final.figures("m") if self.final else {},
            "localized": self.localized.figures("m") if self.localized else {},
            "heading": self.heading.figures("deg") if self.heading else {},
            "lateral": self.lateral.figures("m") if self.lateral else {},
            "longitudinal": self.longitudinal.figures("m") if self.longitudinal else {},
        }
        return {group: figures for group, figures in groups.items() if figures}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "photos": self.photos,
            "references": self.retrieval.references if self.retrieval else None,
            **{
                group: {name: _plain(value) for name, value in figures.items()}
                for group, figures in self.figures().items()
            },
            "notes": list(self.notes),
            "unreadable": dict(self.unreadable),
            "published": [
                {"table": each.table, "method": each.method, **each.figures} for each in self.published
            ],
        }  # fmt: skip


def _plain(interval: Interval) -> dict[str, float | None]:
    """An interval for JSON, which has no infinity."""
    values = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def published_area(dataset: str, split: str) -> str:
    """The area in the published tables that a data set and a split are; the two joined if it is none."""
    name = dataset if dataset in (SAME, CROSS) and split == "test" else f"{dataset}, {split}"
    return name if name in (SAME, CROSS, CVUSA, CVACT_VAL, CVACT_TEST) else f"{dataset}, {split}"


def heading_error(estimate: NDArray[np.float64], heading: NDArray[np.float64]) -> NDArray[np.float64]:
    """Absolute differences of headings, degrees 0..180."""
    error: NDArray[np.float64] = np.abs((estimate - heading + 180) % 360 - 180)
    return error


def along_and_across(
    difference: NDArray[np.float64], heading: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Absolute errors along and across the true heading.

    Args:
        difference: (photo, 2) metres right and up from the true to the estimated place.
        heading: (photo,) degrees clockwise from up.
    """
    sin, cos = np.sin(np.radians(heading)), np.cos(np.radians(heading))
    right, up = difference.T
    return np.abs(sin * right + cos * up), np.abs(cos * right - sin * up)


def final_errors(dataset: PairDataset, chosen: NDArray[np.int64], offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances of final places from the photos, metres.

    Args:
        dataset: the photos.
        chosen: (photo,) index of the aerial image that each photo is placed in.
        offset: (photo, 2) metres right and up of its centre.

    Returns:
        (photo,): in the positive and in semi-positives by their labels, in other images by positions on the ellipsoid;
        inf in these if the data set has no positions.
    """
    error = np.full(len(dataset), np.inf)
    if dataset.located:
        latitude, longitude = dataset.position[chosen].T
        place, camera = moved(latitude, longitude, *offset.T), dataset.camera()
        error = np.asarray(geodesic_distance(*place.T, *camera.T), np.float64)
    for column in range(dataset.semi.shape[1]):
        same = dataset.semi[:, column] == chosen
        error[same] = np.hypot(*(offset - dataset.semi_offset[:, column])[same].T)
    same = dataset.positive == chosen
    error[same] = np.hypot(*(offset - dataset.offset)[same].T)
    return error
