"""Where a Zarr group lies, and what the disk and the codecs say when something is wrong with it."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from jzi.errors import CacheCorruptError, CacheError, JziError

#: The checksum lies outside, over the bytes on disk. `python -m benchmarks.cache_codecs` compares: embeddings shrink by
#: about 8 % with zstd at any level, shuffled or not, and reading stays far faster than any use of them.
COMPRESSORS = (ZstdCodec(level=1), Crc32cCodec())


def is_url(path: str | Path) -> bool:
    """Whether a path is for fsspec (s3://, gs://, https://, memory://) rather than for the local disk."""
    return "://" in str(path)


def zarr_store(path: str | Path) -> Any:
    """What Zarr opens: a local path as it is, a URL through fsspec."""
    if not is_url(path):
        return Path(path)
    try:
        return zarr.storage.FsspecStore.from_url(str(path))
    except ValueError as error:
        raise CacheError(f"{path} is no URL that fsspec knows ({error}): give another path") from error


def exists(path: str | Path) -> bool:
    """Whether there is anything at a path, or a Zarr group at a URL."""
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
    """Turn what the disk, the network and the codecs raise into errors of ours; `what` names the array being read."""
    try:
        yield
    except FileNotFoundError:
        raise  # who opens knows what was looked for
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CacheError(
                f"the disk is full: {path} keeps what was encoded so far, make room ({_free(path)}) and run again"
            ) from error
        raise CacheError(f"{path} cannot be used: {error}") from error
    except ImportError as error:
        raise CacheError(f"{path} needs a package that is missing ({error}): pip install 'jzi[remote]'") from error
    except NotImplementedError as error:  # HTTP servers, say
        raise CacheError(f"{path} cannot be written: give another path") from error
    except json.JSONDecodeError as error:
        raise CacheError(f"{path} has damaged metadata ({error}): encode anew with another cache.path") from error
    except (ValueError, RuntimeError) as error:
        if "read-only" in str(error):
            raise CacheError(f"{path} was opened for reading only: open it with mode 'r+'") from error
        # zarr.codecs.Crc32cCodec raises a bare ValueError; a codec that meets cut bytes a RuntimeError
        if "checksum" in str(error) or isinstance(error, RuntimeError):
            raise corrupt(path, what, str(error).split(". ")[0]) from error
        raise
    except Exception as error:
        if is_url(path) and not isinstance(error, JziError):  # each client library has errors of its own
            raise CacheError(f"{path} cannot be used: {error}") from error
        raise


def corrupt(path: str | Path, what: str, why: str) -> CacheCorruptError:
    """The error for a damaged or vanished chunk."""
    commands = "`jzi index`" if what.startswith("cells") else "`jzi encode-map` and `jzi encode-queries`"
    commands = "`jzi encode-map --tokens`" if what.endswith("/tokens") else commands
    return CacheCorruptError(
        f"{path} is damaged at {what} ({why}): run {commands}; what is damaged is encoded anew, and the rest is kept"
    )


def _free(path: str | Path) -> str:
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(Path(path).absolute().parent).free / 1e6:.0f} MB are free"
    return "none is left"
