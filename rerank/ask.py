"""Ask a judge what is not known yet, within a budget."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol, runtime_checkable

from jzi.errors import ConfigError, RerankError
from jzi.rerank.config import RerankConfig
from jzi.rerank.cost import Budget, Cost, price
from jzi.rerank.judgment_rows import judgment_key
from jzi.rerank.judgments import Judgments
from jzi.rerank.question import Judge, Kind, Question, Reading


@runtime_checkable
class ResumingJudge(Protocol):
    """A judge that reads answers by what its first ones were like; `Asker` gives it those that are kept.

    Attributes:
        first_questions: number of first answers of each kind that it needs.
    """

    first_questions: int

    def resume(self, kind: Kind, readings: Sequence[Reading]) -> None:
        """Continue after these first answers, of questions of a kind, in the order in which they were given."""
        ...


class Asker:
    """Answers questions from the judgments that are kept, or else by a judge, whose answers are kept then.

    Args:
        judge: the judge.
        judgments: where answers are kept; None to ask anew in each call.
        config: settings.
        budget: the most that may be spent; None for no limit.

    Attributes:
        cost: what has been spent so far.
        exhausted: whether a question was not asked because the budget was spent.

    Raises:
        ConfigError: the budget is a sum of money, and there are no prices.
    """

    def __init__(
        self, judge: Judge, judgments: Judgments | None, config: RerankConfig, budget: Budget | None = None
    ) -> None:
        self.judge = judge
        self.judgments = judgments
        self.config = config
        self.budget = budget or Budget()
        self.cost = Cost()
        self.exhausted = False
        self._resumed: set[Kind] = set()
        if self.budget.money is not None and not any(config.price_per_million):
            raise ConfigError(
                "a budget in money needs the price of a million tokens: set rerank.price_per_million, or give a number "
                "of questions or a time"
            )

    def ask(self, questions: Sequence[Question]) -> list[Reading | None]:
        """Answers in the order of the questions; None for those that were not asked because the budget was spent.

        Each answer is kept as soon as it comes. Equal questions are asked once.

        Raises:
            RerankError: the judge cannot answer, or an answer cannot be kept.
        """
        keys = [judgment_key(question, self.judge.fingerprint) for question in questions]
        known = self._kept(keys)
        pending = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
        self._resume(pending.values())
        asked: dict[str, Reading] = {}
        while len(asked) < len(pending):
            batch = dict(islice(pending.items(), len(asked), None))
            allowed = self._allowed(list(batch.values()))
            if not allowed:
                self.exhausted = True
                break
            self._ask(dict(islice(batch.items(), allowed)), asked)
        answers = known | asked
        readings = [answers.get(key) for key in keys]
        repeated = sum(reading is not None for reading in readings) - len(asked)
        self.cost = replace(self.cost, cached=self.cost.cached + repeated)
        return readings

    def estimate(self, questions: Sequence[Question]) -> Cost:
        """What `ask` is expected to cost without a budget; nothing is asked."""
        keys = [judgment_key(question, self.judge.fingerprint) for question in questions]
        known = self._kept(keys)
        pending = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
        self._resume(pending.values())
        tokens = [self.judge.estimate(question) for question in pending.values()]
        tokens_in, tokens_out = (sum(each[side] for each in tokens) for side in (0, 1))
        return Cost(
            asked=len(pending),
            cached=len(keys) - len(pending),
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            price=price(tokens_in, tokens_out, self.config.price_per_million),
        )

    def _resume(self, questions: Iterable[Question]) -> None:
        """Give the judge, once for each kind, the first answers that are kept."""
        if self.judgments is None or not isinstance(self.judge, ResumingJudge):
            return
        for kind in {question.kind for question in questions} - self._resumed:
            self.judge.resume(kind, self.judgments.first(kind, self.judge.fingerprint, self.judge.first_questions))
            self._resumed.add(kind)

    def _kept(self, keys: Sequence[str]) -> dict[str, Reading]:
        return self.judgments.get(list(dict.fromkeys(keys))) if self.judgments else {}

    def _allowed(self, questions: Sequence[Question]) -> int:
        """How many of the questions, from the first on, may be asked now."""
        budget = self.budget
        count = len(questions)
        if budget.calls is not None:
            count = min(count, budget.calls - self.cost.asked)
        if budget.seconds is not None:  # the time is looked at between batches, so that none is lost
            count = min(count, self.config.batch_size) if self.cost.seconds < budget.seconds else 0
        if budget.money is not None:
            left = budget.money - self.cost.price
            for number, question in enumerate(questions[: min(count, self.config.batch_size)]):
                left -= price(*self.judge.estimate(question), self.config.price_per_million)
                if left < 0:
                    return number
            count = min(count, self.config.batch_size)
        return max(count, 0)

    def _ask(self, batch: dict[str, Question], asked: dict[str, Reading]) -> None:
        """Ask a batch, and add the answers to those asked."""
        start = time.monotonic()
        expected = len(asked) + len(batch)
        answers = self.judge.answer(list(batch.values()))
        for reading, (key, question) in zip(answers, batch.items(), strict=False):  # answers first, so that they end
            now = time.monotonic()
            self.cost += Cost(
                asked=1,
                abstained=int(reading.abstained),
                tokens_in=reading.tokens_in,
                tokens_out=reading.tokens_out,
                seconds=now - start,
                price=price(reading.tokens_in, reading.tokens_out, self.config.price_per_million),
            )
            if self.judgments:
                self.judgments.put(self.judge, question, reading)
            asked[key] = reading
            start = time.monotonic()
        if len(asked) < expected:
            missing = expected - len(asked)
            raise RerankError(f"the judge {self.judge.name:.100} left {missing} of {len(batch)} questions unanswered")
