"""Open Zarr stores (local or fsspec); translate I/O and codec errors."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zarr

from jzi.errors import CacheCorruptError, CacheError, JziError


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL for fsspec (s3://, gs://, https://, memory://) rather than a local path."""
    return "://" in str(path)


def zarr_store(path: str | Path) -> Any:
    """Return the store for `zarr.open_group`: a local path, or an fsspec store for a URL.

    Raises:
        CacheError: fsspec does not support the URL.
    """
    if not is_url(path):
        return Path(path)
    try:
        return zarr.storage.FsspecStore.from_url(str(path))
    except ValueError as error:
        raise CacheError(f"{path} is not a URL that fsspec supports ({error}): give another path") from error


def exists(path: str | Path) -> bool:
    """Whether a local path exists, or there is a Zarr group at a URL."""
    if not is_url(path):
        return Path(path).exists()
    with storage_errors(path):
        try:
            zarr.open_group(zarr_store(path), mode="r", use_consolidated=False)
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
    except ImportError as error:
        raise CacheError(f"{path} needs a package that is missing ({error}): pip install 'jzi[remote]'") from error
    except NotImplementedError as error:  # such as HTTP servers
        raise CacheError(f"{path} cannot be written: give another path") from error
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
    except Exception as error:
        if is_url(path) and not isinstance(error, JziError):  # every client library has its own errors
            raise CacheError(f"{path} cannot be used: {error}") from error
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
    return CacheCorruptError(f"{path} is damaged at {what} ({why}): run {commands}, which encodes only what is damaged")


def _free(path: str | Path) -> str:
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(Path(path).absolute().parent).free / 1e6:.0f} MB are free"
    return "0 MB are free"
