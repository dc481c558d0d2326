"""What a judge is asked and what it answers: the interface between those who compare and those who ask."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

#: "pair": which of two crops shows the place; "list": which of several; the others are about a single crop: yes or no,
#: a number from 0 to 10, one of five phrases, or how well the crop explains a description of the photo.
Kind = Literal["pair", "list", "yesno", "score", "words", "describe"]

#: Whether a judge sees several images, or one that all are drawn on.
Composition = Literal["images", "canvas"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

#: Labels of the kinds whose labels do not depend on the number of crops; the phrases of "words" are worth 0 to 4.
LABELS: dict[Kind, tuple[str, ...]] = {
    "yesno": ("Yes", "No"),
    "score": tuple(map(str, range(11))),
    "words": ("certainly not", "probably not", "possibly", "probably", "certainly"),
    "describe": (),
}


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of a question: a photo, or a crop of the map.

    Attributes:
        pixels: (row, col, 3) uint8.
    """

    pixels: NDArray[np.uint8]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its size and pixels, hexadecimal."""
        rows, cols, _ = self.pixels.shape
        return hashlib.sha256(f"{rows}x{cols}:".encode() + np.ascontiguousarray(self.pixels).tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Question:
    """A question about a photo and crops of the map; the order of the crops matters.

    Attributes:
        kind: what is asked.
        photo: the photo.
        crops: two for "pair", the first is A; 2 to 26 for "list"; else one.
    """

    kind: Kind
    photo: Picture
    crops: tuple[Picture, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The answers that it offers; empty for "describe"."""
        return LABELS.get(self.kind, tuple(LETTERS[: len(self.crops)]))

    @property
    def chance(self) -> tuple[float, ...]:
        """The log-probabilities of a reading that has no answer: all labels alike; 0 for "describe"."""
        count = len(self.labels)
        return (-math.log(count),) * count if count else (0.0,)


@dataclass(frozen=True)
class Reading:
    """A judge's answer to one question.

    Attributes:
        log_probabilities: natural logarithm of the probability of each of the question's labels, -inf allowed, not
            normalised: their sum is `mass`. For "describe" one number: the mean log-probability of a token of the
            photo's description given the crop, minus that given a gray image.
        mass: probability of all labels together, 0..1; what is missing went to other answers.
        text: the generated text, if the answer was read from text; else empty.
        tokens_in: number of tokens of the question, images included.
        tokens_out: number of generated tokens.
        seconds: time that it took.
        abstained: whether there is no answer, such as after a refusal; the log-probabilities are then those of chance.
    """

    log_probabilities: tuple[float, ...]
    mass: float = 1.0
    text: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    abstained: bool = False


class Judge(Protocol):
    """Answers questions: a local model, an endpoint, or a script.

    Attributes:
        name: for reports.
        fingerprint: of everything that answers depend on, apart from the question: weights, precision, composition,
            texts. Answers of equal fingerprints may be mixed.
        composition: how images are shown.
        notes: what the user should know about the answers, so far.
    """

    name: str
    fingerprint: str
    composition: Composition
    notes: list[str]

    def estimate(self, question: Question) -> tuple[int, int]:
        """Expected numbers of tokens of a question and of its answer; nothing is run."""
        ...

    def answer(self, questions: Sequence[Question]) -> Iterable[Reading]:
        """Answers in the order of the questions, each as soon as it is known, so that it can be kept.

        Args:
            questions: about one photo.

        Raises:
            RerankError: the judge cannot answer at all: a wrong key, a server that is gone.
        """
        ...
