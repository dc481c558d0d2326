"""A retriever's folder: all that is needed to locate photos by retrieval, to be copied anywhere.

config.json           pyramid, encoder, imagery, footprint of the pieces of map, temperature
encoder/              the encoder as `save_pretrained` writes it
index.zarr            a feature cache with an embedding for every cell (`jzi index`); photos may be in it as well
hnsw.faiss            a graph over them, for approximate search (`jzi index --hnsw`)
train/                how it was trained
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.decode.model import FORMAT, load_own_encoder, read_config, replace_file
from jzi.errors import ModelError
from jzi.store.cache import FeatureCache
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.pyramid import Pyramid
from jzi.store.storage import exists
from jzi.train.config import RetrieverConfig
from jzi.version import __version__

if TYPE_CHECKING:
    from jzi.encode.encoder import Encoder


@dataclass(frozen=True)
class Retriever:
    """A trained retriever.

    Attributes:
        folder: where it lies.
        pyramid: whose terminal cells are retrieved.
        encoder: of photos and pieces of map.
        imagery: what it was trained on.
        context: side of the piece of map that stands for a cell, in cells.
        temperature: what cosine similarities are divided by, so that their softmax is a probability.
        method: how it was trained.
    """

    folder: Path
    pyramid: Pyramid
    encoder: EncoderInfo
    imagery: ImageryInfo
    context: float
    temperature: float
    method: str

    @classmethod
    def load(cls, folder: str | Path) -> Retriever:
        """Read a retriever's folder.

        Raises:
            ModelError: there is none, or it is damaged or of another kind.
        """
        folder = Path(folder)
        if not (folder / "config.json").exists():
            raise ModelError(f"there is no retriever in {folder}: `jzi train-retriever` makes it")
        config = read_config(folder)
        if config.get("kind") != "retriever":
            raise ModelError(f"{folder} is no retriever: `jzi train-retriever` makes one")
        return cls(
            folder,
            Pyramid.from_dict(config["pyramid"]),
            EncoderInfo(**config["encoder"]),
            ImageryInfo(**config["imagery"]),
            config["context"],
            config["temperature"],
            config["method"],
        )

    def save(self) -> None:
        """Write config.json."""
        values = {
            "jzi_format": FORMAT,
            "version": __version__,
            "kind": "retriever",
            **asdict(self),
            "folder": None,
            "pyramid": self.pyramid.to_dict(),
            "encoder": self.encoder.to_dict(),
            "imagery": self.imagery.to_dict(),
        }
        del values["folder"]
        text = json.dumps(values, indent=2)
        replace_file(self.folder / "config.json", lambda path: path.write_text(text + "\n"))

    @property
    def cache_path(self) -> str:
        """Where cells and photos are kept."""
        return str(self.folder / "index.zarr")

    @property
    def hnsw_path(self) -> Path:
        """Where the graph for approximate search is kept."""
        return self.folder / "hnsw.faiss"

    def load_encoder(self, device: str | None = None) -> Encoder:
        """As `load_own_encoder`."""
        return load_own_encoder(self.folder, self.encoder, device)

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
    config: RetrieverConfig,
    temperature: float,
) -> Retriever:
    """Write config.json of a retriever whose encoder lies in the folder."""
    own = replace(encoder, name=str(folder / "encoder"), from_hub=False)
    retriever = Retriever(folder, pyramid, own, imagery, config.context, temperature, config.method)
    retriever.save()
    return retriever
