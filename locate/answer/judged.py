"""What a re-ranker found of a candidate: its place before, and the comparisons with other candidates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Against:
    """The comparison of a candidate with another one.

    Attributes:
        rank: rank of the other one before re-ranking, from 1.
        log_odds: log-odds that this candidate, not the other one, shows the place of the photo; None if the judge
            abstained.
        consistent: whether the judge preferred the same one in both orders; None if it was asked in one order only.
    """

    rank: int
    log_odds: float | None
    consistent: bool | None


@dataclass(frozen=True)
class Judged:
    """A candidate that was compared with others.

    Attributes:
        rank: its rank before re-ranking, from 1.
        probability: its probability before re-ranking, 0..1.
        score: how much it was preferred, in log-odds; 0 is the mean of the candidates. None if it was not shown, for
            lack of imagery.
        sd: standard deviation of the score; None if the method has none.
        against: comparisons with other candidates; empty where candidates were judged one by one or all at once.
        radius_68_m: radius around the candidate that contains 68 % of the probability, after re-ranking; inf if search
            reached less.
        radius_95_m: the same for 95 %.
    """

    rank: int
    probability: float
    score: float | None
    sd: float | None
    against: tuple[Against, ...]
    radius_68_m: float
    radius_95_m: float
