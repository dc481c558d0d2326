"""One run of an ablation: a decoder trained and evaluated off data that other runs share."""

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
from jzi.store.cache import FeatureCache
from jzi.store.map_embeddings import MapEmbeddings
from jzi.store.model_folder import ENCODER, MAP, copy_encoder, record_files, replace_file
from jzi.train.config import TrainConfig
from jzi.train.data import TrainingData
from jzi.train.decoder import train_decoder
from jzi.train.run import TrainingRun


@dataclass(frozen=True)
class Trial:
    """A variant with a seed.

    Attributes:
        variant: its name.
        folder: the model folder to make.
        cache: path of the cache to train off.
        decoder: the architecture.
        train: how to train, with the seed.
        start: a model whose decoder to start from.
        fingerprint: what its outcome depends on (`jzi.train.decoder.run_fingerprint`).
        split: of the photos to evaluate on; None for test, or val where there is no test photo.
        shared: a folder with the map and the encoder, of which every model folder gets hard links.
        settings: those in force, as TOML.
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
        """What `run_trial` wrote, if that was for these settings, photos and split; None if it is still to be run."""
        try:
            result = json.loads((self.folder / "result.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        asked = {"fingerprint": self.fingerprint, "asked_split": self.split}
        return result if json.loads(json.dumps(asked)).items() <= result.items() else None

    @property
    def epochs_done(self) -> int:
        """How many epochs have been trained so far."""
        if self.result is not None:
            return self.train.epochs
        try:
            return (self.folder / "train" / "metrics.jsonl").read_text().count("\n")
        except FileNotFoundError:
            return 0

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Whether no other process is running it; while the context lasts, none will. A lock dies with its process."""
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
        """Its training on disk."""
        return TrainingRun(self.folder, self.fingerprint, hint="give another --name, or delete the folder")


def run_trial(trial: Trial, data: TrainingData) -> None:
    """Train, evaluate, and write result.json; what was trained before is not trained again.

    A loss that is no number is a result too: the other runs go on.

    Raises:
        TrainingError: there is no photo to evaluate on.
        ModelError: the folder holds another run, or the disk is full.
    """
    evaluated = {"train": data.train, "val": data.val, "test": data.test}
    split = trial.split or ("test" if len(data.test) else "val")
    samples = evaluated[split]
    if not len(samples):
        raise TrainingError(f"{trial.cache} has no photo of the {split} split to evaluate on: give another --split")
    values: dict[str, Any] = {"variant": trial.variant, "seed": trial.train.seed, "fingerprint": trial.fingerprint}
    values |= {"asked_split": trial.split, "split": split, "unreachable": samples.unreachable}
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
        evaluation = evaluate(expert, LabelledPhotos.from_dataset(expert.area, samples, split))
        run = trial.run
        run.load()
        values |= {"seconds": sum(epoch["seconds"] for epoch in run.metrics), "epochs": len(run.metrics)}
        values |= {"kept_epoch": int(report.best["epoch"]), "evaluation": evaluation.to_dict()}
        _link(trial.shared, trial.folder)
    replace_file(trial.folder / "result.json", lambda path: path.write_text(json.dumps(values, indent=2) + "\n"))


def share(folder: Path, features: MapEmbeddings, encoder_folder: Path | None) -> None:
    """Keep what the model folders of many runs have in common: the map, and the encoder where it has a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if encoder_folder:
        copy_encoder(encoder_folder, folder / ENCODER)
    replace_file(folder / MAP, features.save)


def _link(shared: Path, folder: Path) -> None:
    """Link each shared file into a model folder, and record its digest; no link where the disk knows none."""
    for file in (each for each in shared.rglob("*") if each.is_file()):
        target = folder / file.relative_to(shared)
        target.parent.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)
            os.link(file, target)
    record_files(folder)
