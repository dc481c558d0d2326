"""Locate the photos of a batch: decoded in threads, encoded together, and located together if they are asked alike."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jzi.encode.rasters.imagery import Imagery
from jzi.errors import JziError
from jzi.export.page_data import photo_data
from jzi.locate.answer.location import LocateOptions, Location
from jzi.locate.answer.photo_notes import PhotoRecord, exif_position
from jzi.locate.locator import Locator
from jzi.locate.priors.prior_weights import Prior
from jzi.serve.limits import Limits
from jzi.serve.photos import DecodedPhoto, PhotoDecoder
from jzi.serve.queue import Question
from jzi.store.geometry.geojson import parse_polygons

#: Photos that are encoded together: on a CPU more do not make the encoder faster, but delay the first answer.
CPU_BATCH, GPU_BATCH = 8, 32


def batch_size(device: torch.device) -> int:
    """Photos that are encoded together on a device."""
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH


class BatchLocator:
    """Computes the answers of jobs.

    Args:
        locator: locates the photos; its encoder is loaded.
        imagery: background of the zoom's tiles; None for plain ones.
        limits: limits on photos.
    """

    def __init__(self, locator: Locator, imagery: Imagery | None, limits: Limits) -> None:
        self.locator, self.imagery, self.limits = locator, imagery, limits
        encoder = locator.encoder
        pixels = int(limits.megapixels * 1e6)
        self._decoder = PhotoDecoder(encoder.photo_shape, encoder.resampling, pixels, fit=encoder.fit)
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="jzi-decode")

    def __call__(self, jobs: Sequence[Question]) -> None:
        """Finish every job; those whose clients are known to have gone (`abandoned`) are dropped between the steps."""
        photos = {}
        for job, photo in zip(jobs, self._pool.map(self._decode, jobs), strict=True):
            if isinstance(photo, JziError):
                job.finish(photo)
            elif photo is not None:
                photos[job] = photo
        photos = {job: photo for job, photo in photos.items() if not job.abandoned}
        if not photos:
            return
        embeddings, tokens = self.locator.embed(np.stack([photo.pixels for photo in photos.values()]))
        embedded = {
            job: (embeddings[row : row + 1], None if tokens is None else tokens[row : row + 1])
            for row, job in enumerate(photos)
        }
        for group in self._alike(list(photos)):
            self._finish([job for job in group if not job.abandoned], photos, embedded)

    def close(self) -> None:
        """End the threads that decode."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, job: Question) -> DecodedPhoto | JziError | None:
        if job.abandoned:
            return None
        try:
            return self._decoder.decode(job.photo, job.name, preview=job.details)
        except JziError as error:
            return error

    def _alike(self, jobs: list[Question]) -> Iterator[list[Question]]:
        """Jobs to locate together: those with the same options and no prior, unless stages take long for each."""
        groups: dict[LocateOptions, list[Question]] = {}
        for job in jobs:
            if self.locator.stages or (job.near, job.within, job.region) != (None, None, None):
                yield [job]
            else:
                groups.setdefault(job.options, []).append(job)
        yield from groups.values()

    def _finish(
        self,
        jobs: list[Question],
        photos: dict[Question, DecodedPhoto],
        embedded: dict[Question, tuple[Tensor, Tensor | None]],
    ) -> None:
        """Finish jobs that are located together; if that fails, each by itself, as the error may be of one alone."""
        if not jobs:
            return
        try:
            prior = Prior(jobs[0].near, jobs[0].within, _polygons(jobs[0]))
            locator = self.locator.with_prior(prior.weight(self.locator.expert.area)) if prior else self.locator
            query = torch.cat([embedded[job][0] for job in jobs])
            names, data, tokens = [job.name for job in jobs], [job.photo for job in jobs], embedded[jobs[0]][1]
            records = [PhotoRecord.of(job.photo, photos[job].notes, exif_position(job.photo)) for job in jobs]
            locations = locator.locate_embeddings(query, jobs[0].options, names, data, tokens, records)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].finish(error)
            else:
                for job in jobs:
                    self._finish([job], photos, embedded)
            return
        for job, location in zip(jobs, locations, strict=True):
            try:
                job.finish(self._answer(job, photos[job], location, prior))
            except Exception as error:  # of one photo alone
                job.finish(error)

    def _answer(self, job: Question, photo: DecodedPhoto, location: Location, prior: Prior) -> dict[str, Any]:
        values = location.to_dict()
        if prior:
            values["prior"] = prior.to_dict()
        if photo.preview is not None:
            values["page"] = photo_data(photo.preview, location, None, self.imagery)
        return values


def _polygons(job: Question) -> tuple[dict[str, Any], ...]:
    return () if job.region is None else parse_polygons(job.region, "region")
