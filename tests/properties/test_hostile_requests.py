"""The service answers any request: with a place, or with one sentence and a status of the client's fault."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import hostile

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from jzi.serve.app import make_app
from jzi.serve.guard import Access
from jzi.serve.limits import Limits

PARAMETERS = ["estimate", "radius", "top", "details", "near", "within", "experts", "region", "x"]
VALUES = st.one_of(
    st.sampled_from(
        ["radius", "map", "greedy", "true", "48.2,16.37", "zoom", "1e6", "inf", "nan", "-1", "0", "50", "9" * 400]
    ),
    st.text(max_size=30).filter(lambda text: not any(0xD800 <= ord(character) < 0xE000 for character in text)),
    st.floats().map(str),
    st.integers().map(str),
)
HEADERS = st.dictionaries(
    st.sampled_from(["Content-Type", "Content-Length", "Origin", "Accept", "Authorization", "Range", "Expect"]),
    st.sampled_from(
        ["", "x", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "-1", "null"]
    ),
    max_size=2,
)


@pytest.fixture
def client(locator) -> Iterator[TestClient]:
    with TestClient(make_app(locator, None, Limits(queue=4), Access()), "http://localhost") as client:
        yield client


def check(response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400 and response.content and "json" in response.headers.get("content-type", ""):
        detail = response.json()["detail"]
        assert isinstance(detail, str)
        assert "\n" not in detail and len(detail) < 1000


@given(st.lists(st.tuples(st.sampled_from(PARAMETERS), VALUES), max_size=4), hostile.photos(), st.text(max_size=10))
def test_any_photo_and_parameters_get_an_answer(client, parameters, example, name: str) -> None:
    name = name.encode("utf-8", "replace").decode()
    check(client.post("/locate", files={"photo": (name, example.files[example.name])}, params=parameters))


METHODS = ["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE"]
PATHS = ["/", "/locate", "/docs", "/health", "/metrics", "/openapi.json", "/../etc/passwd", "/%00", "/x"]


@given(st.sampled_from(METHODS), st.sampled_from(PATHS), HEADERS, st.binary(max_size=300))
def test_any_request_gets_an_answer(client, method: str, path: str, headers: dict, body: bytes) -> None:
    check(client.request(method, path, headers=headers, content=body))
