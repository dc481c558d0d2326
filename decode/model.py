"""The model folder: all that is needed to locate photos, to be copied anywhere (DESIGN 8).

config.json           pyramid, decoder, encoder (name, fingerprint, preprocessing), temperatures of the steps
decoder.safetensors   the decoder's weights
map.safetensors       the map's embeddings; absent in an imported model, which takes them from a cache
encoder/              the encoder as `save_pretrained` writes it; absent where it comes from the hub by its id
train/                how it was trained: settings, metrics, the state to resume from; not needed to locate
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.errors import ModelError, first_line
from jzi.store.files import write_whole
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.map_embeddings import MapEmbeddings
from jzi.store.pyramid import Pyramid
from jzi.version import __version__

if TYPE_CHECKING:
    from jzi.encode.encoder import Encoder
    from jzi.store.cache import FeatureCache

FORMAT = 1
_ENCODER_FILES = ("*config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")


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
    """

    decoder: ZoomDecoder
    pyramid: Pyramid
    encoder: EncoderInfo
    imagery: ImageryInfo | None
    folder: Path
    temperature: torch.Tensor | None = None

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> ZoomModel:
        """Read a model folder, without its map and its encoder.

        Raises:
            ModelError: there is none, or it is damaged or of another format.
        """
        folder = Path(folder)
        config = read_config(folder)
        if "decoder" not in config:
            raise ModelError(f"{folder} is a {config.get('kind')}, not a zoom model: give it as --retriever")
        decoder = ZoomDecoder(DecoderConfig(**config["decoder"]))
        try:
            decoder.load_state_dict(load_file(folder / "decoder.safetensors"))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelError(f"{folder / 'decoder.safetensors'} cannot be used: {first_line(error)}") from error
        pyramid, encoder = Pyramid.from_dict(config["pyramid"]), EncoderInfo(**config["encoder"])
        imagery = ImageryInfo(**config["imagery"]) if config["imagery"] else None
        fitted = config.get("temperature")
        temperature = torch.tensor(fitted, device=device) if fitted else None
        return cls(decoder.eval().to(device), pyramid, encoder, imagery, folder, temperature)

    @property
    def has_map(self) -> bool:
        """Whether the folder holds the map's embeddings."""
        return (self.folder / "map.safetensors").exists()

    def read_map(self, cache: FeatureCache | None = None) -> MapEmbeddings:
        """The map's embeddings: the cache's, if one is given, else those in the folder.

        Raises:
            ModelError: the folder has none, or they are damaged.
            CacheMismatchError: the cache is of another encoder or pyramid.
            CacheError: the decoder looks at the terminal cells, and the cache has none.
        """
        cells = self.decoder.config.look_ahead == "cells"
        if cache is None:
            file = self.folder / "map.safetensors"
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
        """As `load_own_encoder`."""
        return load_own_encoder(self.folder, self.encoder, device)


def load_own_encoder(folder: Path, info: EncoderInfo, device: str | None = None) -> Encoder:
    """The encoder of a model, from its folder or from the hub by its id.

    Raises:
        EncoderError: it cannot be had.
        ModelError: the folder lacks it, or it is another one than the model was trained with.
    """
    from jzi.encode.encoder import Encoder

    own = folder / "encoder"
    if not (own.is_dir() or info.from_hub):
        raise ModelError(f"{folder} lacks its encoder, {own}: copy the model anew")
    source = own if own.is_dir() else info.name
    encoder = Encoder.load(source, image_size=info.image_size, layout=info.layout, device=device)
    if encoder.fingerprint != info.fingerprint:
        raise ModelError(
            f"{folder} was trained with the encoder {info.label}, and {source} now is {encoder.info.label}: bring that "
            "encoder back or train anew"
        )
    return encoder


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        ModelError: there is none, or it is of another format.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ModelError(f"there is no model in {folder}: `jzi train-decoder` makes it") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("jzi_format") != FORMAT:
        raise ModelError(f"{folder} is no model of jzi in format {FORMAT}, which jzi {__version__} reads")
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
    folder.mkdir(parents=True, exist_ok=True)
    if encoder_folder is not None:
        copy_encoder(encoder_folder, folder / "encoder")
    text = json.dumps(
        {
            "jzi_format": FORMAT,
            "version": __version__,
            "decoder": config.to_dict(),
            "pyramid": pyramid.to_dict(),
            "encoder": encoder.to_dict(),
            "imagery": imagery.to_dict() if imagery else None,
            "temperature": None,
        },
        indent=2,
    )
    replace_file(folder / "config.json", lambda path: path.write_text(text + "\n"))


def copy_encoder(source: Path, folder: Path) -> None:
    """Copy what makes an encoder, and nothing else that lies in its folder."""
    folder.mkdir(exist_ok=True)
    for file in {file for pattern in _ENCODER_FILES for file in source.glob(pattern)}:
        replace_file(folder / file.name, partial(shutil.copyfile, file))


def save_temperature(folder: Path, temperature: list[float]) -> None:
    """Keep the temperatures of the steps in config.json."""
    text = json.dumps({**read_config(folder), "temperature": temperature}, indent=2)
    replace_file(folder / "config.json", lambda path: path.write_text(text + "\n"))


def save_weights(folder: Path, decoder: ZoomDecoder) -> None:
    """Write decoder.safetensors, whole or not at all."""
    save_tensors(folder, decoder.state_dict())


def save_tensors(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """`save_weights`, of a decoder's `state_dict`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    replace_file(folder / "decoder.safetensors", lambda path: save_file(tensors, path))


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """`write_whole`, for a file of a model folder.

    Raises:
        ModelError: the disk is full or refuses.
    """
    try:
        write_whole(path, write)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save and safetensors wrap what the disk says
        raise ModelError(f"{path} cannot be written: {first_line(error)}") from error
