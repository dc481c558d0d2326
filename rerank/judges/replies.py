"""Read the replies of OpenAI-compatible endpoints, which may be anything."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from jzi.rerank.judges.prompts import ANSWER, find_label, read_label
from jzi.rerank.question import Question, Reading
from jzi.store.setting_checks import first_invalid

#: Least probability of all labels together at a token that is taken for the answer.
MIN_MASS = 0.2

#: Least log-probability distinguished from that of 0; some servers give the smallest number of a float instead of -inf.
MIN_LOG = -1e9

#: Most words of an answer without "Answer:" from a model that was asked to think.
_SHORT = 4

#: Begins a word in the vocabularies of some servers.
_WORD_MARKS = str.maketrans("▁Ġ", "  ")


@dataclass(frozen=True)
class Reply:
    """A reply of POST chat/completions.

    Attributes:
        text: what the model wrote.
        tokens: the tokens of its answer; empty if the reply has no log-probabilities.
        alternatives: for each of them, log-probabilities by token, itself included.
        refused: whether the model refused, or a filter did.
        cut: whether the model would have written more.
        tokens_in: number of tokens of the question; None if unknown.
        tokens_out: number of tokens of the answer; None if unknown.
        system: the server's fingerprint; empty if it has none.
    """

    text: str
    tokens: tuple[str, ...]
    alternatives: tuple[Mapping[str, float], ...]
    refused: bool
    cut: bool
    tokens_in: int | None
    tokens_out: int | None
    system: str


class ServerError(ValueError):
    """A reply with an error instead of an answer, although its status code is that of a success."""


def _or_none(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        return None


#: Makes a field None if it is invalid: answers can do without it.
_LENIENT = WrapValidator(_or_none)


class _Model(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, strict=True)


class _Alternative(_Model):
    token: str
    logprob: Annotated[float, Field(le=1e-3), AfterValidator(lambda value: max(value, MIN_LOG))] | None


class _Token(_Alternative):
    top_logprobs: list[_Alternative] | None = None


class _Logprobs(_Model):
    content: list[_Token] | None = None


class _Part(_Model):
    text: str | None = None


class _Message(_Model):
    content: str | list[_Part] | None = None
    refusal: str | None = None


class _Choice(_Model):
    message: _Message
    finish_reason: Annotated[str | None, _LENIENT] = None
    logprobs: _Logprobs | None = None


class _Usage(_Model):
    prompt_tokens: Annotated[Annotated[int, Field(ge=0, lt=2**31)] | None, _LENIENT] = None
    completion_tokens: Annotated[Annotated[int, Field(ge=0, lt=2**31)] | None, _LENIENT] = None


class _Document(_Model):
    choices: list[_Choice] | None = None
    error: Any = None
    usage: Annotated[_Usage | None, _LENIENT] = None
    system_fingerprint: Annotated[Annotated[str, Field(max_length=1000)] | None, _LENIENT] = None


def parse_reply(body: bytes) -> Reply:
    """Parse a reply.

    Raises:
        ServerError: it has an error and no choices.
        ValueError: it is not one of chat/completions.
    """
    try:
        document = _Document.model_validate_json(body)
    except ValidationError as error:
        invalid = first_invalid(error)
        raise ValueError(f"{invalid.name:.100}: {invalid.reason:.200}" if invalid.name else "no JSON") from None
    if document.error and not document.choices:
        raise ServerError("an error")
    if document.choices is None:
        raise ValueError("choices: missing")
    if not document.choices:  # of a filter
        document.choices.append(_Choice(message=_Message(), finish_reason="content_filter"))
    choice, usage = document.choices[0], document.usage or _Usage()
    content = choice.message.content or ""
    listed = (choice.logprobs and choice.logprobs.content) or []
    alternatives = tuple(
        {each.token: each.logprob for each in [*(one.top_logprobs or []), one] if each.logprob is not None}
        for one in listed
    )
    complete = all(len(each) > 1 and one.token in each for one, each in zip(listed, alternatives, strict=True))
    return Reply(
        text=content if isinstance(content, str) else "".join(part.text or "" for part in content),
        tokens=tuple(each.token for each in listed) if complete else (),
        alternatives=alternatives if complete else (),
        refused=bool(choice.message.refusal) or choice.finish_reason == "content_filter",
        cut=choice.finish_reason == "length",
        tokens_in=usage.prompt_tokens,
        tokens_out=usage.completion_tokens,
        system=document.system_fingerprint or "",
    )


def read(reply: Reply, question: Question, reason: int) -> Reading:
    """Read the answer to a question: from log-probabilities, else from text; an abstention if there is none.

    Args:
        reply: to it.
        question: of any kind but "describe".
        reason: tokens that the model might think for.
    """
    labels = question.labels
    mass = 0.0
    if not reply.refused:
        begins = [] if reason else [0]
        if place := _find("".join(reply.tokens), labels, reason):
            begins.append(_token_at(reply.tokens, place[1]))
        for begin in begins if reply.tokens else []:
            logs, mass = label_log_probabilities(reply.tokens[begin:], reply.alternatives[begin:], labels)
            if mass >= MIN_MASS:
                return Reading(logs, mass)
        if place := _find(reply.text, labels, reason):
            return Reading(read_label(place[0], len(labels)), 1.0 if not reply.tokens else mass, text=reply.text)
    return Reading(question.chance, mass, text=reply.text, abstained=True)


def label_log_probabilities(
    tokens: Sequence[str], alternatives: Sequence[Mapping[str, float]], labels: Sequence[str]
) -> tuple[tuple[float, ...], float]:
    """Log-probabilities of labels of one or more tokens at the beginning of an answer, and their mass.

    The probability of each alternative goes to the label that the text with it is, or else to those that begin so, in
    equal parts. Of the token that was generated, it is divided among the alternatives of the next one. A label that
    gets nothing is bounded by the smallest probability at the first token, which does not count in the mass.

    Args:
        tokens: tokens of the answer.
        alternatives: log-probabilities of each of them and of those that it was chosen from.
        labels: labels; letters are read as they are, others in upper or lower case.
    """
    probabilities = [0.0] * len(labels)
    prefix, logarithm = "", 0.0
    for i, token in enumerate(tokens):
        written = _matches(prefix, labels)  # what the answer is if it ends here
        chosen = prefix + token
        longer = i + 1 < len(tokens) and set(_matches(chosen, labels, begun=True)) > set(_matches(chosen, labels))
        for alternative, value in alternatives[i].items():
            text = prefix + alternative
            matches = _matches(text, labels) or _matches(text, labels, begun=True) or written
            for match in matches if not (longer and alternative == token) else ():
                probabilities[match] += math.exp(logarithm + value) / len(matches)
        if not longer:
            break
        logarithm += alternatives[i][token]
        prefix = chosen
    bound = min(alternatives[0].values())
    logs = tuple(min(math.log(each), 0.0) if each > 0 else bound for each in probabilities)
    return logs, min(math.fsum(probabilities), 1.0)


def _matches(text: str, labels: Sequence[str], *, begun: bool = False) -> list[int]:
    """Which labels a text is, or, if `begun`, is the beginning of."""
    text = text.translate(_WORD_MARKS).strip()
    if not text:
        return []
    if not _are_letters(labels):
        text, labels = text.lower(), [label.lower() for label in labels]
    return [i for i, label in enumerate(labels) if (label.startswith(text) if begun else label == text)]


def _find(text: str, labels: tuple[str, ...], reason: int) -> tuple[int, int] | None:
    """Which label a text answers with, and where the label is in it."""
    begin = max(text.rfind("</think>"), 0)
    if ANSWER in text[begin:]:
        begin = text.rfind(ANSWER) + len(ANSWER)
    elif reason and len(text[begin:].removeprefix("</think>").split()) > _SHORT:
        return None
    tail = text[begin:].translate(_WORD_MARKS)
    found = find_label(tail, labels)
    return None if found is None else (found[0], begin + found[1])


def _token_at(tokens: Sequence[str], place: int) -> int:
    """Index of the token that a character is in."""
    ends = list(accumulate(map(len, tokens)))
    return bisect_right(ends, place)


def _are_letters(labels: Sequence[str]) -> bool:
    return all(len(label) == 1 and label.isalpha() for label in labels)
