"""Publish files in a repository of the Hugging Face hub, as one commit: all of them or none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token

from jzi.errors import HubError
from jzi.publish.hub.hub import RepoName, hub_api, hub_errors, is_offline

#: Most files of a commit: what the hub takes in one request.
MOST_FILES = 20_000

#: Files that the hub or a person puts into a repository, and which stay there.
_KEPT = re.compile(r"\.gitattributes|LICENSE(\.md|\.txt)?")


@dataclass(frozen=True)
class HubFile:
    """A file to publish.

    Attributes:
        name: its path in the repository.
        source: the file, or its bytes.
        discloses: what it says to whoever reads it, for people.
    """

    name: str
    source: Path | bytes
    discloses: str

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


@dataclass(frozen=True)
class HubTarget:
    """Where files are published.

    Attributes:
        repo: the repository.
        kind: "model" or "dataset".
        private: whether only its owners may see it.
        branch: branch to commit to, which is made if there is none; the default branch if it is empty.
        message: of the commit.
    """

    repo: RepoName
    kind: Literal["model", "dataset"] = "model"
    private: bool = False
    branch: str = ""
    message: str = ""


def publish_files(
    target: HubTarget, files: Sequence[HubFile], own: re.Pattern[str], *, endpoint: str | None = None
) -> str:
    """Publish files in a repository, which is made if there is none; files of the last time that are gone are deleted.

    Large files are sent first, and those that the hub has are not sent again: an interrupted run goes on. What others
    see changes in one step at the end.

    Args:
        target: where.
        files: the files.
        own: names that files of this kind have; a repository that holds others is left alone.
        endpoint: address of the hub; see `hub_api`.

    Returns:
        The address of the commit.

    Raises:
        HubError: there is no token or no right to write, the repository holds something else or is public although
            `private` is asked for, or the hub cannot be reached.
    """
    repo, api = target.repo, hub_api(endpoint)
    if len(files) > MOST_FILES:
        raise HubError(f"{len(files)} files are too many for a commit: use `hf upload-large-folder`")
    if is_offline():
        raise HubError(f"{repo.id} cannot be published offline: unset HF_HUB_OFFLINE")
    if get_token() is None:
        raise HubError(
            f"{repo.id} cannot be published without a token: log in with `hf auth login`, or set HF_TOKEN to a token "
            "that may write"
        )
    after = "; nothing of it can be seen, run it again: what was sent is not sent again"
    branch: dict[str, Any] = {"revision": target.branch} if target.branch else {}
    with hub_errors(repo, "published", after):
        api.create_repo(repo.id, repo_type=target.kind, private=target.private, exist_ok=True)
        info = api.repo_info(repo.id, repo_type=target.kind)
        if target.private and not info.private:
            raise HubError(f"{repo.id} exists and is public: make it private on the hub, or leave --private out")
        if target.branch:
            api.create_branch(repo.id, branch=target.branch, repo_type=target.kind, exist_ok=True)
        there = set(api.list_repo_files(repo.id, repo_type=target.kind, **branch))
        if other := sorted(name for name in there if not own.fullmatch(name)):
            raise HubError(f"{repo.id} holds {other[0]!r:.100}, which is not of jzi: give another name, or delete it")
        operations: list[Any] = [
            CommitOperationAdd(each.name, each.source if isinstance(each.source, bytes) else str(each.source))
            for each in files
        ]
        gone = there - {each.name for each in files}
        operations += [CommitOperationDelete(name) for name in sorted(gone) if not _KEPT.fullmatch(name)]
        commit = api.create_commit(
            repo.id,
            operations,
            commit_message=target.message or f"Publish with jzi {api.library_version}",
            repo_type=target.kind,
            **branch,
        )
    return str(commit.commit_url)
