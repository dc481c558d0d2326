"""Download a model from the Hugging Face hub: checked by name and size before, by SHA-256 after, and never run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from tqdm import tqdm

from jzi.errors import HubError, ModelError
from jzi.publish.hub.hub import (
    MODEL_FILES,
    MOST_BYTES,
    MOST_FILES,
    MOST_JSON,
    RepoName,
    hub_api,
    hub_errors,
    is_offline,
)
from jzi.store.model_config import CONFIG, AnyModelConfig, read_config
from jzi.store.model_folder import GRAPH, verify_file

#: Files of a refiner, which have digests of their own (`jzi.refine.info`).
REFINER_FILES = ("refiner/refiner.json", "refiner/refiner.safetensors")


def fetch_model(repo: RepoName, *, endpoint: str | None = None, cache_dir: Path | None = None) -> Path:
    """Download a model, or find it in the local cache of the hub.

    Nothing is downloaded of a repository that holds anything but files of a model, or too much of them. What is
    complete in the cache is kept, so that an interrupted download goes on.

    Args:
        repo: the repository, and its revision.
        endpoint: address of the hub; see `hub_api`.
        cache_dir: the local cache; that of huggingface_hub by default.

    Returns:
        The model folder, in the cache.

    Raises:
        HubError: there is no such model, the hub cannot be reached, or the repository holds something else.
        ModelError: a file does not match its SHA-256, or it is no model.
    """
    api = hub_api(endpoint)
    if is_offline():
        return _cached(api, repo, cache_dir)
    try:
        with hub_errors(repo, "downloaded"):
            info = api.model_info(repo.id, revision=repo.revision, files_metadata=True)
    except HubError:
        try:  # without the network, what was downloaded before
            return _cached(api, repo, cache_dir)
        except (HubError, ModelError):
            pass
        raise
    sizes = {each.rfilename: each.size for each in info.siblings or ()}
    check_names(repo, sizes)
    options: dict[str, Any] = {"revision": info.sha, "cache_dir": cache_dir}
    with hub_errors(repo, "downloaded", _AGAIN):
        folder = Path(api.hf_hub_download(repo.id, CONFIG, **options)).parent
    config = read_config(folder)
    names = model_files(config, sizes)
    if absent := sorted(set(names) - sizes.keys()):
        raise HubError(f"{repo} lacks {absent[0]}, which its {CONFIG} records: it must be pushed again")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        size = sum(sizes[name] or 0 for name in missing)
        tqdm.write(f"downloading the model {repo}, {size / 1e6:.1f} MB, from the Hugging Face hub", file=sys.stderr)
    with hub_errors(repo, "downloaded", _AGAIN):
        folder = Path(api.snapshot_download(repo.id, allow_patterns=names, **options))
    for name in damaged(folder, config, names):
        with hub_errors(repo, "downloaded", _AGAIN):  # damaged on its way or on the disk: once more
            api.hf_hub_download(repo.id, name, force_download=True, **options)
        try:
            verify_file(folder, config, name)
        except ModelError as error:
            raise ModelError(
                f"{name} of {repo} does not match its SHA-256 in {CONFIG}: it must be pushed again, whole"
            ) from error
    with hub_errors(repo, "downloaded", _AGAIN):  # what the branch is now, for use without the network
        api.hf_hub_download(repo.id, CONFIG, revision=repo.revision, cache_dir=cache_dir)
    return folder


_AGAIN = "; what is complete is kept: run it again to go on"


def check_names(repo: RepoName, sizes: Mapping[str, int | None]) -> None:
    """Check the names and sizes of the files of a repository.

    Args:
        repo: the repository.
        sizes: bytes of each file, by its name.

    Raises:
        HubError: it holds something else than a model, or too much.
    """
    if CONFIG not in sizes:
        raise HubError(f"{repo} is no model of jzi: it has no {CONFIG}")
    if other := sorted(name for name in sizes if not MODEL_FILES.fullmatch(name)):
        raise HubError(
            f"{repo} holds {other[0]!r:.100}, which is no file of a model of jzi (JSON, safetensors and a card): "
            "nothing of it is downloaded"
        )
    if len(sizes) > MOST_FILES:
        raise HubError(f"{repo} holds {len(sizes)} files, more than {MOST_FILES}: nothing of it is downloaded")
    if unknown := [name for name, size in sizes.items() if size is None]:
        raise HubError(f"the hub does not say how large {unknown[0]} of {repo} is: nothing of it is downloaded")
    known = {name: size or 0 for name, size in sizes.items()}
    large = [name for name, size in known.items() if size > MOST_JSON and not name.endswith(".safetensors")]
    if large or sum(known.values()) > MOST_BYTES:
        what, limit = (large[0], MOST_JSON) if large else ("the model", MOST_BYTES)
        size = known[large[0]] if large else sum(known.values())
        raise HubError(f"{what} of {repo} has {size:,} bytes, more than {limit:,}: nothing of it is downloaded")


def model_files(config: AnyModelConfig, present: Iterable[str]) -> list[str]:
    """Names of the files of a model that locating reads: not its training, nor the graph that Faiss would parse.

    Args:
        config: its config.json.
        present: names of files; those of a refiner are taken if they are among them.
    """
    files = [name for name in config.files if not name.startswith("train/") and name != GRAPH]
    return [CONFIG, *sorted(files), *(name for name in REFINER_FILES if name in set(present))]


def damaged(folder: Path, config: AnyModelConfig, names: Iterable[str]) -> list[str]:
    """The files that do not match their SHA-256."""
    wrong = []
    for name in names:
        if name in config.files:
            try:
                verify_file(folder, config, name)
            except ModelError:
                wrong.append(name)
    return wrong


def _cached(api: HfApi, repo: RepoName, cache_dir: Path | None) -> Path:
    """What the local cache holds.

    Raises:
        HubError: it holds no such model, or not all of it.
        ModelError: it is damaged.
    """
    with hub_errors(repo, "found in the local cache"):
        path = api.hf_hub_download(repo.id, CONFIG, revision=repo.revision, cache_dir=cache_dir, local_files_only=True)
    folder = Path(path).parent
    config = read_config(folder)
    names = model_files(config, ())
    if absent := [name for name in names if not (folder / name).exists()]:
        raise HubError(f"{absent[0]} of {repo} is not in the local cache: load it once with the network")
    if wrong := damaged(folder, config, names):
        raise ModelError(f"{wrong[0]} of {repo} is damaged in the local cache: load it once with the network")
    return folder
