"""What questions cost, and how much may be spent on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

from jzi.errors import ConfigError
from jzi.rerank.question import Reading

#: Seconds of a unit of time.
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Cost:
    """What questions have cost, or are expected to cost.

    Attributes:
        asked: questions that the judge answers.
        cached: questions whose answer is known: kept from before, or to a question that was asked twice.
        abstained: questions asked that have no answer.
        tokens_in: tokens of the questions asked, images included.
        tokens_out: tokens of their answers.
        seconds: time spent waiting for the judge.
        price: by `price_per_million`, in its currency; 0 if that is not set.
    """

    asked: int = 0
    cached: int = 0
    abstained: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    price: float = 0.0

    @classmethod
    def of(cls, readings: Sequence[Reading]) -> Cost:
        """What answers have cost when they were given; without a price."""
        return cls(
            asked=len(readings),
            abstained=sum(each.abstained for each in readings),
            tokens_in=sum(each.tokens_in for each in readings),
            tokens_out=sum(each.tokens_out for each in readings),
            seconds=sum(each.seconds for each in readings),
        )

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, field.name) - getattr(other, field.name) for field in fields(self)))


def price(tokens_in: int, tokens_out: int, price_per_million: tuple[float, float]) -> float:
    """Price of some tokens of questions and of answers."""
    return (tokens_in * price_per_million[0] + tokens_out * price_per_million[1]) / 1e6


@dataclass(frozen=True)
class Budget:
    """The most that may be spent; None for no limit.

    Attributes:
        calls: questions asked; those whose answer is known are free.
        seconds: time spent waiting for the judge, exceeded by no more than the batch that is being answered.
        money: price, in the currency of `price_per_million`; a question is asked if its expected price is left.
    """

    calls: int | None = None
    seconds: float | None = None
    money: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a number of questions ("200"), a time ("90s", "10min", "2h") or a sum of money ("5.00eur").

        A currency is three letters, $ or €; the number counts in the currency of `price_per_million`.

        Raises:
            ConfigError: the text is none of these.
        """
        match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?) ?(s|min|h|[a-z]{3}|[$€])?", text.strip().lower(), re.ASCII)
        if match:
            number, unit = match.groups()
            if unit in _SECONDS:
                return cls(seconds=float(number) * _SECONDS[unit])
            if unit:
                return cls(money=float(number))
            if "." not in number:
                return cls(calls=int(number))
        raise ConfigError(
            f"the budget {text!r:.50} is neither a number of questions, nor a time, nor a sum of money: give one such "
            "as 200, 90s or 5.00eur"
        )
