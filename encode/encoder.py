"""The encoder that both views share: a Hugging Face vision transformer and its [CLS] embedding (DESIGN 5)."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from jzi.encode.device import best_device
from jzi.encode.families import FAMILIES, Family
from jzi.encode.fingerprint import encoder_fingerprint, normalisation
from jzi.errors import EncoderError, first_line
from jzi.store.info import EncoderInfo


def _halves(photos: Tensor) -> Tensor:
    """(n, 3, S, 2S) to (n, 2, 3, S, S): a left and a right square, whose embeddings are averaged (the reference)."""
    return torch.stack(photos.chunk(2, dim=3), dim=1)


def _whole(photos: Tensor) -> Tensor:
    """(n, 3, S, S) to (n, 1, 3, S, S): the photo squeezed into one square."""
    return photos[:, None]


@dataclass(frozen=True)
class Layout:
    """How a photo becomes squares: the aspect it is resized to, width over height, and the cut."""

    aspect: int
    squares: Callable[[Tensor], Tensor]


LAYOUTS = {"halves": Layout(2, _halves), "whole": Layout(1, _whole)}


class Encoder:
    """Images to embeddings, on one device.

    Args:
        model: a transformers vision model of one of FAMILIES, in float32.
        name: its Hugging Face id or folder.
        from_hub: whether the name is a Hugging Face id.
        image_size: side of a square as the model sees it, pixels; a patch that does not fit whole is not seen.
        layout: one of LAYOUTS.
        mean: of red, green and blue, 0..1; by default the family's.
        std: likewise.
        device: where to compute; by default the best there is.
        fingerprint: of this very encoder, where it is on record; it is computed on first use otherwise.

    Raises:
        EncoderError: the model's type, the layout or the size is none that can be used.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        from_hub: bool = False,
        image_size: int = 384,
        layout: str = "halves",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        device: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        config: Any = model.config
        self.family = known_family(name, config.model_type)
        if layout not in LAYOUTS:
            raise EncoderError(f"encoder.layout {layout!r} is none of {', '.join(LAYOUTS)}")
        if image_size < config.patch_size:
            raise EncoderError(f"encoder.image_size is {image_size}, less than one patch of {config.patch_size} pixels")
        self.mean, self.std = mean or self.family.mean, std or self.family.std
        self.name, self.from_hub, self.image_size, self.layout = name, from_hub, image_size, layout
        self.device = torch.device(device or best_device())
        self.model = model.eval().requires_grad_(False).to(self.device)  # who trains it chooses what
        self.width = int(config.hidden_size)
        self._mean = torch.tensor(self.mean, device=self.device)[:, None, None]
        self._std = torch.tensor(self.std, device=self.device)[:, None, None]
        # bfloat16 halves the time on GPUs that have it; CPUs without matrix units are slower with it
        self._autocast = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self._fingerprint = fingerprint

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        image_size: int = 384,
        layout: str = "halves",
        device: str | None = None,
        fingerprint: str | None = None,
    ) -> Encoder:
        """From a Hugging Face id, or a folder as `save_pretrained` writes it; arguments as of the class.

        Raises:
            EncoderError: there is no such folder and the hub cannot give it, or it is no model that jzi knows.
        """

        quiet_transformers()
        folder, how = Path(name).is_dir(), (image_size, layout, device, fingerprint)
        if folder and not (Path(name) / "config.json").is_file():
            raise EncoderError(f"{name} is no encoder: it has no config.json (as `save_pretrained` writes it)")
        try:
            try:  # what has been fetched before is used without a word to the network
                return cls._load(str(name), not folder, *how, local_files_only=True)
            except OSError:
                if folder:
                    raise
                tqdm.write(f"fetching the encoder {name} from the Hugging Face hub", file=sys.stderr)
                return cls._load(str(name), not folder, *how)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = first_line(error)
            if folder:
                raise EncoderError(f"the encoder in {name} cannot be loaded: {reason}") from error
            raise EncoderError(
                f"the encoder {str(name)!r} is no folder here, and the Hugging Face hub did not give it ({reason}): "
                "check the name and the network, or give a folder that `save_pretrained` wrote"
            ) from error

    @classmethod
    def _load(
        cls,
        name: str,
        from_hub: bool,
        image_size: int,
        layout: str,
        device: str | None,
        fingerprint: str | None,
        **options: Any,
    ) -> Encoder:
        import transformers

        model_type = transformers.AutoConfig.from_pretrained(name, **options).model_type
        family = known_family(name, model_type)
        model, report = getattr(transformers, family.model_class).from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, **options
        )
        missing = sorted(key for key in report["missing_keys"] if not key.endswith("mask_token"))  # nothing is masked
        if missing:
            raise EncoderError(f"the encoder {name} lacks {len(missing)} weights ({missing[0]}, ...): get it anew")
        mean, std = normalisation(name, from_hub, family, **options)
        return cls(
            model,
            name=name,
            from_hub=from_hub,
            image_size=image_size,
            layout=layout,
            mean=mean,
            std=std,
            device=device,
            fingerprint=fingerprint,
        )

    def save(self, folder: Path) -> None:
        """Write the weights and config with `save_pretrained`, and mean and std beside them."""
        self.model.save_pretrained(folder)  # type: ignore[operator]
        trained = {"image_mean": list(self.mean), "image_std": list(self.std)}
        beside = folder / "preprocessor_config.json"
        beside.write_text(json.dumps(trained, indent=2) + "\n")
        for file in folder.iterdir():
            file.chmod(beside.stat().st_mode)  # by the umask; safetensors makes files that nobody else can read

    # What it is

    @property
    def photo_shape(self) -> tuple[int, int]:
        """Height and width that a photo is resized to."""
        return self.image_size, self.image_size * LAYOUTS[self.layout].aspect

    @property
    def patches(self) -> int:
        """How many patches a square has."""
        config: Any = self.model.config
        return (self.image_size // config.patch_size) ** 2

    @property
    def info(self) -> EncoderInfo:
        """Name and fingerprint: what a cache keeps."""
        return EncoderInfo(self.name, self.from_hub, self.fingerprint, self.width, self.image_size, self.layout)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over config, preprocessing and weights. The device and its precision do not count.

        Computed once, or every time while a weight is trainable and may change.
        """
        if any(parameter.requires_grad for parameter in self.model.parameters()):
            return self._hash()
        if self._fingerprint is None:
            self._fingerprint = self._hash()
        return self._fingerprint

    def _hash(self) -> str:
        how = (self.image_size, self.layout, self.mean, self.std)
        return encoder_fingerprint(self.model.config, self.family, *how, self.model.state_dict().values())

    # What it does

    def to_unit(self, images: Tensor) -> Tensor:
        """(n, height, width, 3) uint8 to (n, 3, height, width) float32, 0..1, on the device."""
        return images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255

    def squares(self, photos: Tensor) -> Tensor:
        """(n, 3, height, width) of `photo_shape` to (n, square, 3, S, S), whose embeddings are averaged."""
        return LAYOUTS[self.layout].squares(photos)

    def normalise(self, images: Tensor) -> Tensor:
        """(n, 3, S, S) 0..1 to the same as the model was trained to see it."""
        return (images - self._mean) / self._std

    def embed(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) normalised to (n, feature) float32: the family's global embedding, [CLS] for DINOv2."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return self.family.embed(self.model, pixels).float()

    @torch.inference_mode()
    def encode_tiles(self, tiles: NDArray[np.uint8] | Tensor) -> Tensor:
        """(n, S, S, 3) uint8 to (n, feature) float32 on the device."""
        return self.embed(self.normalise(self.to_unit(torch.as_tensor(tiles))))

    @torch.inference_mode()
    def encode_tiles_and_patches(self, tiles: NDArray[np.uint8] | Tensor) -> tuple[Tensor, Tensor]:
        """(n, S, S, 3) uint8 to (n, feature), as `encode_tiles`, and (n, patch, feature), float32 on the device.

        Patch tokens are those after the final layernorm, row by row, without [CLS] and registers.
        """
        pixels = self.normalise(self.to_unit(torch.as_tensor(tiles)))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            last = self.family.last_tokens(self.model, pixels)
            return self.family.pool(self.model, last).float(), self.family.patches(self.model, last).float()

    @torch.inference_mode()
    def encode_photos(self, photos: NDArray[np.uint8]) -> Tensor:
        """(n, height, width, 3) uint8 of `photo_shape` to (n, feature) float32 on the device."""
        return self.encode_squares(self.squares(self.to_unit(torch.from_numpy(photos))))

    @torch.inference_mode()
    def encode_squares(self, squares: Tensor) -> Tensor:
        """(n, square, 3, S, S) 0..1 to (n, feature) float32: the mean of the squares' embeddings."""
        return self.embed(self.normalise(squares.flatten(0, 1))).unflatten(0, squares.shape[:2]).mean(1)

    def to_storage(self, embedding: Tensor) -> NDArray[np.float16]:
        """Embeddings, or patch tokens, as the cache keeps them.

        Raises:
            EncoderError: they are not finite: the weights are broken.
        """
        stored = embedding.half().cpu().numpy()
        if not np.isfinite(stored).all():
            raise EncoderError(f"the encoder {self.name} gives embeddings that are not finite: its weights are broken")
        return stored


def quiet_transformers() -> None:
    """Keep bars, advice and retries of transformers and its hub from the user: what fails is said by us."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def known_family(name: str, model_type: str) -> Family:
    """The family of a model type.

    Raises:
        EncoderError: jzi does not know it.
    """
    if model_type not in FAMILIES:
        raise EncoderError(f"{name} is a {model_type!r} model: jzi knows {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
