"""Open caches on object storage (S3, Google Cloud Storage, Azure) and web servers; translate what they answer.

Endpoint and credentials come from the environment variables of each provider and are never part of a URL. A request
that fails is sent again, with increasing pauses, for `RETRY_S` seconds. Every write is a whole object, so a broken
connection leaves the previous object, and a request that arrives twice leaves the same one.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

from zarr.abc.store import RangeByteRequest
from zarr.core.common import concurrent_map
from zarr.core.config import config
from zarr.core.sync import sync
from zarr.storage import ObjectStore

from jzi.errors import CacheError, first_line

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

T = TypeVar("T")

#: Seconds until a request without an answer is given up: a chunk of 1.6 MB, ten of which are read at a time, arrives at
#: 2 Mbit/s.
REQUEST_S = 60.0

#: Seconds in which a failed request is repeated: outages up to this long do not end a run.
RETRY_S = 60.0

#: The same for opening a cache, so that a wrong URL or endpoint is reported soon.
OPEN_REQUEST_S, OPEN_RETRY_S = 15.0, 15.0

#: Largest document that is read whole, from a web server that cannot send parts.
WHOLE_BYTES = 64 * 2**20

#: Seconds that the end of a process waits for threads of obstore: at least, so that those that are to call Python have
#: begun to, and at most.
EXIT_S, MAX_EXIT_S = 0.1, 5.0

#: Class of obstore by scheme.
_CLASSES = {
    "s3": "S3Store",
    "gs": "GCSStore",
    "az": "AzureStore",
    "abfs": "AzureStore",
    "abfss": "AzureStore",
    "http": "HTTPStore",
    "https": "HTTPStore",
}

#: Variables with the credentials, for messages.
_VARIABLES = {
    "S3Store": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SKIP_SIGNATURE=true for a public bucket)",
    "GCSStore": "GOOGLE_APPLICATION_CREDENTIALS",
    "AzureStore": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}

#: Pattern of obstore's messages about requests without an answer.
_NO_ANSWER = r"kind: (Connect|Timeout|Request|Body|Interrupted|Decode)|error sending request|response body error"

#: Patterns of obstore's messages, with the reason and what to do; {variables} are those of `_VARIABLES`. The messages
#: themselves are not quoted: they are long, and the server's part of them may repeat a key or a token.
_REASONS = (
    (r"169\.254\.|metadata\.google|Missing ?(AccessKeyId|SecretAccessKey)|token request|Account must be specified",
     "there are no credentials", "set {variables}"),
    (r"Code>(InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken)",
     "the server refused the credentials", "set {variables} to valid ones"),
    (r"NoSuchBucket|ContainerNotFound|specified bucket does not exist",
     "there is no such bucket", "create it, or correct the URL"),
    (r"PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocation|without LOCATION",
     "the bucket is in another region", "set AWS_REGION"),
    (r"status code: 40[13]",
     "access was denied", "check that the credentials of {variables} allow to list, read and write there"),
    (r"status code: (429|5)|SlowDown|InternalError",
     "the server kept answering with errors", "run again later; what was written is kept"),
    (_NO_ANSWER,
     "the server did not answer", "check URL, endpoint and network, and run again; what was written is kept"),
)  # fmt: skip


class RemoteStore(ObjectStore[Any]):
    """A Zarr store on object storage or a web server that repeats failed requests, and raises `CacheError`.

    Args:
        store: obstore's store.
        url: URL of the cache, for messages.
        retry_s: seconds in which a failed request is repeated.
        read_only: whether writing is refused.
    """

    def __init__(self, store: Any, url: str, retry_s: float, *, read_only: bool = False) -> None:
        super().__init__(store, read_only=read_only)
        self.url, self.retry_s = url, retry_s

    def with_read_only(self, read_only: bool = False) -> Self:
        """Return the same store, read-only or not."""
        return type(self)(self.store, self.url, self.retry_s, read_only=read_only)

    def _check_writable(self) -> None:
        if self.url.startswith(("http://", "https://")):
            raise CacheError(f"{self.url} is on a web server, which can only be read: give another path to write to")
        super()._check_writable()

    async def _repeat(self, request: Callable[[], Awaitable[T]]) -> T:
        # obstore repeats most requests, but not conditional writes and answers that break off in an error's text
        deadline = time.monotonic() + self.retry_s
        while True:
            try:
                with remote_errors(self.url):
                    return await request()
            except CacheError as error:
                if time.monotonic() > deadline or not re.search(_NO_ANSWER, str(error.__cause__)):
                    raise
                await asyncio.sleep(0.2)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object or a part of it; None if there is none."""
        try:
            return await self._repeat(partial(super().get, key, prototype, byte_range))
        except CacheError as error:
            refused = "Range request not supported" in str(error.__cause__)
            if not (refused and isinstance(byte_range, RangeByteRequest)):
                raise
        # simple web servers send whole files only
        if (size := await self._repeat(partial(self.getsize, key))) > WHOLE_BYTES:
            raise CacheError(f"{self.url} is on a web server without range requests, and its {key} has {size} bytes")
        buffer = await self._repeat(partial(super().get, key, prototype))
        return buffer and buffer[byte_range.start : byte_range.end]

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of objects; None for those that do not exist."""
        return await self._repeat(partial(super().get_partial_values, prototype, list(key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is an object."""
        return await self._repeat(partial(super().exists, key))

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        await self._repeat(partial(super().set, key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object unless there is one."""
        await self._repeat(partial(super().set_if_not_exists, key, value))

    async def delete(self, key: str) -> None:
        """Delete an object, if there is one."""
        await self._repeat(partial(super().delete, key))

    async def _list(self, prefix: str | None = None) -> AsyncGenerator[Any, None]:
        import obstore

        for item in await self._repeat(lambda: obstore.list(self.store, prefix=prefix).collect_async()):
            yield item

    async def delete_dir(self, prefix: str) -> None:
        """Delete all objects below a prefix."""
        self._check_writable()
        keys = [(item["path"],) async for item in self._list(f"{prefix.rstrip('/')}/" if prefix else None)]
        await concurrent_map(keys, self.delete, limit=config.get("async.concurrency"))

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """Names of the objects and prefixes right below a prefix."""
        list_dir = super().list_dir

        async def collect() -> list[str]:
            return [name async for name in list_dir(prefix)]

        for name in await self._repeat(collect):
            yield name


def open_store(url: str, *, opening: bool = False) -> RemoteStore:
    """Return the store of a URL; nothing is requested.

    Args:
        url: such as s3://bucket/name.zarr.
        opening: whether to give up as soon as is suitable for opening a cache.

    Raises:
        CacheError: the URL is not supported or contains credentials, or obstore is not installed.
    """
    parts = _split(url)
    name = _CLASSES.get(parts.scheme)
    if name is None or not re.fullmatch(r"[\w.:\[\]-]+", parts.netloc):
        raise CacheError(
            f"{url} is not a URL of a cache: give one such as s3://bucket/name.zarr, gs://, az://, https://"
        )
    try:
        import obstore.store
    except ImportError as error:
        raise CacheError(f"{url} needs a package that is missing (obstore): pip install 'jzi[remote]'") from error
    endpoint = s3_endpoint() if name == "S3Store" else ""
    request_s, retry_s = (OPEN_REQUEST_S, OPEN_RETRY_S) if opening else (REQUEST_S, RETRY_S)
    options = {
        "allow_http": parts.scheme == "http" or endpoint.startswith("http://"),
        "timeout": timedelta(seconds=request_s),
        "connect_timeout": timedelta(seconds=min(10.0, request_s)),
    }
    retry = {
        "max_retries": 1000,  # the time decides
        "retry_timeout": timedelta(seconds=retry_s),
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
    }
    with remote_errors(url):
        create = getattr(obstore.store, name).from_url
        endpoints = {"endpoint": endpoint} if endpoint else {}
        return RemoteStore(create(url, client_options=options, retry_config=retry, **endpoints), url, retry_s)


def delete_all(url: str) -> None:
    """Delete the cache at a URL: its metadata last, so that an interrupted deletion can be repeated.

    Raises:
        CacheError: the store cannot be reached, or refuses.
    """

    async def delete(store: RemoteStore) -> None:
        async for name in store.list_dir(""):
            if name != "zarr.json":
                await store.delete_dir(name)
        await store.delete("zarr.json")

    sync(delete(open_store(url)))


@contextlib.contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Context manager that translates errors of obstore.

    Raises:
        CacheError: the request failed, and so did its repetitions.
    """
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError) as error:  # the latter for a bucket that does not exist
        raise CacheError(_sentence(url, error)) from error


def _sentence(url: str, error: Exception) -> str:
    parts = urlsplit(url)
    text, name = str(error), _CLASSES[parts.scheme]
    endpoint = urlsplit(s3_endpoint()).netloc if name == "S3Store" else ""
    where = f"{url} (at {endpoint})" if endpoint else url
    for pattern, reason, advice in _REASONS:
        if re.search(pattern, text):
            code = re.search(r"status code: (\d{3})", text)
            details = [code[1]] if code else []
            details += re.findall(r"<Code>(\w{1,40})</Code>", text)[:1]
            reason += f" ({' '.join(details)})" if details else ""
            variables = _VARIABLES.get(name, "a user")
            return f"{where} cannot be used, {reason}: {advice.format(variables=variables)}"
    return f"{where} cannot be used: {first_line(error):.200}"


def s3_endpoint() -> str:
    """The S3 endpoint that the environment names, without credentials; empty for Amazon's."""
    value = next((os.environ[name] for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(name)), "")
    parts = urlsplit(value)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise CacheError("the cache's URL is malformed: give one such as s3://bucket/name.zarr") from error
    if "@" in parts.netloc or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise CacheError(
            f"the URL of {shown} has a user, a query or a fragment: leave it out, and give credentials in the "
            "provider's environment variables"
        )
    return parts


@atexit.register  # on import: handlers of modules that import this one, which may send requests, run before it
def _wait_for_threads() -> None:
    """Wait until no thread of obstore runs Python: one that does so while the interpreter ends aborts the process."""
    if "obstore" not in sys.modules:
        return
    deadline = time.monotonic() + MAX_EXIT_S
    time.sleep(EXIT_S)
    while time.monotonic() < deadline and sys._current_frames().keys() - {t.ident for t in threading.enumerate()}:
        time.sleep(0.01)
