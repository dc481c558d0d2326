"""A judge behind an OpenAI-compatible endpoint: vLLM, Ollama, llama.cpp's server, or a provider."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

from PIL import Image

from jzi.errors import ConfigError, RerankError
from jzi.rerank.config import RerankConfig
from jzi.rerank.judges import prompts
from jzi.rerank.judges.chat import Address, ChatClient, StatusError
from jzi.rerank.judges.compose import CANVAS
from jzi.rerank.judges.replies import Reply, read
from jzi.rerank.question import Composition, Kind, Picture, Question, Reading

#: Tokens of an answer: one is enough for a letter, Yes or No; the others are of several.
_TOKENS: dict[Kind, int] = {"pair": 1, "list": 1, "yesno": 1, "score": 3, "words": 8}

#: Tokens of an answer that is in a sentence, or follows "Answer:".
_SENTENCE = 8

#: Expected tokens of a question's text, and side of the square of an image that is a token (Qwen2.5-VL), pixels.
_PROMPT_TOKENS, _PATCH = 150, 28

#: Most alternatives of a token that the protocol has.
_ALTERNATIVES = 20

_JPEG_QUALITY = 90

#: Longest text of an answer that is kept, characters; its end, where the answer is.
_MAX_TEXT = 2**17

#: Status codes of replies that may concern one question alone: a filter of its images, a malformed reply.
_OF_ONE_QUESTION = {200, 400, 422}

#: Questions in a row without a usable reply that end the run.
_MOST_REFUSALS = 5


class EndpointJudge:
    """Asks a model behind an endpoint, `batch_size` questions at once.

    Attributes:
        name: the model, and where it is.
        fingerprint: of the address, the model, the server's own fingerprint if it has one, texts and composition.
        composition: how images are shown; several at once, unless a canvas is set.
        notes: remarks for the user, such as that the endpoint gives no probabilities.
    """

    def __init__(self, client: ChatClient, config: RerankConfig) -> None:
        self.config = config
        self.composition: Composition = "canvas" if config.composition == "canvas" else "images"
        self.name = f"{config.model} at {client.address.where}"
        self.fingerprint = ""
        self.notes: list[str] = []
        self._client = client
        self._ask_probabilities = True
        self._sentences = False  # whether answers do not begin with the label
        self._lock = threading.Lock()
        self._stops: list[threading.Event] = []  # of the answers that are being asked for
        self._system = ""
        self._answered = False
        self._refusals = 0  # since the last answer

    @classmethod
    def open(cls, url: str, config: RerankConfig, *, send_photos: bool = False) -> Self:
        """Connect to an endpoint, and send a short request without images, which checks the key and the model.

        Args:
            url: such as http://127.0.0.1:8000/v1; requests go to its chat/completions and nowhere else.
            config: settings; the key is in the environment variable that they name.
            send_photos: whether photos may be sent to another machine.

        Raises:
            ConfigError: the URL, the key or a setting cannot be used, or photos may not be sent to another machine.
            RerankError: the endpoint does not answer, or refuses the key or the model; httpx is missing.
        """
        address = Address.parse(url)
        if not (address.loopback or send_photos):
            raise ConfigError(
                f"photos would be sent to {address.host}, which is not this machine: allow it with --send-photos, or "
                "give an endpoint on this machine"
            )
        if not config.model:
            raise ConfigError(f"the endpoint {address.where} needs the name of a model: set rerank.model")
        judge = cls(ChatClient.open(address, config), config)
        try:
            judge._probe()
        except BaseException:
            judge.close()
            raise
        return judge

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; questions that are being asked fail."""
        for stop in self._stops:
            stop.set()
        self._client.close()

    def estimate(self, question: Question) -> tuple[int, int]:
        """Expected numbers of tokens of a question, those of Qwen2.5-VL, and most of its answer.

        Raises:
            RerankError: it asks for a description.
        """
        _refuse_description(question)
        shapes = [picture.pixels.shape[:2] for picture in (question.photo, *question.crops)]
        if self.composition == "canvas":
            shapes = [(CANVAS, CANVAS)]
        images = sum(-(-rows // _PATCH) * -(-cols // _PATCH) for rows, cols in shapes)
        return images + _PROMPT_TOKENS, self._most_tokens(question)

    def answer(self, questions: Sequence[Question]) -> Iterator[Reading]:
        """Answers in the order of the questions; several are asked at once.

        Raises:
            RerankError: the endpoint does not answer, or its answers are unusable.
        """
        for question in questions:
            _refuse_description(question)
        images: dict[str, str] = {}
        pending: deque[Future[Reading]] = deque()
        stop = threading.Event()
        self._stops.append(stop)
        pool = ThreadPoolExecutor(self.config.batch_size, "jzi-endpoint")
        try:
            for question in questions:
                if len(pending) == self.config.batch_size:
                    yield pending.popleft().result()
                pending.append(pool.submit(self._ask, question, self._content(question, images), stop))
            while pending:
                yield pending.popleft().result()
        finally:
            stop.set()
            self._client.cut(stop)  # the interpreter waits for the threads when it ends
            pool.shutdown(wait=False, cancel_futures=True)
            self._stops.remove(stop)

    def _content(self, question: Question, images: dict[str, str]) -> list[dict[str, Any]]:
        """Parts of the message; `images` holds the data URLs that were made before, by digest."""
        content: list[dict[str, Any]] = []
        for part in prompts.parts(question, self.composition, self.config.reason):
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
                continue
            if part.digest not in images:
                images[part.digest] = _data_url(part)
            content.append({"type": "image_url", "image_url": {"url": images[part.digest]}})
        return content

    def _ask(self, question: Question, content: list[dict[str, Any]], stop: threading.Event) -> Reading:
        start = time.monotonic()
        tokens_in = tokens_out = 0
        while True:
            most = self._most_tokens(question)
            try:
                reply = self._request(content, most, self.config.retries, stop)
            except StatusError as error:
                self._accept_refusal(error)
                return Reading(
                    question.chance,
                    mass=0.0,
                    tokens_in=tokens_in,
                    tokens_out=tokens_out,
                    seconds=time.monotonic() - start,
                    abstained=True,
                )
            with self._lock:
                self._answered, self._refusals = True, 0
            if reply.system not in ("", self._system):
                self._note_system(reply.system)
            tokens_in += self.estimate(question)[0] if reply.tokens_in is None else reply.tokens_in
            tokens_out += (len(reply.tokens) or most) if reply.tokens_out is None else reply.tokens_out
            reading = read(reply, question, self.config.reason)
            if reply.cut and most < _SENTENCE and (reading.abstained or not reply.tokens):
                self._sentences = True
                continue
            if not (reply.tokens or reading.abstained):
                self._note_text()
            return replace(
                reading,
                text=self._client.without_key(reading.text)[-_MAX_TEXT:],
                tokens_in=tokens_in,
                tokens_out=tokens_out,
                seconds=time.monotonic() - start,
            )

    def _most_tokens(self, question: Question) -> int:
        if self.config.reason:
            return self.config.reason + _SENTENCE
        return _SENTENCE if self._sentences else _TOKENS.get(question.kind, _SENTENCE)

    def _accept_refusal(self, error: StatusError) -> None:
        """Raise the error unless it seems to concern one question alone, which then counts as an abstention."""
        with self._lock:
            self._refusals += 1
            if error.code not in _OF_ONE_QUESTION or not self._answered or self._refusals >= _MOST_REFUSALS:
                raise error
        self._note("questions without a usable reply count as abstentions; the first: ", str(error))

    def _note_text(self) -> None:
        where = self._client.address.where
        self._note(
            f"{where} gives no log-probabilities",
            ": answers are read from text, which does not show how sure the model is",
        )

    def _note_system(self, system: str) -> None:
        old, new = (self._client.without_key(each) for each in (self._system, system))
        self._note(
            f"the server's fingerprint changed from {old or 'none'!r:.60} to ",
            f"{new!r:.60}: it may have several replicas, whose answers are not kept apart",
        )

    def _note(self, beginning: str, end: str) -> None:
        """Add a note unless there is one that begins so. The lock is not held."""
        with self._lock:
            if not any(note.startswith(beginning) for note in self.notes):
                self.notes.append(beginning + end)

    def _probe(self) -> None:
        """Send a short request, and make the fingerprint."""
        content = [{"type": "text", "text": "Answer with one letter: A"}]
        retries, stop = min(self.config.retries, 1), threading.Event()
        try:
            reply = self._request(content, 1, retries, stop)
        except StatusError as error:
            if error.code != 400:
                raise
            self._ask_probabilities = False  # some refuse to give any
            self._sentences = True
            try:
                reply = self._request(content, 1, retries, stop)
            except StatusError:
                raise error from None
        self._system = reply.system
        settings = [
            self._client.address.where,
            self.config.model,
            self._system,
            prompts.DIGEST,
            self.composition,
            self.config.reason,
            _JPEG_QUALITY,
            self._ask_probabilities,
        ]
        self.fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def _request(self, content: list[dict[str, Any]], most: int, retries: int, stop: threading.Event) -> Reply:
        document: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "seed": 0,
            "max_tokens": most,
        }
        if self._ask_probabilities:
            document |= {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        return self._client.complete(document, retries, stop)


def _refuse_description(question: Question) -> None:
    if question.kind == "describe":
        raise RerankError(
            "an endpoint gives no probabilities of a description: use another of the methods, such as pairs"
        )


def _data_url(picture: Picture) -> str:
    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
