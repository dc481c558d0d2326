"""rerank.json: fitted weights, and the judge, texts and method that they belong to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from jzi.errors import RerankError, first_line
from jzi.rerank.config import Orders
from jzi.rerank.fuse import Weights
from jzi.store.files import write_whole
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
        weights: the weights.
        bias: preference for A, log-odds, that is subtracted where a pair is asked about once.
        version: version of jzi that wrote the file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    judge: _Text
    prompts: _Text
    method: _Text
    orders: Orders
    weights: Weights
    bias: Annotated[float, Field(ge=-1e3, le=1e3)] = 0.0
    version: _Text = __version__

    def mismatch(self, judge: str, prompts: str, method: str, orders: Orders) -> str:
        """The first thing that the weights were fitted with another of, for messages; empty if they fit."""
        given = {"judge": judge, "prompts": prompts, "method": method, "orders": orders}
        return next((name for name, value in given.items() if getattr(self, name) != value), "")


_ADAPTER = TypeAdapter(WeightsFile)


def read_weights(path: Path) -> WeightsFile:
    """Read and check rerank.json; at most 64 kB of it are read.

    Raises:
        FileNotFoundError: there is none.
        RerankError: it cannot be read, was edited or damaged, or has another format.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise RerankError(f"{path} has more than {_MAX_BYTES} bytes, it was edited or damaged: {_HINT}")
        entries: Any = json.loads(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise RerankError(f"{path} cannot be read ({first_line(error)}): {_HINT}") from error
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
