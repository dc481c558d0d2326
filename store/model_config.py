"""config.json of a model folder: what it records of each kind of model, its digest, and how it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from jzi.errors import JziError, ModelError
from jzi.store.disk.json_file import read_json
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.plain import plain
from jzi.store.setting_checks import first_invalid
from jzi.version import __version__

FORMAT = 3

CONFIG = "config.json"

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
        spread: spread of the product (`jzi.locate.joint.spread`) of those subsets that have one.
        sharpness: slope and center of the product's power (`jzi.locate.joint.sharpness`) of those that have one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    weights: dict[str, dict[str, Annotated[float, Field(ge=0, le=1e6)]]]
    gains: dict[str, tuple[Gain, Gain]]
    photos: Annotated[int, Field(ge=1, le=10**9)]
    fitted_on: Annotated[str, Field(max_length=64)]
    spread: dict[str, Annotated[float, Field(ge=0, le=1 / 3)]] = field(default_factory=dict)
    sharpness: dict[str, tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(ge=-1e3, le=1e3)]]] = field(
        default_factory=dict
    )


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


@dataclass(frozen=True)
class NoveltyConfig:
    """How far validation photos are from the training photos (`jzi.locate.novelty`).

    Attributes:
        center: mean of the logarithm of their squared distance.
        scale: its standard deviation.
        photos: number of validation photos.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    center: Annotated[float, Field(ge=-100, le=100)]
    scale: Annotated[float, Field(gt=0, le=100)]
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
        novelty: how pictures unlike the training photos are recognized; None if it was not measured.
    """

    decoder: dict[str, int | float | str]
    temperature: tuple[Annotated[float, Field(ge=0.01, le=100)], ...] | None = None
    experts: dict[str, dict[str, int | float | str]] = field(default_factory=dict)
    fusion: FusionConfig | None = None
    inside: dict[str, InsideConfig] = field(default_factory=dict)
    novelty: NoveltyConfig | None = None
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
        and fusion.spread.keys() | fusion.sharpness.keys() <= fusion.weights.keys()
    ):
        raise ModelError(f"{path} has a fusion of other experts than {', '.join(sorted(names)):.200}: {HINT}")
    if isinstance(config, ZoomModelConfig) and not all(
        {*key.split("+")} == {*inside.weights} <= names for key, inside in config.inside.items()
    ):
        raise ModelError(f"{path} has the evidence of other experts than {', '.join(sorted(names)):.200}: {HINT}")


def config_text(config: ModelConfig) -> str:
    """The text of a config.json, with its own digest."""
    entries = plain(config)
    digests = {name: dict(sorted(entries.pop(name).items())) for name in ("files", "replacing")}
    if not digests["replacing"]:
        del digests["replacing"]
    head = {"jzi_format": FORMAT, "version": config.version, "kind": entries["kind"]}
    entries = {**head, **entries, **digests}
    return json.dumps({**entries, "digest": _digest(entries)}, indent=2) + "\n"


def _digest(entries: Mapping[str, Any]) -> str:
    """SHA-256 of entries, independent of their order and layout."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
