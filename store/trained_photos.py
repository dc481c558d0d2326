"""Record of the training photos of a model, with which validation and evaluation check that photos are held out.

A cache holds the splits as they are now. A model, or its encoder, may have been trained on photos that were in another
split then: after `jzi encode-queries --split-by`, or where `jzi finetune` had another `queries.split_by`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jzi.errors import ModelError, first_line
from jzi.store.model_folder import ENCODER, replace_file

#: The record in a model folder: hashes of the photos, of the encoder's training and of the model's.
RECORD = "train/photos.safetensors"

Keys = NDArray[np.uint64]


def photo_keys(frame: pd.DataFrame) -> Keys:
    """(photo,) hashes of photos by their ids and positions.

    Args:
        frame: columns id, latitude and longitude, degrees.
    """
    columns = {"id": frame["id"].astype(str).astype(object), **{each: frame[each].astype(float) for each in _POSITION}}
    hashes = pd.util.hash_pandas_object(pd.DataFrame(columns), index=False, categorize=False)
    return hashes.to_numpy().astype(np.uint64)


_POSITION = ("latitude", "longitude")


def _none() -> Keys:
    return np.empty(0, np.uint64)


@dataclass(frozen=True)
class TrainedPhotos:
    """Hashes of the photos that a model and its encoder were trained on; empty where that is not recorded.

    Attributes:
        encoder: (photo,) those of the encoder.
        model: (photo,) those of what was trained on its embeddings.
    """

    encoder: Keys = field(default_factory=_none)
    model: Keys = field(default_factory=_none)

    @classmethod
    def read(cls, folder: Path) -> TrainedPhotos:
        """The record of a model folder.

        Raises:
            ModelError: it is damaged.
        """
        path = folder / RECORD
        if not path.is_file():
            return cls()
        try:
            keys = load_file(path)
            return cls(keys["encoder"].astype(np.uint64), keys["model"].astype(np.uint64))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ModelError(f"{path} cannot be read ({first_line(error)}): train the model again") from error

    @classmethod
    def of_encoder(cls, folder: Path | None) -> TrainedPhotos:
        """The photos of an encoder in a folder: those that the model folder which holds it records."""
        return cls(cls.read(folder.parent).encoder) if folder is not None and folder.name == ENCODER else cls()

    def plus(self, others: Iterable[TrainedPhotos]) -> TrainedPhotos:
        """The photos of several records."""
        every = [self, *others]
        return TrainedPhotos(*(np.unique(np.concatenate([getattr(each, name) for each in every])) for name in _NAMES))

    def write(self, folder: Path) -> None:
        """Write the record into a model folder, in place of an earlier one.

        Raises:
            ModelError: it cannot be written.
        """
        (folder / RECORD).parent.mkdir(parents=True, exist_ok=True)
        replace_file(folder / RECORD, partial(save_file, {name: getattr(self, name) for name in _NAMES}))

    def among(self, keys: Keys) -> tuple[int, int]:
        """How many of some photos the model, and how many its encoder was trained on."""
        return int(np.isin(keys, self.model).sum()), int(np.isin(keys, self.encoder).sum())


_NAMES = ("encoder", "model")


def check_held_out(folder: Path, split: str, photos: Keys) -> None:
    """Check that a model was trained on none of the photos that it is to be validated or evaluated on.

    Args:
        folder: the model folder; without a record, nothing is checked.
        split: the split of the photos; training photos are not checked.
        photos: (photo,) their hashes, of `photo_keys`.

    Raises:
        ModelError: it, or its encoder, was trained on some of them.
    """
    if split == "train":
        return
    _check(TrainedPhotos.read(folder), folder, split, photos)


def check_held_out_from_encoder(folder: Path | None, split: str, photos: Keys) -> None:
    """Check that an encoder was trained on none of the photos that its embeddings are validated or evaluated on.

    Args:
        folder: the encoder's folder; None, or one that is not in a model folder with a record, is not checked.
        split: as of `check_held_out`.
        photos: as of `check_held_out`.

    Raises:
        ModelError: it was trained on some of them.
    """
    if folder is not None and split != "train":
        _check(TrainedPhotos.of_encoder(folder), folder.parent, split, photos)


def _check(trained: TrainedPhotos, folder: Path, split: str, photos: Keys) -> None:
    model, encoder = trained.among(photos)
    if not model and not encoder:
        return
    what, hint = f"{folder} was trained", "train it again, in another folder"
    if encoder:
        what = f"the encoder of {folder} was trained"
        hint = "train the encoder again with the same queries.split_by in jzi.toml, or encode the photos with its split"
    raise ModelError(
        f"{what} on {encoder or model} of the {len(photos)} photos of the {split} split, which were in another split "
        f"then: {hint}"
    )
