"""How far probabilities can be believed: temperatures that make them true, and how true they are on held-out photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.tile_table import TileTable
from jzi.locate.posterior import (
    ESTIMATES,
    Points,
    Posterior,
    greedy_posterior,
    most_probable_cells,
    most_probable_discs,
    posterior,
)
from jzi.store.pyramid import geodesic_distance

#: Photos whose posteriors are worked out at once.
BATCH = 32

#: Bins of the calibration error, as in Guo et al. 2017.
BINS = 15

#: A logit that no temperature makes likely, and that has a gradient, which -inf has not.
NOTHING = -1e9

#: Shares of the photos, the most confident ones, whose recall is told.
COVERAGES = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1)


@torch.no_grad()
def _logits(decoder: ZoomDecoder, table: TileTable, samples: ZoomDataset) -> Tensor:
    """(photo, step, action), teacher-forced; next to nothing, but finite, where there is no imagery."""
    parts = []
    for index in torch.arange(len(samples), device=table.device).split(decoder.config.batch(1024)):
        tiles, query = samples.tiles[index], samples.query[index, 0].float()
        seen, below = table.read(decoder.config, tiles, query)
        logits = decoder(query, seen, samples.actions[index], below)
        parts.append(logits.masked_fill(~table.child_mask[tiles], NOTHING))
    return torch.cat(parts)


def fit_temperature(decoder: ZoomDecoder, table: TileTable, samples: ZoomDataset) -> list[float]:
    """One temperature per step, which makes the steps' probabilities as likely as they can be on held-out photos.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Args:
        decoder: in eval mode.
        table: the map.
        samples: held-out photos, at least one.

    Returns:
        L numbers, 0.05..20; what logits are divided by.
    """
    logits, actions = _logits(decoder, table, samples).double().cpu(), samples.actions.cpu()
    log_temperature = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scaled = logits / log_temperature.clamp(-3, 3).exp()[:, None]
        value = F.cross_entropy(scaled.flatten(0, 1), actions.flatten())
        value.backward()
        return value

    optimizer.step(loss)
    return [float(value) for value in log_temperature.detach().clamp(-3, 3).exp()]


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Expected calibration error over `BINS` bins of equal width: the mean gap of confidence and share right."""
    return sum(abs(bin.confidence - bin.right) * bin.photos for bin in reliability(confidence, right)) / len(right)


@dataclass(frozen=True)
class Bin:
    """Photos of about the same confidence: their number, mean confidence, and the share that was right."""

    photos: int
    confidence: float
    right: float


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> list[Bin]:
    """Bins of equal width that hold any photo, from unsure to sure."""
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        Bin(int((which == bin).sum()), float(confidence[which == bin].mean()), float(right[which == bin].mean()))
        for bin in np.unique(which)
    ]


@dataclass(frozen=True)
class Answers:
    """One answer to each of several photos.

    Attributes:
        error: (photo,) metres from where they were taken.
        confidence: (photo,) 0..1 that they were taken there: in the cell, or within the radius.
    """

    error: NDArray[np.float64]
    confidence: NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found on held-out photos.

    Attributes:
        photos: how many.
        radius: metres; what confidences of the default estimate are about.
        answers: of each estimate, with the model's temperatures.
        uncalibrated: of the default estimate, without them.
        residual: mean probability of what search did not reach.
    """

    photos: int
    radius: float
    answers: dict[str, Answers]
    uncalibrated: Answers
    residual: float

    def recall(self, estimate: str, radius: float) -> float:
        """Share of photos whose answer lies within a radius."""
        return float((self.answers[estimate].error <= radius).mean())

    @property
    def error_before(self) -> float:
        """Expected calibration error of the default estimate without temperatures."""
        return calibration_error(self.uncalibrated.confidence, self.uncalibrated.error <= self.radius)

    @property
    def error_after(self) -> float:
        """The same with them."""
        answers = self.answers["radius"]
        return calibration_error(answers.confidence, answers.error <= self.radius)

    def abstaining(self, confidence: float) -> tuple[float, float]:
        """Coverage and recall within the radius where answers of less confidence are withheld; nan if all are."""
        answers = self.answers["radius"]
        kept = answers.confidence >= confidence
        return float(kept.mean()), float((answers.error[kept] <= self.radius).mean()) if kept.any() else float("nan")

    def covering(self, share: float) -> tuple[float, float]:
        """The least confidence among the most confident photos of a share, and their recall within the radius."""
        answers = self.answers["radius"]
        order = (-answers.confidence).argsort(kind="stable")[: max(1, round(share * self.photos))]
        return float(answers.confidence[order].min()), float((answers.error[order] <= self.radius).mean())

    def to_text(self, radii: tuple[float, ...]) -> str:
        """For people."""
        names = {
            "greedy": "greedy search's cell",
            "map": "the most probable cell",
            "radius": f"the most within {self.radius:g} m",
        }
        lines = [f"  {'recall within':<28}" + "".join(f"{f'{radius:g} m':>9}" for radius in radii)]
        lines += [
            f"  {names[estimate]:<28}" + "".join(f"{self.recall(estimate, radius):9.2%}" for radius in radii)
            for estimate in self.answers
        ]
        lines.append(
            f"  confidence is {self.error_after:.1%} off on average ({self.error_before:.1%} before calibration); "
            f"search left out {self.residual:.1%} of the probability"
        )
        lines.append(f"  {'of the most confident':<28}" + "".join(f"{share:>8.0%} " for share in COVERAGES))
        kept = "".join(f"{self.covering(share)[1]:>8.1%} " for share in COVERAGES)
        lines.append(f"  {f'are within {self.radius:g} m':<28}" + kept)
        return "\n".join(lines)

    def to_dict(self, radii: tuple[float, ...]) -> dict[str, Any]:
        """Plain values, for JSON."""
        covered = {f"{share:g}": dict(zip(("confidence", "recall"), self.covering(share), strict=True))
                   for share in COVERAGES}  # fmt: skip
        return {
            "photos": self.photos,
            "radius_m": self.radius,
            "estimates": {
                name: {f"recall@{radius:g}m": self.recall(name, radius) for radius in radii} for name in self.answers
            },
            "calibration_error_before": self.error_before,
            "calibration_error": self.error_after,
            "coverage": covered,
            "residual": self.residual,
        }


def calibrate(
    decoder: ZoomDecoder,
    table: TileTable,
    samples: ZoomDataset,
    *,
    temperature: Tensor | None,
    radius: float = 50.0,
    beams: int | None = None,
) -> Calibration:
    """Answer held-out photos in every way, and compare with where they were taken.

    Args:
        decoder: in eval mode.
        table: the map.
        samples: the photos.
        temperature: (L,) the model's; None for one that was never calibrated.
        radius: metres, of the default estimate.
        beams: as in `posterior`.
    """
    found: dict[str, list[Answers]] = {name: [] for name in (*ESTIMATES, "plain")}
    residual = []
    for part in tqdm(_batches(len(samples)), unit_scale=BATCH, unit="photo", desc="posterior"):
        query = samples.query[torch.from_numpy(part).to(samples.query.device), 0]
        truth = samples.latitude[part], samples.longitude[part]
        calibrated = posterior(decoder, table, query, beams=beams, temperature=temperature)
        plain = calibrated if temperature is None else posterior(decoder, table, query, beams=beams)
        residual.append(calibrated.residual)
        greedy = greedy_posterior(decoder, table, query, temperature)
        found["greedy"].append(_answers(greedy, most_probable_cells(greedy), truth))
        found["map"].append(_answers(calibrated, most_probable_cells(calibrated), truth))
        found["radius"].append(_answers(calibrated, most_probable_discs(calibrated, radius), truth))
        found["plain"].append(_answers(plain, most_probable_discs(plain, radius), truth))
    joined = {
        name: Answers(np.concatenate([a.error for a in parts]), np.concatenate([a.confidence for a in parts]))
        for name, parts in found.items()
    }
    uncalibrated = joined.pop("plain")
    return Calibration(len(samples), radius, joined, uncalibrated, float(np.concatenate(residual).mean()))


def _answers(found: Posterior, points: Points, truth: tuple[NDArray[np.float64], NDArray[np.float64]]) -> Answers:
    latitude, longitude = found.pyramid.unproject(points.x[:, 0], points.y[:, 0])
    return Answers(geodesic_distance(*truth, latitude, longitude), np.minimum(points.probability[:, 0], 1.0))


def _batches(count: int) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
