"""Repositories of the Hugging Face hub: their names, what a model may hold there, and errors as sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from jzi.errors import HubError, JziError, first_line
from jzi.version import __version__

#: "user/name" and, after an @, a branch, a tag or a commit.
_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]{0,199}))?", re.ASCII)

#: Files of a model: those of jzi in JSON and safetensors, its card with pictures, and what the hub puts there.
MODEL_FILES = re.compile(
    r"(config\.json|(decoder|map|novelty|cells|levels|vpr|index)\.safetensors"
    r"|encoder/(?:[\w.-]+/)?[\w.-]+\.(json|safetensors)"
    r"|refiner/refiner\.(json|safetensors)|README\.md|LICENSE(\.md|\.txt)?|\.gitattributes|card/[\w-]+\.png)",
    re.ASCII,
)

#: Most files of a model, and most bytes of all and of a JSON: an encoder of 7 billion weights in float32 has 27 GB.
MOST_FILES, MOST_BYTES, MOST_JSON = 1000, 32 * 2**30, 64 * 2**20

#: Tokens of the hub, which no message repeats.
_TOKEN = re.compile(r"hf_\w+")


@dataclass(frozen=True)
class RepoName:
    """A repository, and a branch, tag or commit of it.

    Attributes:
        id: such as "user/name".
        revision: None for the default branch.
    """

    id: str
    revision: str | None = None

    @classmethod
    def parse(cls, name: str | Path) -> RepoName | None:
        """The repository that a name means; None if it is a path.

        What exists on the disk is a path, and so is what lies in a folder that exists.

        Example:
            >>> RepoName.parse("anna/vienna@v2")
            RepoName(id='anna/vienna', revision='v2')
            >>> RepoName.parse("./model") is None, RepoName.parse("model") is None
            (True, True)
        """
        match = _NAME.fullmatch(str(name))
        path = Path(name)
        if match is None or path.exists() or path.parent.exists():
            return None
        return cls(match[1], match[2])

    @classmethod
    def of(cls, name: str) -> RepoName:
        """The repository to write to.

        Raises:
            HubError: it is no such name.
        """
        match = _NAME.fullmatch(name)
        if match is None or match[2]:
            raise HubError(f"{name!r:.100} is no repository of the hub: give USER/NAME, such as anna/vienna")
        return cls(match[1])

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def hub_api(endpoint: str | None = None) -> HfApi:
    """The client of the hub, with the user's token, if there is one (`HF_TOKEN`, or `hf auth login`).

    Args:
        endpoint: address of the hub; `HF_ENDPOINT`, or that of Hugging Face, by default.
    """
    return HfApi(endpoint=endpoint or constants.ENDPOINT, library_name="jzi", library_version=__version__)


def is_offline() -> bool:
    """Whether the user forbids to use the network (`HF_HUB_OFFLINE`)."""
    return bool(constants.HF_HUB_OFFLINE)


_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may do this"
_NETWORK = "check the network, and run it again"

#: Sentence of each kind of error of the client; the first kind that an error is of applies.
_SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (LocalTokenNotFoundError, f"{{repo}} cannot be {{doing}} without a token: {_LOGIN}"),
    (OfflineModeIsEnabled, "{repo} cannot be {doing} offline: unset HF_HUB_OFFLINE"),
    (GatedRepoError, f"{{repo}} is gated: accept its conditions on the hub, and {_LOGIN}"),
    (RevisionNotFoundError, "{repo.id} has no revision {revision!r}: give a branch, tag or commit"),
    # before RepositoryNotFoundError: the hub was not reached
    (LocalEntryNotFoundError, f"{{repo}} is not in the local cache, and the hub cannot be reached: {_NETWORK}"),
    (RepositoryNotFoundError, f"the hub has no repository {{repo.id}}, or it is private: check the name, or {_LOGIN}"),
    (HFValidationError, "{repo.id} is no repository of the hub: {reason}"),
    (HfHubHTTPError, "{repo.id} cannot be {doing} ({reason}){after}"),
    # of HTTP clients, which differ between versions of huggingface_hub
    (Exception, "{repo.id} cannot be {doing} ({reason}){after_or_network}"),
)

#: Sentence of an HTTP error with one of these statuses that is of no kind before HfHubHTTPError.
_REFUSED = f"{{repo.id}} cannot be {{doing}}: the hub refuses it ({{status}}); {_LOGIN}"
_DENIED = (401, 403)


@contextmanager
def hub_errors(repo: RepoName, doing: str, after: str = "") -> Iterator[None]:
    """Raise whatever the client of the hub raises as a `HubError`; a context manager.

    Args:
        repo: the repository.
        doing: what is done in the block, such as "downloaded".
        after: what has been done, and what to do, if the connection breaks.

    Raises:
        HubError: something failed in the block.
    """
    try:
        yield
    except (JziError, MemoryError):
        raise
    except Exception as error:
        raise HubError(_sentence(error, repo, doing, after)) from error


def _sentence(error: Exception, repo: RepoName, doing: str, after: str) -> str:
    kind, text = next(each for each in _SENTENCES if isinstance(error, each[0]))
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if kind is HfHubHTTPError and status in _DENIED:
        text = _REFUSED
    return text.format(
        repo=repo,
        doing=doing,
        after=after,
        after_or_network=after or f": {_NETWORK}",
        revision=repo.revision or "main",
        reason=_TOKEN.sub("hf_...", first_line(error)).rstrip(".:"),
        status=status,
    )
