"""Open Zarr stores (local or remote); translate I/O and codec errors."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from jzi.errors import CacheCorruptError, CacheError
from jzi.store.disk.object_store import open_store


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL (s3://, gs://, az://, https://) rather than a local path."""
    return "://" in str(path)


def zarr_store(path: str | Path, *, opening: bool = False) -> Any:
    """Return the store for `zarr.open_group`: a local path, or a remote store for a URL.

    Args:
        path: path or URL of the cache.
        opening: whether to give up as soon as is suitable for opening a cache (`jzi.store.disk.object_store`).

    Raises:
        CacheError: the URL is not supported.
    """
    return open_store(str(path), opening=opening) if is_url(path) else Path(path)


def exists(path: str | Path) -> bool:
    """Whether a local path exists, or there is a Zarr group at a URL."""
    if not is_url(path):
        return Path(path).exists()
    with storage_errors(path):
        try:
            zarr.open_group(zarr_store(path, opening=True), mode="r", use_consolidated=False)
        except FileNotFoundError:
            return False
    return True


@contextlib.contextmanager
def storage_errors(path: str | Path, what: str = "") -> Iterator[None]:
    """Context manager that translates errors of the disk, the network and the codecs.

    Args:
        path: path or URL of the cache.
        what: name of the array that is read.

    Raises:
        CacheError: the disk is full, or the cache cannot be read or written.
        CacheCorruptError: a chunk does not match its checksum.
    """
    try:
        yield
    except FileNotFoundError:
        raise  # the caller knows what was opened
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CacheError(
                f"the disk is full ({_free(path)}): free some space and run again; {path} keeps what has been encoded"
            ) from error
        raise CacheError(f"{path} cannot be used: {error}") from error
    except json.JSONDecodeError as error:
        raise CacheError(f"{path} has damaged metadata ({error}): encode again with another cache.path") from error
    except (ValueError, RuntimeError) as error:
        if "read-only" in str(error):
            raise CacheError(f"{path} was opened for reading only: open it with mode 'r+'") from error
        # zarr.codecs.Crc32cCodec raises a ValueError, decoding truncated bytes a RuntimeError, a chunk of another array
        # cannot be reshaped, and text may not be UTF-8
        damage = any(word in str(error) for word in ("checksum", "reshape"))
        if damage or isinstance(error, RuntimeError | UnicodeDecodeError):
            raise corrupt(path, what, str(error).split(". ")[0]) from error
        raise


def corrupt(path: str | Path, what: str, why: str) -> CacheCorruptError:
    """Return the error for a damaged or missing chunk.

    Args:
        path: path or URL of the cache.
        what: name of the array.
        why: what is wrong with it.
    """
    commands = "`jzi index`" if what.startswith("cells") else "`jzi encode-map` and `jzi encode-queries`"
    commands = "`jzi encode-map --tokens`" if what.endswith("/tokens") else commands
    commands = "`jzi encode-map --detail`" if what.startswith("detail") else commands
    commands = "`jzi encode-queries --tokens`" if what.startswith("queries/tokens") else commands
    return CacheCorruptError(f"{path} is damaged at {what} ({why}): run {commands}, which encodes only what is damaged")


def require_finite(path: str | Path, what: str, embedding: NDArray[np.float16]) -> None:
    """Refuse embeddings that were read where all should be stored.

    Args:
        path: path or URL of the cache.
        what: name of the array.
        embedding: (n, feature) embeddings with status 1 (encoded).

    Raises:
        CacheCorruptError: one is not finite.
    """
    if not np.isfinite(embedding).all():
        gone = np.isnan(embedding).all(-1).any()  # a missing chunk is nan in every feature
        raise corrupt(path, what, "a chunk is gone" if gone else "an embedding is not finite")


def _free(path: str | Path) -> str:
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(Path(path).absolute().parent).free / 1e6:.0f} MB are free"
    return "0 MB are free"
