"""Evaluate UnifyGeo on a split of a data set of pairs: retrieval, re-ranking, and the place in the chosen image.

Aerial images are embedded once. For a batch of photos, the images among their first candidates, and their positives,
are read again for the features that matching and decoding need: those of all images would not fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.encode.photo.pair_images import PairImages, Pixels
from jzi.errors import PairsError
from jzi.evaluate.cross_view import (
    LIMITS_DEG,
    RADII,
    CrossViewEvaluation,
    Errors,
    Ranking,
    Retrieval,
    along_and_across,
    final_errors,
    heading_error,
    rank_references,
)
from jzi.refine.azimuth import log_heading_prior
from jzi.refine.networks.model import UnifyGeo
from jzi.refine.outputs import AerialFeatures, GroundFeatures, PhotoInput, RefinerOutput, level0_max
from jzi.refine.rerank import rerank_scores
from jzi.store.photos.pairs import PairDataset

#: Mean and standard deviation of ImageNet's pixels, 0..1.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Standard deviation of headings that are known, degrees, for a network that compares several.
ALIGNED_SD_DEG = 1.0


@dataclass(frozen=True)
class PairOptions:
    """What to evaluate.

    Attributes:
        retrieves: whether the network's embeddings are trained.
        locates: whether its decoder is trained.
        rerank: whether to re-rank the first candidates by equation 4.
        top: number of candidates that are re-ranked.
        batch_size: images per forward pass.
        heading: (photo,) headings that panoramas are rolled to, degrees clockwise; None to leave them aligned.
        all_references: whether to search all aerial images, or those of the photos and their semi-positives only.
    """

    retrieves: bool = True
    locates: bool = True
    rerank: bool = True
    top: int = 5
    batch_size: int = 32
    heading: NDArray[np.float64] | None = None
    all_references: bool = True


@dataclass(frozen=True)
class PairAnswers:
    """Answers for photos.

    Attributes:
        chosen: (photo,) indices of the aerial images of the final places.
        final: (photo, 2) metres right and up of their centres.
        place: (photo, 2) the same in the positives' views; nan where the image cannot be read.
        heading: (photo,) headings in the positives' views.
    """

    chosen: NDArray[np.int64]
    final: NDArray[np.float64]
    place: NDArray[np.float64]
    heading: NDArray[np.float64]

    def take(self, photos: NDArray[np.int64]) -> PairAnswers:
        """Those for some of the photos."""
        return PairAnswers(self.chosen[photos], self.final[photos], self.place[photos], self.heading[photos])


@dataclass(frozen=True)
class PairOutcome:
    """What an evaluation has found of each photo.

    Attributes:
        dataset: the photos that were evaluated.
        answers: their answers.
        ranking: where their aerial images stand among all; None if none is searched.
        located: whether the places in aerial images are those of a trained decoder.
    """

    dataset: PairDataset
    answers: PairAnswers
    ranking: Ranking | None
    located: bool

    @property
    def metric(self) -> bool:
        """Whether errors are metres; else they are numbers of aerial images before the right one."""
        return self.located and not self.dataset.not_metric

    def errors(self) -> NDArray[np.float64]:
        """(photo,) distances of the places from the true ones, metres, or numbers of images before the right one."""
        if self.metric and self.ranking is not None:
            return final_errors(self.dataset, self.answers.chosen, self.answers.final)
        if self.metric or self.ranking is None:
            return np.hypot(*(self.answers.place - self.dataset.in_view()[0]).T)
        return self.ranking.rank.astype(np.float64)


class PairEvaluator:
    """Evaluates a network on a data set.

    Args:
        network: the network, on its device, in eval mode.
        dataset: the photos and the aerial images.
        options: what to evaluate.
        progress: whether to show a progress bar.
    """

    def __init__(
        self, network: UnifyGeo, dataset: PairDataset, options: PairOptions, *, progress: bool = False
    ) -> None:
        self.network, self.dataset, self.options = network, dataset, options
        config = network.config
        shape = (config.ground_height, config.ground_width)
        self.images = PairImages(dataset, shape, config.photo_width, config.aerial)
        self.device = next(network.parameters()).device
        self.show = progress
        #: Whether each photo is searched among all aerial images, rather than compared with its own view.
        self.searches = options.retrieves and not dataset.turn_deg

    @torch.inference_mode()
    def run(self) -> tuple[CrossViewEvaluation, PairOutcome]:
        """Evaluate; returns the figures, and what they are of.

        Raises:
            PairsError: no photo of the data set can be read together with its aerial image.
        """
        readable, ground, ranking, top = self._rank()
        dataset = self.dataset.take(readable)
        answers = self._locate(dataset, ground, top, ranking)
        if not self.searches and self.options.locates:
            shown = np.flatnonzero(np.isfinite(answers.place).all(1))
            answers, dataset, readable = answers.take(shown), dataset.take(shown), readable[shown]
        if not len(dataset):
            raise PairsError(f"no aerial image of {self.dataset.name} can be read: check the files")
        figures = self._figures(dataset, readable, ranking, answers)
        return figures, PairOutcome(dataset, answers, ranking, self.options.locates)

    @torch.inference_mode()
    def candidates(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """The first candidates of photos by their embeddings.

        Returns:
            (photo,) indices of the photos that can be read, (photo, k) of the aerial images, the most similar first,
            and (photo, k) their cosine similarities.

        Raises:
            PairsError: no photo or aerial image can be read, or the network was not trained to retrieve.
        """
        readable, _, ranking, top = self._rank()
        if ranking is None:
            raise PairsError(f"the network retrieves no images of {self.dataset.name}: give a list of candidates")
        return readable, top, ranking.similarity

    def _rank(self) -> tuple[NDArray[np.int64], GroundFeatures, Ranking | None, NDArray[np.int64]]:
        """Indices of photos, their features, their ranking, if images are searched, and their candidates."""
        reference, searched = self._embed_references() if self.searches else (None, np.zeros(0, np.int64))
        readable, ground = self._encode_photos(searched)
        dataset = self.dataset.take(readable)
        if reference is None or ground.embedding is None:
            return readable, ground, None, dataset.positive[:, None]
        number = np.full(len(self.dataset.references), -1)
        number[searched] = np.arange(len(searched))
        semi = np.where(dataset.semi >= 0, number[dataset.semi], -1)
        ranking = rank_references(
            ground.embedding.to(self.device), reference, number[dataset.positive], semi, self.options.top
        )
        return readable, ground, ranking, searched[ranking.top]

    # Features

    def _embed_references(self) -> tuple[Tensor, NDArray[np.int64]]:
        """(reference, feature) embeddings of the aerial images that can be read, and their indices."""
        wanted = np.arange(len(self.dataset.references))
        if not self.options.all_references:
            wanted = np.unique(np.concatenate([self.dataset.positive, self.dataset.semi.ravel()]))
            wanted = wanted[wanted >= 0]
        whole = np.zeros(3)
        images = self.images.views((int(index), whole) for index in wanted)
        parts, kept = [], []
        for index, pixels in self._batches(wanted, images, "aerial images"):
            parts.append(self.network.embed_aerial(pixels).float())
            kept.append(index)
        if not kept:
            reason = next(iter(self.images.unreadable.values()), "there are none")
            raise PairsError(f"no aerial image of {self.dataset.name} can be read: {reason}")
        return torch.cat(parts), np.concatenate(kept)

    def _encode_photos(self, searched: NDArray[np.int64]) -> tuple[NDArray[np.int64], GroundFeatures]:
        """Indices of the photos that can be read and whose positive is searched, and their features, on the CPU."""
        wanted = np.arange(len(self.dataset))
        if self.searches:
            wanted = wanted[np.isin(self.dataset.positive, searched)]
        parts, kept = [], []
        images = self.images.photos(wanted.tolist())
        for index, pixels in self._batches(wanted, images, "photos"):
            photos = self._photo_input(index, pixels)
            if self.options.locates:
                parts.append(_to(self.network.ground(photos), "cpu"))
            else:
                flat = photos.hfov_deg.cpu()[:, None]
                parts.append(GroundFeatures((), flat, flat, self.network.embed_ground(photos).float().cpu()))
            kept.append(index)
        if not kept:
            reason = next(iter(self.images.unreadable.values()), "there is none with an aerial image")
            raise PairsError(f"no photo of the {self.dataset.split} split of {self.dataset.name} can be read: {reason}")
        return np.concatenate(kept), _joined(parts)

    def _photo_input(self, index: NDArray[np.int64], pixels: Tensor) -> PhotoInput:
        dataset, rolls = self.dataset, self.network.config.rolls
        expected = torch.full((len(index),), dataset.expected_deg)
        sd = torch.full((len(index),), dataset.turn_deg or ALIGNED_SD_DEG)
        if self.options.heading is not None:
            expected = torch.full((len(index),), torch.nan)
            shift = np.rint(-self.options.heading[index] * pixels.shape[-1] / 360).astype(int)
            pixels = torch.stack([each.roll(int(by), -1) for each, by in zip(pixels, shift, strict=True)])
        prior = torch.zeros(len(index), 1) if rolls == 1 else log_heading_prior(expected, sd, rolls)
        hfov = torch.from_numpy(dataset.hfov_deg[index]).float()
        return PhotoInput(hfov, hfov >= 360, prior, pixels=pixels).to(self.device)

    def _batches(
        self, index: NDArray[np.int64], images: Iterator[Pixels | None], what: str
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Indices and normalised pixels, (n, 3, rows, cols), of the images that can be read, in batches."""
        bar = tqdm(zip(index, images, strict=True), total=len(index), desc=what, disable=not self.show, leave=False)
        readable = ((number, each) for number, each in bar if each is not None)
        while batch := list(islice(readable, self.options.batch_size)):
            yield np.array([number for number, _ in batch]), to_input([each for _, each in batch], self.device)

    # Places

    def _locate(
        self, dataset: PairDataset, ground: GroundFeatures, top: NDArray[np.int64], ranking: Ranking | None
    ) -> PairAnswers:
        """Choose among candidates, and decode the place in the chosen image and in the positive."""
        if not self.options.locates:
            nowhere = np.zeros((len(dataset), 2))
            return PairAnswers(top[:, 0], nowhere, nowhere, np.zeros(len(dataset)))
        size = max(1, self.options.batch_size // (top.shape[1] + 1))
        parts = []
        for start in tqdm(range(0, len(dataset), size), desc="places", disable=not self.show, leave=False):
            rows = np.arange(start, min(start + size, len(dataset)))
            photos = _to(ground.select(torch.from_numpy(rows)), self.device)
            similarity = None if ranking is None or not self.options.rerank else ranking.similarity[rows]
            parts.append(self._locate_batch(dataset.take(rows), photos, top[rows], similarity))
        names = [each.name for each in fields(PairAnswers)]
        return PairAnswers(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def _locate_batch(
        self,
        dataset: PairDataset,
        photos: GroundFeatures,
        top: NDArray[np.int64],
        similarity: NDArray[np.float64] | None,
    ) -> PairAnswers:
        """Answers for a batch of photos with (photo, k) candidates and their similarities; None not to re-rank."""
        if self.searches:
            distinct, place = np.unique(np.concatenate([top, dataset.positive[:, None]], 1), return_inverse=True)
            place = place.reshape(len(top), -1)
            views = [(int(index), np.zeros(3)) for index in distinct]
        else:  # each photo has a view of its own
            place = np.repeat(np.arange(len(dataset))[:, None], 2, 1)
            views = [(int(index), view) for index, view in zip(dataset.positive, dataset.view, strict=True)]
        read = list(self.images.views(views))
        black = np.zeros((self.images.aerial, self.images.aerial, 3), np.uint8)
        aerial = self.network.aerial(to_input([black if each is None else each for each in read], self.device))
        chosen = np.zeros(len(top), np.int64)
        if similarity is not None:
            match = self._best_match(photos, aerial).gather(1, torch.from_numpy(place[:, :-1]).to(self.device))
            cosine = torch.from_numpy(similarity).to(self.device, match.dtype)
            chosen = rerank_scores(cosine, match).argmax(1).cpu().numpy()
        offset, heading = self._decode(photos, aerial, place[:, -1], dataset, dataset.positive)
        index, final = np.take_along_axis(top, chosen[:, None], 1)[:, 0], offset
        if (index != dataset.positive).any():
            at = np.take_along_axis(place[:, :-1], chosen[:, None], 1)[:, 0]
            final, _ = self._decode(photos, aerial, at, dataset, index)
        offset = np.where(np.array([read[each] is None for each in place[:, -1]])[:, None], np.nan, offset)
        return PairAnswers(index, final, offset, heading)

    def _best_match(self, photos: GroundFeatures, aerial: AerialFeatures) -> Tensor:
        """(photo, image) greatest cosine of level 0."""
        cosines = self.network.match_level0(photos, aerial)
        mask = torch.ones(cosines.shape[:2] + cosines.shape[-2:], dtype=torch.bool, device=cosines.device)
        return level0_max(cosines.float(), mask, photos.log_heading, self.network.config.temperature)

    def _decode(
        self,
        photos: GroundFeatures,
        aerial: AerialFeatures,
        place: NDArray[np.int64],
        dataset: PairDataset,
        reference: NDArray[np.int64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Metres right and up in views of aerial images, and headings there, degrees."""
        output = self.network.match(photos, aerial.select(torch.from_numpy(place).to(self.device)))
        return most_probable(output, dataset.sides(reference)), most_probable_heading(output)

    # Figures

    def _figures(
        self,
        dataset: PairDataset,
        readable: NDArray[np.int64],
        ranking: Ranking | None,
        answers: PairAnswers,
    ) -> CrossViewEvaluation:
        options, notes = self.options, []
        retrieval = final_error = localized = heading = lateral = longitudinal = None
        if ranking is not None:
            reranked = options.rerank and options.locates
            retrieval = Retrieval.of(ranking, answers.chosen == dataset.positive if reranked else None)
        if dataset.not_metric:
            notes.append(f"no metres: {dataset.not_metric}")
        elif ranking is not None:
            final_error = Errors.of(final_errors(dataset, answers.chosen, answers.final), RADII)
        if options.locates:
            place, true_heading = dataset.in_view()
            if options.heading is not None:
                true_heading = (true_heading + options.heading[readable]) % 360
            difference = answers.place - place
            if not dataset.not_metric:
                localized = Errors.of(np.hypot(*difference.T), RADII)
            if self.network.config.rolls > 1 and (options.heading is not None or dataset.turn_deg):
                away = heading_error(answers.heading, true_heading)
                heading = Errors.of(away, LIMITS_DEG)
            if dataset.turn_deg:
                along, across = along_and_across(difference, true_heading)
                lateral, longitudinal = Errors.of(across, RADII), Errors.of(along, RADII)
        unknown = "" if options.heading is None else ", unknown orientation"  # compares with no table of the paper
        return CrossViewEvaluation(
            dataset=f"{dataset.name}{unknown}",
            split=dataset.split,
            photos=len(dataset),
            retrieval=retrieval,
            final=final_error,
            localized=localized,
            heading=heading,
            lateral=lateral,
            longitudinal=longitudinal,
            notes=tuple(notes),
            unreadable=dict(self.images.unreadable),
        )


def evaluate_pairs(
    network: UnifyGeo, dataset: PairDataset, options: PairOptions, *, progress: bool = False
) -> CrossViewEvaluation:
    """Evaluate a network, in eval mode, on a split of a data set of pairs.

    Images that cannot be read are left out of photos and references, and named in the result.

    Raises:
        PairsError: no photo of the data set can be read together with its aerial image.
    """
    return PairEvaluator(network, dataset, options, progress=progress).run()[0]


def to_input(images: list[Pixels], device: torch.device) -> Tensor:
    """(n, 3, rows, cols) pixels as the network takes them, of n images (rows, cols, 3)."""
    pixels = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(each, device=device)[:, None, None] for each in (MEAN, DEVIATION))
    return (pixels - mean) / deviation


def most_probable(output: RefinerOutput, side_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) metres right and up of the windows' centres of the most probable pixels (the paper's estimate).

    Args:
        output: of n photos.
        side_m: (n,) sides of the windows, metres.
    """
    size = output.logits.shape[-1]
    best = output.logits.flatten(1).argmax(1).cpu().numpy()
    share = np.stack([(best % size + 0.5) / size - 0.5, 0.5 - (best // size + 0.5) / size], -1)
    return share * side_m[:, None]


def most_probable_heading(output: RefinerOutput) -> NDArray[np.float64]:
    """(n,) degrees: the most probable of R headings and its neighbours, averaged by their probability."""
    posterior = output.heading_posterior().float().cpu().numpy()
    rolls = posterior.shape[1]
    best = posterior.argmax(1)
    if rolls < 3:
        return best * (360.0 / rolls)
    near = np.stack([posterior[np.arange(len(best)), (best + by) % rolls] for by in (-1, 0, 1)], 1)
    shift = (near[:, 2] - near[:, 0]) / np.maximum(near.sum(1), 1e-12)
    return np.asarray((best + shift) * (360.0 / rolls) % 360, np.float64)


Features = TypeVar("Features", GroundFeatures, AerialFeatures)


def _to(features: Features, device: torch.device | str) -> Features:
    """Features on a device."""
    return _with_tensors([features], lambda values: values[0].to(device))


def _joined(parts: Sequence[GroundFeatures]) -> GroundFeatures:
    """Features of several batches."""
    return _with_tensors(parts, lambda values: torch.cat(list(values)))


def _with_tensors(parts: Sequence[Features], change: Callable[[Sequence[Tensor]], Tensor]) -> Features:
    """The first of several features, each tensor replaced with the result of `change` on that tensor of all of them."""
    values: dict[str, Any] = {}
    for each in fields(parts[0]):
        found = [getattr(part, each.name) for part in parts]
        if isinstance(found[0], tuple):
            values[each.name] = tuple(change(level) for level in zip(*found, strict=True))
        elif found[0] is not None:
            values[each.name] = change(found)
    return replace(parts[0], **values)
