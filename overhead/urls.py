"""URLs of services with secrets in environment variables: `https://host/{z}/{x}/{y}.png?key={env:NAME}`.

A secret is put in where a request is made, and taken out of every message. No file that outlives a run holds one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from jzi.errors import ConfigError
from jzi.web.client import Client, HttpOptions
from jzi.web.rules import Address

_SECRET = re.compile(r"\{env:([A-Za-z_][A-Za-z0-9_]*)\}")

#: Names of parameters that hold secrets, of map services and of signed URLs, without case, hyphens and underscores.
SENSITIVE = frozenset((
    "key", "apikey", "mapkey", "appkey", "appcode", "token", "accesstoken", "tk", "sig", "signature", "password",
    "passwd", "pwd", "secret", "auth", "authkey", "authorization", "subscriptionkey", "clientsecret", "xamzsignature",
    "xamzcredential", "xamzsecuritytoken", "xgoogsignature",
))  # fmt: skip

#: Services on other machines may be asked without encryption if their URL says so, and no secret is in it. Three
#: repetitions, since these requests come before any work.
_OPTIONS = HttpOptions(timeout_s=30.0, total_s=120.0, retries=3, plain_http=True)


@dataclass(frozen=True)
class ServiceUrl:
    """A URL, or a template of one, that may hold secrets.

    Attributes:
        text: as it was given, with placeholders for secrets: what may be printed and written.
        address: its scheme, host and port.
        secrets: names of environment variables and their values.
    """

    text: str
    address: Address
    secrets: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, text: str, name: str) -> Self:
        """Check a URL and read its secrets from the environment.

        Args:
            text: the URL, of http or https.
            name: what it is, for errors, such as "--wms".

        Raises:
            ConfigError: it is malformed, holds a secret itself, or names an environment variable that is not set.
        """
        placeholders = re.sub(r"\{[A-Za-z0-9_:-]*\}", "0", text)
        address = Address.parse(placeholders, name)
        for key, value in parse_qsl(urlsplit(text).query, keep_blank_values=True):
            if is_sensitive(key) and value and not _SECRET.search(value):
                raise ConfigError(
                    f"{name} holds a secret ({key:.40}=...), which would be written down: put it into an environment "
                    f"variable, and write {key:.40}={{env:NAME}}"
                )
        secrets = []
        for variable in dict.fromkeys(_SECRET.findall(text)):
            value = os.environ.get(variable, "").strip()
            if not value:
                raise ConfigError(f"{name} needs the environment variable {variable}, which is not set: export it")
            secrets.append((variable, value))
        if secrets and address.scheme == "http" and not address.is_loopback:
            raise ConfigError(f"{name} would send a secret unencrypted: give a URL that begins https://")
        return cls(text, address, tuple(secrets))

    def fill(self, text: str | None = None) -> str:
        """The URL, or another text with the same placeholders, with the secrets: for requests only."""
        values = {name: quote(value, safe="%+/=:~") for name, value in self.secrets}
        return _SECRET.sub(lambda match: values.get(match[1], ""), self.text if text is None else text)

    def redact(self, text: str) -> str:
        """A text without the secrets."""
        for name, value in self.secrets:
            for form in {value, quote(value, safe=""), quote(value, safe="%+/=:~"), unquote(value)}:
                text = text.replace(form, f"{{env:{name}}}")
        return text

    def client(self, name: str) -> Client:
        """A client for requests to the service, which follows redirects as far as `may_follow` allows."""
        return Client(name, f"{self.address.scheme}://{urlsplit(self.address.url).netloc}", _OPTIONS)


def is_sensitive(parameter: str) -> bool:
    """Whether a parameter of a query is one that holds a secret, by its name."""
    return re.sub(r"[-_]", "", parameter).lower() in SENSITIVE


def holds_secret(url: str) -> bool:
    """Whether a URL that a service gave is signed or holds a token, by the names of its parameters."""
    return any(is_sensitive(key) and value for key, value in parse_qsl(urlsplit(url).query))


def with_query(url: str, parameters: Sequence[tuple[str, str]]) -> str:
    """A URL with parameters added; those that it has, in any case of letters, are replaced."""
    base, _, query = url.partition("?")
    names = {name.lower() for name, _ in parameters}
    kept = [part for part in query.split("&") if part and part.partition("=")[0].lower() not in names]
    added = [f"{name}={quote(value, safe=',:/')}" for name, value in parameters]
    return f"{base}?{'&'.join([*kept, *added])}"
