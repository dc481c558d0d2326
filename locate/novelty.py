"""How unlike the training photos a picture is, whatever it fits on the map.

Experts compare a picture with places, and find some that fit a drawing or a screenshot too. Embeddings of photos lie
together, and those of pictures of something else beside them: the Mahalanobis distance from the training photos (Lee
et al. 2018) separates them. Its logarithm is roughly normal among photos, with a mean and a deviation that are measured
on validation photos; a picture farther away than all but a share p of them has its odds of being from the area
multiplied by -e p ln p, the least that evidence of this kind amounts to (Sellke, Bayarri and Berger 2001).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from jzi.errors import ModelError
from jzi.store.info import EncoderInfo
from jzi.store.model_config import HINT, NoveltyConfig
from jzi.store.tensors import check_finite, check_header

#: Largest number of training photos that are read, and of directions whose variance is measured singly.
PHOTOS, DIRECTIONS = 8192, 256

#: Share of the mean variance that is added to each direction, so that none in which photos hardly differ decides.
SHRINKAGE = 0.1

#: Fewest training and validation photos that are measured.
MIN_PHOTOS = 50

TINY = 1e-12


@dataclass(frozen=True)
class Novelty:
    """Distances of photos from the training photos.

    Attributes:
        mean: (feature,) mean embedding of the training photos; all tensors are float64.
        directions: (direction, feature) unit vectors in which they differ most, orthogonal.
        variance: (direction + 1,) their variance in each of them, and on average in all other directions.
        config: distances of validation photos.
    """

    mean: Tensor
    directions: Tensor
    variance: Tensor
    config: NoveltyConfig

    @classmethod
    def fit(cls, training: Tensor, validation: Tensor) -> Novelty | None:
        """Measure the training photos, and the distances of validation photos from them.

        Args:
            training: (photo, feature) embeddings.
            validation: (photo, feature).

        Returns:
            None if there are fewer than `MIN_PHOTOS` of either.
        """
        if min(len(training), len(validation)) < MIN_PHOTOS:
            return None
        photos = training[:: -(-len(training) // PHOTOS)].double().cpu()
        mean, width = photos.mean(0), photos.shape[1]
        variance, vectors = torch.linalg.eigh(torch.cov(photos.T).view(width, width))
        count = min(width, DIRECTIONS)
        other = variance[: width - count].sum() / max(1, width - count)
        kept = torch.cat([variance[width - count :], other[None]]).clamp(min=0.0)
        kept = kept + SHRINKAGE * variance.mean() + TINY
        found = cls(mean, vectors[:, width - count :].T.contiguous(), kept, NoveltyConfig(0.0, 1.0, len(validation)))
        log = found.log_distance(validation)
        config = NoveltyConfig(float(log.mean()), float(log.std()) + TINY, len(validation))
        return replace(found, config=config)

    def log_distance(self, query: Tensor) -> NDArray[np.float64]:
        """(photo,) logarithm of the squared Mahalanobis distance from the training photos.

        Args:
            query: (photo, feature) embeddings.
        """
        offset = query.double().cpu() - self.mean
        along = offset @ self.directions.T
        other = (offset.square().sum(1) - along.square().sum(1)).clamp(min=0.0)
        distance = (along.square() / self.variance[:-1]).sum(1) + other / self.variance[-1]
        return np.asarray((distance + TINY).log().numpy())

    def log_odds(self, query: Tensor) -> NDArray[np.float64]:
        """(photo,) what the distance adds to the log-odds of being from the area, 0 or less.

        Args:
            query: (photo, feature) embeddings.
        """
        above = torch.from_numpy((self.log_distance(query) - self.config.center) / self.config.scale)
        share = (torch.erfc(above / math.sqrt(2)) / 2).clamp(1 / (self.config.photos + 1), 1 / math.e)
        return np.asarray((1 + share.log() + (-share.log()).log()).numpy())

    def save(self, path: Path) -> None:
        """Write the measures of the training photos as one safetensors file."""
        tensors = {"mean": self.mean, "directions": self.directions, "variance": self.variance}
        save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, path)

    @classmethod
    def load(cls, path: Path, config: NoveltyConfig, encoder: EncoderInfo) -> Novelty:
        """Read what `save` wrote.

        Args:
            path: the file, of which the digest was verified.
            config: distances of validation photos.
            encoder: the encoder of the photos.

        Raises:
            ModelError: the file is damaged, or of another encoder.
        """
        width, count = encoder.width, min(encoder.width, DIRECTIONS)
        check_header(path, {"mean": (width,), "directions": (count, width), "variance": (count + 1,)})
        tensors = {name: tensor.double() for name, tensor in load_file(path).items()}
        check_finite(path, tensors)
        if not (tensors["variance"] > 0).all():
            raise ModelError(f"{path} has variances that are not positive: {HINT}")
        return cls(tensors["mean"], tensors["directions"], tensors["variance"], config)
