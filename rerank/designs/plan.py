"""What re-ranking would ask, without asking it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jzi.rerank.ask import Asker
from jzi.rerank.config import RerankConfig
from jzi.rerank.cost import Cost, price
from jzi.rerank.designs.compare import first_questions
from jzi.rerank.designs.schedule import method_calls
from jzi.rerank.question import Picture


@dataclass(frozen=True)
class Plan:
    """What would be asked.

    Attributes:
        cost: questions, those with a known answer, tokens and price; seconds are not known.
        exact: whether the number of questions does not depend on answers; else it is the greatest.
    """

    cost: Cost = field(default_factory=Cost)
    exact: bool = True

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.cost + other.cost, self.exact and other.exact)


def plan(asker: Asker, photo: Picture, crops: Sequence[Picture | None], config: RerankConfig) -> Plan:
    """What comparing the candidates of a photo would ask.

    Later questions of a method whose questions depend on answers are counted with the tokens of its first ones, and as
    if no answer to them were known.

    Args:
        asker: of the judge; nothing is asked.
        photo: the photo.
        crops: (k,) of the candidates; None where there is no imagery.
        config: settings.
    """
    first = list(first_questions(photo, crops, config))
    if not first:
        return Plan()
    calls, exact = method_calls(config, sum(crop is not None for crop in crops))
    known = asker.estimate(first)
    later = max(0, calls - len(first))
    tokens = [asker.judge.estimate(question) for question in first[:1] if later]
    tokens_in, tokens_out = (later * sum(each[side] for each in tokens) for side in (0, 1))
    more = Cost(
        asked=later,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        price=price(tokens_in, tokens_out, config.price_per_million),
    )
    return Plan(known + more, exact)
