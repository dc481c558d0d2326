"""Models of the Hugging Face hub by their names."""

from __future__ import annotations

from pathlib import Path

from jzi.errors import HubError


def local_folder(name: str | Path) -> Path:
    """The folder of a model: a path, or what is downloaded of a repository of the hub, "user/name@revision".

    Args:
        name: what exists on the disk is a path, and so is every name that cannot be that of a repository.

    Raises:
        HubError: there is no such folder and no such repository, or it holds something else than a model.
        ModelError: a file is damaged.
    """
    if Path(name).exists() or "/" not in str(name):  # the usual case, without huggingface_hub
        return Path(name)
    from jzi.publish.hub.hub import RepoName
    from jzi.publish.hub.hub_download import fetch_model

    repo = RepoName.parse(name)
    if repo is None:
        return Path(name)
    try:
        return fetch_model(repo)
    except HubError as error:
        raise HubError(f"there is no folder {name}, and {error}") from error
