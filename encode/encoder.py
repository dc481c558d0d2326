"""The encoder that both views share: a Hugging Face vision transformer and its [CLS] embedding (DESIGN 5)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
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

from jzi.errors import EncoderError
from jzi.store.cards import EncoderCard


def _halves(photos: Tensor) -> Tensor:
    """(n, S, 2S, 3) to (n, 2, S, S, 3): a left and a right square, whose embeddings are averaged (the reference)."""
    return torch.stack(photos.chunk(2, dim=2), dim=1)


def _whole(photos: Tensor) -> Tensor:
    """(n, S, S, 3) to (n, 1, S, S, 3): the photo squeezed into one square."""
    return photos[:, None]


@dataclass(frozen=True)
class Layout:
    """How a photo becomes squares: the aspect it is resized to, width over height, and the cut."""

    aspect: int
    squares: Callable[[Tensor], Tensor]


LAYOUTS = {"halves": Layout(2, _halves), "whole": Layout(1, _whole)}


@dataclass(frozen=True)
class Family:
    """What a model type of transformers expects and where its global embedding is."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    embed: Callable[[Any], Tensor]


def _cls(output: Any) -> Tensor:
    return output.last_hidden_state[:, 0]  # after the final layernorm


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

FAMILIES = {
    "dinov2": Family(*_IMAGENET, _cls),
    "dinov2_with_registers": Family(*_IMAGENET, _cls),
}

#: Entries of a config that say where weights came from or how they are stored, not what is computed.
_NOT_COMPUTING = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_attn_implementation",
)


class Encoder:
    """Images to embeddings, on one device.

    Args:
        model: a transformers vision model of one of FAMILIES, in float32.
        name: its Hugging Face id or folder.
        from_hub: whether the name is a Hugging Face id.
        image_size: side of a square as the model sees it, pixels; a patch that does not fit whole is not seen.
        layout: one of LAYOUTS.
        device: where to compute; by default the best there is.

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
        device: str | None = None,
    ) -> None:
        config: Any = model.config
        if config.model_type not in FAMILIES:
            raise EncoderError(f"{name} is a {config.model_type!r} model: jzi knows {', '.join(FAMILIES)}")
        if layout not in LAYOUTS:
            raise EncoderError(f"encoder.layout {layout!r} is none of {', '.join(LAYOUTS)}")
        if image_size < config.patch_size:
            raise EncoderError(f"encoder.image_size is {image_size}, less than one patch of {config.patch_size} pixels")
        self.family = FAMILIES[config.model_type]
        self.name, self.from_hub, self.image_size, self.layout = name, from_hub, image_size, layout
        self.device = torch.device(device or best_device())
        self.model = model.eval().to(self.device)
        self.width = int(config.hidden_size)
        self._mean = torch.tensor(self.family.mean, device=self.device)[:, None, None] * 255
        self._std = torch.tensor(self.family.std, device=self.device)[:, None, None] * 255
        # bfloat16 halves the time on GPUs that have it; CPUs without matrix units are slower with it
        self._autocast = self.device.type == "cuda" and torch.cuda.is_bf16_supported()

    @classmethod
    def load(
        cls, name: str | Path, *, image_size: int = 384, layout: str = "halves", device: str | None = None
    ) -> Encoder:
        """From a Hugging Face id, or a folder as `save_pretrained` writes it.

        Raises:
            EncoderError: there is no such folder and the hub cannot give it, or it is no model that jzi knows.
        """
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; what fails is said below
        folder = Path(name).is_dir()
        if folder and not (Path(name) / "config.json").is_file():
            raise EncoderError(f"{name} is no encoder: it has no config.json (as `save_pretrained` writes it)")
        options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
        try:
            try:  # what has been fetched before is used without a word to the network
                model, report = transformers.AutoModel.from_pretrained(str(name), local_files_only=True, **options)
            except OSError:
                if folder:
                    raise
                tqdm.write(f"fetching the encoder {name} from the Hugging Face hub", file=sys.stderr)
                model, report = transformers.AutoModel.from_pretrained(str(name), **options)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            if folder:
                raise EncoderError(f"the encoder in {name} cannot be loaded: {reason}") from error
            raise EncoderError(
                f"the encoder {str(name)!r} is no folder here, and the Hugging Face hub did not give it ({reason}): "
                "check the name and the network, or give a folder that `save_pretrained` wrote"
            ) from error
        missing = sorted(key for key in report["missing_keys"] if not key.endswith("mask_token"))  # nothing is masked
        if missing and model.config.model_type in FAMILIES:
            raise EncoderError(f"the encoder {name} lacks {len(missing)} weights ({missing[0]}, ...): get it anew")
        return cls(model, name=str(name), from_hub=not folder, image_size=image_size, layout=layout, device=device)

    def save(self, folder: Path) -> None:
        """Write the weights and config with `save_pretrained`."""
        self.model.save_pretrained(folder)  # type: ignore[operator]

    # What it is

    @property
    def photo_shape(self) -> tuple[int, int]:
        """Height and width that a photo is resized to."""
        return self.image_size, self.image_size * LAYOUTS[self.layout].aspect

    @property
    def card(self) -> EncoderCard:
        """Name and fingerprint: what a cache keeps."""
        return EncoderCard(self.name, self.from_hub, self.fingerprint, self.width, self.image_size, self.layout)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over config, preprocessing and weights. The device and its precision do not count."""
        config: Any = self.model.config
        computing = {key: value for key, value in config.to_diff_dict().items() if key not in _NOT_COMPUTING}
        preprocessing = {"image_size": self.image_size, "layout": self.layout, "resampling": "bicubic"}
        normalisation = {"mean": self.family.mean, "std": self.family.std, "embed": self.family.embed.__name__}
        digest = hashlib.sha256()
        digest.update(json.dumps([computing, preprocessing, normalisation], sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            values = tensor.detach().float().cpu().contiguous().numpy()
            digest.update(f"{name} {values.shape}".encode())
            digest.update(values.data)
        return digest.hexdigest()

    # What it does

    def normalise(self, squares: Tensor) -> Tensor:
        """(n, S, S, 3) uint8 to (n, 3, S, S) float32, as the model was trained to see them."""
        return (squares.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() - self._mean) / self._std

    def embed(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) normalised to (n, feature) float32: the [CLS] token after the final layernorm."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            kwargs = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in self._forward_names else {}
            return self.family.embed(self.model(pixel_values=pixels, **kwargs)).float()

    @property
    def _forward_names(self) -> tuple[str, ...]:
        return self.model.forward.__code__.co_varnames

    @torch.inference_mode()
    def encode_tiles(self, tiles: NDArray[np.uint8]) -> Tensor:
        """(n, S, S, 3) uint8 to (n, feature) float32 on the device."""
        return self.embed(self.normalise(torch.from_numpy(tiles)))

    @torch.inference_mode()
    def encode_photos(self, photos: NDArray[np.uint8]) -> Tensor:
        """(n, height, width, 3) uint8 of `photo_shape` to (n, feature) float32 on the device."""
        squares = LAYOUTS[self.layout].squares(torch.from_numpy(photos))  # (n, squares, S, S, 3)
        embedding = self.embed(self.normalise(squares.flatten(0, 1)))
        return embedding.unflatten(0, squares.shape[:2]).mean(1)

    def to_storage(self, embedding: Tensor) -> NDArray[np.float16]:
        """Embeddings as the cache keeps them.

        Raises:
            EncoderError: they are not finite: the weights are broken.
        """
        stored = embedding.half().cpu().numpy()
        if not np.isfinite(stored).all():
            raise EncoderError(f"the encoder {self.name} gives embeddings that are not finite: its weights are broken")
        return stored


def best_device() -> str:
    """The accelerator of this process under `accelerate launch`, the first one otherwise, or "cpu"."""
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "mps" if torch.backends.mps.is_available() else "cpu"
