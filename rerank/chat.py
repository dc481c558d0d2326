"""Requests to OpenAI-compatible endpoints: where they may go, the key, and repetitions."""

from __future__ import annotations

import ipaddress
import json
import math
import os
import random
import re
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import SplitResult, urlsplit

from jzi.errors import ConfigError, RerankError, first_line
from jzi.rerank.config import RerankConfig
from jzi.rerank.replies import Reply, ServerError, parse_reply

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
        client: client that sends the key.
        key: to keep it out of messages.
    """

    def __init__(self, address: Address, config: RerankConfig, client: httpx.Client, key: str) -> None:
        self.address = address
        self._config, self._client, self._key = config, client, key

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
        client = httpx.Client(
            headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})},
            timeout=config.timeout_s,
            limits=httpx.Limits(max_connections=config.batch_size),
            follow_redirects=False,  # photos and the key go to this host and no other
            trust_env=not address.loopback,  # a proxy is of no use there
        )
        return cls(address, config, client, key)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def complete(self, document: dict[str, Any], retries: int, stop: threading.Event) -> Reply:
        """Send a request to chat/completions, and repeat it where that may help.

        Args:
            document: its body.
            retries: how often it is repeated.
            stop: ends the wait for a repetition.

        Raises:
            StatusError: the endpoint refuses the request, or its reply is malformed.
            RerankError: it does not answer, or only with errors.
        """
        body = json.dumps(document).encode()
        limit = MAX_REPLY + document["max_tokens"] * MAX_TOKEN
        reason = ""
        for attempt in range(retries + 1):
            reply, asked_s = self._attempt(body, limit)
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

    def _attempt(self, body: bytes, limit: int) -> tuple[Reply | str, float | None]:
        """The reply to a request; or why there is none, and how long the server asks to wait, seconds."""
        import httpx

        where, late = self.address.where, f"nothing within {self._config.timeout_s:g} s"
        deadline = time.monotonic() + self._config.timeout_s
        received = bytearray()
        try:
            with self._client.stream(
                "POST",
                f"{self.address.base}/chat/completions",
                content=body,
                headers={"Content-Type": "application/json"},
            ) as response:
                for chunk in response.iter_raw():  # raw: what is small cannot become large
                    received += chunk
                    if len(received) > limit:
                        raise RerankError(f"{where} sends a reply of more than {limit} bytes: check the URL")
                    if time.monotonic() > deadline:
                        return late, None
        except httpx.TimeoutException:
            return late, None
        except httpx.TransportError as error:
            return self._quoted(error), None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RerankError(f"{where} cannot be used: {self._quoted(error)}") from None
        code = response.status_code
        if code in _TRANSIENT:
            return f"status {code}", _retry_after(response.headers.get("retry-after", ""))
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


def _retry_after(value: str) -> float | None:
    """Seconds that a header Retry-After asks to wait; None if there is none, or it is neither a number nor a date."""
    try:
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
            return float(value)
        seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
