"""Which URLs may be asked, and what an answer's status and headers say about asking again."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Self
from urllib.parse import SplitResult, urlsplit

from jzi.errors import ConfigError, DatasetError

#: Status codes of requests that may succeed later.
TRANSIENT = frozenset({408, 425, 429, *range(500, 600)})

#: Longest URL, characters: signed ones of storage services have about 2000.
MAX_URL = 8192


class HttpError(DatasetError):
    """A request that failed.

    Attributes:
        code: the status code; 0 if there was no whole answer.
        repeats: how often the request is worth repeating; large if the reason may pass, 0 if it will not.
        reason: the message in a few words.
    """

    def __init__(self, message: str, code: int = 0, repeats: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.code, self.repeats, self.reason = code, repeats, reason or message

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed later: a broken connection, too many requests, an error of a server."""
        return self.code == 0 or self.code in TRANSIENT


@dataclass(frozen=True)
class Address:
    """A checked URL.

    Attributes:
        url: the whole of it.
        scheme: "http" or "https".
        host: name or IP address, in lower case.
        port: its port, that of the scheme if it names none.
    """

    url: str
    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str, name: str) -> Self:
        """Check a URL.

        Args:
            url: the URL.
            name: what it is, for the error, which does not repeat the URL: it may hold a signature.

        Raises:
            ConfigError: it is not http or https, too long, holds a user or a password, or is malformed.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise ConfigError(f"{name} is malformed: give a URL such as https://example.org") from None
        plain = re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", host) and re.fullmatch(r"[\x21-\x7e]*", url)
        if parts.scheme not in ("http", "https") or not plain or "\\" in url or len(url) > MAX_URL:
            raise ConfigError(f"{name} is not a URL of http or https: give one such as https://example.org")
        if "@" in parts.netloc:
            raise ConfigError(f"{name} holds a user or a password: leave them out")
        return cls(url, parts.scheme, host, port or (443 if parts.scheme == "https" else 80))

    @classmethod
    def parse_base(cls, url: str, name: str) -> Self:
        """Check the URL that the paths of a service are appended to; as `parse`, without a query or a fragment."""
        address = cls.parse(url.rstrip("/"), name)
        parts: SplitResult = urlsplit(address.url)
        if parts.query or parts.fragment:
            raise ConfigError(f"{name} has a query or a fragment: leave it out")
        return address

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return self.scheme, self.host, self.port

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, without a question to a name server."""
        address = self._ip
        return self.host == "localhost" or (address is not None and address.is_loopback)

    @property
    def is_local(self) -> bool:
        """Whether it is this machine or an address of a private network."""
        address = self._ip
        return self.is_loopback or (address is not None and not address.is_global)

    @property
    def _ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None


def may_follow(origin: Address, target: Address) -> bool:
    """Whether a URL that an answer names, a link or a redirect, may be asked.

    Links must be encrypted, unless the service itself was asked in the clear; and no service on the network may send a
    request to this machine or into a private network, unless it is there itself.

    Args:
        origin: of the answer.
        target: what it names.
    """
    encrypted = target.scheme == "https" or (origin.scheme == "http" and origin.is_loopback == target.is_loopback)
    return encrypted and (origin.is_local or not target.is_local)


def retry_after(value: str) -> float | None:
    """Seconds that a header Retry-After asks to wait; None if there is none, or it is neither a number nor a date."""
    try:
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
            return float(value)
        seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
