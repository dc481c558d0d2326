"""What the driver sends to the nodes of a cluster, in a form that each can open or load."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from jzi.encode.device import best_device
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import CacheError, ClusterError, ImageryError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.disk.lock import FollowedLock
from jzi.store.disk.storage import is_url

#: What to do about a file that a node does not see.
SHARE = "put it on storage that all nodes see under the same path, or on object storage"


@dataclass(frozen=True)
class SharedCache:
    """A cache that the driver has locked.

    Attributes:
        path: its absolute path or URL.
        lock: record of the driver's lock.
    """

    path: str
    lock: bytes

    @classmethod
    def of(cls, cache: FeatureCache) -> SharedCache:
        """The cache of the driver, which is open for writing."""
        lock = cache.documents.lock
        record = lock.record if lock is not None else None
        assert record is not None
        return cls(_absolute(cache.path), record)

    def open(self, node: str) -> FeatureCache:
        """Open it for writing, if this node sees the same one: that which has the driver's lock."""
        unseen = f"node {node} does not see the cache {self.path} of this machine: {SHARE}"
        if not is_url(self.path) and not Path(self.path).is_dir():
            raise ClusterError(unseen)
        lock = FollowedLock(self.path, self.lock)
        try:
            lock.check()
            cache = FeatureCache.open(self.path, "r+", lock="shared")
        except CacheError as error:
            raise ClusterError(f"{unseen} ({error})") from error
        cache.documents.lock = lock
        return cache


class Network(Protocol):
    """What is moved to devices: an encoder, towers, or a producer of tokens."""

    def to(self, device: str, /) -> Self:
        """Move it, and return it, as `torch.nn.Module.to` does."""
        ...


N = TypeVar("N", bound=Network)


@dataclass(frozen=True)
class SentNetwork(Generic[N]):
    """A network on its way to the nodes.

    Attributes:
        network: the network, with its weights in main memory.
    """

    network: N

    @classmethod
    def of(cls, network: N) -> SentNetwork[N]:
        """A network of this process, on any device."""
        return cls(copy.deepcopy(network).to("cpu"))

    def load(self) -> N:
        """The network on the best device of this process."""
        return self.network.to(best_device())


@dataclass(frozen=True)
class SentImagery:
    """Imagery for each node to open.

    Attributes:
        options: of the constructor of `Imagery`.
        sizes: bytes of the rasters that are files.
    """

    options: dict[str, Any]
    sizes: dict[str, int]

    @classmethod
    def of(cls, imagery: Imagery) -> SentImagery:
        """Imagery of this process."""
        paths = [_absolute(path) for path in imagery.paths]
        names = ("area", "options", "background", "attribution")
        options = {"paths": paths, **{name: getattr(imagery, name) for name in names}}
        return cls(options, {path: file_size(path) for path in paths if not is_url(path)})

    def open(self, node: str) -> Imagery:
        """Open it, if this node sees the same rasters."""
        for path, size in self.sizes.items():
            if file_size(path) != size:
                raise ClusterError(f"node {node} does not see the raster {path} of this machine: {SHARE}")
        try:
            return Imagery(**self.options)
        except ImageryError as error:
            raise ClusterError(f"node {node} cannot read the map ({error}): {SHARE}") from error


def _absolute(path: str | Path) -> str:
    return str(path) if is_url(path) else str(Path(path).absolute())


def file_size(path: str) -> int:
    """Bytes of a file; -1 if it is not there."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1
