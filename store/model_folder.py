"""Model folders: what config.json records, and how their files are written, verified and read.

config.json           format, kind, encoder, pyramid and imagery (of a state-wide retriever, neither), the kind's own
                      entries, SHA-256 of every file below
decoder.safetensors   a zoom model's weights
map.safetensors       the map's embeddings; absent in an imported model, which reads them from a cache, and a retriever
cells.safetensors     the expert cells: two heads, and the codes of all cells
levels.safetensors    the expert levels: two heads, and the codes of all tiles
vpr.safetensors       the expert vpr: embeddings and positions of the training photos
hnsw.faiss            a retriever's graph for approximate search
index.safetensors     a published retriever's embeddings of all cells, instead of index.zarr
encoder/              the encoder as `save_pretrained` writes it; absent if it is loaded from the hub by its id. Of a
                      state-wide retriever, its towers as `jzi.encode.encoders.towers` writes them

Of train/ the best heads have a digest, train/*/heads.safetensors; states to resume from are archives with checksums.
Other entries of the folder (records of training, result.json, index.zarr) have none; Zarr chunks have checksums.

A file that changes while config.json exists is written by `write_file`: its new digest is recorded under `replacing`,
then the file is replaced, then the digest moves to `files`. If the process is killed in between, the file matches one
of the two digests, and the model can still be used and its training resumed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError

from jzi.errors import JziError, ModelError, first_line
from jzi.store.disk.digest_memory import remembered_sha256
from jzi.store.disk.files import file_sha256, remove_leftovers, write_whole
from jzi.store.disk.json_file import read_json
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.plain import plain
from jzi.store.setting_checks import first_invalid
from jzi.version import __version__

if TYPE_CHECKING:
    from jzi.store.disk.lock import LockMode, WriterLock

FORMAT = 2

CONFIG, DECODER, MAP, ENCODER = "config.json", "decoder.safetensors", "map.safetensors", "encoder"
GRAPH, INDEX = "hnsw.faiss", "index.safetensors"

#: File of each expert beside the zoom, by its name.
EXPERT_FILES = {"cells": "cells.safetensors", "levels": "levels.safetensors", "vpr": "vpr.safetensors"}

#: Files of an encoder; other files in its folder are not copied.
_ENCODER_FILES = ("*config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")

#: Best weights of the heads of experts, to train from and to fuse again.
_HEADS = "train/*/heads.safetensors"

#: What to do about a damaged folder, for error messages.
HINT = "copy the model again, or train it again"

Digests = dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
Gain = Annotated[float, Field(ge=-1e6, le=1e6)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The entries of config.json that every kind of model has.

    Attributes:
        encoder: the encoder of the embeddings that the model was trained on.
        version: version of jzi that wrote the folder.
        files: SHA-256 of each file, by its path in the folder.
        replacing: SHA-256 of files that are being replaced (see the module's description).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    encoder: EncoderInfo
    version: str = __version__
    files: Digests = field(default_factory=dict)
    replacing: Digests = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AreaModelConfig(ModelConfig):
    """The entries of a model of one area.

    Attributes:
        pyramid: geometry of the area.
        imagery: the imagery that the model was trained on; None if unknown (imported models).
    """

    pyramid: Pyramid
    imagery: ImageryInfo | None


@dataclass(frozen=True)
class FusionConfig:
    """The fusion of a model's experts.

    Attributes:
        weights: weights of experts by name, for each subset of the experts: their names joined by "+", sorted.
        gains: log-likelihood per validation photo that each expert adds to the others, and its standard error.
        photos: number of validation photos.
        fitted_on: digest of the experts and the photos that the weights were fitted on.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    weights: dict[str, dict[str, Annotated[float, Field(ge=0, le=1e6)]]]
    gains: dict[str, tuple[Gain, Gain]]
    photos: Annotated[int, Field(ge=1, le=10**9)]
    fitted_on: Annotated[str, Field(max_length=64)]


@dataclass(frozen=True)
class InsideConfig:
    """A logistic regression that separates photos of the area from others (`jzi.locate.inside`).

    Attributes:
        weights: factor of each expert's evidence, by its name.
        bias: constant of the log-odds, at as many photos of the area as from elsewhere.
        auroc: share of pairs of a validation photo and one whose surroundings are hidden in which the first has the
            greater log-odds; 0.5 is chance.
        photos: number of validation photos.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    weights: dict[str, Annotated[float, Field(ge=0, le=1e9)]]
    bias: Annotated[float, Field(ge=-1e9, le=1e9)]
    auroc: Annotated[float, Field(ge=0, le=1)]
    photos: Annotated[int, Field(ge=1, le=10**9)]


@dataclass(frozen=True, kw_only=True)
class ZoomModelConfig(AreaModelConfig):
    """config.json of a zoom model.

    Attributes:
        decoder: the architecture, entries of `jzi.decode.config.DecoderConfig`.
        temperature: (L,) divisors of the logits of each step; None if the model is not calibrated.
        experts: entries of each expert beside the zoom, by its name.
        fusion: fusion of the experts; None if it was not fitted.
        inside: how photos from elsewhere are recognized, for each subset of the experts that can: their names joined
            by "+", sorted; empty if it was not fitted.
    """

    decoder: dict[str, int | float | str]
    temperature: tuple[Annotated[float, Field(ge=0.01, le=100)], ...] | None = None
    experts: dict[str, dict[str, int | float | str]] = field(default_factory=dict)
    fusion: FusionConfig | None = None
    inside: dict[str, InsideConfig] = field(default_factory=dict)
    kind: Literal["zoom"] = "zoom"


@dataclass(frozen=True, kw_only=True)
class RetrieverModelConfig(AreaModelConfig):
    """config.json of a retriever.

    Attributes:
        context: side of a cell's reference crop, in cells.
        temperature: divisor of cosine similarities.
        method: training method (`jzi.train.config.encoders.RetrieverConfig`).
    """

    imagery: ImageryInfo
    context: Annotated[float, Field(ge=1, le=64)]
    temperature: Annotated[float, Field(ge=1e-4, le=1e4)]
    method: Annotated[str, Field(max_length=64)]
    kind: Literal["retriever"] = "retriever"


@dataclass(frozen=True, kw_only=True)
class TransferModelConfig(AreaModelConfig):
    """config.json of a model without a zoom: experts that compare contents, trained in other areas.

    Attributes:
        experts: entries of each expert, by its name.
        fusion: fusion of the experts, fitted where they were trained.
    """

    experts: dict[str, dict[str, int | float | str]]
    fusion: FusionConfig
    kind: Literal["transfer"] = "transfer"


@dataclass(frozen=True, kw_only=True)
class StatewideModelConfig(ModelConfig):
    """config.json of a state-wide retriever, which can be used in any area.

    Attributes:
        cell_m: side of the cells that it was trained with, metres.
        temperature: divisor of cosine similarities, fitted on validation photos.
        method: training method (`jzi.train.config.statewide.StatewideConfig`).
        area: where it was trained, for people.
    """

    cell_m: Annotated[float, Field(gt=0, le=20_037_508)]
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)]
    method: Annotated[str, Field(max_length=64)]
    area: Annotated[str, Field(max_length=1000)] = ""
    kind: Literal["statewide"] = "statewide"


AnyModelConfig = ZoomModelConfig | RetrieverModelConfig | TransferModelConfig | StatewideModelConfig

_KINDS: dict[str, TypeAdapter[Any]] = {
    "zoom": TypeAdapter(ZoomModelConfig),
    "retriever": TypeAdapter(RetrieverModelConfig),
    "transfer": TypeAdapter(TransferModelConfig),
    "statewide": TypeAdapter(StatewideModelConfig),
}


# Reading


def read_config(folder: Path) -> AnyModelConfig:
    """Read and validate config.json of a model folder.

    Raises:
        ModelError: there is no model, it has another format, or config.json was edited or damaged.
    """
    path = folder / CONFIG
    try:
        entries = read_json(path, ModelError, HINT)
    except (FileNotFoundError, NotADirectoryError):
        there = "" if folder.exists() else ", which does not exist"
        raise ModelError(
            f"there is no model in {folder}{there}: `jzi train-decoder` or `train-retriever` creates one, and "
            "USER/NAME is one of the hub"
        ) from None
    if not isinstance(entries, dict) or "jzi_format" not in entries:
        raise ModelError(f"{folder} is not a model folder of jzi: its config.json has no entry jzi_format")
    if entries["jzi_format"] != FORMAT:
        raise ModelError(
            f"{folder} is a model folder of format {entries['jzi_format']!r:.20}, but jzi {__version__} reads format "
            f"{FORMAT}: train the model again, or import its checkpoint again"
        )
    if entries.pop("digest", None) != _digest(entries):
        raise ModelError(f"{path} does not match its own digest, it was edited or damaged: {HINT}")
    adapter = _KINDS.get(str(entries.get("kind")))
    if adapter is None:
        raise ModelError(
            f"{folder} contains a model of kind {entries.get('kind')!r:.40}, which jzi {__version__} does not support: "
            "use the version that wrote it"
        )
    del entries["jzi_format"]
    try:
        config: AnyModelConfig = adapter.validate_json(json.dumps(entries))
    except ValidationError as error:
        raise ModelError(f"{path} has an {first_invalid(error)}: {HINT}") from error
    except JziError as error:  # of the pyramid and the encoder
        raise ModelError(f"{path} cannot be used ({error}): {HINT}") from error
    _check(path, config)
    return config


def _check(path: Path, config: AnyModelConfig) -> None:
    """Check what entries have to do with one another."""
    if isinstance(config, RetrieverModelConfig | StatewideModelConfig):
        return
    if isinstance(config, ZoomModelConfig):
        names = {"zoom", *config.experts}
        if config.temperature is not None and len(config.temperature) != config.pyramid.levels:
            raise ModelError(f"{path} does not have a temperature for each of its pyramid's levels: {HINT}")
    else:
        names = set(config.experts)
    fusion = config.fusion
    if fusion is not None and not (
        all({*key.split("+")} == {*weights} <= names for key, weights in fusion.weights.items())
        and fusion.gains.keys() <= names
    ):
        raise ModelError(f"{path} has a fusion of other experts than {', '.join(sorted(names)):.200}: {HINT}")
    if isinstance(config, ZoomModelConfig) and not all(
        {*key.split("+")} == {*inside.weights} <= names for key, inside in config.inside.items()
    ):
        raise ModelError(f"{path} has the evidence of other experts than {', '.join(sorted(names)):.200}: {HINT}")


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


def config_text(config: ModelConfig) -> str:
    """The text of a config.json, with its own digest."""
    entries = plain(config)
    digests = {name: dict(sorted(entries.pop(name).items())) for name in ("files", "replacing")}
    if not digests["replacing"]:
        del digests["replacing"]
    head = {"jzi_format": FORMAT, "version": config.version, "kind": entries["kind"]}
    entries = {**head, **entries, **digests}
    return json.dumps({**entries, "digest": _digest(entries)}, indent=2) + "\n"


def _settled(folder: Path) -> ModelConfig:
    """The config, with the digests of files that an interrupted write did replace."""
    config = read_config(folder)
    files = dict(config.files)
    for name, digest in config.replacing.items():
        if (folder / name).is_file() and file_sha256(folder / name) == digest:
            files[name] = digest
    return replace(config, files=files)


def _digests(folder: Path) -> dict[str, str]:
    files = [file for name in (DECODER, MAP, GRAPH, INDEX, *EXPERT_FILES.values()) if (file := folder / name).is_file()]
    files += [folder / ENCODER / file for file in _encoder_files(folder / ENCODER)]
    files += sorted(folder.glob(_HEADS))
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}


def _encoder_files(folder: Path) -> list[str]:
    """Paths in an encoder's folder of its files, and of those of the towers in folders of it."""
    files = {file for pattern in _ENCODER_FILES for depth in ("", "*/") for file in folder.glob(depth + pattern)}
    return sorted(file.relative_to(folder).as_posix() for file in files)


def _digest(entries: Mapping[str, Any]) -> str:
    """SHA-256 of entries, independent of their order and layout."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
