"""Texts of questions, in the order in which a model reads them, and labels in texts that it writes.

The photo and the instructions come first and the crops last, so that questions about one photo begin alike. Images are
numbered too, because some chat templates move all of them to the front.
"""

from __future__ import annotations

import hashlib
import json
import math
import re

from jzi.rerank.judges.compose import canvas
from jzi.rerank.question import LETTERS, Composition, Kind, Picture, Question

#: Version of the texts and of the canvas; part of the key of every judgment.
VERSION = "1"

#: Log-odds of a label that is read from text over each other label: it does not show how sure a model is.
TEXT_LOGIT = 2.0

#: "A" as an article, which is no answer: "A road ...", but not "A shows ...".
_ARTICLE = re.compile(r"(?<!\w)A(?=\s+(?!(?:is|shows|matches|because|since|has)\b)[a-z])")

#: After this comes the label, where the model may think first.
ANSWER = "Answer:"

_PHOTO = "Image 1 is a photo taken at street level:"
_COMPARE = (
    "Compare what stays the same: the layout of roads, lanes, junctions and crossings, buildings and their roofs, "
    "trees, lawns, water and parking areas. Ignore cars, people, season, weather and light."
)
_CENTRE = "at its centre, inside the yellow square if one is drawn"
_TASKS = {
    "pair": "Two overhead images of different places, A and B, have north up. The photo was taken in one of them, "
    f"{_CENTRE}.",
    "list": "Overhead images of different places, each with a letter, have north up. The photo was taken in one of "
    f"them, {_CENTRE}.",
    "single": "An overhead image has north up. The photo was taken either somewhere else or in the overhead image, "
    f"{_CENTRE}.",
}
_LAYOUTS = {
    "pair": "The upper half of the image is a photo taken at street level. The lower left is overhead image A, the "
    "lower right is overhead image B.",
    "list": "The upper half of the image is a photo taken at street level. The lower half holds overhead images, each "
    "with a letter.",
    "single": "The upper half of the image is a photo taken at street level. The lower left is an overhead image.",
}
_QUESTIONS: dict[Kind, str] = {
    "pair": "Which overhead image shows the place of the photo?",
    "list": "Which overhead image shows the place of the photo?",
    "yesno": "Was the photo taken at the centre of the overhead image?",
    "score": "How likely is it that the photo was taken at the centre of the overhead image?",
    "words": "Was the photo taken at the centre of the overhead image?",
}
_REPLIES: dict[Kind, str] = {
    "pair": "one letter, A or B",
    "list": "one of the letters {labels}",
    "yesno": "Yes or No",
    "score": "a whole number from 0 to 10",
    "words": "one of: {labels}",
}
_REPLY = "Answer with {reply}."
_REASON = f'First think about it in a few sentences. Then finish with "{ANSWER}" and {{reply}}.'
_DESCRIBE = (
    "Describe the place that this street-level photo shows: roads, buildings, plants and water. Use one sentence."
)
_SEEN = (
    "This is an overhead image of a place. Describe what a street-level photo that was taken at its centre shows: "
    "roads, buildings, plants and water. Use one sentence."
)

#: SHA-256 of all texts: an edit changes the fingerprint of judges even if `VERSION` is forgotten.
DIGEST = hashlib.sha256(
    json.dumps(
        [VERSION, ANSWER, _PHOTO, _COMPARE, _TASKS, _LAYOUTS, _QUESTIONS, _REPLIES, _REPLY, _REASON, _DESCRIBE, _SEEN]
    ).encode()
).hexdigest()


def parts(question: Question, composition: Composition, reason: int) -> list[str | Picture]:
    """Return the texts and the images of a question, in reading order.

    Args:
        question: of any kind but "describe", which takes two prompts: `describe` and `seen`.
        composition: whether the model sees several images, or one canvas.
        reason: tokens that the model may think for; 0 if it answers at once.
    """
    group = question.kind if question.kind in _TASKS else "single"
    reply = _REPLIES[question.kind].format(labels=", ".join(question.labels))
    end = f"{_QUESTIONS[question.kind]} {(_REASON if reason else _REPLY).format(reply=reply)}"
    if composition == "canvas":
        return [canvas(question), f"{_LAYOUTS[group]} {_TASKS[group]} {_COMPARE} {end}"]
    shown: list[str | Picture] = [_PHOTO, question.photo, f"{_TASKS[group]} {_COMPARE}"]
    for i, crop in enumerate(question.crops):
        name = "the overhead image" if group == "single" else f"overhead image {LETTERS[i]}"
        shown += [f"Image {i + 2}, {name}:", crop]
    return [*_joined(shown), end]


def describe(photo: Picture) -> list[str | Picture]:
    """Return the prompt for a description of a photo."""
    return [photo, _DESCRIBE]


def seen(crop: Picture) -> list[str | Picture]:
    """Return the prompt that a photo's description is an answer to, if the photo was taken at the crop's centre."""
    return [crop, _SEEN]


def find_label(text: str, labels: tuple[str, ...]) -> tuple[int, int] | None:
    """Return the index of the first label that stands alone in a text, or after "Answer:" if there is one.

    Letters are read as they are, but for the article "A"; other labels in upper or lower case, and the longest of those
    that begin alike.

    Returns:
        The index, and where the label begins in the text; None if there is no label.
    """
    begin = text.rfind(ANSWER) + len(ANSWER) if ANSWER in text else 0
    tail = text[begin:]
    letters = all(len(label) == 1 and label.isalpha() for label in labels)
    choices = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    if letters:
        tail = _ARTICLE.sub("-", tail)
    found = re.search(rf"(?<!\w)(?:{choices})(?!\w)", tail, 0 if letters else re.IGNORECASE)
    if found is None:
        return None
    return [label.lower() for label in labels].index(found.group().lower()), begin + found.start()


def read_label(index: int | None, count: int) -> tuple[float, ...]:
    """Log-probabilities of labels, of which one was read from a text.

    Args:
        index: of that label; None if there was none.
        count: number of labels.
    """
    logits = [TEXT_LOGIT if i == index else 0.0 for i in range(count)]
    total = math.log(math.fsum(map(math.exp, logits)))
    return tuple(logit - total for logit in logits)


def _joined(shown: list[str | Picture]) -> list[str | Picture]:
    """Join texts that follow one another."""
    joined: list[str | Picture] = []
    for part in shown:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] = f"{joined[-1]} {part}"
        else:
            joined.append(part)
    return joined
