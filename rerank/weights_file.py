"""rerank.json: fitted weights, and the judge, texts and method that they belong to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from jzi.errors import RerankError
from jzi.rerank.config import Orders, RerankConfig
from jzi.rerank.fuse import Weights
from jzi.store.disk.files import write_whole
from jzi.store.disk.json_file import read_json
from jzi.store.plain import plain
from jzi.store.setting_checks import first_invalid
from jzi.version import __version__

FORMAT = 1

FILE = "rerank.json"

#: Largest rerank.json, bytes; those that are written have 1 kB.
_MAX_BYTES = 2**16

_HINT = "fit the weights again with `jzi rerank calibrate`"

_Text = Annotated[str, Field(max_length=200)]


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """What rerank.json records.

    Attributes:
        judge: fingerprint of the judge.
        prompts: version of the texts.
        method: how candidates are compared.
        orders: whether pairs are asked about in both orders.
        front: the front end whose candidates were compared.
        pictures: how photos and crops are shown, as of `shown_as`.
        weights: the weights.
        bias: preference for A, log-odds, that is subtracted where a pair is asked about once.
        version: version of jzi that wrote the file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    judge: _Text
    prompts: _Text
    method: _Text
    orders: Orders
    front: _Text
    pictures: _Text
    weights: Weights
    bias: Annotated[float, Field(ge=-1e3, le=1e3)] = 0.0
    version: _Text = __version__

    def mismatch(self, other: WeightsFile) -> str:
        """The first thing that the weights were fitted with another of, for messages; empty if they fit."""
        names = {"judge": "judge", "prompts": "version of the texts", "method": "method", "orders": "choice of orders",
                 "front": "front end", "pictures": "size of pictures"}  # fmt: skip
        return next((text for name, text in names.items() if getattr(self, name) != getattr(other, name)), "")

    def same_bias(self, other: WeightsFile) -> bool:
        """Whether the preference for A is that of another file: it depends on neither method nor front end."""
        return (self.judge, self.prompts) == (other.judge, other.prompts)


def shown_as(config: RerankConfig) -> str:
    """How photos and crops are shown, as a digest."""
    shown = [config.crop_m, config.crop_pixels, config.photo_pixels, config.outline]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


_ADAPTER = TypeAdapter(WeightsFile)


def read_weights(path: Path) -> WeightsFile:
    """Read and check rerank.json; at most 64 kB of it are read.

    Raises:
        FileNotFoundError: there is none.
        RerankError: it cannot be read, was edited or damaged, or has another format.
    """
    entries = read_json(path, RerankError, _HINT, most=_MAX_BYTES)
    if not isinstance(entries, dict) or "jzi_rerank" not in entries:
        raise RerankError(f"{path} has no weights of jzi, its entry jzi_rerank is missing: {_HINT}")
    if entries.pop("jzi_rerank") != FORMAT:
        raise RerankError(f"{path} is not of format {FORMAT}, which jzi {__version__} reads: {_HINT}")
    try:
        return _ADAPTER.validate_json(json.dumps(entries), strict=True)
    except ValidationError as error:
        raise RerankError(f"{path} has an {first_invalid(error)}: {_HINT}") from error


def write_weights(path: Path, weights: WeightsFile) -> None:
    """Write rerank.json atomically.

    Raises:
        RerankError: it cannot be written.
    """
    text = json.dumps({"jzi_rerank": FORMAT, **plain(weights)}, indent=2)
    try:
        write_whole(path, lambda part: part.write_text(text + "\n"))
    except OSError as error:
        raise RerankError(f"{path} cannot be written ({error.strerror}): choose another folder") from error
