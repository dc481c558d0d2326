"""The encoder shared by photos and tiles: a vision model of transformers and its global embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jzi.encode.device import best_device
from jzi.encode.encoders.families import find_family
from jzi.encode.encoders.fingerprint import encoder_fingerprint
from jzi.encode.encoders.hf_model import load_model, save_model, to_float16
from jzi.encode.encoders.parts import in_parts
from jzi.encode.photo.photos import RESAMPLINGS
from jzi.errors import EncoderError
from jzi.store.info import EncoderInfo


def _halves(photos: Tensor) -> Tensor:
    """(n, 3, S, 2S) to (n, 2, 3, S, S): the left and the right square, as in the reference."""
    return torch.stack(photos.chunk(2, dim=3), dim=1)


def _whole(photos: Tensor) -> Tensor:
    """(n, 3, S, S) to (n, 1, 3, S, S): the photo resized to one square."""
    return photos[:, None]


@dataclass(frozen=True)
class Layout:
    """How a photo is cut into squares, whose embeddings are averaged.

    Attributes:
        aspect: width over height that the photo is resized to.
        squares: cuts (n, 3, S, aspect * S) photos into (n, square, 3, S, S).
    """

    aspect: int
    squares: Callable[[Tensor], Tensor]


LAYOUTS = {"halves": Layout(2, _halves), "whole": Layout(1, _whole)}


class Encoder:
    """A vision model on one device, with its preprocessing. Weights are frozen and in eval mode.

    Args:
        model: transformers vision model of one of `FAMILIES`, in float32.
        name: Hugging Face id or folder of the model.
        from_hub: whether the name is a Hugging Face id.
        image_size: side S of the model's input, pixels; pixels beyond the last whole patch are ignored.
        layout: how photos are cut into squares, one of `LAYOUTS`.
        resampling: how photos are resized, one of `RESAMPLINGS`.
        mean: mean of red, green and blue, 0..1; the family's by default.
        std: standard deviation of red, green and blue, 0..1; the family's by default.
        device: device to compute on; `best_device()` by default.
        fingerprint: fingerprint of this encoder if it is recorded; computed on first use by default.

    Attributes:
        width: number of features of an embedding.
        patch: side of a patch, pixels.

    Raises:
        EncoderError: the model type, layout or resampling is not supported, or the image size is less than one patch.
    """

    #: Photos fill `photo_shape`, whatever their aspect ratio.
    fit = False

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        from_hub: bool = False,
        image_size: int = 384,
        layout: str = "halves",
        resampling: str = "antialias",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        device: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        config: Any = model.config
        self.family = find_family(name, config.model_type)
        if layout not in LAYOUTS:
            raise EncoderError(f"encoder.layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
        if resampling not in RESAMPLINGS:
            raise EncoderError(f"encoder.resampling must be one of {', '.join(RESAMPLINGS)}, not {resampling!r}")
        self.patch = self.family.stride(config)
        if image_size < self.patch:
            raise EncoderError(f"encoder.image_size is {image_size}, less than one patch of {self.patch} pixels")
        self.mean, self.std = mean or self.family.mean, std or self.family.std
        self.name, self.from_hub, self.image_size, self.layout = name, from_hub, image_size, layout
        self.resampling = resampling
        self.model = model.eval().requires_grad_(False)  # fine-tuning unfreezes the blocks it trains
        self.width = self.family.width(config)
        self._fingerprint = fingerprint
        self._image_flop = 2.0 * sum(weights.numel() for weights in model.parameters()) * self.patches
        self.to(device or best_device())

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        image_size: int = 384,
        layout: str = "halves",
        resampling: str = "antialias",
        device: str | None = None,
        fingerprint: str | None = None,
    ) -> Encoder:
        """Load an encoder from a folder or from the Hugging Face hub; from the hub's local cache if possible.

        Args:
            name: Hugging Face id, or a folder written by `save_pretrained`.
            image_size: as in the constructor.
            layout: as in the constructor.
            resampling: as in the constructor.
            device: as in the constructor.
            fingerprint: as in the constructor.

        Returns:
            The encoder, with the mean and standard deviation saved with the weights, if any.

        Raises:
            EncoderError: the encoder cannot be found or loaded, or its model type is not supported.
        """
        loaded = load_model(name)
        return cls(
            loaded.model,
            name=str(name),
            from_hub=loaded.from_hub,
            image_size=image_size,
            layout=layout,
            resampling=resampling,
            mean=loaded.mean,
            std=loaded.std,
            device=device,
            fingerprint=fingerprint,
        )

    def save(self, folder: Path) -> None:
        """Write weights and config with `save_pretrained`, and mean and std to preprocessor_config.json."""
        save_model(self.model, folder, self.mean, self.std)

    def to(self, device: str) -> Self:
        """Move it to a device, and return it, as `torch.nn.Module.to` does."""
        self.device = torch.device(device)
        self.model = self.model.to(self.device)
        self._mean = torch.tensor(self.mean, device=self.device)[:, None, None]
        self._std = torch.tensor(self.std, device=self.device)[:, None, None]
        # bfloat16 halves the time on GPUs that support it; CPUs without matrix units are slower with it
        self._autocast = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self

    # Properties

    @property
    def photo_shape(self) -> tuple[int, int]:
        """Height and width of the encoder's photos, pixels."""
        return self.image_size, self.image_size * LAYOUTS[self.layout].aspect

    @property
    def patches(self) -> int:
        """Number of patches of a square."""
        return (self.image_size // self.patch) ** 2

    @property
    def info(self) -> EncoderInfo:
        """Name, fingerprint and preprocessing, as caches and models record them."""
        return EncoderInfo(
            self.name, self.from_hub, self.fingerprint, self.width, self.image_size, self.layout, self.resampling
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over config, preprocessing and weights, independent of the device and its precision.

        Computed once; at each access while any weight is trainable.
        """
        if any(parameter.requires_grad for parameter in self.model.parameters()):
            return self._hash()
        if self._fingerprint is None:
            self._fingerprint = self._hash()
        return self._fingerprint

    def _hash(self) -> str:
        preprocessing = (self.image_size, self.layout, self.resampling, self.mean, self.std)
        return encoder_fingerprint(self.model.config, self.family, *preprocessing, self.model.state_dict().values())

    # Encoding

    def to_unit(self, images: Tensor) -> Tensor:
        """Convert (n, height, width, 3) uint8 to (n, 3, height, width) float32 in 0..1, on the device."""
        return images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255

    def squares(self, photos: Tensor) -> Tensor:
        """Cut (n, 3, height, width) photos of `photo_shape` into (n, square, 3, S, S)."""
        return LAYOUTS[self.layout].squares(photos)

    def normalise(self, images: Tensor) -> Tensor:
        """Subtract `mean` from (n, 3, S, S) images in 0..1 and divide by `std`."""
        return (images - self._mean) / self._std

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed normalised images.

        Args:
            pixels: (n, 3, S, S) from `normalise`.

        Returns:
            (n, feature) float32: the family's global embedding, [CLS] for DINOv2.
        """
        (embedding,) = in_parts(self._embed, pixels, self._image_flop)
        return embedding

    def _embed(self, pixels: Tensor) -> tuple[Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return (self.family.embed(self.model, pixels).float(),)

    def embed_with_patches(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Embed normalised images, and return their patch tokens too.

        Args:
            pixels: (n, 3, S, S) from `normalise`.

        Returns:
            (n, feature) as from `embed`, and (n, patch, feature); float32.
        """
        embedding, patches = in_parts(self._embed_with_patches, pixels, self._image_flop)
        return embedding, patches

    def _embed_with_patches(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            tokens = self.family.last_tokens(self.model, pixels)
            return self.family.pool(self.model, tokens).float(), self.family.patches(self.model, tokens).float()

    @torch.inference_mode()
    def encode_tiles(self, tiles: NDArray[np.uint8] | Tensor) -> Tensor:
        """Embed (n, S, S, 3) uint8 tiles; return (n, feature) float32 on the device."""
        return self.embed(self.normalise(self.to_unit(torch.as_tensor(tiles))))

    @torch.inference_mode()
    def encode_tiles_and_patches(self, tiles: NDArray[np.uint8] | Tensor) -> tuple[Tensor, Tensor]:
        """Embed tiles and return their patch tokens too.

        Args:
            tiles: (n, S, S, 3) uint8.

        Returns:
            (n, feature) embeddings, as from `encode_tiles`, and (n, patch, feature) patch tokens after the final
            layernorm, in row-major order, without [CLS] and registers; float32 on the device.
        """
        return self.embed_with_patches(self.normalise(self.to_unit(torch.as_tensor(tiles))))

    @torch.inference_mode()
    def encode_photos(self, photos: NDArray[np.uint8]) -> Tensor:
        """Embed (n, height, width, 3) uint8 photos of `photo_shape`; return (n, feature) float32 on the device."""
        return self.encode_squares(self.squares(self.to_unit(torch.from_numpy(photos))))

    @torch.inference_mode()
    def encode_squares(self, squares: Tensor) -> Tensor:
        """Embed (n, square, 3, S, S) squares in 0..1; return the (n, feature) float32 mean over the squares."""
        return self.embed(self.normalise(squares.flatten(0, 1))).unflatten(0, squares.shape[:2]).mean(1)

    def to_storage(self, embedding: Tensor) -> NDArray[np.float16]:
        """Convert embeddings or patch tokens to the cache's float16.

        Raises:
            EncoderError: a value is not finite, or too large for float16.
        """
        return to_float16(embedding, self.name)
