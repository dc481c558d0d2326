"""Rows of judgments: to the columns of a table, and back, checked."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, get_args

from jzi.rerank.question import LABELS, LETTERS, Kind, Question, Reading

#: Largest row, bytes: the file may come from strangers. The text of a model that may reason for 16 384 tokens fits.
MAX_ROW = 2**20

#: Columns of the table after the id.
COLUMNS = (
    "key",
    "photo",
    "crops",
    "kind",
    "judge",
    "fingerprint",
    "log_probabilities",
    "mass",
    "text",
    "tokens_in",
    "tokens_out",
    "seconds",
    "abstained",
    "time",
)


@dataclass(frozen=True)
class Judgment:
    """A row: a question by the digests of its pictures, and its answer.

    Attributes:
        key: of the question (`judgment_key`).
        photo: digest of the photo.
        crops: digests of the crops, in order.
        kind: what was asked.
        judge: name of the judge.
        fingerprint: of the judge.
        reading: the answer.
        time: when it was given, Unix time.
    """

    key: str
    photo: str
    crops: tuple[str, ...]
    kind: Kind
    judge: str
    fingerprint: str
    reading: Reading
    time: float


def judgment_key(question: Question, fingerprint: str) -> str:
    """Key of a question to a judge: SHA-256, hexadecimal.

    The order of the crops matters. The fingerprint covers the texts, the composition and the model.
    """
    crops = tuple(crop.digest for crop in question.crops)
    return _key(question.photo.digest, crops, question.kind, fingerprint)


def _key(photo: str, crops: Sequence[str], kind: str, fingerprint: str) -> str:
    return hashlib.sha256(json.dumps([photo, list(crops), kind, fingerprint]).encode()).hexdigest()


def to_row(judgment: Judgment) -> tuple[Any, ...]:
    """Values of `COLUMNS`. JSON has no infinity: null is the logarithm of 0."""
    reading = judgment.reading
    values = [None if value == -math.inf else value for value in reading.log_probabilities]
    return (
        judgment.key,
        judgment.photo,
        json.dumps(judgment.crops),
        judgment.kind,
        _encodable(judgment.judge),
        judgment.fingerprint,
        json.dumps(values),
        reading.mass,
        _encodable(reading.text),
        reading.tokens_in,
        reading.tokens_out,
        reading.seconds,
        int(reading.abstained),
        judgment.time,
    )


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def from_row(values: Sequence[Any]) -> Judgment:
    """Return the judgment with some values of `COLUMNS`.

    Raises:
        ValueError: they are none that `to_row` returns.
    """
    row = dict(zip(COLUMNS, values, strict=True))
    for name in ("key", "photo", "crops", "kind", "judge", "fingerprint", "log_probabilities", "text"):
        if not isinstance(row[name], str):
            raise ValueError(f"{name} is no text")
    if row["abstained"] not in (0, 1):
        raise ValueError("abstained is neither 0 nor 1")
    crops, logs = _strict_json(row["crops"]), _strict_json(row["log_probabilities"])
    if not (isinstance(crops, list) and all(isinstance(crop, str) for crop in crops)):
        raise ValueError("crops are no digests")
    if not isinstance(logs, list):
        raise ValueError("log_probabilities are no list")
    reading = Reading(
        tuple(-math.inf if value is None else value for value in logs),
        **{name: row[name] for name in ("mass", "text", "tokens_in", "tokens_out", "seconds")},
        abstained=bool(row["abstained"]),
    )
    named = {name: row[name] for name in ("key", "photo", "kind", "judge", "fingerprint", "time")}
    judgment = Judgment(crops=tuple(crops), reading=reading, **named)
    check(judgment)
    return judgment


def _strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} in JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested JSON") from None


def check(judgment: Judgment) -> None:
    """Check that the values of a judgment are possible, and fit its question.

    Raises:
        ValueError: they are not.
    """
    if judgment.kind not in get_args(Kind):
        raise ValueError(f"unknown kind {judgment.kind!r:.50}")
    fewest, most = {"pair": (2, 2), "list": (2, len(LETTERS))}.get(judgment.kind, (1, 1))
    if not fewest <= len(judgment.crops) <= most:
        raise ValueError(f"{len(judgment.crops)} crops for the kind {judgment.kind}")
    if judgment.key != _key(judgment.photo, judgment.crops, judgment.kind, judgment.fingerprint):
        raise ValueError("the key is not that of the question")
    reading = judgment.reading
    labels = len(LABELS.get(judgment.kind, judgment.crops)) or 1
    if len(reading.log_probabilities) != labels:
        raise ValueError(f"{len(reading.log_probabilities)} log-probabilities for {labels} labels")
    top = 1e9 if judgment.kind == "describe" else 1e-3  # rounding of half precision
    for value in reading.log_probabilities:
        if not (_is_number(value) and (value == -math.inf or -1e9 <= value <= top)):
            raise ValueError(f"the log-probability {value!r:.50}")
    if not (_is_number(reading.mass) and 0 <= reading.mass <= 1.001):
        raise ValueError(f"the mass {reading.mass!r:.50}")
    for count in (reading.tokens_in, reading.tokens_out):
        if not (isinstance(count, int) and 0 <= count < 2**63):
            raise ValueError(f"{count!r:.50} tokens")
    for duration in (reading.seconds, judgment.time):
        if not is_time(duration):
            raise ValueError(f"the time {duration!r:.50}")
    if len(reading.text) + len(judgment.judge) > MAX_ROW // 4:  # a character is up to 4 bytes
        raise ValueError(f"a text of {len(reading.text)} characters")


def is_time(value: object) -> bool:
    """Whether a value is a duration or Unix time that a judgment may have, in seconds."""
    return _is_number(value) and 0 <= value < 1e11  # a date has a year of at most 9999


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
