"""The judge behind an OpenAI-compatible endpoint: what it sends and where to, how it reads answers, and failures."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import re
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jzi.errors import ConfigError, JziError, RerankError
from jzi.rerank.config import RerankConfig
from jzi.rerank.judges import chat
from jzi.rerank.judges.endpoint import EndpointJudge
from jzi.rerank.judges.replies import label_log_probabilities, parse_reply, read
from jzi.rerank.judgments import Judgments
from jzi.rerank.question import LABELS, Kind, Picture, Question, Reading
from jzi.tests.mock_endpoint import PREFERS_A, MockEndpoint, Response, completion, error, images
from jzi.web.rules import retry_after

KEY = "sk-secret-0123456789"


def picture(seed: int) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8))


PHOTO, CROPS = picture(0), tuple(map(picture, range(1, 6)))
PAIR = Question("pair", PHOTO, CROPS[:2])


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "BACKOFF_S", 0.001)
    monkeypatch.delenv("JZI_RERANK_KEY", raising=False)


def settings(**changes: Any) -> RerankConfig:
    return RerankConfig(**{"model": "mock", "timeout_s": 30.0, **changes})


def ask(
    respond: Callable[[dict[str, Any]], Response], question: Question = PAIR, **changes: Any
) -> tuple[Reading, MockEndpoint, EndpointJudge]:
    with MockEndpoint(respond) as mock, EndpointJudge.open(mock.url, settings(**changes)) as judge:
        (reading,) = judge.answer([question])
        return reading, mock, judge


def in_turn(*responses: Response) -> Callable[[dict[str, Any]], Response]:
    left = iter(responses)
    return lambda _: next(left)


# What is sent


def test_a_request_has_the_pictures_in_reading_order_and_asks_for_twenty_alternatives() -> None:
    _, mock, _ = ask(lambda _: completion("A", PREFERS_A))
    (request,) = mock.asked
    assert mock.paths == ["/v1/chat/completions"] * 2
    assert (request["model"], request["temperature"], request["seed"]) == ("mock", 0, 0)
    assert (request["logprobs"], request["top_logprobs"], request["max_tokens"]) == (True, 20, 1)
    kinds = [part["type"] for part in request["messages"][0]["content"]]
    assert kinds.count("image_url") == 3
    for url, shown in zip(images(request), (PHOTO, *PAIR.crops), strict=True):
        data = url.removeprefix("data:image/jpeg;base64,")
        decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")).astype(float)
        errors = [np.abs(decoded - each.pixels).mean() for each in (PHOTO, *CROPS)]
        assert min(errors) == np.abs(decoded - shown.pixels).mean()


def test_a_canvas_is_a_single_picture() -> None:
    _, mock, judge = ask(lambda _: completion("A", PREFERS_A), composition="canvas")
    assert judge.composition == "canvas"
    assert len(images(mock.asked[0])) == 1


def test_the_first_request_has_no_picture() -> None:
    with MockEndpoint() as mock, EndpointJudge.open(mock.url, settings()):
        assert len(mock.requests) == 1
        assert mock.asked == []


def test_the_path_of_the_url_may_be_complete() -> None:
    with MockEndpoint() as mock, EndpointJudge.open(f"{mock.url}/chat/completions/", settings()):
        assert mock.paths == ["/v1/chat/completions"]


def test_answers_come_in_the_order_of_the_questions_although_later_ones_are_faster() -> None:
    questions = [Question("pair", PHOTO, (a, b)) for a in CROPS for b in CROPS if a is not b][:8]

    def respond(request: dict[str, Any]) -> Response:
        number = zlib.crc32("".join(images(request)).encode())
        response = completion("A", [{"A": -0.1 - number / 2**32, "B": -9.0}])
        response.delay_s = 0.05 * (number % 2)
        return response

    with MockEndpoint(respond) as mock, EndpointJudge.open(mock.url, settings(batch_size=4)) as judge:
        alone = [next(iter(judge.answer([question]))).log_probabilities for question in questions]
        together = [reading.log_probabilities for reading in judge.answer(questions)]
    assert len(set(alone)) == 8
    assert together == alone


def test_several_questions_are_asked_at_once_and_no_more_than_the_batch() -> None:
    at_once, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(3)

    def respond(_: dict[str, Any]) -> Response:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        together.wait(60)  # passes only if three are here
        with lock:
            at_once -= 1
        return completion("A", PREFERS_A)

    questions = [Question("yesno", PHOTO, (picture(seed),)) for seed in range(9)]
    with MockEndpoint(respond) as mock, EndpointJudge.open(mock.url, settings(batch_size=3)) as judge:
        assert len(list(judge.answer(questions))) == 9
    assert most == 3


# How answers are read


def test_probabilities_of_all_tokens_that_are_a_label_are_added_up() -> None:
    reading, _, judge = ask(lambda _: completion("A", PREFERS_A))
    assert np.exp(reading.log_probabilities) == pytest.approx([0.8, 0.15])
    assert reading.mass == pytest.approx(0.95)
    assert (reading.text, reading.abstained, reading.tokens_in, reading.tokens_out) == ("", False, 700, 1)
    assert judge.notes == []


def test_a_label_that_is_not_among_the_alternatives_is_bounded_by_the_least_of_them() -> None:
    reading, _, _ = ask(lambda _: completion("A", [{"A": math.log(0.9), "The": math.log(0.01), "x": math.log(0.002)}]))
    assert np.exp(reading.log_probabilities) == pytest.approx([0.9, 0.002])
    assert reading.mass == pytest.approx(0.9)


def test_numbers_of_one_and_two_tokens_are_told_apart() -> None:
    places = [
        {"1": math.log(0.6), "2": math.log(0.3), "10": math.log(0.1)},
        {"0": math.log(0.75), "<eos>": math.log(0.25)},
    ]
    reading, mock, _ = ask(lambda _: completion("10", places), Question("score", PHOTO, CROPS[:1]))
    assert mock.asked[0]["max_tokens"] == 3
    assert np.exp(reading.log_probabilities)[[1, 2, 10]] == pytest.approx([0.15, 0.3, 0.55])


def test_phrases_that_begin_alike_are_told_apart() -> None:
    places = [
        {"Certain": math.log(0.8), "Possibly": math.log(0.2)},
        {"ly": 0.0, "x": -30.0},
        {" not": math.log(0.75), ".": math.log(0.25)},
    ]
    reading, _, _ = ask(lambda _: completion("Certainly not", places), Question("words", PHOTO, CROPS[:1]))
    chances = dict(zip(LABELS["words"], np.exp(reading.log_probabilities), strict=True))
    assert chances["certainly not"] == pytest.approx(0.6)
    assert chances["certainly"] == pytest.approx(0.2)
    assert chances["possibly"] == pytest.approx(0.2)


def test_an_answer_within_a_sentence_is_read_at_its_token_and_then_asked_for_at_once() -> None:
    sentence = [
        {"The": math.log(0.9), "A": math.log(0.05), "B": math.log(0.01)},
        {" answer": -0.1, " place": -3.0},
        {" is": -0.1, " was": -3.0},
        {" B": math.log(0.6), " A": math.log(0.4)},
    ]

    def respond(request: dict[str, Any]) -> Response:
        places = sentence[: request["max_tokens"]]
        return completion("".join(next(iter(place)) for place in places), places, finish="length")

    with MockEndpoint(respond) as mock, EndpointJudge.open(mock.url, settings(batch_size=1)) as judge:
        first, second = judge.answer([PAIR, Question("pair", PHOTO, CROPS[2:4])])
    assert np.exp(first.log_probabilities) == pytest.approx([0.4, 0.6])
    assert first.tokens_in == 1400  # asked twice
    assert second.tokens_in == 700
    assert [request["max_tokens"] for request in mock.asked] == [1, 8, 8]


def test_a_thinking_model_is_read_after_its_thoughts() -> None:
    words = ["A", " or", " B?", " Answer", ":", " B", "."]
    places = [{word: -0.01, "x": -5.0} for word in words]
    places[5] = {" B": math.log(0.9), " A": math.log(0.1)}
    reading, mock, _ = ask(lambda _: completion("".join(words), places), reason=50)
    assert mock.asked[0]["max_tokens"] == 58
    assert np.exp(reading.log_probabilities) == pytest.approx([0.1, 0.9])


def test_a_thinking_model_that_does_not_come_to_an_answer_abstains() -> None:
    reading, _, _ = ask(lambda _: completion("Let me look at A and at B in turn, since", finish="length"), reason=50)
    assert reading.abstained


@pytest.mark.parametrize(
    ("text", "label"),
    [("A", 0), ("B.", 1), ("**B**", 1), ("Overhead image A.", 0), ("A is right", 0), ("<think>A?</think>\nB", 1)],
)
def test_without_probabilities_the_text_is_read_and_it_is_said_once(text: str, label: int) -> None:
    with MockEndpoint(lambda _: completion(text)) as mock, EndpointJudge.open(mock.url, settings()) as judge:
        for reading in judge.answer([PAIR, Question("pair", PHOTO, CROPS[2:4])]):
            logit = reading.log_probabilities[0] - reading.log_probabilities[1]
            assert logit == pytest.approx(-2.0 if label else 2.0)
            assert sum(np.exp(reading.log_probabilities)) == pytest.approx(1)
            assert (reading.text, reading.abstained) == (text, False)
    assert len(judge.notes) == 1
    assert "no log-probabilities" in judge.notes[0]


@pytest.mark.parametrize(
    "response",
    [
        completion("I cannot tell where photos were taken."),
        completion("A photo cannot be located."),
        completion(""),
        completion(None),
        completion("A", finish="content_filter"),
        completion(None, refusal="I will not"),
        completion("A", PREFERS_A, refusal="I will not"),
        completion("C"),
        completion("Sorry", [{"Sorry": -0.01, "No": -6.0}]),
        Response(body={"choices": []}),
    ],
)
def test_prose_refusals_and_silence_are_abstentions(response: Response) -> None:
    reading, _, judge = ask(lambda _: response)
    assert reading.abstained
    assert reading.log_probabilities == PAIR.chance
    assert judge.notes == []


def test_an_endpoint_that_refuses_to_give_probabilities_is_asked_without() -> None:
    class Refusing(MockEndpoint):
        def receive(self, path: str, headers: Any, document: dict[str, Any]) -> Response:
            response = super().receive(path, headers, document)
            return error(400, "logprobs is not supported") if "logprobs" in document else response

    with Refusing(lambda _: completion("B")) as mock, EndpointJudge.open(mock.url, settings()) as judge:
        (reading,) = judge.answer([PAIR])
    assert not reading.abstained
    assert reading.log_probabilities[1] > reading.log_probabilities[0]


def test_descriptions_are_refused_with_what_to_do_before_anything_is_asked() -> None:
    describe = Question("describe", PHOTO, CROPS[:1])
    with MockEndpoint() as mock, EndpointJudge.open(mock.url, settings()) as judge:
        with pytest.raises(RerankError, match="use another of the methods"):
            judge.estimate(describe)
        with pytest.raises(RerankError, match="use another of the methods"):
            list(judge.answer([PAIR, PAIR, describe]))
        assert mock.asked == []


@given(
    st.lists(
        st.dictionaries(st.text("AB10 .▁xĠ", max_size=3), st.floats(-1e39, 0), min_size=2, max_size=5),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["pair", "score", "words", "yesno"]),
    st.integers(0, 9),
)
def test_whatever_the_tokens_log_probabilities_are_numbers_and_their_mass_is_at_most_one(
    places: list[dict[str, float]], kind: Kind, reason: int
) -> None:
    question = Question(kind, PHOTO, CROPS[: 2 if kind == "pair" else 1])
    tokens = [next(iter(place)) for place in places]
    logs, mass = label_log_probabilities(tokens, places, question.labels)
    assert len(logs) == len(question.labels)
    assert all(-math.inf < value <= 0 for value in logs)
    assert 0 <= mass <= 1
    body = completion("".join(tokens), places).body
    reading = read(parse_reply(json.dumps(body).encode()), question, reason)
    assert len(reading.log_probabilities) == len(question.labels)
    assert 0 <= reading.mass <= 1


# Failures


@pytest.mark.parametrize(
    "failure",
    [
        error(429),
        error(500),
        error(503),
        Response(body=completion("A", PREFERS_A).body, cut=True),
        error(429, Retry_After="0"),
        error(503, Retry_After="nonsense"),
        Response(body={"error": {"message": "upstream overloaded"}}),
        error(503, Retry_After=formatdate(0, usegmt=True)),
    ],
)
def test_a_request_that_may_succeed_later_is_repeated(failure: Response) -> None:
    reading, mock, _ = ask(in_turn(failure, failure, completion("A", PREFERS_A)))
    assert not reading.abstained
    assert len(mock.asked) == 3


def test_a_late_answer_is_asked_for_again() -> None:
    late = completion("A", PREFERS_A)
    late.delay_s = 1.0
    reading, mock, _ = ask(in_turn(late, completion("A", PREFERS_A)), timeout_s=0.5)
    assert not reading.abstained
    assert len(mock.asked) == 2


def test_an_answer_that_drips_is_given_up() -> None:
    dripping = completion("A", PREFERS_A)
    dripping.drip_s = 0.05  # each byte is in time, all of them are not
    with pytest.raises(RerankError, match=r"nothing within 0\.5 s; 1 attempts"):
        ask(lambda _: dripping, timeout_s=0.5, retries=0)


def test_a_header_that_drips_is_given_up_and_the_next_request_succeeds() -> None:
    dripping = Response(head_drip_s=0.05)
    with pytest.raises(RerankError, match=r"nothing within 0\.5 s; 1 attempts"):
        ask(lambda _: dripping, timeout_s=0.5, retries=0)
    reading, _, _ = ask(in_turn(dripping, completion("A", PREFERS_A)), timeout_s=0.5)
    assert not reading.abstained


@pytest.mark.parametrize("by_judge", [False, True])
def test_closing_does_not_wait_for_the_answers_of_slow_requests(by_judge: bool) -> None:
    arrived, slow, answered = threading.Event(), threading.Event(), threading.Event()

    def respond(request: dict[str, Any]) -> Response:
        if len(images(request)) == 2:
            arrived.set()
            slow.wait(5)
            answered.set()
        return completion("A", PREFERS_A)

    others = set(threading.enumerate())
    with MockEndpoint(respond) as mock, EndpointJudge.open(mock.url, settings(batch_size=2)) as judge:
        answers: Any = judge.answer([PAIR, Question("yesno", PHOTO, CROPS[:1])])
        next(answers)
        arrived.wait(60)
        if by_judge:
            judge.close()
        else:
            answers.close()
        workers = [each for each in set(threading.enumerate()) - others if each.name.startswith("jzi-endpoint")]
        answers.close()
        for worker in workers:
            worker.join()
        assert not answered.is_set()
        slow.set()


def test_repetitions_are_bounded_and_end_in_a_sentence() -> None:
    with MockEndpoint(lambda _: error(503)) as mock, EndpointJudge.open(mock.url, settings(retries=3)) as judge:
        with pytest.raises(RerankError, match=r"does not answer \(status 503; 4 attempts\): check that it runs"):
            list(judge.answer([PAIR]))
        assert len(mock.asked) == 4


@pytest.mark.parametrize(("header", "least", "most"), [("2", 2, 2.5), ("100000000", 60, 75), (None, 0.001, 0.00125)])
def test_the_wait_is_what_the_server_asks_for_up_to_a_minute(
    header: str | None, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: waits.append(timeout))
    stop = threading.Event()
    client = chat.ChatClient(chat.Address.parse("http://127.0.0.1:1/v1"), settings(), None, "")
    asked_s = retry_after(header) if header else None
    answers = iter([("status 429", asked_s), (parse_reply(json.dumps(completion("A").body).encode()), None)])
    monkeypatch.setattr(client, "_attempt", lambda body, limit, stop: next(answers))
    client.complete({"max_tokens": 1}, 1, stop)
    assert len(waits) == 1
    assert least <= waits[0] <= most


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "images and log-probabilities"),
        (401, "set the environment variable JZI_RERANK_KEY to a valid key"),
        (403, "JZI_RERANK_KEY"),
        (404, "usually ends in /v1"),
        (307, "give the URL that it redirects to"),
        (418, "check the URL"),
    ],
)
def test_a_refused_request_ends_at_once_with_what_to_do(status: int, advice: str) -> None:
    with MockEndpoint(lambda _: error(status, "no\n  way", Location="http://127.0.0.1:9/")) as mock:
        with EndpointJudge.open(mock.url, settings()) as judge, pytest.raises(RerankError) as caught:
            list(judge.answer([PAIR]))
        assert len(mock.asked) == 1
    assert advice in str(caught.value)
    assert f"status {status}" in str(caught.value)
    assert ("no way" in str(caught.value)) == (status in (400, 404, 418))
    assert "\n" not in str(caught.value)


def test_redirects_are_not_followed() -> None:
    with MockEndpoint() as other, MockEndpoint(probe=error(307, Location=f"{other.url}/chat/completions")) as mock:
        with pytest.raises(RerankError, match="redirects"):
            EndpointJudge.open(mock.url, settings())
        assert other.paths == []


@pytest.mark.parametrize(
    "response",
    [
        Response(body=b""),
        Response(body=b"<html>"),
        Response(body=b"[" * 100_000),
        Response(body=b"\xff\xfe"),
        Response(body={}),
        Response(body={"choices": [{"message": {"content": 3}}]}),
        Response(body=json.dumps(completion("A", [{"A": math.nan, "B": 0.0}]).body).encode()),
        Response(body=json.dumps(completion("A", [{"A": math.inf, "B": 0.0}]).body).encode()),
        completion("A", [{"A": 7.0, "B": 0.0}]),
        completion("A", [{"A": -(10**400), "B": 0.0}]),
        Response(body=gzip.compress(json.dumps(completion("A").body).encode()), headers={"Content-Encoding": "gzip"}),
    ],
)
def test_a_reply_that_is_none_is_refused_in_a_sentence(response: Response) -> None:
    with pytest.raises(RerankError, match=r"none of chat/completions \(.+\): check the URL"):
        ask(lambda _: response)


def with_key_values(**values: Any) -> Response:
    return Response(body={**completion("A", PREFERS_A).body, **values})


@pytest.mark.parametrize(
    "response",
    [
        completion("A", [{"A": -0.01, "x": -3.4028235e38}]),
        completion("A", [{"A": -0.01, "x": -5.0, "y": None}]),
        completion("A", [{"A": None, "x": -5.0}]),
        completion("A" + " " * 300_000 + "A"),
        with_key_values(usage={"prompt_tokens": 700.0, "completion_tokens": "1"}),
        with_key_values(usage=5),
        with_key_values(system_fingerprint=5),
    ],
)
def test_an_odd_reply_with_an_answer_is_read_and_can_be_kept(response: Response, tmp_path: Path) -> None:
    reading, _, judge = ask(lambda _: response)
    assert reading.log_probabilities[0] > reading.log_probabilities[1]
    assert not reading.abstained
    assert reading.tokens_in in (700, judge.estimate(PAIR)[0])
    with Judgments.open(tmp_path / "judgments.sqlite") as judgments:
        judgments.put(judge, PAIR, reading)


def test_an_error_with_the_status_of_a_success_is_quoted_at_the_end() -> None:
    with pytest.raises(RerankError, match=r"an error: upstream overloaded; 2 attempts"):
        ask(lambda _: Response(body={"error": {"message": "upstream overloaded"}}), retries=1)


@pytest.mark.parametrize(
    "bad", [error(400, "filtered"), error(422, "filtered"), Response(body={"choices": "filtered"})]
)
def test_a_refusal_of_one_question_is_an_abstention_and_five_in_a_row_fail(bad: Response, tmp_path: Path) -> None:
    good = completion("A", PREFERS_A)
    turns = in_turn(good, *[bad] * 4, good, *[bad] * 5)
    with MockEndpoint(turns) as mock, EndpointJudge.open(mock.url, settings(batch_size=1)) as judge:
        readings = list(judge.answer([PAIR] * 6))
        assert [reading.abstained for reading in readings] == [False, *[True] * 4, False]
        assert readings[1].log_probabilities == PAIR.chance
        assert len(judge.notes) == 1
        assert "count as abstentions" in judge.notes[0]
        with Judgments.open(tmp_path / "judgments.sqlite") as judgments:
            judgments.put(judge, PAIR, readings[1])
        with pytest.raises(RerankError, match=r"refuses the request|none of chat/completions"):
            list(judge.answer([PAIR] * 5))


def test_a_large_reply_is_not_read_to_its_end() -> None:
    large = Response(body=b" " * (chat.MAX_REPLY + 2 * chat.MAX_TOKEN))
    with pytest.raises(RerankError, match="sends a reply of more than"):
        ask(lambda _: large)


def test_an_endpoint_that_is_not_there_is_reported() -> None:
    with MockEndpoint() as mock:
        url = mock.url
    with pytest.raises(RerankError, match="does not answer"):
        EndpointJudge.open(url, settings())


def test_a_failure_ends_the_other_questions_without_their_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "BACKOFF_S", 1e6)  # bounded by a minute, which the test does not wait
    waiting = threading.Event()

    def respond(request: dict[str, Any]) -> Response:
        if len(images(request)) == 3:
            waiting.wait(60)
            return error(401)
        waiting.set()
        return error(503)

    questions = [PAIR, Question("yesno", PHOTO, CROPS[:1])]
    with MockEndpoint(respond) as mock, EndpointJudge.open(mock.url, settings()) as judge:
        with pytest.raises(RerankError, match="401"):
            list(judge.answer(questions))
        assert len(mock.asked) == 2


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(RerankError, match=r"pip install 'jzi\[vlm\]'"):
        EndpointJudge.open("http://127.0.0.1:1/v1", settings())


# Where photos go, and the key


@pytest.mark.parametrize(
    "host",
    ["example.org", "0.0.0.0", "10.0.0.1", "127.0.0.1.example.org", "127.1", "2130706433", "localhost.", "[::2]"],
)
def test_photos_do_not_leave_the_machine_without_consent(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EndpointJudge.open(f"https://{host}/v1", settings())
    assert host.strip("[]") in str(caught.value)
    assert "--send-photos" in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "[::1]"])
def test_this_machine_needs_no_consent(host: str) -> None:
    assert chat.Address.parse(f"http://{host}:8000/v1").loopback


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/v1",
        "127.0.0.1:8000",
        "http://",
        "http://127.0.0.1:99999/v1",
        "http://[::1/v1",
        "http://127.0.0.1\\@example.org/v1",
        "http://127.0.0.1\\.example.org/v1",
        "http://127.0.0.1 .example.org/v1",
        "http://127.0.0.1/v1\nHost: x",
        "http://exämple.org/v1",
        f"http://user:{KEY}@127.0.0.1/v1",
        f"http://{KEY}@127.0.0.1/v1",
        f"http://127.0.0.1/v1?key={KEY}",
        f"http://127.0.0.1/v1#{KEY}",
    ],
)
def test_urls_that_are_odd_or_hold_a_secret_are_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EndpointJudge.open(url, settings(), send_photos=True)
    assert KEY not in str(caught.value)
    assert "give" in str(caught.value)


@pytest.mark.parametrize("key", ["a\nb", "a b", "a\0b", "ключ", " "])
def test_a_key_that_no_header_may_have_is_refused_without_repeating_it(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {"JZI_RERANK_KEY": key})
    with pytest.raises(ConfigError, match="JZI_RERANK_KEY holds") as caught:
        EndpointJudge.open("http://127.0.0.1:1/v1", settings())
    assert key == " " or key not in str(caught.value)


def test_a_key_is_not_sent_unencrypted_to_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with pytest.raises(ConfigError, match=r"to example\.org unencrypted") as caught:
        EndpointJudge.open("http://example.org/v1", settings(key_env="MY_KEY"), send_photos=True)
    assert KEY not in str(caught.value)


def test_no_proxy_comes_between_this_machine_and_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    reading, _, _ = ask(lambda _: completion("A", PREFERS_A))
    assert not reading.abstained


def test_the_key_is_sent_and_is_in_no_file_message_or_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(0)
    said: list[str] = []
    responses: Iterator[Response] = iter(
        [
            error(400, f"bad key {KEY}"),
            error(401, f"Incorrect API key provided: {KEY[:6]}***{KEY[-4:]}"),
            error(503, KEY),
            Response(body=KEY.encode()),
            Response(body={"choices": KEY}),
            completion(f"A, {KEY}"),  # a server that repeats it
            error(400, f"bad key {KEY}"),
        ]
    )
    config = settings(key_env="MY_KEY", retries=0)
    with MockEndpoint(lambda _: next(responses)) as mock, EndpointJudge.open(mock.url, config) as judge:
        with Judgments.open(tmp_path / "judgments.sqlite") as judgments:
            for _ in range(5):
                with pytest.raises(JziError) as caught:
                    list(judge.answer([PAIR]))
                said += [str(caught.value), repr(caught.value), str(caught.value.__cause__)]
            for _ in range(2):
                (reading,) = judge.answer([PAIR])
                judgments.put(judge, PAIR, reading)
                judgments.export(tmp_path / "judgments.csv")
            files = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        said += [
            *judge.notes,
            judge.name,
            judge.fingerprint,
            repr(judge),
            repr(judge._client),
            repr(config),
            caplog.text,
        ]
        assert {headers["Authorization"] for headers in mock.headers} == {f"Bearer {KEY}"}
    assert len(said) == 15 + 2 + 6
    assert KEY not in "".join(said)
    assert KEY[-4:] not in "".join(said)
    assert b"A, ***" in files
    assert KEY.encode() not in files


@pytest.mark.parametrize("before", [185, 190, 985])
def test_no_part_of_the_key_is_left_where_a_message_of_the_server_is_cut(
    before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JZI_RERANK_KEY", KEY)
    with pytest.raises(RerankError, match=r"status 400: x+ ?") as caught:
        ask(lambda _: error(400, f"{'x' * before} {KEY}"))
    assert KEY[:4] not in str(caught.value)


# The fingerprint


def test_the_fingerprint_covers_what_answers_depend_on() -> None:
    with MockEndpoint() as mock:

        def fingerprint(system: str = "fp_1", path: str = "", **changes: Any) -> str:
            mock.probe = completion("A", PREFERS_A, system=system)
            with EndpointJudge.open(mock.url + path, settings(**changes)) as judge:
                return judge.fingerprint

        base = fingerprint()
        assert fingerprint() == base
        others = [fingerprint("fp_2"), fingerprint(path="/other"), fingerprint(model="other")]
        others += [fingerprint(composition="canvas"), fingerprint(reason=9)]
    assert len({base, *others}) == 6
    assert re.fullmatch(r"[0-9a-f]{64}", base)


def test_the_fingerprint_depends_neither_on_the_key_nor_on_how_questions_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with MockEndpoint() as mock:
        with EndpointJudge.open(mock.url, settings()) as judge:
            base = judge.fingerprint
        monkeypatch.setenv("JZI_RERANK_KEY", KEY)
        with EndpointJudge.open(mock.url, settings(batch_size=9, retries=1, timeout_s=9.0)) as judge:
            assert judge.fingerprint == base
        assert len({headers.get("Authorization") for headers in mock.headers}) == 2


def test_replicas_with_fingerprints_of_their_own_are_noted_once() -> None:
    turns = in_turn(*(completion("A", PREFERS_A, system=each) for each in ("fp_1", "fp_2\n", "fp_3")))
    mock = MockEndpoint(turns, completion("A", system="fp_1"))
    with mock, EndpointJudge.open(mock.url, settings(batch_size=1)) as judge:
        base = judge.fingerprint
        list(judge.answer([PAIR]))
        assert judge.notes == []
        list(judge.answer([PAIR, PAIR]))
    assert judge.fingerprint == base
    assert judge.notes == [
        "the server's fingerprint changed from 'fp_1' to 'fp_2\\n': it may have several replicas, whose answers are "
        "not kept apart"
    ]


# Expected tokens


def test_tokens_are_estimated_from_the_sizes_of_the_pictures_and_nothing_is_sent() -> None:
    with MockEndpoint() as mock, EndpointJudge.open(mock.url, settings()) as judge:
        assert judge.estimate(PAIR) == (3 * 2 + 150, 1)
        assert judge.estimate(Question("words", PHOTO, CROPS[:1])) == (2 * 2 + 150, 8)
        assert mock.asked == []
    with MockEndpoint() as mock, EndpointJudge.open(mock.url, settings(reason=100, composition="canvas")) as judge:
        assert judge.estimate(PAIR) == (24 * 24 + 150, 108)
