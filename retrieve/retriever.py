"""A retriever's folder: all that is needed to locate photos by retrieval, to be copied anywhere.

Beside what `jzi.store.model_folder` describes it holds index.zarr, a feature cache with an embedding for every cell
(`jzi index`), in which photos may be as well, and train/, how it was trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.errors import ModelError
from jzi.store.cache import FeatureCache
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.model_folder import CONFIG, ENCODER, GRAPH, RetrieverModelConfig, create_model, read_config
from jzi.store.pyramid import Pyramid
from jzi.store.storage import exists

if TYPE_CHECKING:
    from jzi.encode.encoder import Encoder


@dataclass(frozen=True)
class Retriever:
    """A trained retriever.

    Attributes:
        folder: where it lies.
        config: what its config.json records.
    """

    folder: Path
    config: RetrieverModelConfig

    @classmethod
    def load(cls, folder: str | Path) -> Retriever:
        """Read a retriever's folder.

        Raises:
            ModelError: there is none, or it is damaged or of another kind.
        """
        folder = Path(folder)
        if not (folder / CONFIG).exists():
            raise ModelError(f"there is no retriever in {folder}: `jzi train-retriever` makes it")
        config = read_config(folder)
        if not isinstance(config, RetrieverModelConfig):
            raise ModelError(f"{folder} is no retriever: `jzi train-retriever` makes one")
        return cls(folder, config)

    @property
    def pyramid(self) -> Pyramid:
        """Whose terminal cells are retrieved."""
        return self.config.pyramid

    @property
    def encoder(self) -> EncoderInfo:
        """Of photos and pieces of map."""
        return self.config.encoder

    @property
    def imagery(self) -> ImageryInfo:
        """What it was trained on."""
        return self.config.imagery

    @property
    def context(self) -> float:
        """Side of the piece of map that stands for a cell, in cells."""
        return self.config.context

    @property
    def temperature(self) -> float:
        """What cosine similarities are divided by, so that their softmax is a probability."""
        return self.config.temperature

    @property
    def method(self) -> str:
        """How it was trained."""
        return self.config.method

    @property
    def cache_path(self) -> str:
        """Where cells and photos are kept."""
        return str(self.folder / "index.zarr")

    @property
    def hnsw_path(self) -> Path:
        """Where the graph for approximate search is kept."""
        return self.folder / GRAPH

    def load_encoder(self, device: str | None = None) -> Encoder:
        """As `load_model_encoder`."""
        from jzi.encode.model_encoder import load_model_encoder

        return load_model_encoder(self.folder, self.config, device)

    def open_cache(self) -> FeatureCache:
        """The cache with the cells, for reading.

        Raises:
            ModelError: there is none yet.
            CacheMismatchError: it is another retriever's.
        """
        if not exists(self.cache_path):
            raise ModelError(f"{self.folder} has no index yet: run `jzi index --retriever {self.folder}`")
        cache = FeatureCache.open(self.cache_path)
        cache.check(
            pyramid=self.pyramid,
            encoder=self.encoder,
            imagery=self.imagery,
            hint=f"delete it and run `jzi index --retriever {self.folder}`",
        )
        return cache


def save_retriever(
    folder: Path,
    pyramid: Pyramid,
    encoder: EncoderInfo,
    imagery: ImageryInfo,
    *,
    context: float,
    temperature: float,
    method: str,
) -> Retriever:
    """Write config.json of a retriever whose encoder lies in the folder.

    Raises:
        ModelError: the disk is full or refuses.
    """
    config = RetrieverModelConfig(
        pyramid=pyramid,
        encoder=replace(encoder, name=str(folder / ENCODER), from_hub=False),
        imagery=imagery,
        context=context,
        temperature=temperature,
        method=method,
    )
    create_model(folder, config)
    return Retriever(folder, config)
