"""Train UnifyGeo on the data set of pairs of a jzi.toml, and evaluate it there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.encode.device import best_device
from jzi.errors import ConfigError, ModelError
from jzi.evaluate.cross_view import CrossViewEvaluation
from jzi.evaluate.pair_protocol import PairEvaluator, PairOutcome
from jzi.refine.networks.files import load_refiner
from jzi.refine.networks.model import UnifyGeo
from jzi.store.photos.pairs import PairDataset
from jzi.store.plain import plain
from jzi.train.pairs.pair_task import pair_options, train_pairs
from jzi.train.run import TrainReport
from jzi.workspace.pairs import (
    PairSettings,
    chosen_split,
    evaluation_pairs,
    load_pairs,
    rolled_headings,
    training_pairs,
)


def train_on_pairs(
    settings: PairSettings, folder: Path, *, progress: bool = True
) -> tuple[TrainReport, PairDataset, dict[str, str]]:
    """Train UnifyGeo; an interrupted run is resumed.

    Args:
        settings: the settings.
        folder: the refiner's folder to write.
        progress: whether to show a progress bar.

    Returns:
        The report, the training photos, and images that could not be read, with reasons.

    Raises:
        JziError: the data set, the initial weights or the folder cannot be used, or the training fails.
    """
    train, val = training_pairs(settings)
    report, unreadable = train_pairs(
        train,
        val,
        lambda: _new_network(settings),
        folder,
        settings.refiner,
        aligned=settings.aligned,
        fingerprint=run_fingerprint(settings, train, val),
        settings=settings.to_toml(),
        progress=progress,
    )
    return report, train, unreadable


def run_fingerprint(settings: PairSettings, train: PairDataset, val: PairDataset) -> dict[str, Any]:
    """What the outcome of a training depends on beside the settings of the section [refiner]."""
    pairs = settings.pairs
    return {
        "kind": "unifygeo on pairs",
        **{f"refine.{name}": value for name, value in plain(settings.refine).items()},
        "pairs.dataset": train.name,
        "pairs.crop": pairs.crop,
        "pairs.orientation": pairs.orientation,
        "pairs.backbone": pairs.backbone,
        "pairs.photos": [_digest(train), _digest(val)],
    }


def _digest(dataset: PairDataset) -> str:
    """Identifies photos, their aerial images and their places, wherever the folder is."""
    names = [Path(str(path)).name for path in (*dataset.photos, *dataset.references[dataset.positive])]
    digest = hashlib.sha256("\n".join(names).encode())
    digest.update(np.round(dataset.offset, 6).tobytes())
    return digest.hexdigest()[:16]


def _new_network(settings: PairSettings) -> UnifyGeo:
    """UnifyGeo with the weights of the backbone, or random ones."""
    network = UnifyGeo(settings.refine)
    name = settings.pairs.backbone
    if name:
        folder = settings.path(name)
        network.load_pretrained(folder if folder.is_dir() else name)
    return network


def evaluate_on_pairs(
    settings: PairSettings, folder: Path, split: str | None, *, progress: bool = False
) -> tuple[CrossViewEvaluation, PairDataset, PairOutcome]:
    """Evaluate a trained UnifyGeo on a split.

    Args:
        settings: the settings; losses and architecture are those that the network was trained with.
        folder: the refiner's folder.
        split: as of `evaluation_pairs`.
        progress: whether to show progress bars.

    Returns:
        The figures, the data set, whose `rejected` says what was left out, and what was found of each photo.

    Raises:
        JziError: the network or the data set cannot be used.
    """
    split = chosen_split(settings, split)
    network, info = load_refiner(folder, best_device())
    if not isinstance(network, UnifyGeo):
        raise ModelError(f"{folder} holds a refiner of kind {info.kind!r}, which works off a cache: train one on pairs")
    record = folder / "train" / "settings.toml"
    trained = load_pairs(record) if record.exists() else settings
    if trained.refine.aligned and not settings.aligned:
        raise ConfigError(
            f"{folder} was trained on aligned panoramas and compares no headings: train one with refine.aligned = "
            'false and pairs.orientation = "unknown"'
        )
    dataset = evaluation_pairs(settings, split)
    pairs = settings.pairs
    options = pair_options(
        trained.refiner,
        rerank=pairs.rerank,
        batch_size=pairs.batch_size,
        top=pairs.top,
        heading=rolled_headings(settings, dataset),
    )
    evaluation, outcome = PairEvaluator(network, dataset, options, progress=progress).run()
    return evaluation, dataset, outcome


def retrieve_on_pairs(
    settings: PairSettings, dataset: PairDataset, top: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], float]:
    """The first candidates of photos by the trained network of a data set.

    Args:
        settings: the settings; the network is that of model.path.
        dataset: the photos and the aerial images, all of which are searched.
        top: number of candidates.
        count: most photos, evenly spaced.

    Returns:
        (photo,) indices of photos, (photo, k) of aerial images, the most similar first, (photo, k) cosine similarities,
        and the temperature of the network's logits.

    Raises:
        JziError: the network or the images cannot be used.
    """
    folder = settings.path(settings.model.path)
    network, info = load_refiner(folder, best_device())
    if not isinstance(network, UnifyGeo):
        raise ModelError(f"{folder} holds a refiner of kind {info.kind!r}, which works off a cache: train one on pairs")
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    options = pair_options(settings.refiner, rerank=False, batch_size=settings.pairs.batch_size, top=top, heading=None)
    readable, references, similarity = PairEvaluator(network, dataset.take(chosen), options).candidates()
    return chosen[readable], references, similarity, network.config.temperature
