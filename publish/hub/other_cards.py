"""Cards of caches and of published data sets in a repository of the hub."""

from __future__ import annotations

from pathlib import Path

import yaml

from jzi.errors import HubError, first_line
from jzi.publish.hub.hub import RepoName
from jzi.publish.hub.model_card import TAGS, licence_values
from jzi.publish.licences import is_share_alike, licence_id
from jzi.publish.markdown import escape
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.photos.photo_file import open_regular_file
from jzi.version import __version__

#: Largest card that is read, bytes.
_MAX_CARD = 2**22


def cache_card(cache: FeatureCache, name: str, repo: RepoName, licence: str, title: str = "") -> str:
    """README.md of a cache.

    Args:
        cache: the cache.
        name: its folder in the repository.
        repo: the repository.
        licence: the licence, as the user gave it.
        title: heading; the repository's name by default.
    """
    values = {**licence_values(licence), "library_name": "jzi", "tags": list(TAGS)}
    front = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    folder = repo.id.partition("/")[2]
    heading = escape(title or folder)
    imagery = f" Imagery: {escape(cache.imagery.label)}." if cache.imagery else ""
    return (
        f"---\n{front}---\n\n# {heading}\n\nA feature cache of jzi: embeddings of the tiles of a map and of photos, "
        f"from which a decoder is trained without an image. Encoder: {escape(cache.encoder.label)}.{imagery}\n\n"
        f"    hf download {repo.id} --repo-type dataset --local-dir {folder}\n"
        f"    jzi cache verify {folder}/{name}\n\n"
        "## What it discloses\n\nThe id, the file name, the exact position, the split and an embedding of every photo; "
        "names of imagery files. It contains neither photos nor imagery.\n\n"
        f"## Licence\n\n{escape(licence)}\n\n*Written by jzi {__version__}.*\n"
    )


def licensed_card(folder: Path, licence: str) -> str:
    """README.md of a published data set with the licence that the user gives, if its sources allow that.

    Args:
        folder: the published data set.
        licence: the licence, as the user gave it.

    Raises:
        HubError: there is no card, or the licences that it records ask for another one.
    """
    try:
        with open_regular_file(folder / "README.md") as file:
            text = file.read(_MAX_CARD).decode()
        front, body = text.removeprefix("---\n").split("---\n", 1)
        values = yaml.safe_load(front)
        recorded = values["license"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise HubError(
            f"{folder / 'README.md'} is no card of a data set ({first_line(error)}): publish it again"
        ) from error
    recorded = recorded if isinstance(recorded, list) else [recorded]
    known = [str(name) for name in recorded if name != "unknown"]
    given = licence_id(licence)
    wanted = [name for name in known if name != given and (is_share_alike(name) or "-nd" in name or "-nc" in name)]
    if wanted:
        raise HubError(
            f"{folder} has photos or imagery under {wanted[0]}, which does not allow {licence!r:.60}: give --license "
            f"{wanted[0]}"
        )
    values = {
        **{key: value for key, value in values.items() if not key.startswith("license")},
        **licence_values(licence),
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)}---\n{body}"
