"""Asking: what is known is not asked again, budgets are kept to the question, and kills lose at most a batch."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from jzi.errors import ConfigError, RerankError
from jzi.rerank.ask import Asker
from jzi.rerank.config import RerankConfig
from jzi.rerank.cost import Budget, Cost
from jzi.rerank.judges.scripted import ScriptedJudge, ScriptKind
from jzi.rerank.judgments import Judgments
from jzi.rerank.question import Kind, Picture, Question, Reading
from jzi.tests.children import Child


def picture(seed: int) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8))


PHOTO, CROPS = picture(0), tuple(map(picture, range(1, 6)))
PAIRS = [Question("pair", PHOTO, pair) for pair in permutations(CROPS, 2)]
CONFIG = RerankConfig(price_per_million=(2.0, 10.0))

#: Price of a question to the scripted judge: 300 tokens, and 1 of the answer.
PRICE = (300 * 2 + 1 * 10) / 1e6


def judge(**changes: object) -> ScriptedJudge:
    return ScriptedJudge({PHOTO.digest: CROPS[0].digest}, **changes)


def answered(asker: Asker) -> int:
    assert isinstance(asker.judge, ScriptedJudge)
    return asker.judge.calls


def answers(**changes: object) -> list[Reading]:
    return list(judge(**changes).answer(PAIRS))


@pytest.fixture
def judgments(tmp_path: Path) -> Iterator[Judgments]:
    with Judgments.open(tmp_path / "judgments.sqlite") as opened:
        yield opened


def test_what_is_known_is_not_asked_again(judgments: Judgments) -> None:
    first = Asker(judge(), judgments, CONFIG)
    assert first.ask(PAIRS[:7]) == answers()[:7]
    again = Asker(judge(), judgments, CONFIG)
    assert again.ask(PAIRS) == answers()
    assert (again.cost.asked, again.cost.cached, answered(again)) == (13, 7, 13)
    assert again.ask(PAIRS[::-1]) == answers()[::-1]
    assert (again.cost.asked, again.cost.cached, answered(again)) == (13, 27, 13)


def test_equal_questions_are_asked_once_even_if_nothing_is_kept() -> None:
    asker = Asker(judge(), None, CONFIG)
    copy = Question("pair", Picture(PHOTO.pixels.copy()), PAIRS[0].crops)
    readings = asker.ask([PAIRS[0], PAIRS[1], copy, PAIRS[0]])
    assert readings == [answers()[i] for i in (0, 1, 0, 0)]
    assert (answered(asker), asker.cost.asked, asker.cost.cached) == (2, 2, 2)


def test_another_judge_is_asked_anew(judgments: Judgments) -> None:
    Asker(judge(), judgments, CONFIG).ask(PAIRS)
    other = Asker(judge(seed=1), judgments, CONFIG)
    assert other.ask(PAIRS) == answers(seed=1)
    assert answered(other) == 20


def test_costs_add_up_and_differences_are_those_of_a_photo(judgments: Judgments) -> None:
    asker = Asker(judge(kind="silent"), judgments, CONFIG)
    asker.ask(PAIRS[:3])
    before = asker.cost
    asker.ask(PAIRS[:5])
    photo = asker.cost - before
    assert (photo.asked, photo.cached, photo.abstained) == (2, 3, 2)
    assert (photo.tokens_in, photo.tokens_out) == (600, 2)
    assert photo.price == pytest.approx(2 * PRICE)
    assert before + photo == asker.cost
    assert Cost() + photo == photo


@pytest.mark.parametrize("calls", [0, 1, 7, 19, 20, 21])
def test_a_budget_of_calls_is_kept_exactly(calls: int, judgments: Judgments) -> None:
    asker = Asker(judge(), judgments, CONFIG, Budget(calls=calls))
    readings = asker.ask(PAIRS[:12]) + asker.ask(PAIRS[12:])
    assert answered(asker) == min(calls, 20)
    assert readings == [reading if i < calls else None for i, reading in enumerate(answers())]
    assert asker.exhausted == (calls < 20)
    assert asker.cost.asked == min(calls, 20)


def test_what_is_known_is_free(judgments: Judgments) -> None:
    Asker(judge(), judgments, CONFIG).ask(PAIRS[::2])
    asker = Asker(judge(), judgments, CONFIG, Budget(calls=3))
    readings = asker.ask(PAIRS)
    assert [reading is not None for reading in readings] == [i % 2 == 0 or i < 6 for i in range(20)]
    assert asker.cost == Cost(3, 10, 0, 900, 3, asker.cost.seconds, pytest.approx(3 * PRICE))


def test_money_is_not_exceeded() -> None:
    for count in range(8):
        asker = Asker(judge(), None, CONFIG, Budget(money=(count + 0.5) * PRICE))
        readings = asker.ask(PAIRS)
        assert [reading is not None for reading in readings] == [i < count for i in range(20)]
        assert asker.cost.price <= asker.budget.money
        assert asker.exhausted


def test_money_without_prices_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set rerank\.price_per_million"):
        Asker(judge(), None, RerankConfig(), Budget(money=1.0))


def test_time_is_exceeded_by_no_more_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("jzi.rerank.ask.time.monotonic", lambda: now)

    class Slow(ScriptedJudge):
        def answer(self, questions: Sequence[Question]) -> Iterator[Reading]:
            nonlocal now
            for reading in super().answer(questions):
                now += 1.0
                yield reading

    for seconds, count in [(0.0, 0), (0.5, 4), (4.0, 4), (5.0, 8), (100.0, 20)]:
        asker = Asker(Slow({}), None, RerankConfig(batch_size=4), Budget(seconds=seconds))
        assert sum(reading is not None for reading in asker.ask(PAIRS)) == count
        assert asker.cost.seconds == count


def test_all_limits_hold_at_once() -> None:
    asker = Asker(judge(), None, CONFIG, Budget(calls=5, seconds=1e6, money=3.5 * PRICE))
    assert sum(reading is not None for reading in asker.ask(PAIRS)) == 3
    asker = Asker(judge(), None, CONFIG, Budget(calls=2, seconds=1e6, money=3.5 * PRICE))
    assert sum(reading is not None for reading in asker.ask(PAIRS)) == 2


def test_an_estimate_is_what_is_asked_then(judgments: Judgments) -> None:
    Asker(judge(), judgments, CONFIG).ask(PAIRS[:4])
    asker = Asker(judge(), judgments, CONFIG)
    estimate = asker.estimate([*PAIRS, PAIRS[-1]])
    assert answered(asker) == 0
    asker.ask([*PAIRS, PAIRS[-1]])
    cost = asker.cost
    assert estimate == Cost(16, 5, 0, 16 * 300, 16, 0.0, pytest.approx(16 * PRICE))
    assert (cost.asked, cost.cached, cost.tokens_in, cost.tokens_out) == (16, 5, 16 * 300, 16)


def test_what_a_failing_judge_has_answered_is_kept(judgments: Judgments) -> None:
    with pytest.raises(RerankError, match="fails after 6"):
        Asker(judge(fails_after=6), judgments, CONFIG).ask(PAIRS)
    asker = Asker(judge(), judgments, CONFIG)
    assert asker.ask(PAIRS) == answers()
    assert answered(asker) == 14


class Resuming(ScriptedJudge):
    """Records what it is resumed with, and after how many answers of its own."""

    first_questions = 3

    def resume(self, kind: Kind, readings: Sequence[Reading]) -> None:
        self.resumed = [*getattr(self, "resumed", []), (kind, list(readings), self.calls)]


def test_a_judge_continues_once_after_the_first_answers_that_are_kept(judgments: Judgments) -> None:
    yesno = Question("yesno", PHOTO, CROPS[:1])
    for asked, kept in [(2, 0), (5, 2), (7, 3)]:
        resuming = Resuming({PHOTO.digest: CROPS[0].digest})
        asker = Asker(resuming, judgments, CONFIG)
        asker.estimate(PAIRS[:asked])
        asker.ask(PAIRS[:asked])
        asker.ask([yesno] if asked == 7 else [])
        assert resuming.resumed[0] == ("pair", answers()[:kept], 0)
    assert resuming.resumed[1:] == [("yesno", [], 2)]


class Odd(ScriptedJudge):
    """Answers one question less, or one more, or with what is no number."""

    how = ""

    def answer(self, questions: Sequence[Question]) -> Iterator[Reading]:
        readings = list(super().answer(questions))
        if self.how == "nan":
            readings[2] = Reading((math.nan, 0.0))
        yield from {"less": readings[:-1], "more": [*readings, readings[0]], "nan": readings}[self.how]


def test_a_judge_that_answers_less_or_no_numbers_is_reported(judgments: Judgments) -> None:
    asker = Asker(Odd({}), judgments, CONFIG)
    Odd.how = "less"
    with pytest.raises(RerankError, match="left 1 of 20 questions unanswered"):
        asker.ask(PAIRS)
    Odd.how = "nan"
    with pytest.raises(RerankError, match="gave an unusable answer: the log-probability nan"):
        asker.ask([Question("yesno", PHOTO, (crop,)) for crop in CROPS])
    Odd.how = "more"
    assert len(asker.ask(PAIRS)) == 20
    assert len(list(judgments.rows())) == 20 + 2


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("200", Budget(calls=200)),
        ("0", Budget(calls=0)),
        ("90s", Budget(seconds=90)),
        ("1.5 min", Budget(seconds=90)),
        ("2h", Budget(seconds=7200)),
        ("5.00eur", Budget(money=5)),
        ("5 USD", Budget(money=5)),
        ("0.25$", Budget(money=0.25)),
        ("3€", Budget(money=3)),
    ],
)
def test_budgets_are_calls_times_or_money(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "-1", "2.5", "1e9", "nan", "inf", "ten", "5 euros", "5m", "٣", "1" * 30, "s"])
def test_what_is_no_budget_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match=r"give one such as 200, 90s or 5\.00eur"):
        Budget.parse(text)


# Killed in the middle

RUN = """
import sys
from pathlib import Path
from jzi.rerank.judgments import Judgments
from jzi.tests.test_rerank_ask import CONFIG, PAIRS, Asker, judge
with Judgments.open(Path(sys.argv[1])) as judgments:
    Asker(judge(delay_s=0.05), judgments, CONFIG).ask(PAIRS)
"""


def contents(path: Path) -> list[tuple[object, ...]]:
    with Judgments.open(path) as judgments:
        return [(row.key, row.crops, row.kind, replace(row.reading, seconds=0.0)) for row in judgments.rows()]


def test_a_killed_run_is_continued_with_what_lacks_and_ends_alike(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed.sqlite", tmp_path / "whole.sqlite"
    with Child([sys.executable, "-c", RUN, killed]) as child:
        child.wait_until(lambda: killed.exists() and len(contents(killed)) >= 5)
        child.end()
    kept = len(contents(killed))
    assert 5 <= kept < 20
    for path, asked in [(killed, 20 - kept), (whole, 20), (killed, 0)]:
        with Judgments.open(path) as judgments:
            asker = Asker(judge(delay_s=1e-9), judgments, CONFIG)
            readings = asker.ask(PAIRS)
        assert answered(asker) == asked
        assert [reading.log_probabilities for reading in readings] == [each.log_probabilities for each in answers()]
    assert contents(killed) == contents(whole)


# The scripted judge

#: Kind, number of crops, number of labels.
KINDS = [("pair", 2, 2), ("list", 5, 5), ("yesno", 1, 2), ("score", 1, 11), ("words", 1, 5), ("describe", 1, 1)]


def logit(reading: Reading) -> float:
    return reading.log_probabilities[0] - reading.log_probabilities[1]


@pytest.mark.parametrize(("kind", "count", "labels"), KINDS)
@pytest.mark.parametrize("script", ["noisy", "random", "cyclic", "always-first", "silent"])
def test_every_script_answers_every_kind_of_question(kind: Kind, count: int, labels: int, script: ScriptKind) -> None:
    (reading,) = judge(kind=script).answer([Question(kind, PHOTO, CROPS[:count])])
    assert len(reading.log_probabilities) == (
        11 if kind == "score" else 5 if kind in ("words", "list") else 2 - (kind == "describe")
    )
    if kind != "describe":
        assert sum(np.exp(reading.log_probabilities)) == pytest.approx(1)
    assert reading.abstained == (script == "silent")
    assert reading.mass == (script != "silent")


def test_answers_depend_on_the_question_and_not_on_the_order() -> None:
    assert list(judge().answer(PAIRS[::-1])) == answers()[::-1]
    assert answers(seed=1) != answers()
    assert len({logit(reading) for reading in answers()}) == 20


def test_without_noise_log_odds_are_the_gap_and_the_bias() -> None:
    readings = dict(zip(permutations(range(5), 2), answers(gap=2.0, noise=0.0, bias=0.5), strict=True))
    assert logit(readings[0, 3]) == pytest.approx(2.5)
    assert logit(readings[3, 0]) == pytest.approx(-1.5)
    assert logit(readings[1, 2]) == pytest.approx(0.5)


def test_noise_has_the_standard_deviation_that_is_set() -> None:
    questions = [Question("pair", picture(i), CROPS[:2]) for i in range(2000)]
    logits = [logit(reading) for reading in judge(noise=1.5, bias=1.0).answer(questions)]
    assert np.mean(logits) == pytest.approx(1.0, abs=0.1)
    assert np.std(logits) == pytest.approx(1.5, rel=0.06)


def test_scores_and_phrases_rise_with_the_log_odds_of_a_single_crop() -> None:
    for kind in ("score", "words"):
        true, false = (
            np.exp(next(iter(judge(absolute_noise=0.0).answer([Question(kind, PHOTO, (crop,))]))).log_probabilities)
            for crop in CROPS[:2]
        )
        most = len(true) - 1
        assert true @ range(most + 1) == pytest.approx(most / (1 + math.exp(-1)))
        assert false @ range(most + 1) == pytest.approx(most / (1 + math.exp(1)))


def test_the_cyclic_judge_is_consistent_and_has_cycles() -> None:
    beats = {
        pair: logit(reading) > 0
        for pair, reading in zip(permutations(range(5), 2), answers(kind="cyclic"), strict=True)
    }
    assert all(beats[a, b] != beats[b, a] for a, b in beats)
    assert any(beats[a, b] and beats[b, c] and beats[c, a] for a, b, c in permutations(range(5), 3))
    assert all(logit(reading) > 1 for reading in answers(kind="always-first"))
