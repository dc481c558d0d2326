"""A trial of an ablation: a decoder trained and evaluated on data that several trials share."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jzi.decode.config import DecoderConfig
from jzi.decode.expert import ZoomExpert
from jzi.decode.model import ZoomModel
from jzi.errors import TrainingError
from jzi.evaluate.photos import LabelledPhotos
from jzi.evaluate.protocol import evaluate
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.map_embeddings import MapEmbeddings
from jzi.store.model_folder import ENCODER, MAP, copy_encoder, record_files, replace_file
from jzi.train.config.training import TrainConfig
from jzi.train.data import TrainingData
from jzi.train.decoder import train_decoder
from jzi.train.run import TrainingRun


@dataclass(frozen=True)
class Trial:
    """A variant with a seed.

    Attributes:
        variant: name of the variant.
        folder: the model folder to write.
        cache: path of the cache with the training data.
        decoder: the architecture.
        train: the settings of training, including the seed.
        start: folder of a model whose decoder to start from; None to start from scratch.
        fingerprint: what the outcome depends on (`jzi.train.decoder.run_fingerprint`).
        split: split of the photos to evaluate on; None for test, or val if there is no test photo.
        shared: folder with the map and the encoder, to which every model folder gets hard links.
        settings: the effective settings as TOML.
    """

    variant: str
    folder: Path
    cache: str
    decoder: DecoderConfig
    train: TrainConfig
    start: Path | None
    fingerprint: dict[str, Any]
    split: str | None
    shared: Path
    settings: str

    @property
    def result(self) -> dict[str, Any] | None:
        """What `run_trial` wrote for these settings, photos and split; None if the trial has not been run."""
        try:
            result = json.loads((self.folder / "result.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        expected = {"fingerprint": self.fingerprint, "asked_split": self.split}
        return result if json.loads(json.dumps(expected)).items() <= result.items() else None

    @property
    def epochs_done(self) -> int:
        """Number of epochs trained so far."""
        if self.result is not None:
            return self.train.epochs
        try:
            return (self.folder / "train" / "metrics.jsonl").read_text().count("\n")
        except FileNotFoundError:
            return 0

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Lock the trial for this process; yields whether that succeeded, so whether no other process runs it.

        The system releases the lock when the process ends, however it ends.
        """
        (self.folder / "train").mkdir(parents=True, exist_ok=True)
        with (self.folder / "train" / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    @property
    def run(self) -> TrainingRun:
        """Its training run on disk."""
        return TrainingRun(self.folder, self.fingerprint, hint="give another --name, or delete the folder")


def run_trial(trial: Trial, data: TrainingData) -> None:
    """Train, evaluate, and write result.json; a run that was interrupted is resumed.

    If the loss is not finite, the error is the result, so the other trials are still run.

    Args:
        trial: the trial.
        data: the data of its cache.

    Raises:
        TrainingError: there is no photo to evaluate on.
        ModelError: the folder holds another run, or cannot be written.
    """
    datasets = {"train": data.dataset, "val": data.val, "test": data.test}
    split = trial.split or ("test" if len(data.test) else "val")
    dataset = datasets[split]
    if not len(dataset):
        raise TrainingError(f"{trial.cache} has no photo of the {split} split to evaluate on: give another --split")
    values: dict[str, Any] = {"variant": trial.variant, "seed": trial.train.seed, "fingerprint": trial.fingerprint}
    values |= {"asked_split": trial.split, "split": split, "unreachable": dataset.unreachable}
    try:
        report = train_decoder(
            FeatureCache.open(trial.cache),
            trial.folder,
            trial.decoder,
            trial.train,
            start=ZoomModel.load(trial.start) if trial.start else None,
            settings=trial.settings,
            data=data,
            keep_map=False,
            progress=False,
        )
    except TrainingError as error:
        values["error"] = str(error)
    else:
        expert = ZoomExpert(ZoomModel.load(trial.folder, data.table.device), data.table)
        evaluation = evaluate(expert, LabelledPhotos.from_dataset(expert.area, dataset, split, data.dataset))
        run = trial.run
        run.load()
        values |= {"seconds": sum(epoch["seconds"] for epoch in run.metrics), "epochs": len(run.metrics)}
        values |= {"kept_epoch": int(report.best["epoch"]), "evaluation": evaluation.to_dict()}
        _link(trial.shared, trial.folder)
    replace_file(trial.folder / "result.json", lambda path: path.write_text(json.dumps(values, indent=2) + "\n"))


def write_shared(folder: Path, map_embeddings: MapEmbeddings, encoder_folder: Path | None) -> None:
    """Write the files that the model folders of several trials share: the map, and the encoder unless it is on the hub.

    Args:
        folder: where to write them.
        map_embeddings: the map.
        encoder_folder: folder of the encoder; None if it is on the hub.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if encoder_folder:
        copy_encoder(encoder_folder, folder / ENCODER)
    replace_file(folder / MAP, map_embeddings.save)


def _link(shared: Path, folder: Path) -> None:
    """Hard-link each shared file into a model folder if the file system supports it, and record the digests."""
    for file in (path for path in shared.rglob("*") if path.is_file()):
        target = folder / file.relative_to(shared)
        target.parent.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)
            os.link(file, target)
    record_files(folder)
