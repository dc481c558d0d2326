"""Locate the photos of a batch: decoded in threads, encoded together, located one after the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from jzi.encode.imagery import Imagery
from jzi.errors import JziError
from jzi.export.page_data import photo_data
from jzi.locate.locator import Locator
from jzi.locate.photo_notes import with_notes
from jzi.locate.prior_weights import Prior
from jzi.serve.limits import Limits
from jzi.serve.photos import DecodedPhoto, PhotoDecoder
from jzi.serve.queue import Job
from jzi.store.geojson import parse_polygons

#: Photos that are encoded together: on a CPU more do not make the encoder faster, but delay the first answer.
CPU_BATCH, GPU_BATCH = 8, 32


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
        self.size = CPU_BATCH if encoder.device.type == "cpu" else GPU_BATCH
        pixels = int(limits.megapixels * 1e6)
        self._decoder = PhotoDecoder(encoder.photo_shape, encoder.resampling, pixels, fit=encoder.fit)
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="jzi-decode")

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Finish every job; those whose clients have gone are dropped between the steps."""
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
        for index, (job, photo) in enumerate(photos.items()):
            if not job.abandoned:
                try:
                    one = slice(index, index + 1)
                    job.finish(self._answer(job, photo, embeddings[one], None if tokens is None else tokens[one]))
                except Exception as error:  # of one photo alone
                    job.finish(error)

    def close(self) -> None:
        """End the threads that decode."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, job: Job) -> DecodedPhoto | JziError | None:
        if job.abandoned:
            return None
        try:
            return self._decoder.decode(job.photo, job.name)
        except JziError as error:
            return error

    def _answer(self, job: Job, photo: DecodedPhoto, embedding: Tensor, tokens: Tensor | None) -> dict[str, Any]:
        polygons = () if job.region is None else parse_polygons(job.region, "region")
        prior = Prior(job.near, job.within, polygons)
        locator = self.locator
        if prior:
            locator = locator.with_prior(prior.weight(locator.expert.area))
        (location,) = locator.locate_embeddings(embedding, job.options, [job.name], [job.photo], tokens)
        location = with_notes(location, photo.notes, job.photo)
        values = location.to_dict()
        if prior:
            values["prior"] = prior.to_dict()
        if job.details:
            values["page"] = photo_data(photo.preview, location, None, self.imagery)
        return values
