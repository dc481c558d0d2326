"""Models for an area without training photos, from experts that were trained in other areas.

The experts cells and levels compare contents, so their heads can be used on any map of the same encoder and geometry.
The zoom, prototypes and vpr belong to the area of their photos and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from jzi.errors import ConfigError, ModelError
from jzi.retrieve.cells import CellsExpert, load_heads
from jzi.retrieve.dense import DenseExpert
from jzi.retrieve.heads import HeadsConfig
from jzi.retrieve.levels import LevelsExpert
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.model_config import (
    CONFIG,
    FusionConfig,
    RetrieverModelConfig,
    StatewideModelConfig,
    TransferModelConfig,
    read_config,
)
from jzi.store.model_folder import EXPERT_FILES, MAP, create_model, replace_file, verify_encoder, verify_file
from jzi.store.trained_photos import TrainedPhotos

#: Experts that can be transferred.
CLASSES: dict[str, type[CellsExpert] | type[LevelsExpert]] = {"cells": CellsExpert, "levels": LevelsExpert}


@dataclass(frozen=True)
class TransferReport:
    """Outcome of `transfer`.

    Attributes:
        folder: the model folder.
        experts: the experts of the model, by name, with their weights in the fusion.
        cells: number of cells with imagery.
        cell_m: side of a cell, metres.
        trained_cell_m: side of a cell where the experts were trained, metres.
    """

    folder: Path
    experts: dict[str, float]
    cells: int
    cell_m: float
    trained_cell_m: float


def transfer(source: Path, cache: FeatureCache, folder: Path, device: str | torch.device) -> TransferReport:
    """Write a model folder for the map of a cache, with the experts cells and levels of another model.

    The codes of cells and tiles are computed from the cache; the fusion is that of the source.

    Args:
        source: a model whose experts were trained in other areas.
        cache: a complete map with its cells, of the source's encoder; no photos are read.
        folder: the model folder to write; a model of the same kind in it is replaced.
        device: device to compute on.

    Raises:
        ConfigError: the experts cannot be used with this number of levels.
        ModelError: the source is damaged or has no such expert, or the folder holds another kind of model or cannot be
            written.
        CacheError: the cache has another encoder, is incomplete or damaged, or has no cells.
    """
    config = read_config(source)
    if isinstance(config, RetrieverModelConfig | StatewideModelConfig):
        raise ModelError(f"{source} is a retriever, which has no experts: give a model that train-decoder wrote")
    names = [name for name in CLASSES if name in config.experts]
    if not names or config.fusion is None:
        lacking = "fitted weights (it had no validation photos)" if names else "experts cells and levels"
        raise ModelError(f"{source} has no {lacking}: give a model that was trained with them")
    if (folder / CONFIG).exists() and not isinstance(existing := read_config(folder), TransferModelConfig):
        raise ModelError(f"{folder} holds a model of kind {existing.kind}: set model.path to another folder")
    cache.check(encoder=config.encoder, hint=f"encode the map with the encoder of {source} (encoder.name)")
    features = cache.read_map(cells=True)
    encoder_folder = verify_encoder(source, config)
    experts: list[DenseExpert] = []
    for name in names:
        path, entries = verify_file(source, config, EXPERT_FILES[name]), config.experts[name]
        if entries.get("prototypes"):
            raise ModelError(f"{source} has prototypes of its own cells: train it with heads.prototypes = false")
        _, heads = load_heads(path, dict(entries), config.encoder)
        _check_levels(name, source, heads.config, cache.pyramid.levels)
        experts.append(CLASSES[name].from_map(features, config.encoder, heads.to(device)))
    folder.mkdir(parents=True, exist_ok=True)
    for expert in experts:
        replace_file(folder / EXPERT_FILES[expert.name], expert.save)
    replace_file(folder / MAP, replace(features, cells=None).save)
    fusion = _restrict(config.fusion, names)
    create_model(
        folder,
        TransferModelConfig(
            pyramid=cache.pyramid,
            encoder=config.encoder,
            imagery=cache.imagery,
            experts={expert.name: expert.entries() for expert in experts},
            fusion=fusion,
        ),
        encoder_folder,
    )
    TrainedPhotos.read(source).write(folder)
    return TransferReport(
        folder,
        fusion.weights["+".join(sorted(names))],
        len(experts[0].row),
        cache.pyramid.cell_size,
        config.pyramid.cell_size,
    )


def _check_levels(name: str, source: Path, config: HeadsConfig, levels: int) -> None:
    trained = config.scales if name == "cells" else config.spaces
    if trained != levels:
        raise ConfigError(
            f"the expert {name} of {source} was trained with pyramid.levels = {trained}, but this area has {levels}: "
            "set the same number, and pyramid.size for cells of a similar size"
        )


def _restrict(fusion: FusionConfig, names: list[str]) -> FusionConfig:
    """The fusions of the subsets of some of the experts; gains beside the other experts do not apply."""
    weights = {key: each for key, each in fusion.weights.items() if set(key.split("+")) <= set(names)}
    spread = {key: each for key, each in fusion.spread.items() if key in weights}
    sharpness = {key: each for key, each in fusion.sharpness.items() if key in weights}
    return FusionConfig(weights, {}, fusion.photos, fusion.fitted_on, spread, sharpness)
