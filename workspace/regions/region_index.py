"""The index of a region, to search: its cells, the retriever that filled it, and the locator composed of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jzi.errors import CacheError, ConfigError
from jzi.locate.locator import Locator
from jzi.retrieve.statewide import StatewideRetriever
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.disk.storage import exists, is_url
from jzi.workspace.setup.settings import RegionSettings

if TYPE_CHECKING:
    from torch import Tensor

    from jzi.encode.encoders.photo_encoder import PhotoEncoder
    from jzi.encode.photo.photo_reader import Photo, ReadPhoto
    from jzi.locate.expert import Expert
    from jzi.retrieve.bands_expert import BandsExpert
    from jzi.vectors.approximate import ApproximateIndex


def beside_index(settings: RegionSettings, suffix: str) -> Path:
    """A path beside the index of a region, of the same name; in the working directory if the index is at a URL."""
    name = settings.cache_path.rstrip("/").rpartition("/")[2].removesuffix(".zarr")
    parent = settings.folder if is_url(settings.cache_path) else Path(settings.cache_path).parent
    return parent / f"{name}{suffix}"


def faiss_folder(settings: RegionSettings) -> Path:
    """Folder of the Faiss index of a region's cells."""
    return beside_index(settings, ".faiss")


def lance_table(settings: RegionSettings) -> str:
    """Path or URL of the LanceDB table of a region's cells, where their cache is."""
    return f"{settings.cache_path.rstrip('/').removesuffix('.zarr')}.lance"


def approximate_index(settings: RegionSettings) -> str:
    """The index that approximate search of a region uses: the Faiss index if there is one, else the LanceDB table."""
    folder, table = faiss_folder(settings), lance_table(settings)
    if not folder.exists() and (is_url(table) or Path(table).exists()):
        return table
    return str(folder)


def fusion_file(settings: RegionSettings) -> Path:
    """File of the weights of the fusion with a zoom (`jzi.workspace.regions.zoom_weights`)."""
    return beside_index(settings, ".fusion.json")


def open_region_expert(
    settings: RegionSettings, retriever: str | Path, *, approximate: bool = False
) -> tuple[BandsExpert, FeatureCache]:
    """Open the index of a region for reading, as the expert that searches it.

    Args:
        settings: the settings of the region.
        retriever: folder of the retriever that has filled the index.
        approximate: search an approximate index (`approximate_index`) instead of all cells.

    Raises:
        ModelError: the folder holds no state-wide retriever, or there is no approximate index.
        CacheError: there is no index, or it is not complete.
        CacheMismatchError: the index was filled by another retriever.
    """
    index = approximate_index(settings) if approximate else None
    expert = region_expert(StatewideRetriever.load(retriever), settings.cache_path, index)
    return expert, FeatureCache.open(settings.cache_path)


def region_expert(retriever: StatewideRetriever, cache_path: str, index: str | Path | None = None) -> BandsExpert:
    """The expert that searches the cells of a cache; errors as `open_region_expert`.

    Args:
        retriever: the retriever that has filled the cache.
        cache_path: path or URL of the cache.
        index: folder of a Faiss index of its cells, or path or URL of a LanceDB table, NAME.lance, to search that.
    """
    from jzi.retrieve.bands_expert import BandsExpert

    if not exists(cache_path):
        raise CacheError(f"there is no index at {cache_path}: run `jzi index --retriever {retriever.folder}`")
    cache = FeatureCache.open(cache_path)
    cache.check(encoder=retriever.encoder, hint=f"delete it and run `jzi index --retriever {retriever.folder}`")
    if cache.region is None:
        raise CacheError(f"{cache_path} holds the tiles of a pyramid, not the cells of a region: give another cache")
    if missing := cache.cells.missing():
        raise CacheError(
            f"{cache_path} lacks {missing:,} of {cache.region.cells:,} cells: run `jzi index --retriever "
            f"{retriever.folder}`"
        )
    vectors = None if index is None else _open_index(cache, str(index))
    return BandsExpert(cache.area, cache.cells, cache.encoder, retriever.temperature, vectors)


def _open_index(cache: FeatureCache, index: str) -> ApproximateIndex:
    from jzi.vectors.lance_index import SUFFIX, LanceIndex

    if index.endswith(SUFFIX):
        return LanceIndex.open(cache.cells, index)
    from jzi.vectors.faiss_index import VectorIndex

    return VectorIndex.open(cache.cells, Path(index))


def region_locator(
    retriever: StatewideRetriever, cache_path: str, *, index: str | Path | None = None, device: str | None = None
) -> Locator:
    """The locator that searches the cells of a cache; arguments and errors as `region_expert`."""
    from jzi.encode.device import best_device

    expert = region_expert(retriever, cache_path, index)
    return Locator(expert, lambda: retriever.load_encoder(device or best_device()), name=retriever.folder.name)


class ZoomedLocator(Locator):
    """Locates photos of a region with the help of a zoom; they are embedded by the encoders of both.

    Args:
        expert: a `DistrictExpert` or a `ProjectedExpert`, or its product with a prior.
        load_encoder: loads the encoder of retrieval.
        zoom: the locator of the zoom; only its encoder is used.
        name: name of the retriever in reports.
    """

    def __init__(
        self, expert: Expert, load_encoder: Callable[[], PhotoEncoder], zoom: Locator, *, name: str = ""
    ) -> None:
        super().__init__(expert, load_encoder, name=name)
        self._zoom = zoom

    @classmethod
    def bounded(cls, locator: Locator, zoom: Locator) -> ZoomedLocator:
        """The locator of a region, which searches only the probable tiles of a zoom.

        Raises:
            ConfigError: the zoom's map does not overlap the region.
        """
        from jzi.retrieve.bands_expert import BandsExpert
        from jzi.retrieve.district_expert import DistrictExpert

        assert isinstance(locator.expert, BandsExpert)
        return cls(DistrictExpert(locator.expert, zoom.expert), lambda: locator.encoder, zoom, name=locator.name)

    @classmethod
    def fused(cls, locator: Locator, zoom: Locator, weights: tuple[float, float]) -> ZoomedLocator:
        """The locator of a region, whose probabilities are multiplied with those of a zoom.

        Raises:
            ConfigError: the zoom's map does not overlap the region.
        """
        from jzi.locate.joint.projected_expert import ProjectedExpert

        expert = ProjectedExpert(locator.expert, zoom.expert, weights)
        return cls(expert, lambda: locator.encoder, zoom, name=locator.name)

    def with_prior(self, weight: NDArray[np.floating[Any]]) -> ZoomedLocator:
        """See `Locator.with_prior`; the zoom, too, searches only tiles of the prior's cells."""
        from jzi.locate.priors.prior import PriorExpert

        return ZoomedLocator(PriorExpert(self.expert, weight), lambda: self.encoder, self._zoom, name=self.name)

    def _embed(self, photos: list[tuple[Photo, ReadPhoto]]) -> Tensor:
        import torch

        query = super()._embed(photos).float()
        _, coarse = self._zoom.encode([photo for photo, read in photos if read.pixels is not None])
        return torch.cat([coarse.to(query), query], 1)


def check_score_map(expert: Expert) -> None:
    """Raise a ConfigError if `log_scores` cannot score every cell by this expert."""
    from jzi.retrieve.bands_expert import BandsExpert

    if not isinstance(expert, BandsExpert):
        raise ConfigError(
            "--score-map needs a state-wide retriever, in a region: leave it out, or use --heatmap for the cells of a "
            "square area"
        )
    if expert.index is not None:
        raise ConfigError("--approximate does not score every cell, as --score-map needs: leave one of them out")


def log_scores(
    expert: Expert, query: Tensor
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """Rows, columns and log-scores of all cells of a region for one photo, in chunks; see `BandsExpert.log_scores`.

    Of a prior, only its cells come, and the logarithm of a cell's weight is added.

    Args:
        expert: an expert that `check_score_map` accepts, or its product with a prior.
        query: (1, feature) embedding of the photo.
    """
    from jzi.locate.priors.prior import PriorExpert
    from jzi.retrieve.bands_expert import BandsExpert

    if isinstance(expert, PriorExpert):
        for row, col, score in log_scores(expert.likelihood, query):
            yield row, col, score + np.log(expert.weight[row, col]).astype(np.float32)
        return
    assert isinstance(expert, BandsExpert)
    yield from expert.log_scores(query)
