"""Save and load refiners: the weights in refiner.safetensors, what they are in refiner.json (`jzi.refine.info`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from jzi.encode.device import shapes_only
from jzi.errors import ModelError, first_line
from jzi.refine.config import UnifyGeoConfig
from jzi.refine.info import INFO, WEIGHTS, RefinerInfo, read_refiner_info, verify_weights, write_refiner_info
from jzi.refine.networks.cached import CachedRefiner
from jzi.refine.networks.model import UnifyGeo
from jzi.refine.networks.rays import RayRefiner
from jzi.refine.ray_config import RayConfig
from jzi.store.disk.files import file_sha256
from jzi.store.model_folder import replace_file
from jzi.store.tensors import check_finite, check_header

Refiner = UnifyGeo | CachedRefiner | RayRefiner


def make_refiner(info: RefinerInfo) -> Refiner:
    """A refiner of the architecture that is recorded, with random weights."""
    if isinstance(info.config, UnifyGeoConfig):
        return UnifyGeo(info.config)
    return RayRefiner(info.config) if isinstance(info.config, RayConfig) else CachedRefiner(info.config)


def save_refiner(folder: str | Path, refiner: Refiner, info: RefinerInfo) -> None:
    """Write weights and refiner.json, each atomically; if the process is killed in between, the folder can be used.

    Args:
        folder: created if it does not exist.
        refiner: the network.
        info: what it is; digests and version are written anew.

    Raises:
        ModelError: a file cannot be written.
    """
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in refiner.state_dict().items()}
    digest = ""

    def write(temporary: Path) -> None:
        nonlocal digest
        save_file(tensors, temporary)
        digest = file_sha256(temporary)
        if (previous := _previous(folder)) is not None:
            write_refiner_info(folder, replace(previous, replacing={WEIGHTS: digest}))

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{folder} cannot be created: {first_line(error)}") from error
    replace_file(folder / WEIGHTS, write)
    write_refiner_info(folder, replace(info, files={WEIGHTS: digest}, replacing={}, version=RefinerInfo.version))


def update_refiner(folder: str | Path, **entries: Any) -> RefinerInfo:
    """Change entries of refiner.json, such as fitted temperatures, and return it.

    Raises:
        ModelError: there is no refiner, or the file cannot be written.
        ConfigError: the type or the range of a value is wrong.
    """
    info = replace(read_refiner_info(folder), **entries)
    write_refiner_info(Path(folder), info)
    return info


def load_refiner(folder: str | Path, device: torch.device | str = "cpu") -> tuple[Refiner, RefinerInfo]:
    """Load a refiner, in eval mode.

    Names and shapes of the weights are compared with the architecture before memory is allocated for either.

    Args:
        folder: that `save_refiner` wrote.
        device: of the network.

    Raises:
        ModelError: there is no refiner in the folder, or it is damaged or of another format.
    """
    folder = Path(folder)
    info = read_refiner_info(folder)
    file = verify_weights(folder, info)
    with shapes_only():
        shapes = {name: tuple(tensor.shape) for name, tensor in make_refiner(info).state_dict().items()}
    check_header(file, shapes)
    try:
        weights = load_file(file)
        check_finite(file, weights)
        refiner = make_refiner(info)
        refiner.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{file} cannot be loaded: {first_line(error)}") from error
    return refiner.eval().to(device), info


def _previous(folder: Path) -> RefinerInfo | None:
    """refiner.json, if the weights in the folder are those that it records."""
    if not (folder / INFO).exists():
        return None
    try:
        info = read_refiner_info(folder)
        digest = file_sha256(verify_weights(folder, info))
    except (OSError, ModelError):
        return None
    return replace(info, files={WEIGHTS: digest}, replacing={})
