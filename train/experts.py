"""Training of the experts beside the zoom, and the fusion of all of them, from the cache."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jzi.decode.dataset import ZoomDataset
from jzi.decode.expert import ZoomExpert
from jzi.errors import CacheError, CacheMismatchError, ConfigError, ModelError, TrainingError, first_line
from jzi.evaluate.photos import LabelledPhotos
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert
from jzi.locate.inside import HIDDEN_M, Evidence, Hidden, fit_inside
from jzi.locate.joint.fusion_weights import FIT_VALUES, FusionFit, FusionWeights
from jzi.locate.joint.sharpness import Sharpness
from jzi.locate.novelty import PHOTOS, Novelty
from jzi.locate.posterior import Posterior
from jzi.retrieve.dense import DenseExpert
from jzi.retrieve.vpr import DEFAULT_WIDTH, VprConfig, VprExpert
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.disk.files import file_sha256
from jzi.store.features.map_embeddings import MapEmbeddings
from jzi.store.geometry.scale import units_per_metre
from jzi.store.model_config import FusionConfig, InsideConfig, ZoomModelConfig, read_config
from jzi.store.model_folder import DECODER, EXPERT_FILES, NOVELTY, update_config, verify_file, write_file
from jzi.store.tensors import check_finite
from jzi.store.trained_photos import TrainedPhotos, check_held_out
from jzi.train.config.training import HeadsTrainingConfig
from jzi.train.data import UNLIMITED, TrainingData
from jzi.train.heads import HEADS_TASKS, heads_file
from jzi.train.loop import TrainingLoop, make_accelerator
from jzi.train.photo_shards import PhotoShards
from jzi.train.run import TrainingRun

#: All experts, the zoom first.
EXPERTS = ("zoom", *EXPERT_FILES)

#: Experts that read the terminal cells of the cache.
NEED_CELLS = ("cells", "levels")

#: Photos whose posteriors are computed at once, and maximum number of validation photos that the fusion is fitted on.
BATCH, VAL_PHOTOS = 64, 2048


@dataclass(frozen=True)
class ExpertsReport:
    """Outcome of `train_experts`.

    Attributes:
        experts: the experts of the model.
        fusion: fusion of all of them; None if there are no validation photos.
        inside: how photos from elsewhere are recognized by all of them; None with too few validation photos.
        seconds: duration of the training and the fit by this call.
    """

    experts: tuple[str, ...]
    fusion: FusionWeights | None
    inside: InsideConfig | None
    seconds: float


def default_experts(has_cells: bool) -> tuple[str, ...]:
    """The experts that can be trained from a cache with or without terminal cells."""
    return tuple(name for name in EXPERTS if has_cells or name not in NEED_CELLS)


def check_experts(names: Sequence[str], has_cells: bool, path: str) -> tuple[str, ...]:
    """The experts to train, in the order of `EXPERTS`.

    Args:
        names: names of experts.
        has_cells: whether the cache has terminal cells.
        path: path of the cache, for error messages.

    Raises:
        ConfigError: there is no such expert, or the zoom is missing.
        CacheError: an expert needs terminal cells, and the cache has none.
    """
    if unknown := [name for name in names if name not in EXPERTS]:
        raise ConfigError(f"there is no expert {unknown[0]!r}: the experts are {', '.join(EXPERTS)}")
    if "zoom" not in names:
        raise ConfigError(f"--experts {','.join(names)} lacks zoom, which every model has: add it")
    if not has_cells and (needing := [name for name in names if name in NEED_CELLS]):
        raise CacheError(f"{path} has no cells, which the expert {needing[0]} reads: run `jzi encode-map --cells`")
    return tuple(name for name in EXPERTS if name in names)


def fitting_experts(data: TrainingData, names: Sequence[str], named: bool) -> tuple[tuple[str, ...], str]:
    """The experts that can be trained on data that are not all in memory, and a sentence about the others.

    The heads of cells and levels are trained on all cells and photos at once, and vpr is all photos.

    Args:
        data: the map and the photos.
        names: as returned by `check_experts`.
        named: whether the user has named them.

    Raises:
        ConfigError: one that the user has named is left out.
    """
    reasons = {}
    if not isinstance(data.train, ZoomDataset):
        reasons = dict.fromkeys(EXPERT_FILES, ("photos", "train.memory"))
    elif not isinstance(data.map_embeddings, MapEmbeddings):
        reasons = dict.fromkeys(NEED_CELLS, ("map", "map.memory"))
    left_out = [name for name in names if name in reasons]
    if not left_out:
        return tuple(names), ""
    what, setting = reasons[left_out[0]]
    sentence = f"{', '.join(left_out)}: the {what} must be in memory to train them, and there are more than fit; "
    if named:
        raise ConfigError(f"{sentence}leave them out of --experts, or raise {setting}")
    return tuple(name for name in names if name not in left_out), f"left out {sentence}raise {setting} to train them"


def load_others(
    cache: FeatureCache, paths: Sequence[str], config: HeadsTrainingConfig, device: str, views: int
) -> list[TrainingData]:
    """Read the caches of other areas to train the experts cells and levels on.

    Args:
        cache: the cache of the first area.
        paths: paths or URLs of the others.
        config: the settings of training.
        device: device of the embeddings.
        views: maximum number of augmented views to load for a training photo.

    Raises:
        ConfigError: there are to be prototypes, which belong to one area.
        CacheMismatchError: a cache has another encoder, grid or number of levels.
        CacheError: a cache is incomplete or damaged, or has no cells.
    """
    if paths and config.prototypes:
        raise ConfigError("heads.prototypes is true, but prototypes belong to one area: leave it or --also out")
    others = []
    for path in paths:
        other, expected = FeatureCache.open(path), (cache.pyramid.grid, cache.pyramid.levels)
        other.check(encoder=cache.encoder, hint="encode that area with the same encoder, or leave --also out")
        if (actual := (other.pyramid.grid, other.pyramid.levels)) != expected:
            raise CacheMismatchError(
                f"{path} has pyramid.grid and pyramid.levels {actual[0]} and {actual[1]}, but {cache.path} has "
                f"{expected[0]} and {expected[1]}: areas that are trained on together must have the same"
            )
        if not other.has_cells:
            raise CacheError(
                f"{path} has no cells, which the experts cells and levels read: run `jzi encode-map --cells`"
            )
        whole = TrainingData.load(other, device, views, True, map_memory=UNLIMITED, photo_memory=UNLIMITED)
        others.append(whole)
    return others


def train_experts(
    data: TrainingData,
    folder: Path,
    names: Sequence[str],
    config: HeadsTrainingConfig,
    *,
    views: int = 0,
    others: Sequence[TrainingData] = (),
    start: Path | None = None,
    settings: str = "",
    progress: bool = True,
) -> ExpertsReport:
    """Train experts on the training photos, and fit their fusion with the zoom on the validation photos.

    An interrupted call is resumed; complete parts are not repeated. Under `accelerate launch` the processes share each
    batch.

    Args:
        data: the map, with its cells if an expert reads them, and the photos.
        folder: a zoom model that was trained on the same data.
        names: the experts of the model, as returned by `check_experts`.
        config: the settings of training.
        views: maximum number of augmented views to draw from beside the plain photo.
        others: maps and photos of other areas to train the experts cells and levels on, as read by `load_others`.
        start: model folder whose heads to start from.
        settings: TOML to write beside the records of training.
        progress: whether to show progress bars.

    Raises:
        ModelError: the folder holds experts that were trained in another way, or cannot be written; or `start` was
            trained on validation photos.
        TrainingError: validation photos are training photos of another area.
        KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
    """
    began = time.monotonic()
    if start:
        check_held_out(start, "val", data.info.validation)
    for other in others:
        if seen := other.info.trained.among(data.info.validation)[0]:
            raise TrainingError(
                f"{seen} of the {len(data.info.validation)} validation photos of {data.path} are training photos of "
                f"{other.path}: split the photos of both alike, or leave it out of --also"
            )
    accelerator = make_accelerator(config, folder)
    zoom = ZoomExpert.from_table(folder, data.table)
    experts: list[Expert] = [zoom]
    for name in names:
        if name in HEADS_TASKS:
            areas = [data, *others]
            experts.append(_train_heads(name, accelerator, areas, folder, config, views, start, settings, progress))
    if accelerator.is_main_process:
        if "vpr" in names:
            experts.append(_vpr(data, zoom, folder))
        _keep_only(folder, names)
        if others or start:
            earlier = [*(other.info.trained for other in others), *([TrainedPhotos.read(start)] if start else [])]
            TrainedPhotos.read(folder).plus(earlier).write(folder)
    fusion = inside = None
    if accelerator.is_main_process and len(data.val):
        fusion, inside = _fit_fusion(folder, experts, data, others)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return ExpertsReport(tuple(names), fusion, inside, time.monotonic() - began)


def fit_subsets(experts: Sequence[Expert], val: LabelledPhotos) -> dict[str, FusionWeights]:
    """Fit the fusion of every subset of experts.

    Args:
        experts: experts on the same cells.
        val: validation photos.

    Returns:
        The weights by the names of the subset's experts, joined by "+" in alphabetical order.
    """
    names = [expert.name for expert in experts]
    posteriors = [posterior_of(expert, val) for expert in experts]
    fit = FusionFit(names, posteriors, experts[0].cell_mask, val.row * experts[0].area.shape[1] + val.col)
    subsets = (each for count in range(1, len(names) + 1) for each in itertools.combinations(names, count))
    return {"+".join(sorted(subset)): fit.weights(subset) for subset in subsets}


def posterior_of(expert: Expert, photos: LabelledPhotos) -> Posterior:
    """An expert's posterior of labelled photos, of as many cells as the fit of weights uses."""
    options = LocateOptions("map")
    cells = max(1, FIT_VALUES // len(photos))
    parts = [expert.posterior(query, options).top(cells) for query in photos.query.split(BATCH)]
    return Posterior.concatenate(parts)


def _train_heads(
    name: str,
    accelerator: Accelerator,
    areas: Sequence[TrainingData],
    folder: Path,
    config: HeadsTrainingConfig,
    views: int,
    start: Path | None,
    settings: str,
    progress: bool,
) -> DenseExpert:
    """Train the heads of an expert, unless a complete run exists, and write the expert's file."""
    file = EXPERT_FILES[name]
    initial = _initial_heads(start, name) if start else None
    fingerprint = {**_fingerprint(areas, config, views), "heads.init": file_sha256(initial)[:16] if initial else ""}
    run = TrainingRun(folder, fingerprint, name=name, weights=file)
    torch.manual_seed(config.seed)
    task = HEADS_TASKS[name](accelerator, areas[0], config, run, views, areas[1:])
    if initial:
        hint = "give in heads.init a model with the same heads.hidden and heads.features, or train it again"
        _load_weights(task.network, initial, hint, without=("prototypes",))  # those belong to another map
    state = run.resume()
    if state["epoch"] < config.epochs:
        if accelerator.is_main_process:
            run.start(settings)
        accelerator.wait_for_everyone()
        loop = TrainingLoop(task, run, progress=progress)
        loop.train(state)
        loop.close(leave=False)
    accelerator.wait_for_everyone()
    best, recorded = heads_file(name), read_config(folder)
    if best in recorded.files:  # not in folders of jzi before it recorded their digests
        verify_file(folder, recorded, best)
    _load_weights(task.network, folder / best, f"delete {folder / file} and {run.train_folder}")
    expert = task.expert()
    if accelerator.is_main_process and not (name in _recorded(folder) and (folder / file).is_file()):
        write_file(folder, file, expert.save)
        _record(folder, name, expert.entries())
    return expert


def _initial_heads(start: Path, name: str) -> Path:
    """The verified file of a model folder whose heads to start from."""
    config, file = read_config(start), EXPERT_FILES[name]
    if file not in config.files:
        raise ModelError(f"{start}, given as heads.init, has no expert {name}: leave {name} out with --experts")
    return verify_file(start, config, file)


def _load_weights(network: torch.nn.Module, path: Path, hint: str, without: Sequence[str] = ()) -> None:
    """Load the weights of a network, except those of some parameters, from a file."""
    weights = network.state_dict()
    try:
        tensors = load_file(path)
        check_finite(path, tensors)
        for name in weights:
            if name not in without:
                actual, expected = tuple(tensors[name].shape), tuple(weights[name].shape)
                if actual != expected:
                    raise ModelError(f"{path} has {name} of shape {actual}, not {expected}: {hint}")
                weights[name] = tensors[name]
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{path} cannot be used ({first_line(error)}): {hint}") from error
    network.load_state_dict(weights)


def _vpr(data: TrainingData, zoom: ZoomExpert, folder: Path) -> VprExpert:
    """The expert vpr, fitted on the validation photos; read from the folder if it is there."""
    train, pyramid = data.dataset, data.info.pyramid
    entries = _recorded(folder).get("vpr")
    config = VprConfig(**entries) if entries else VprConfig(DEFAULT_WIDTH * pyramid.cell_size)
    position = pyramid.project(train.latitude, train.longitude)
    expert = VprExpert(pyramid, zoom.encoder, zoom.cell_mask, train.query[:, 0], *position, config)
    if entries is None or not (folder / EXPERT_FILES["vpr"]).is_file():
        if len(data.val):
            val = LabelledPhotos.from_dataset(pyramid, data.val, "val").spread(VAL_PHOTOS)
            expert = expert.fit(val.query, val.row, val.col)
        write_file(folder, EXPERT_FILES["vpr"], expert.save)
        _record(folder, "vpr", expert.entries())
    return expert


def _fit_fusion(
    folder: Path, experts: Sequence[Expert], data: TrainingData, others: Sequence[TrainingData]
) -> tuple[FusionWeights, InsideConfig | None]:
    """The fusion of all experts, and how they recognize photos from elsewhere.

    They are fitted unless config.json holds those of the same experts and photos.
    """
    config = _config(folder)
    parts = [config.files.get(name) for name in (DECODER, *EXPERT_FILES.values())]
    identity = json.dumps([parts, config.experts, config.temperature, data.info.photos, HIDDEN_M,
                           [other.info.photos for other in others]])  # fmt: skip
    fitted_on = hashlib.sha256(identity.encode()).hexdigest()[:16]
    key = "+".join(sorted(expert.name for expert in experts))
    able = "+".join(sorted(expert.name for expert in experts if isinstance(expert, Evidence)))
    if config.fusion is None or config.fusion.fitted_on != fitted_on:
        val = LabelledPhotos.from_dataset(data.info.pyramid, data.val, "val").spread(VAL_PHOTOS)
        fits = fit_subsets(experts, val)
        weights = {names: fit.weights for names, fit in fits.items()}
        spread = {names: fit.spread for names, fit in fits.items() if fit.spread}
        sharpness = {names: astuple(fit.sharpness) for names, fit in fits.items() if fit.sharpness.slope}
        fusion = FusionConfig(weights, fits[key].gains, len(val), fitted_on, spread, sharpness)
        position = data.info.pyramid.project(val.latitude, val.longitude)
        foreign = [other.val.query[:VAL_PHOTOS, 0] for other in others]
        hidden = Hidden(*position, HIDDEN_M * units_per_metre(data.info.pyramid))
        inside = fit_inside(experts, val.query, hidden, foreign)
        novelty = Novelty.fit(_sample(data.train), val.query)
        if novelty:
            write_file(folder, NOVELTY, novelty.save)
        update_config(folder, fusion=fusion, inside=inside, novelty=novelty and novelty.config)
        return fits[key], inside.get(able)
    fusion = config.fusion
    power = Sharpness(*fusion.sharpness.get(key, ()))
    fitted = FusionWeights(fusion.weights[key], fusion.gains, fusion.photos, fusion.spread.get(key, 0.0), power)
    return fitted, config.inside.get(able)


def _sample(photos: ZoomDataset | PhotoShards) -> Tensor:
    """(photo, feature) embeddings of training photos, at most `PHOTOS` of those that are not in memory."""
    if isinstance(photos, ZoomDataset):
        return photos.query[:, 0]
    return next(photos.with_views(0).batches(0, PHOTOS)).query


def _keep_only(folder: Path, names: Sequence[str]) -> None:
    """Forget the experts of an earlier call that are not among the names."""
    config = _config(folder)
    if dropped := [name for name in config.experts if name not in names]:
        experts = {name: entries for name, entries in config.experts.items() if name in names}
        files = {name: digest for name, digest in config.files.items() if name not in map(EXPERT_FILES.get, dropped)}
        update_config(folder, experts=experts, files=files, fusion=None, inside={})
        for name in dropped:
            (folder / EXPERT_FILES[name]).unlink(missing_ok=True)


def _config(folder: Path) -> ZoomModelConfig:
    config = read_config(folder)
    assert isinstance(config, ZoomModelConfig)
    return config


def _recorded(folder: Path) -> dict[str, dict[str, Any]]:
    return _config(folder).experts


def _record(folder: Path, name: str, entries: dict[str, Any]) -> None:
    update_config(folder, experts={**_recorded(folder), name: entries})


def _fingerprint(areas: Sequence[TrainingData], config: HeadsTrainingConfig, views: int) -> dict[str, Any]:
    info, *others = (data.info for data in areas)
    return {
        **config.fingerprint(),
        "views": {**info.augmentation, "count": views} if views and info.augmentation else {},
        "encoder": info.encoder.fingerprint[:16],
        "imagery": info.imagery.fingerprint[:16] if info.imagery else "",
        "photos": info.photos,
        "cell_m": info.cell_m,
        **{
            f"area {number}": f"{other.imagery.fingerprint[:16] if other.imagery else ''}, {other.photos}"
            for number, other in enumerate(others, 1)
        },
    }
