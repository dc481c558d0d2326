"""Probabilities of labels from those of tokens: a label is any of several tokens, or several tokens in a row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

#: Token ids in a row.
Tokens = tuple[int, ...]


class LabelTokens:
    """The ways in which a tokenizer writes labels.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self._known: dict[str, tuple[Tokens, ...]] = {}

    def of(self, label: str) -> tuple[Tokens, ...]:
        """Return the ways to write a label.

        Returns:
            All tokens that are the label but for spaces; if there is none, the tokens of the label and of the label
            after a space.
        """
        if label not in self._known:
            # a byte may be a token of its own: decode those too
            likely = [i for i, token in enumerate(self._tokens) if token and (label in token or token[:3] == "<0x")]
            single = [(i,) for i in likely if self._tokenizer.decode([i]).strip() == label]
            spelled = [tuple(self._tokenizer.encode(text, add_special_tokens=False)) for text in (label, f" {label}")]
            self._known[label] = tuple(single or dict.fromkeys(ids for ids in spelled if ids))
        return self._known[label]


def contexts(ways: Iterable[Sequence[Tokens]]) -> list[Tokens]:
    """Return the tokens after which more of a label follows, without those that begin another one of them."""
    starts = {way[:-1] for label in ways for way in label if len(way) > 1}
    return sorted(start for start in starts if not any(start == other[: len(start)] for other in starts - {start}))


def label_log_probabilities(ways: Sequence[Sequence[Tokens]], following: Mapping[Tokens, Tensor]) -> list[float]:
    """Add up the probabilities of the ways to write each label.

    A label that begins another one ("1" and "10") has the probability of what is left: that it ends there.

    Args:
        ways: of each label.
        following: (token,) log-probabilities of the next token after each beginning of a way, the empty one included.

    Returns:
        Natural logarithm of the probability of each label.
    """
    probability = {
        way: math.exp(sum(float(following[way[:i]][token]) for i, token in enumerate(way)))
        for label in ways
        for way in label
    }
    totals = []
    for label in ways:
        total = 0.0
        for way in label:
            longer = [other for other in probability if len(other) > len(way) and other[: len(way)] == way]
            # of ways that begin one another only the shortest counts
            first = [other for other in longer if not any(o != other and o == other[: len(o)] for o in longer)]
            total += max(probability[way] - sum(probability[other] for other in first), 0.0)
        totals.append(math.log(total) if total > 0 else -math.inf)
    return totals
