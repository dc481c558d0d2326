"""A retriever's folder: everything needed to locate photos by retrieval, in a folder that can be copied.

Beside the files that `jzi.store.model_folder` describes, it holds index.zarr, a feature cache with the embeddings of
all cells (`jzi index`) and optionally of photos, and train/, the record of its training. A published one has the cells
in index.safetensors instead, and index.zarr only if photos are encoded into it to evaluate it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.errors import ModelError
from jzi.locate.ranges import CONTEXT, TEMPERATURE
from jzi.retrieve.index_file import Cells, read_index
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.disk.storage import exists
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.model_config import CONFIG, RetrieverModelConfig, read_config
from jzi.store.model_folder import ENCODER, GRAPH, INDEX, create_model, verify_file

if TYPE_CHECKING:
    from jzi.encode.encoders.encoder import Encoder


@dataclass(frozen=True)
class Retriever:
    """A trained retriever.

    Attributes:
        folder: the retriever's folder.
        config: contents of its config.json.
    """

    folder: Path
    config: RetrieverModelConfig

    @classmethod
    def load(cls, folder: str | Path) -> Retriever:
        """Read a retriever's folder.

        Raises:
            ModelError: the folder holds no retriever, or is damaged.
        """
        folder = Path(folder)
        if not (folder / CONFIG).exists():
            raise ModelError(f"{folder} holds no retriever: `jzi train-retriever` creates one")
        config = read_config(folder)
        if not isinstance(config, RetrieverModelConfig):
            raise ModelError(f"{folder} holds a model that is no retriever: `jzi train-retriever` creates one")
        return cls(folder, config)

    @property
    def pyramid(self) -> Pyramid:
        """The pyramid whose terminal cells are retrieved."""
        return self.config.pyramid

    @property
    def encoder(self) -> EncoderInfo:
        """Info of the encoder of photos and reference crops."""
        return self.config.encoder

    @property
    def imagery(self) -> ImageryInfo:
        """Info of the imagery that it was trained on."""
        return self.config.imagery

    @property
    def context(self) -> float:
        """Side of a cell's reference crop, in cells."""
        return self.config.context

    @property
    def temperature(self) -> float:
        """Temperature of the softmax of cosine similarities."""
        return self.config.temperature

    @property
    def method(self) -> str:
        """Method of training: "sample4geo", "infonce" or "transgeo"."""
        return self.config.method

    @property
    def cache_path(self) -> str:
        """Path of the cache with the embeddings of cells and photos."""
        return str(self.folder / "index.zarr")

    @property
    def hnsw_path(self) -> Path:
        """Path of the graph for approximate search."""
        return self.folder / GRAPH

    def load_encoder(self, device: str | None = None) -> Encoder:
        """Load the encoder.

        Args:
            device: "cpu", "cuda", "cuda:1", ...; the best one by default.

        Raises:
            EncoderError: it cannot be loaded.
            ModelError: its files are damaged, or it is another one than the retriever was trained with.
        """
        from jzi.encode.encoders.model_encoder import load_model_encoder

        return load_model_encoder(self.folder, self.config, device)

    @property
    def published(self) -> bool:
        """Whether the cells are part of its files, as of one that was published."""
        return INDEX in self.config.files

    def read_cells(self) -> Cells:
        """(cell,) rows, (cell,) columns and (cell, feature) embeddings of all cells with imagery.

        Raises:
            ModelError: there is no index, or its file is damaged.
            CacheError: the index is incomplete or damaged.
        """
        if self.published:
            return read_index(verify_file(self.folder, self.config, INDEX), self.pyramid, self.encoder.width)
        return self.open_cache().cells.read()

    def open_cache(self) -> FeatureCache:
        """Open the cache with the cells, and perhaps photos, for reading.

        Raises:
            ModelError: there is no cache.
            CacheMismatchError: the cache belongs to another retriever.
        """
        if not exists(self.cache_path):
            lacking, command = ("photos", "encode-queries") if self.published else ("index", "index")
            raise ModelError(f"{self.folder} has no {lacking} yet: run `jzi {command} --retriever {self.folder}`")
        cache = FeatureCache.open(self.cache_path)
        cache.check(
            area=self.pyramid,
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
    """Write the config.json of a retriever.

    Args:
        folder: the retriever's folder, which holds the encoder already.
        pyramid: the pyramid whose terminal cells are retrieved.
        encoder: info of the encoder.
        imagery: info of the imagery that it was trained on.
        context: side of a cell's reference crop, in cells.
        temperature: temperature of the softmax of cosine similarities.
        method: method of training.

    Raises:
        ModelError: the folder cannot be written.
        ConfigError: the context or the temperature is out of range.
    """
    CONTEXT.check("context", context)
    TEMPERATURE.check("temperature", temperature)
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
