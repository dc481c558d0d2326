"""A judge that follows a script: it measures designs, and tests them, without a vision-language model."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Literal

from jzi.errors import RerankError
from jzi.rerank.question import Composition, Question, Reading

#: "noisy" knows the true crop, within noise; "random" does not; "cyclic" puts the crops of a photo on a circle and
#: prefers each to those in the half circle after it; "always-first" answers A, or yes; "silent" never answers.
ScriptKind = Literal["noisy", "random", "cyclic", "always-first", "silent"]

#: Log-odds of an answer of the kinds that have no noise.
_CERTAIN = 4.0

_STANDARD = NormalDist()


class ScriptedJudge:
    """Answers from the truth, with noise that depends on nothing but the seed and the question.

    The quality of a true crop is `gap`, that of others 0. The log-odds of a pair are the difference of their qualities,
    plus `bias`, plus noise; a list's logits are its qualities plus noise, with the bias on the first; the log-odds of a
    single crop are its quality less half the gap, plus the noise of absolute judgments.

    Args:
        truth: digest of the true crop by digest of the photo; a photo without one has no true crop.
        gap: quality of a true crop, log-odds.
        noise: standard deviation of the noise of pairs and lists.
        bias: preference for the first crop of a pair or list.
        seed: of the noise.
        absolute_noise: standard deviation of the noise of single crops.
        kind: what the script is.
        delay_s: seconds that each answer takes.
        fails_after: number of answers after which it fails; None for never.

    Attributes:
        calls: number of questions that it has answered.
    """

    composition: Composition = "images"

    def __init__(
        self,
        truth: Mapping[str, str],
        gap: float = 2.0,
        noise: float = 1.5,
        bias: float = 0.0,
        seed: int = 0,
        *,
        absolute_noise: float = 3.0,
        kind: ScriptKind = "noisy",
        delay_s: float = 0.0,
        fails_after: int | None = None,
    ) -> None:
        self.truth = truth
        self.gap, self.noise, self.bias, self.seed = gap, noise, bias, seed
        self.absolute_noise = absolute_noise
        self.kind = kind
        self.delay_s = delay_s
        self.fails_after = fails_after
        self.calls = 0
        self.notes: list[str] = []
        self.name = f"script ({kind})"
        settings = [kind, gap, noise, bias, seed, absolute_noise, sorted(truth.items())]
        self.fingerprint = hashlib.sha256(repr(settings).encode()).hexdigest()

    def estimate(self, question: Question) -> tuple[int, int]:
        """Expected numbers of tokens of a question and of its answer: 100 for each image, and 1."""
        return 100 * (1 + len(question.crops)), 1

    def answer(self, questions: Sequence[Question]) -> Iterator[Reading]:
        """Answers in the order of the questions.

        Raises:
            RerankError: `fails_after` answers were given.
        """
        for question in questions:
            if self.calls == self.fails_after:
                raise RerankError(f"the scripted judge fails after {self.calls} answers, as its script says")
            if self.delay_s:
                time.sleep(self.delay_s)
            self.calls += 1
            yield self._reading(question)

    def _reading(self, question: Question) -> Reading:
        tokens_in, tokens_out = self.estimate(question)
        silent = self.kind == "silent"
        return Reading(
            question.chance if silent else self._log_probabilities(question),
            mass=0.0 if silent else 1.0,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            seconds=self.delay_s,
            abstained=silent,
        )

    def _log_probabilities(self, question: Question) -> tuple[float, ...]:
        if question.kind == "pair":
            logit = self._pair(question)
            return _log_sigmoid(logit), _log_sigmoid(-logit)
        if question.kind == "list":
            return _log_softmax(self._list(question))
        logit = self._single(question)
        yes, no = _log_sigmoid(logit), _log_sigmoid(-logit)
        if question.kind == "yesno":
            return yes, no
        if question.kind == "describe":
            return (logit,)
        most = len(question.labels) - 1  # binomial: a most probable label, and the logit can be read from the mean
        return tuple(math.log(math.comb(most, n)) + n * yes + (most - n) * no for n in range(most + 1))

    def _pair(self, question: Question) -> float:
        first, second = question.crops
        if self.kind == "always-first":
            return _CERTAIN
        if self.kind == "cyclic":
            return _CERTAIN if (_angle(second.digest) - _angle(first.digest)) % 1 < 0.5 else -_CERTAIN
        difference = self._quality(question, 0) - self._quality(question, 1)
        return difference + self.bias + self.noise * self._normal(question, 0)

    def _list(self, question: Question) -> list[float]:
        places = range(len(question.crops))
        if self.kind == "always-first":
            return [_CERTAIN * (place == 0) for place in places]
        if self.kind == "cyclic":
            return [0.0 for _ in places]
        return [
            self._quality(question, place) + self.bias * (place == 0) + self.noise * self._normal(question, place)
            for place in places
        ]

    def _single(self, question: Question) -> float:
        if self.kind in ("always-first", "cyclic"):
            return _CERTAIN
        return self._quality(question, 0) - self.gap / 2 + self.absolute_noise * self._normal(question, 0)

    def _quality(self, question: Question, place: int) -> float:
        is_true = self.truth.get(question.photo.digest) == question.crops[place].digest
        return self.gap if is_true and self.kind != "random" else 0.0

    def _normal(self, question: Question, place: int) -> float:
        """A number of the standard normal distribution that belongs to a question and the place of a crop in it."""
        digests = [question.photo.digest, *(crop.digest for crop in question.crops)]
        parts = [str(self.seed), question.kind, str(place), *digests]
        digest = hashlib.sha256(" ".join(parts).encode()).digest()
        return _STANDARD.inv_cdf(((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / 2**52)


def _angle(digest: str) -> float:
    """Where a crop is on the circle, in turns."""
    return int(digest[:12], 16) / 2**48


def _log_sigmoid(logit: float) -> float:
    return min(logit, 0.0) - math.log1p(math.exp(-abs(logit)))


def _log_softmax(logits: Sequence[float]) -> tuple[float, ...]:
    most = max(logits)
    total = most + math.log(math.fsum(math.exp(logit - most) for logit in logits))
    return tuple(logit - total for logit in logits)
