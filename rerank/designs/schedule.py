"""Which candidates are compared, and in which order: generators of questions for each design.

Candidates are numbered by the front end's order, 0 is its first. A design yields the pairs that do not depend on one
another's answers together, and is sent the log-odds that each was answered with. Ties and abstentions count for the
candidate that the front end prefers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jzi.rerank.config import Orders, RerankConfig
from jzi.rerank.designs.aggregate import answers, debiased, difference, least_squares, top_probability

#: (shown as A, shown as B)
Pair = tuple[int, int]
Rounds = Generator[list[Pair], Mapping[Pair, float], None]

#: "adaptive" asks no more once a candidate is the first with this probability.
CERTAIN = 0.95

#: Designs that compare pairs; the other methods ask about one candidate at a time, or about all of them.
PAIR_DESIGNS = ("pairs", "sliding", "knockout", "swiss", "sorting", "adaptive")


def rounds(
    design: str, k: int, orders: Orders, names: Sequence[str] = (), *, questions: int = 20, bias: float = 0.0
) -> Rounds:
    """Yields ordered pairs to ask together; is sent the log-odds of A of each, nan for an abstention.

    Args:
        design: one of `PAIR_DESIGNS`.
        k: number of candidates.
        orders: "both" asks about each pair twice; with "one" a hash of the names decides which candidate is A.
        names: (k,) what identifies each candidate, such as the digest of its crop; by default its number.
        questions: most questions of "adaptive".
        bias: preference for A that is subtracted where a pair was answered once.
    """
    table = _Table(k, orders, names or tuple(map(str, range(k))), bias)
    if k < 2:
        return
    if design == "adaptive":
        yield from _adaptive(table, questions)
    else:
        yield from _DESIGNS[design](table)


def method_calls(config: RerankConfig, k: int) -> tuple[int, bool]:
    """Number of questions about k candidates, and whether it is exact or the most that the answers can lead to."""
    design, times = config.design, 2 if config.orders == "both" else 1
    doublings = (k - 1).bit_length()
    if k < 2:
        return 0, True
    if design == "list":
        return k if config.orders == "both" else 1, True
    if design == "adaptive":
        return min(config.questions // times, k * (k - 1) // 2) * times, False
    pairs = {
        "pairs": k * (k - 1) // 2,
        "sliding": k - 1,
        "knockout": k - 1,
        "swiss": doublings * (k // 2),
        "sorting": k * doublings - 2**doublings + 1,
    }
    return (pairs[design] * times, design != "sorting") if design in pairs else (k, True)


class _Table:
    """Answers so far."""

    def __init__(self, k: int, orders: Orders, names: Sequence[str], bias: float) -> None:
        self.k = k
        self.orders = orders
        self.names = names
        self.bias = bias
        self.asked: set[Pair] = set()
        self.logits = np.full((k, k), np.nan)

    def compare(self, pairs: Iterable[Pair]) -> Rounds:
        shown = [order for pair in pairs for order in self._shown(*pair)]
        logits = yield shown
        for order in shown:
            self.logits[order] = logits[order]
            self.asked |= {order, order[::-1]}

    def _shown(self, one: int, other: int) -> tuple[Pair, ...]:
        low, high = min(one, other), max(one, other)
        if self.orders == "both":
            return (low, high), (high, low)
        first, second = sorted((low, high), key=lambda each: self.names[each])
        digest = hashlib.sha256(f"{self.names[first]}|{self.names[second]}".encode()).digest()
        return ((first, second) if digest[0] & 1 else (second, first),)

    def better(self, one: int, other: int) -> bool:
        """Whether the judge prefers the first of two that were compared."""
        low, high = min(one, other), max(one, other)
        answered = difference(self.logits[low, high], self.logits[high, low], self.bias)
        return (not answered < 0) == (one == low)

    def points(self) -> list[float]:
        """Number of comparisons that each candidate won."""
        result = [0.0] * self.k
        for low, high in {(min(pair), max(pair)) for pair in self.asked}:
            result[low if self.better(low, high) else high] += 1
        return result


def _pairs(table: _Table) -> Rounds:
    yield from table.compare([(i, j) for i in range(table.k) for j in range(i + 1, table.k)])


def _sliding(table: _Table) -> Rounds:
    best = table.k - 1
    for other in range(table.k - 2, -1, -1):
        yield from table.compare([(other, best)])
        best = other if table.better(other, best) else best


def _knockout(table: _Table) -> Rounds:
    """The first meets the last; where the number is no power of two, the first ones are spared the first round."""
    left = list(range(table.k))
    while len(left) > 1:
        spared = 2 ** ((len(left) - 1).bit_length()) - len(left)
        playing = left[spared:]
        half = len(playing) // 2
        games = list(zip(playing[:half], reversed(playing[half:]), strict=True))
        yield from table.compare(games)
        left = left[:spared] + sorted(one if table.better(one, other) else other for one, other in games)


def _swiss(table: _Table) -> Rounds:
    """Those with equal numbers of wins meet, no two of them twice; of an odd number, each rests at most once."""
    rest = table.k  # a further player, met by the one that rests
    met: set[Pair] = set()
    for _ in range((table.k - 1).bit_length()):
        points = table.points()
        order = sorted(range(table.k), key=lambda each: (-points[each], each)) + [rest] * (table.k % 2)
        games = _matching(order, met)
        met |= {game for pair in games for game in (pair, pair[::-1])}
        yield from table.compare([game for game in games if rest not in game])


def _matching(order: Sequence[int], met: set[Pair]) -> list[Pair]:
    """Pairs all, neighbours in the order where possible, so that no two meet again; [] if there is no such matching."""
    if not order:
        return []
    one = order[0]
    for place, other in enumerate(order[1:], 1):
        if (one, other) not in met:
            left = [*order[1:place], *order[place + 1 :]]
            others = _matching(left, met)
            if others or not left:
                return [(one, other), *others]
    return []


def _sorting(table: _Table) -> Rounds:
    yield from _merge_sort(table, list(range(table.k)))


def _merge_sort(table: _Table, items: list[int]) -> Generator[list[Pair], Mapping[Pair, float], list[int]]:
    if len(items) < 2:
        return items
    half = len(items) // 2
    one, other = yield from _together([_merge_sort(table, items[:half]), _merge_sort(table, items[half:])])
    merged: list[int] = []
    while one and other:
        yield from table.compare([(one[0], other[0])])
        merged.append((one if table.better(one[0], other[0]) else other).pop(0))
    return merged + one + other


def _together(
    generators: Sequence[Generator[list[Pair], Mapping[Pair, float], list[int]]],
) -> Generator[list[Pair], Mapping[Pair, float], list[list[int]]]:
    """Advance several generators at once: their questions are asked together."""
    results: list[list[int]] = [[] for _ in generators]
    waiting: dict[int, list[Pair]] = {}

    def advance(number: int, logits: Any) -> None:
        try:
            waiting[number] = generators[number].send(logits)
        except StopIteration as stop:
            waiting.pop(number, None)
            results[number] = stop.value

    for number in range(len(generators)):
        advance(number, None)
    while waiting:
        logits = yield [pair for pairs in waiting.values() for pair in pairs]
        for number in list(waiting):
            advance(number, logits)
    return results


def _adaptive(table: _Table, questions: int) -> Rounds:
    """The pair with the greatest p_i p_j var(theta_i - theta_j), p: the probability of being the first.

    Ends once that of a candidate exceeds `CERTAIN`.
    """
    for _ in range(questions // (2 if table.orders == "both" else 1)):
        known = least_squares(debiased(table.logits, table.bias), answers(table.logits))
        first = top_probability(known)
        spread = np.diag(known.covariance)
        worth = np.outer(first, first) * (spread[:, None] + spread - 2 * known.covariance)
        open_pairs = [(i, j) for i in range(table.k) for j in range(i + 1, table.k) if (i, j) not in table.asked]
        if first.max() > CERTAIN or not open_pairs:
            return
        yield from table.compare([max(open_pairs, key=lambda pair: worth[pair])])


_DESIGNS = {"pairs": _pairs, "sliding": _sliding, "knockout": _knockout, "swiss": _swiss, "sorting": _sorting}
