"""Zoom models: decoder, map and encoder in a self-contained folder (`jzi.store.model_folder`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from jzi.decode.config import DecoderConfig, Precision
from jzi.decode.decoder import ZoomDecoder, check_heads
from jzi.decode.packed import PackedDecoder
from jzi.encode.device import buffer_bytes, shapes_only
from jzi.errors import ConfigError, ModelError, first_line
from jzi.store.features.map_embeddings import MapEmbeddings
from jzi.store.features.map_pages import PagedMap, map_bytes
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.model_config import CONFIG, HINT, TransferModelConfig, ZoomModelConfig, read_config
from jzi.store.model_folder import DECODER, MAP, create_model, verify_file, write_file
from jzi.store.tensors import check_finite, check_header

if TYPE_CHECKING:
    from jzi.encode.encoders.encoder import Encoder
    from jzi.store.cache.feature_cache import FeatureCache


@dataclass
class ZoomModel:
    """A trained decoder with the area, encoder and imagery of its training.

    Attributes:
        decoder: the decoder, in eval mode.
        pyramid: the area.
        encoder: encoder of the embeddings that the decoder was trained on.
        imagery: imagery that the decoder was trained on; None if unknown (imported models).
        folder: the model folder.
        temperature: (L,) divisors of each step's logits, from calibration; None if the model is not calibrated.
        config: config.json as of loading; None if the model was not loaded from a folder.
        precision: of the products of `packed`.
    """

    decoder: ZoomDecoder
    pyramid: Pyramid
    encoder: EncoderInfo
    imagery: ImageryInfo | None
    folder: Path
    temperature: torch.Tensor | None = None
    config: ZoomModelConfig | None = None
    precision: Precision = "float32"

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> ZoomModel:
        """Load a model folder, without its map and encoder.

        Args:
            folder: the model folder.
            device: device of the decoder.

        Raises:
            ModelError: there is no zoom model in the folder, or it is damaged or of another format.
        """
        folder = Path(folder)
        config = read_zoom_config(folder)
        file = verify_file(folder, config, DECODER)
        architecture = _architecture(folder, config)
        with shapes_only():  # allocates nothing, whatever the sizes in config.json
            decoder = ZoomDecoder(architecture)
        check_header(file, {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()})
        try:
            weights = load_file(file)
            check_finite(file, weights)
            decoder.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelError(f"{file} cannot be loaded: {first_line(error)}") from error
        temperature = torch.tensor(config.temperature, device=device) if config.temperature else None
        return cls(
            decoder.eval().to(device), config.pyramid, config.encoder, config.imagery, folder, temperature, config
        )

    @cached_property
    def packed(self) -> PackedDecoder:
        """The decoder prepared for search, on first use; later changes to `decoder` have no effect on it."""
        return PackedDecoder(self.decoder, self.pyramid.levels, self.precision)

    @property
    def has_map(self) -> bool:
        """Whether the folder holds the map's embeddings."""
        return (self.folder / MAP).exists()

    def read_map(self, cache: FeatureCache | None = None) -> MapEmbeddings:
        """Read the map's embeddings.

        Args:
            cache: cache to read from; the model folder by default.

        Raises:
            ModelError: the folder has no map, or it is damaged.
            CacheMismatchError: the cache belongs to another encoder, pyramid or imagery.
        """
        if cache is None:
            file = self.folder / MAP
            if file.exists():
                verify_file(self.folder, self._config, MAP)
            return MapEmbeddings.load(file, self.pyramid, self.encoder.width)
        self.check(cache)
        return cache.read_map()

    def open_map(
        self, cache: FeatureCache | None = None, memory: int | None = None, device: torch.device | str = "cpu"
    ) -> MapEmbeddings | PagedMap:
        """Read the map's embeddings if they fit into memory, else open them to be read where they are needed.

        Args:
            cache: cache to read from; the model folder by default.
            memory: bytes that they may take; by default a share of what is free (`jzi.encode.device.buffer_bytes`).
            device: device on which they will be.

        Raises:
            JziError: as `read_map`.
        """
        if cache is None:
            file = self.folder / MAP
            if file.exists():
                verify_file(self.folder, self._config, MAP)
            return open_map_file(file, self.pyramid, self.encoder.width, memory, device)
        self.check(cache)
        return open_map(cache, memory, device)

    def check(self, cache: FeatureCache) -> None:
        """Check that a cache fits the model.

        Raises:
            CacheMismatchError: the cache belongs to another encoder, pyramid or imagery.
        """
        hint = f"give the cache that the model {self.folder} was trained with, or another model"
        cache.check(area=self.pyramid, encoder=self.encoder, imagery=self.imagery, hint=hint)

    def load_encoder(self, device: str | None = None) -> Encoder:
        """Load the encoder that the model was trained with; see `load_model_encoder`."""
        from jzi.encode.encoders.model_encoder import load_model_encoder

        return load_model_encoder(self.folder, self._config, device)

    @property
    def _config(self) -> ZoomModelConfig:
        return self.config or read_zoom_config(self.folder)


def open_map_file(
    path: Path, pyramid: Pyramid, width: int, memory: int | None = None, device: torch.device | str = "cpu"
) -> MapEmbeddings | PagedMap:
    """Read a map.safetensors if it fits into memory, else open it to be read where it is needed.

    Args:
        path: the file.
        pyramid: geometry of the area.
        width: number of features.
        memory: bytes that it may take; by default a share of what is free (`jzi.encode.device.buffer_bytes`).
        device: device on which it will be.

    Raises:
        ModelError: as `MapEmbeddings.load`.
    """
    buffer = buffer_bytes(memory, map_bytes(pyramid, width), torch.device(device))
    if buffer is None:
        return MapEmbeddings.load(path, pyramid, width)
    return PagedMap.of_file(path, pyramid, width, buffer)


def open_map(
    cache: FeatureCache, memory: int | None = None, device: torch.device | str = "cpu", *, cells: bool = False
) -> MapEmbeddings | PagedMap:
    """Read the map of a cache if it fits into memory, else open it; arguments as of `open_map_file`.

    Args:
        cache: the cache.
        memory: bytes that it may take.
        device: device on which it will be.
        cells: whether to read its terminal cells, which a map that is not in memory does not have.

    Raises:
        CacheError: as `FeatureCache.read_map`.
    """
    whole = map_bytes(cache.pyramid, cache.encoder.width, cells=cells)
    buffer = buffer_bytes(memory, whole, torch.device(device))
    return cache.read_map(cells) if buffer is None else PagedMap.of_cache(cache, buffer)


def read_zoom_config(folder: Path) -> ZoomModelConfig:
    """Read the config.json of a zoom model.

    Raises:
        ModelError: config.json is missing or invalid, or belongs to another kind of model.
    """
    config = read_config(folder)
    if not isinstance(config, ZoomModelConfig):
        kind, hint = "retriever", "give it as --retriever"
        if isinstance(config, TransferModelConfig):
            kind, hint = "transferred model", "give a model that train-decoder wrote"
        raise ModelError(f"{folder} is a {kind}, not a zoom model: {hint}")
    return config


def create_folder(
    folder: Path,
    config: DecoderConfig,
    pyramid: Pyramid,
    encoder: EncoderInfo,
    encoder_folder: Path | None,
    imagery: ImageryInfo | None = None,
) -> None:
    """Create a model folder with config.json and the encoder.

    Args:
        folder: the model folder.
        config: of the decoder.
        pyramid: the area.
        encoder: the encoder.
        encoder_folder: folder of the encoder to copy; None if it is on the Hugging Face hub.
        imagery: the imagery, if known.
    """
    entries = ZoomModelConfig(pyramid=pyramid, encoder=encoder, imagery=imagery, decoder=config.to_dict())
    create_model(folder, entries, encoder_folder)


def save_weights(folder: Path, decoder: ZoomDecoder) -> None:
    """Write decoder.safetensors atomically."""
    save_tensors(folder, decoder.state_dict())


def save_tensors(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write a decoder's `state_dict` to decoder.safetensors, as `save_weights`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_file(folder, DECODER, lambda path: save_file(tensors, path))


def _architecture(folder: Path, config: ZoomModelConfig) -> DecoderConfig:
    try:
        decoder = DecoderConfig(**config.decoder)  # type: ignore[arg-type]
        check_heads(decoder)
    except (TypeError, ConfigError) as error:
        raise ModelError(f"{folder / CONFIG} does not describe a valid decoder ({error}): {HINT}") from error
    if (decoder.width, decoder.actions) != (config.encoder.width, config.pyramid.actions):
        raise ModelError(
            f"{folder / CONFIG} has a decoder of {decoder.width} features and {decoder.actions} actions, but its "
            f"encoder and pyramid have {config.encoder.width} and {config.pyramid.actions}: {HINT}"
        )
    return decoder
