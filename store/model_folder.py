"""Model folders: their files, and how these are written and verified.

config.json           format, kind, encoder, pyramid and imagery (of a state-wide retriever, neither), the kind's own
                      entries, SHA-256 of every file below
decoder.safetensors   a zoom model's weights
map.safetensors       the map's embeddings; absent in an imported model, which reads them from a cache, and a retriever
cells.safetensors     the expert cells: two heads, and the codes of all cells
levels.safetensors    the expert levels: two heads, and the codes of all tiles
vpr.safetensors       the expert vpr: embeddings and positions of the training photos
novelty.safetensors   mean and directions of the training photos' embeddings, to recognize other pictures by
hnsw.faiss            a retriever's graph for approximate search
index.safetensors     a published retriever's embeddings of all cells, instead of index.zarr
encoder/              the encoder as `save_pretrained` writes it; absent if it is loaded from the hub by its id. Of a
                      state-wide retriever, its towers as `jzi.encode.encoders.towers` writes them

train/photos.safetensors records which photos the model and its encoder were trained on (`jzi.store.trained_photos`).

Of train/ the best heads have a digest, train/*/heads.safetensors; states to resume from are archives with checksums.
Other entries of the folder (records of training, result.json, index.zarr) have none; Zarr chunks have checksums.

A file that changes while config.json exists is written by `write_file`: its new digest is recorded under `replacing`,
then the file is replaced, then the digest moves to `files`. If the process is killed in between, the file matches one
of the two digests, and the model can still be used and its training resumed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from jzi.errors import ModelError, first_line
from jzi.store.disk.digest_memory import remembered_sha256
from jzi.store.disk.files import file_sha256, remove_leftovers, write_whole
from jzi.store.model_config import CONFIG, HINT, ModelConfig, config_text, read_config

if TYPE_CHECKING:
    from jzi.store.disk.lock import LockMode, WriterLock

DECODER, MAP, ENCODER = "decoder.safetensors", "map.safetensors", "encoder"
NOVELTY, GRAPH, INDEX = "novelty.safetensors", "hnsw.faiss", "index.safetensors"

#: File of each expert beside the zoom, by its name.
EXPERT_FILES = {"cells": "cells.safetensors", "levels": "levels.safetensors", "vpr": "vpr.safetensors"}

#: Files of an encoder; other files in its folder are not copied.
_ENCODER_FILES = ("*config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")

#: Best weights of the heads of experts, to train from and to fuse again.
_HEADS = "train/*/heads.safetensors"


def verify_file(folder: Path, config: ModelConfig, name: str) -> Path:
    """Verify the digest of a file of a model folder and return its path.

    Raises:
        ModelError: the file is missing, damaged, or not recorded in config.json.
    """
    path = folder / name
    digests = {config.files.get(name), config.replacing.get(name)} - {None}
    if not digests:
        raise ModelError(f"{path} is not among the files that {CONFIG} records: {HINT}")
    try:
        digest = remembered_sha256(path)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: {HINT}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): {HINT}") from error
    if digest not in digests:
        raise ModelError(f"{path} does not match its SHA-256 in {CONFIG}, it was changed or damaged: {HINT}")
    return path


def verify_encoder(folder: Path, config: ModelConfig) -> Path | None:
    """Verify the digests of the encoder in a model folder and return its path, or None if it is loaded from the hub.

    Raises:
        ModelError: a file is missing, damaged, or not recorded in config.json.
    """
    encoder_folder = folder / ENCODER
    names = {name for name in config.files if name.startswith(f"{ENCODER}/")}
    if not names and not encoder_folder.is_dir() and config.encoder.from_hub:
        return None
    if not encoder_folder.is_dir():
        raise ModelError(f"{folder} lacks its encoder, {encoder_folder}: {HINT}")
    for name in sorted(names | {f"{ENCODER}/{file}" for file in _encoder_files(encoder_folder)}):
        verify_file(folder, config, name)
    return encoder_folder


# Writing


def lock_model(folder: Path, mode: LockMode = "wait") -> WriterLock:
    """Lock a model folder for writing, and remove what killed processes left in it; a context manager.

    Args:
        folder: the model folder, which need not exist.
        mode: what to do if another process writes to it.

    Raises:
        ModelError: another process writes to it and mode is "refuse", or it cannot be locked.
    """
    from jzi.store.disk.lock import WriterLock  # loads zarr

    lock = WriterLock(folder, mode, ModelError)
    if mode != "shared":
        with lock.released_on_error():
            for part in (folder, folder / ENCODER, folder / "train", *(folder / "train").glob("*/")):
                remove_leftovers(part)
    return lock


def create_model(folder: Path, config: ModelConfig, encoder_folder: Path | None = None) -> None:
    """Create a model folder: copy the encoder, then write config.json with the digests of all files.

    Args:
        folder: the model folder, which may exist.
        config: entries of config.json; the digests are computed.
        encoder_folder: the encoder to copy; None if it is loaded from the hub.

    Raises:
        ModelError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if encoder_folder is not None:
        copy_encoder(encoder_folder, folder / ENCODER)
    _write_config(folder, replace(config, files=_digests(folder), replacing={}))


def update_config(folder: Path, **entries: Any) -> None:
    """Change entries of config.json.

    Raises:
        ModelError: there is no config.json, or it cannot be written.
    """
    _write_config(folder, replace(read_config(folder), **entries))


def write_file(folder: Path, name: str, write: Callable[[Path], Any]) -> None:
    """Write a file of a model folder atomically, and record its digest if there is a config.json.

    Args:
        folder: the model folder.
        name: path of the file in the folder.
        write: called with a temporary path to write to.

    Raises:
        ModelError: config.json is invalid, or a file cannot be written.
    """
    digest = ""

    def write_and_record(temporary: Path) -> None:
        nonlocal digest
        write(temporary)
        digest = file_sha256(temporary)
        if (folder / CONFIG).exists():
            _write_config(folder, replace(_settled(folder), replacing={name: digest}))

    replace_file(folder / name, write_and_record)
    if (folder / CONFIG).exists():
        update_config(folder, files={**read_config(folder).files, name: digest}, replacing={})


def record_files(folder: Path) -> None:
    """Record the digests of all files of a model folder, such as those that were linked into it.

    Raises:
        ModelError: there is no config.json, or it cannot be written.
    """
    update_config(folder, files=_digests(folder), replacing={})


def copy_encoder(source: Path, folder: Path) -> None:
    """Copy the weights and the configuration of an encoder; other files of its folder are left out.

    Raises:
        ModelError: a file cannot be written.
    """
    for file in _encoder_files(source):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        replace_file(folder / file, partial(shutil.copyfile, source / file))


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file of a model folder atomically; its digest is not recorded.

    Raises:
        ModelError: a file cannot be written.
    """
    try:
        write_whole(path, write)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save and safetensors wrap OSError
        raise ModelError(f"{path} cannot be written: {first_line(error)}") from error


def _write_config(folder: Path, config: ModelConfig) -> None:
    text = config_text(config)
    replace_file(folder / CONFIG, lambda path: path.write_text(text))


def _settled(folder: Path) -> ModelConfig:
    """The config, with the digests of files that an interrupted write did replace."""
    config = read_config(folder)
    files = dict(config.files)
    for name, digest in config.replacing.items():
        if (folder / name).is_file() and file_sha256(folder / name) == digest:
            files[name] = digest
    return replace(config, files=files)


def _digests(folder: Path) -> dict[str, str]:
    names = (DECODER, MAP, NOVELTY, GRAPH, INDEX, *EXPERT_FILES.values())
    files = [file for name in names if (file := folder / name).is_file()]
    files += [folder / ENCODER / file for file in _encoder_files(folder / ENCODER)]
    files += sorted(folder.glob(_HEADS))
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}


def _encoder_files(folder: Path) -> list[str]:
    """Paths in an encoder's folder of its files, and of those of the towers in folders of it."""
    files = {file for pattern in _ENCODER_FILES for depth in ("", "*/") for file in folder.glob(depth + pattern)}
    return sorted(file.relative_to(folder).as_posix() for file in files)
