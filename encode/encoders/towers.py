"""Two towers, one for photos and one for the images of a cell, whose embeddings are compared (Fervers et al. 2024)."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jzi.encode.device import best_device, shapes_only
from jzi.encode.encoders.families import IMAGENET, find_family
from jzi.encode.encoders.fingerprint import config_entries, weights_digest
from jzi.encode.encoders.hf_model import LoadedModel, load_model, save_model, to_float16
from jzi.encode.encoders.pooling import make_pooling
from jzi.encode.encoders.towers_config import CONFIG, FORMAT, read_towers_config
from jzi.encode.encoders.towers_config import TowersConfig as TowersConfig
from jzi.errors import EncoderError, first_line
from jzi.store.disk.files import write_whole
from jzi.store.info import EncoderInfo
from jzi.store.plain import plain
from jzi.store.tensors import check_finite, check_header

#: Files and folders of a folder of towers. A shared encoder is in the photo's folder.
POOLING, PHOTO, MAP = "pooling.safetensors", "photo", "map"

#: Entries of the config that embeddings do not depend on.
_WITHOUT_EFFECT = ("photo_model", "map_model", "scale")

#: Added to the length of an embedding before it is divided by it, as in the authors' code.
_EPSILON = 1e-5


class Tower(nn.Module):
    """An encoder and a pooling of its feature maps.

    Args:
        loaded: a vision model of transformers, with the mean and standard deviation of its input.
        config: of the towers.
        shape: number of images of a row, and their height and width, pixels.
        name: of the model in errors.

    Raises:
        EncoderError: the pooling "class" needs tokens that the model has not, or the images are smaller than a patch.
        ConfigError: the width does not fit the pooling.
    """

    def __init__(self, loaded: LoadedModel, config: TowersConfig, shape: tuple[int, int, int], name: str) -> None:
        super().__init__()
        model_config: Any = loaded.model.config
        self.encoder, self.mean, self.std = loaded.model, loaded.mean, loaded.std
        self.family = find_family(name, model_config.model_type)
        self.stride = self.family.stride(model_config)
        self.uses_class = config.pooling == "class"
        if self.uses_class and self.family.class_tokens is None:
            raise EncoderError(
                f"{name} is a {model_config.model_type!r} model, which has no class and distillation token for the "
                "pooling class: give a deit model, or another pooling"
            )
        images, height, width = shape
        if self.uses_class and images > 1:
            raise EncoderError(f"the pooling class is for one image of a cell, and lods_m has {images}: give one")
        if min(height, width) < self.stride:
            raise EncoderError(f"images of {width} x {height} pixels are less than one patch of {name}, {self.stride}")
        tokens = (images, height // self.stride, width // self.stride)
        channels = self.family.width(model_config)
        self.pooling = make_pooling(config.pooling, channels, config.width, config.heads, tokens)

    def forward(self, pixels: Tensor, autocast: bool) -> Tensor:
        """Embed images.

        Args:
            pixels: (n, image, 3, height, width) from `Towers.normalise`; a row is a photo, or the images of a cell.
            autocast: whether the encoder computes in bfloat16.

        Returns:
            (n, feature) float32 of unit length.
        """
        images = self._renormalise(pixels.flatten(0, 1))
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=autocast):
            last = self.family.last_tokens(self.encoder, images)
            if self.uses_class:
                assert self.family.class_tokens is not None
                features = self.family.class_tokens(self.encoder, last)
            else:
                shape = (pixels.shape[3] // self.stride, pixels.shape[4] // self.stride)
                features = self.family.patches(self.encoder, last).unflatten(1, shape).unflatten(0, pixels.shape[:2])
        with torch.autocast(pixels.device.type, enabled=False):
            pooled: Tensor = self.pooling(features.float())
            return pooled / (pooled.norm(dim=1, keepdim=True) + _EPSILON)

    def _renormalise(self, images: Tensor) -> Tensor:
        """From the mean and standard deviation of ImageNet to those of the encoder."""
        if (self.mean, self.std) == IMAGENET:
            return images
        (mean, std), (own_mean, own_std) = (
            (images.new_tensor(values)[:, None, None] for values in pair) for pair in (IMAGENET, (self.mean, self.std))
        )
        return (images * std + mean - own_mean) / own_std

    def digest(self) -> list[Any]:
        """Config, normalisation and digests of the weights of the encoder and the pooling."""
        weights = [weights_digest(part.state_dict().values()) for part in (self.encoder, self.pooling)]
        parts = [hashlib.sha256(each).hexdigest() for each in weights]
        return [config_entries(self.encoder.config), self.mean, self.std, *parts]


class Towers(nn.Module):
    """The tower of photos and the tower of cells (Fervers et al. 2024, section 3.3).

    A cell has several images around its centre, at several levels of detail. One encoder embeds all of them, and one
    pooling their tokens together. Towers are created frozen and in eval mode; `requires_grad_` and `train` are for
    training.

    Args:
        photo: encoder of photos.
        map: encoder of the images of cells; None for that of photos, if the config has `shared`.
        config: architecture and input.
        device: device to compute on; `best_device()` by default.
        name: name or folder, for messages.
        fingerprint: fingerprint of these towers if it is recorded; computed on first use by default.

    Raises:
        EncoderError: an encoder and the config do not fit each other.
        ConfigError: the width does not fit the pooling.
    """

    #: Photos keep their aspect ratio, on black, resized by Pillow's antialiased bilinear resampling.
    fit, layout, resampling = True, "fit", "bilinear"

    def __init__(
        self,
        photo: LoadedModel,
        map: LoadedModel | None,
        config: TowersConfig,
        *,
        device: str | None = None,
        name: str = "",
        fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        if (map is None) != config.shared:
            raise EncoderError("towers have one encoder if they are shared, and two if not: give the map's encoder")
        self.config, self.width, self._fingerprint = config, config.width, fingerprint
        self.name = name or " and ".join(dict.fromkeys([config.photo_model, config.map_model]))
        width, height = config.photo_size
        size, images = config.image_size, len(config.lods_m)
        self.photo_tower = Tower(photo, config, (1, height, width), config.photo_model)
        self.map_tower = Tower(map or photo, config, (images, size, size), config.map_model)
        mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
        self._mean: Tensor
        self._std: Tensor
        self.register_buffer("_mean", mean, persistent=False)
        self.register_buffer("_std", std, persistent=False)
        self.eval().requires_grad_(False).to(device or best_device())

    @classmethod
    def create(
        cls,
        photo: str | Path,
        map: str | Path | None = None,
        config: TowersConfig | None = None,
        device: str | None = None,
    ) -> Towers:
        """Create towers from two encoders, with random poolings (of torch's global generator).

        Args:
            photo: Hugging Face id or folder of the encoder of photos.
            map: the same of the encoder of cells; that of photos by default. If the config has `shared`, it must be the
                same one.
            config: architecture and input; its names of models are replaced by these.
            device: device to compute on; `best_device()` by default.

        Raises:
            EncoderError: an encoder cannot be loaded, or does not fit the config.
            ConfigError: the width does not fit the pooling.
        """
        map = photo if map is None else map
        config = replace(config or TowersConfig(), photo_model=str(photo), map_model=str(map))
        if config.shared and str(photo) != str(map):
            raise EncoderError(f"the towers share one encoder, but {photo} and {map} were given: give one of them")
        first = load_model(photo, global_embedding=False)
        second = None if config.shared else load_model(map, global_embedding=False)
        return cls(first, second, config, device=device)

    # Folders

    def save(self, folder: str | Path) -> None:
        """Write the towers to a folder, which may exist; its config.json is written last.

        Raises:
            EncoderError: a file cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG).unlink(missing_ok=True)
            for name, tower in self._encoders():
                save_model(tower.encoder, folder / name, tower.mean, tower.std)
            if self.config.shared and (folder / MAP).is_dir():
                shutil.rmtree(folder / MAP)
            poolings = self._poolings().state_dict()
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in poolings.items()}
            write_whole(folder / POOLING, lambda path: save_file(weights, path))
            entries = {"jzi_towers": FORMAT, **plain(self.config)}
            write_whole(folder / CONFIG, lambda path: path.write_text(json.dumps(entries, indent=2) + "\n"))
        except (OSError, SafetensorError) as error:
            raise EncoderError(f"the towers cannot be written to {folder}: {first_line(error)}") from error

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None, *, fingerprint: str | None = None) -> Towers:
        """Load towers from a folder that `save` wrote.

        Args:
            folder: the folder.
            device: device to compute on; `best_device()` by default.
            fingerprint: as in the constructor.

        Raises:
            EncoderError: the folder has no towers, is damaged, or an encoder cannot be loaded.
            ModelError: the poolings are damaged, or belong to other towers.
        """
        folder = Path(folder)
        config = read_towers_config(folder)
        names = (PHOTO,) if config.shared else (PHOTO, MAP)
        for name in names:
            if not (folder / name).is_dir():
                raise EncoderError(f"{folder} lacks the encoder {folder / name}: copy the towers again")
        loaded = [load_model(folder / name, global_embedding=False) for name in names]
        with shapes_only():  # no memory before the file of the poolings was checked
            shapes = {
                f"{name}.{key}": tuple(tensor.shape)
                for name, pooling in _expected_poolings(loaded, config)
                for key, tensor in pooling.state_dict().items()
            }
        check_header(folder / POOLING, shapes, dict.fromkeys(shapes, ("F32",)))
        weights = load_file(folder / POOLING)
        check_finite(folder / POOLING, weights)
        second = None if config.shared else loaded[1]
        towers = cls(loaded[0], second, config, device=device, name=str(folder), fingerprint=fingerprint)
        towers._poolings().load_state_dict(weights)
        return towers

    def _encoders(self) -> list[tuple[str, Tower]]:
        towers = [(PHOTO, self.photo_tower), (MAP, self.map_tower)]
        return towers[:1] if self.config.shared else towers

    def _poolings(self) -> nn.ModuleDict:
        return nn.ModuleDict({PHOTO: self.photo_tower.pooling, MAP: self.map_tower.pooling})

    # Properties

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._mean.device

    @property
    def photo_shape(self) -> tuple[int, int]:
        """Height and width of photos, pixels."""
        width, height = self.config.photo_size
        return height, width

    @property
    def info(self) -> EncoderInfo:
        """Name, fingerprint and preprocessing, as caches and models record them."""
        config = self.config
        return EncoderInfo(
            self.name, False, self.fingerprint, config.width, config.image_size, self.layout, self.resampling
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what embeddings depend on: configs, preprocessing and weights; not the names of the models.

        Computed once; at each access while any weight is trainable.
        """
        if any(parameter.requires_grad for parameter in self.parameters()):
            return self._hash()
        if self._fingerprint is None:
            self._fingerprint = self._hash()
        return self._fingerprint

    def _hash(self) -> str:
        entries = {name: value for name, value in plain(self.config).items() if name not in _WITHOUT_EFFECT}
        parts = [entries, self.resampling, self.photo_tower.digest(), self.map_tower.digest()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    # Encoding

    def normalise(self, images: Tensor) -> Tensor:
        """Subtract the mean of ImageNet from (..., 3, height, width) images in 0..1, and divide by its deviation.

        Both towers take such pixels, and convert them if their encoder was trained with other numbers.
        """
        return (images - self._mean) / self._std

    def photo(self, pixels: Tensor) -> Tensor:
        """Embed photos.

        Args:
            pixels: (n, 3, height, width) of `photo_shape`, from `normalise`.

        Returns:
            (n, feature) float32 of unit length.
        """
        return self.photo_tower(pixels[:, None], self._autocast)

    def map(self, pixels: Tensor) -> Tensor:
        """Embed cells.

        Args:
            pixels: (n, level, 3, S, S) images of each level of detail, from `normalise`.

        Returns:
            (n, feature) float32 of unit length.
        """
        return self.map_tower(pixels, self._autocast)

    def forward(self, photos: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """`photo` and `map`."""
        return self.photo(photos), self.map(cells)

    @torch.inference_mode()
    def encode_photos(self, photos: NDArray[np.uint8] | Tensor) -> Tensor:
        """Embed (n, height, width, 3) uint8 photos of `photo_shape`; return (n, feature) float32 on the device."""
        return self.photo(self._pixels(photos))

    @torch.inference_mode()
    def encode_cells(self, cells: NDArray[np.uint8] | Tensor) -> Tensor:
        """Embed (n, level, S, S, 3) uint8 images of cells; return (n, feature) float32 on the device."""
        return self.map(self._pixels(cells))

    def to_storage(self, embedding: Tensor) -> NDArray[np.float16]:
        """Convert embeddings to the cache's float16.

        Raises:
            EncoderError: a value is not finite.
        """
        return to_float16(embedding, self.name)

    def _pixels(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        on_device = torch.as_tensor(images).to(self.device, non_blocking=True)
        return self.normalise(on_device.movedim(-1, -3).float() / 255)

    @property
    def _autocast(self) -> bool:
        """bfloat16 halves the time on GPUs that support it; CPUs without matrix units are slower with it."""
        return self.device.type == "cuda" and torch.cuda.is_bf16_supported()


def _expected_poolings(loaded: list[LoadedModel], config: TowersConfig) -> list[tuple[str, nn.Module]]:
    """Poolings of photo and map, as `Towers` makes them."""
    width, height = config.photo_size
    shapes = {PHOTO: (1, height, width), MAP: (len(config.lods_m), config.image_size, config.image_size)}
    return [
        (name, Tower(model, config, shape, name).pooling)
        for (name, shape), model in zip(shapes.items(), (loaded[0], loaded[-1]), strict=True)
    ]
