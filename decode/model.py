"""A zoom model: its decoder, map and encoder, in a folder that can be copied anywhere (`jzi.store.model_folder`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.errors import ConfigError, ModelError, first_line
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.map_embeddings import MapEmbeddings
from jzi.store.model_folder import (
    CONFIG,
    DECODER,
    HINT,
    MAP,
    ZoomModelConfig,
    create_model,
    read_config,
    verify_file,
    write_file,
)
from jzi.store.pyramid import Pyramid

if TYPE_CHECKING:
    from jzi.encode.encoder import Encoder
    from jzi.store.cache import FeatureCache


@dataclass
class ZoomModel:
    """A trained decoder, and what it belongs to.

    Attributes:
        decoder: in eval mode.
        pyramid: how the area is cut.
        encoder: which encoder made the embeddings that it was trained on.
        imagery: which imagery it was trained on; None where that is not known (an imported model).
        folder: where it lies.
        temperature: (L,) what each step's logits are divided by, so that probabilities are true; None where it was
            never calibrated.
        config: what config.json recorded when the model was loaded.
    """

    decoder: ZoomDecoder
    pyramid: Pyramid
    encoder: EncoderInfo
    imagery: ImageryInfo | None
    folder: Path
    temperature: torch.Tensor | None = None
    config: ZoomModelConfig | None = None

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> ZoomModel:
        """Read a model folder, without its map and its encoder.

        Raises:
            ModelError: there is none, or it is damaged or of another format.
        """
        folder = Path(folder)
        config = read_zoom_config(folder)
        file = verify_file(folder, config, DECODER)
        decoder = _make_decoder(folder, config)
        try:
            decoder.load_state_dict(load_file(file))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelError(f"{file} cannot be used: {first_line(error)}") from error
        temperature = torch.tensor(config.temperature, device=device) if config.temperature else None
        return cls(
            decoder.eval().to(device), config.pyramid, config.encoder, config.imagery, folder, temperature, config
        )

    @property
    def has_map(self) -> bool:
        """Whether the folder holds the map's embeddings."""
        return (self.folder / MAP).exists()

    def read_map(self, cache: FeatureCache | None = None) -> MapEmbeddings:
        """The map's embeddings: the cache's, if one is given, else those in the folder.

        Raises:
            ModelError: the folder has none, or they are damaged.
            CacheMismatchError: the cache is of another encoder or pyramid.
            CacheError: the decoder looks at the terminal cells, and the cache has none.
        """
        cells = self.decoder.config.look_ahead == "cells"
        if cache is None:
            file = self.folder / MAP
            if file.exists():
                verify_file(self.folder, self._config, MAP)
            features = MapEmbeddings.load(file, self.pyramid)
            if cells and features.cells is None:
                raise ModelError(f"{file} lacks the terminal cells, which this decoder looks at: copy the model anew")
            return features
        self.check(cache)
        return cache.read_map(cells)

    def check(self, cache: FeatureCache) -> None:
        """Raise CacheMismatchError where a cache is of another encoder, pyramid or imagery than the model."""
        hint = f"that is not what the model {self.folder} was trained with, give the cache or the model that belongs"
        cache.check(pyramid=self.pyramid, encoder=self.encoder, imagery=self.imagery, hint=hint)

    def load_encoder(self, device: str | None = None) -> Encoder:
        """As `load_model_encoder`."""
        from jzi.encode.model_encoder import load_model_encoder

        return load_model_encoder(self.folder, self._config, device)

    @property
    def _config(self) -> ZoomModelConfig:
        return self.config or read_zoom_config(self.folder)


def read_zoom_config(folder: Path) -> ZoomModelConfig:
    """config.json of a zoom model.

    Raises:
        ModelError: as `read_config`, or it is another kind of model.
    """
    config = read_config(folder)
    if not isinstance(config, ZoomModelConfig):
        raise ModelError(f"{folder} is a {config.kind}, not a zoom model: give it as --retriever")
    return config


def create_folder(
    folder: Path,
    config: DecoderConfig,
    pyramid: Pyramid,
    encoder: EncoderInfo,
    encoder_folder: Path | None,
    imagery: ImageryInfo | None = None,
) -> None:
    """Start a model folder: the encoder if it lies in a folder of its own, then config.json."""
    entries = ZoomModelConfig(pyramid=pyramid, encoder=encoder, imagery=imagery, decoder=config.to_dict())
    create_model(folder, entries, encoder_folder)


def save_weights(folder: Path, decoder: ZoomDecoder) -> None:
    """Write decoder.safetensors, whole or not at all."""
    save_tensors(folder, decoder.state_dict())


def save_tensors(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """`save_weights`, of a decoder's `state_dict`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_file(folder, DECODER, lambda path: save_file(tensors, path))


def _make_decoder(folder: Path, config: ZoomModelConfig) -> ZoomDecoder:
    try:
        return ZoomDecoder(DecoderConfig(**config.decoder))  # type: ignore[arg-type]
    except (TypeError, ConfigError) as error:
        raise ModelError(f"{folder / CONFIG} describes no decoder that jzi can make ({error}): {HINT}") from error
