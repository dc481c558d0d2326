"""Settings of training refiners."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from jzi.train.config.training import TrainingConfig
from jzi.train.config.values import (
    STRICT,
    Count,
    NotNegative,
    Positive,
    Share,
    raises_config_error,
)


@raises_config_error
@dataclass(frozen=True, config=STRICT)
class RefinerTrainingConfig(TrainingConfig):
    """Settings for training a refiner. Learning rate, decay and weights of the losses are UnifyGeo's.

    Attributes:
        init: folder of a refiner whose weights to start from; empty to start from scratch.
        offsets: where windows of training photos lie: "cell", as candidates of a search by cells will, or "uniform".
            They are never centred on the photo.
        semi: what to do with windows of other photos that show the photo's place too: leave them out of the negatives
            ("mask"), or count them as positives ("positive").
        sigma_m: standard deviation of the Gaussian around the true place, metres; at least a pixel. CCVPE's.
        decoder: weight of the loss of the place in the window.
        retrieval: weight of the loss between windows; for refiners that have embeddings of windows.
        matching: weight of the loss of the place at each level.
        rerank: weight of the loss of the place among all windows of a batch.
        heading_known: share of the photos with a known heading for which the refiner is given it, with noise.
        augment: whether pairs are flipped and turned, and tokens or parts of images dropped.
        gsd_jitter: factor by which the pixels of windows are enlarged at most, at random, when it is trained on images:
            for maps that may be coarser than that of the training; 1 for none.
        patience: epochs without a lower validation loss after which training ends.
        val_photos: maximum number of validation photos, evenly spaced.
    """

    epochs: Count = 40
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    learning_rate: NotNegative = 4.5e-4
    weight_decay: NotNegative = 0.04
    save_every_s: Positive = 30.0
    init: str = ""
    offsets: Literal["cell", "uniform"] = "cell"
    semi: Literal["mask", "positive"] = "mask"
    sigma_m: Positive = 0.55
    decoder: NotNegative = 1.0
    retrieval: NotNegative = 100.0
    matching: NotNegative = 10.0
    rerank: NotNegative = 1.0
    heading_known: Share = 0.5
    augment: bool = True
    gsd_jitter: Annotated[float, Field(ge=1, le=100)] = 1.0
    patience: Count = 8
    val_photos: Count = 2048

    section: ClassVar[str] = "refiner"
