"""What of a model, a cache or a data set is published, and what each file discloses."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open

from jzi.errors import HubError
from jzi.publish.hub.hub import MODEL_FILES
from jzi.publish.hub.hub_download import REFINER_FILES, model_files
from jzi.publish.hub.hub_upload import HubFile
from jzi.retrieve.index_file import pack_index
from jzi.retrieve.retriever import Retriever
from jzi.store.disk.storage import is_url
from jzi.store.model_config import CONFIG, AnyModelConfig, AreaModelConfig, RetrieverModelConfig, config_text
from jzi.store.model_folder import DECODER, EXPERT_FILES, INDEX, MAP, NOVELTY, verify_file

#: Names of files of a cache or of a data set in a repository of its own.
CACHE_FILES = re.compile(r"[\w.-]+\.zarr/[\w./-]+|README\.md|LICENSE(\.md|\.txt)?|\.gitattributes", re.ASCII)
DATASET_FILES = re.compile(r"[\w./() -]+", re.UNICODE)

#: Temporary files and locks of a cache or a data set.
_LEFT_OUT = re.compile(r"(^|/)\.[^/]*(/|$)|\.partial(/|$)|\.lock$")


def files_of_model(folder: Path, config: AnyModelConfig) -> list[HubFile]:
    """The files of a model that locating needs, verified; imagery, photos and states of training are not among them.

    Of the index of a flat retriever, a cache that may hold photos, the cells become index.safetensors.

    Args:
        folder: the model folder.
        config: its config.json.

    Raises:
        HubError: the model has weights that are no safetensors.
        ModelError: a file is missing or damaged, or a retriever has no index.
        CacheError: a retriever's index is incomplete or damaged.
    """
    if isinstance(config, RetrieverModelConfig) and not (retriever := Retriever(folder, config)).published:
        index = pack_index(retriever.read_cells())
        config = replace(config, files={**config.files, INDEX: hashlib.sha256(index).hexdigest()})
        sources = {CONFIG: config_text(config).encode(), INDEX: index}
    else:
        sources = {}
    present = [name for name in REFINER_FILES if (folder / name).is_file()]
    names = model_files(config, present)
    if other := [name for name in names if not MODEL_FILES.fullmatch(name)]:
        raise HubError(
            f"{folder / other[0]} is neither JSON nor safetensors: save the encoder again with `save_pretrained`, and "
            "train with it"
        )
    for name in names:
        if name in config.files and name not in sources:
            verify_file(folder, config, name)
    return [HubFile(name, sources.get(name, folder / name), _disclosed(folder, config, name)) for name in names]


def _disclosed(folder: Path, config: AnyModelConfig, name: str) -> str:
    if name == CONFIG:
        parts = [f"the encoder's name ({config.encoder.name})"]
        if isinstance(config, AreaModelConfig):
            names = ", ".join(file[0] for file in config.imagery.files[:3]) if config.imagery else ""
            parts = ["the area", *([f"names of imagery files ({names})"] if names else []), *parts]
        return ", ".join(parts)
    if name == EXPERT_FILES["vpr"]:
        with safe_open(folder / name, "np") as file:
            count = file.get_slice("position").get_shape()[0]
        return f"the exact position and an embedding of each of {count} training photos"
    if name == MAP:
        return "an embedding of every tile of the imagery; no pixel of it"
    if name == INDEX:
        return "an embedding of every cell of the imagery; no pixel of it"
    if name in (EXPERT_FILES["cells"], EXPERT_FILES["levels"]):
        return "weights, and a code of every cell or tile of the imagery"
    if name == NOVELTY:
        return "mean and covariance of the training photos' embeddings"
    if name == DECODER:
        return "weights"
    if name.startswith("encoder/"):
        return "weights of the encoder" if name.endswith(".safetensors") else "settings of the encoder"
    return "weights of the refiner" if name.endswith(".safetensors") else "settings of the refiner"


def files_of_cache(path: str) -> list[HubFile]:
    """The files of a cache.

    Raises:
        HubError: it is on object storage, or there is none.
    """
    if is_url(path):
        raise HubError(f"{path} is on object storage: copy it to this machine to publish it")
    folder = Path(path)
    name = folder.name if folder.name.endswith(".zarr") else f"{folder.name}.zarr"
    names = [each for each in _files(folder) if CACHE_FILES.fullmatch(f"{name}/{each}")]
    files = [HubFile(f"{name}/{each}", folder / each, _of_cache(each)) for each in names]
    if not files:
        raise HubError(f"there is no cache in {path}")
    return files


def _of_cache(name: str) -> str:
    group = name.partition("/")[0]
    return {
        "map": "embeddings of the tiles of the imagery",
        "cells": "embeddings of the cells of the imagery",
        "detail": "tokens of the tiles of the imagery at a high resolution",
        "queries": "id, file name, exact position, split and an embedding of every photo",
    }.get(group, "the area, names of imagery files, the encoder's name")


def files_of_dataset(folder: Path) -> list[HubFile]:
    """The files of a data set that `jzi dataset publish` wrote; its card, README.md, is not among them.

    Raises:
        HubError: a name cannot be published.
    """
    names = [name for name in _files(folder) if name != "README.md"]
    if other := [name for name in names if not DATASET_FILES.fullmatch(name)]:
        raise HubError(f"{folder / other[0]} has a name that the hub does not take: rename it")
    return [HubFile(name, folder / name, "photos and their positions, or imagery") for name in names]


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not path.is_symlink() and not _LEFT_OUT.search(name):
            yield name
