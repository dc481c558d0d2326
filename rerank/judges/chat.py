"""Requests to OpenAI-compatible endpoints: where they may go, the key, and repetitions."""

from __future__ import annotations

import ipaddress
import json
import os
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import SplitResult, urlsplit

from jzi.errors import ConfigError, RerankError, first_line
from jzi.rerank.config import RerankConfig
from jzi.rerank.judges.replies import Reply, ServerError, parse_reply
from jzi.web.line import Line
from jzi.web.rules import retry_after

if TYPE_CHECKING:
    import httpx

#: Seconds before the first repetition of a request; doubled for each further one.
BACKOFF_S = 0.5

#: Longest time before a repetition, seconds, whatever the server asks for.
MAX_WAIT_S = 60.0

#: Largest reply, bytes, and what each token with 20 alternatives may add.
MAX_REPLY, MAX_TOKEN = 2**20, 2**12

#: Status codes of requests that may succeed later.
_TRANSIENT = {408, 409, 425, 429, *range(500, 600)}

_ADVICE = {
    400: "see what the server refuses; not all models support images and log-probabilities",
    401: "set the environment variable {key} to a valid key",
    403: "set the environment variable {key} to a key that may use this model",
    404: "check the URL, which usually ends in /v1, and the model's name (rerank.model)",
    413: "lower rerank.crop_pixels and rerank.photo_pixels",
}


class StatusError(RerankError):
    """A reply that is no answer, nor one that a repetition helps against.

    Attributes:
        code: the status code; 200 if the reply is malformed.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Address:
    """The checked URL of an endpoint.

    Attributes:
        base: without a slash at its end.
        where: host, port and path, for messages and fingerprints.
        host: host name or IP address.
        encrypted: whether it is https.
    """

    base: str
    where: str
    host: str
    encrypted: bool

    @classmethod
    def parse(cls, url: str) -> Self:
        """Check a URL, which may hold no secret: it is shown and kept.

        Raises:
            ConfigError: it is not a plain http or https URL.
        """
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            raise ConfigError(
                "the URL of the endpoint is malformed: give one such as http://127.0.0.1:8000/v1"
            ) from None
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigError(
                f"the URL of the endpoint at {host:.100} has a user, a query or a fragment: leave it out, and give the "
                "key in the environment variable that rerank.key_env names"
            )
        plain = re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", host) and re.fullmatch(r"[\x21-\x7e]*", url)
        if parts.scheme not in ("http", "https") or not plain or "\\" in url:
            raise ConfigError(f"{url!r:.100} is no URL of an endpoint: give one such as http://127.0.0.1:8000/v1")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        base = SplitResult(parts.scheme, parts.netloc, path, "", "").geturl()
        return cls(base, f"{parts.netloc}{path}", host, parts.scheme == "https")

    @property
    def loopback(self) -> bool:
        """Whether it is this machine, without a question to a name server."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class ChatClient:
    """Sends requests to one endpoint, from several threads if need be.

    Args:
        address: the endpoint.
        config: settings.
        connect: makes a client that sends the key.
        key: to keep it out of messages.
    """

    def __init__(self, address: Address, config: RerankConfig, connect: Callable[[], httpx.Client], key: str) -> None:
        self.address = address
        self._config, self._connect, self._key = config, connect, key
        self._free: list[Line] = []
        self._busy: dict[Line, threading.Event] = {}
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, address: Address, config: RerankConfig) -> Self:
        """Prepare to send requests; none is sent yet.

        Raises:
            ConfigError: the key cannot be used, or would be sent unencrypted.
            RerankError: httpx is missing.
        """
        key = os.environ.get(config.key_env, "")
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise ConfigError(
                f"the environment variable {config.key_env} holds spaces, control or other characters that no key has: "
                "set it anew, without a line break"
            )
        if key and not (address.loopback or address.encrypted):
            raise ConfigError(
                f"the key in {config.key_env} would be sent to {address.host} unencrypted: use https, or unset the key"
            )
        try:
            import httpx
        except ImportError as error:
            raise RerankError("an endpoint needs a package that is missing (httpx): pip install 'jzi[vlm]'") from error
        trust_env = not address.loopback  # a proxy is of no use there
        connect = partial(
            httpx.Client,
            headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})},
            verify=httpx.create_ssl_context(trust_env=trust_env),  # once, as it takes long
            timeout=config.timeout_s,
            limits=httpx.Limits(max_connections=1),
            follow_redirects=False,  # photos and the key go to this host and no other
            trust_env=trust_env,
        )
        return cls(address, config, connect, key)

    def close(self) -> None:
        """Close all connections; requests that are under way fail."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
            busy = list(self._busy)
        for line in free:
            line.close()
        for line in busy:
            line.cut()

    def cut(self, stop: threading.Event) -> None:
        """End the requests that were given this event, without waiting for their replies. It is set before."""
        with self._lock:
            lines = [line for line, event in self._busy.items() if event is stop]
        for line in lines:
            line.cut()

    @contextmanager
    def _line(self, stop: threading.Event) -> Iterator[Line]:
        """A line for one request, which is cut at its time limit, and by `cut`."""
        with self._lock:
            line = self._free.pop() if self._free else Line(self._connect())
            self._busy[line] = stop
        try:
            with line.limited(self._config.timeout_s):
                if stop.is_set() or self._closed:
                    line.cut()
                yield line
        finally:
            with self._lock:
                del self._busy[line]
                if not self._closed:
                    self._free.append(line)
            if self._closed:
                line.close()

    def complete(self, document: dict[str, Any], retries: int, stop: threading.Event) -> Reply:
        """Send a request to chat/completions, and repeat it where that may help.

        Args:
            document: its body.
            retries: how often it is repeated.
            stop: ends the wait for a repetition, and, with `cut`, the request.

        Raises:
            StatusError: the endpoint refuses the request, or its reply is malformed.
            RerankError: it does not answer, or only with errors.
        """
        body = json.dumps(document).encode()
        limit = MAX_REPLY + document["max_tokens"] * MAX_TOKEN
        reason = ""
        for attempt in range(retries + 1):
            reply, asked_s = self._attempt(body, limit, stop)
            if isinstance(reply, Reply):
                return reply
            reason = reply
            if attempt < retries:
                wait_s = BACKOFF_S * 2**attempt if asked_s is None else asked_s
                if stop.wait(min(wait_s, MAX_WAIT_S) * random.uniform(1, 1.25)):
                    break
        raise RerankError(
            f"{self.address.where} does not answer ({reason}; {attempt + 1} attempts): check that it runs, and start "
            "again, which asks only what is not answered yet"
        )

    def without_key(self, text: str) -> str:
        """A text of the server, which may repeat the key, without it."""
        return text.replace(self._key, "***") if self._key else text

    def _quoted(self, error: Exception) -> str:
        return first_line(type(error)(self.without_key(str(error))))  # before it is cut

    def _attempt(self, body: bytes, limit: int, stop: threading.Event) -> tuple[Reply | str, float | None]:
        """The reply to a request; or why there is none, and how long the server asks to wait, seconds."""
        import httpx

        where, late = self.address.where, f"nothing within {self._config.timeout_s:g} s"
        received = bytearray()
        with self._line(stop) as line:
            try:
                with line.client.stream(
                    "POST",
                    f"{self.address.base}/chat/completions",
                    content=body,
                    headers={"Content-Type": "application/json"},
                    extensions={"trace": line.trace},
                ) as response:
                    for chunk in response.iter_raw():  # raw: what is small cannot become large
                        received += chunk
                        if len(received) > limit:
                            raise RerankError(f"{where} sends a reply of more than {limit} bytes: check the URL")
            except httpx.TransportError as error:
                is_late = line.is_cut or isinstance(error, httpx.TimeoutException)
                return late if is_late else self._quoted(error), None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise RerankError(f"{where} cannot be used: {self._quoted(error)}") from None
            if line.is_cut:  # looks like the end of a reply without a length
                return late, None
        code = response.status_code
        if code in _TRANSIENT:
            return f"status {code}", retry_after(response.headers.get("retry-after", ""))
        if code != 200:
            raise self._refusal(code, bytes(received))
        try:
            return parse_reply(bytes(received)), None
        except ServerError:
            return f"an error: {self._server_message(bytes(received)) or 'without a message'}", None
        except ValueError as error:
            raise StatusError(
                f"{where} sends a reply that is none of chat/completions ({self.without_key(str(error))}): check the "
                "URL, which usually ends in /v1",
                code,
            ) from None

    def _refusal(self, code: int, received: bytes) -> StatusError:
        where = self.address.where
        if 300 <= code < 400:
            return StatusError(f"{where} redirects elsewhere (status {code}): give the URL that it redirects to", code)
        message = "" if code in (401, 403) else self._server_message(received)  # those may repeat a part of the key
        quoted = f": {message}" if message else ""
        advice = _ADVICE.get(code, "check the URL and the model's name (rerank.model)")
        advice = advice.format(key=self._config.key_env)
        return StatusError(f"{where} refuses the request (status {code}{quoted}): {advice}", code)

    def _server_message(self, received: bytes) -> str:
        """The message of an error, on one line; empty if there is none."""
        try:
            document = json.loads(received)
        except (ValueError, RecursionError):
            return ""
        error = document.get("error", document) if isinstance(document, dict) else ""
        message = error.get("message") if isinstance(error, dict) else error
        if not isinstance(message, str):
            return ""
        line = "".join(each for each in " ".join(message.split()) if each.isprintable())
        return self.without_key(line)[:200]  # in this order: a part of the key would not be found
