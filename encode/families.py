"""The kinds of vision transformer that can be the encoder: how each is loaded, fed and read (the paper's ablation).

Mean and standard deviation are those that the family was trained with; a `preprocessor_config.json` beside the weights
overrides them (DINOv3's satellite models have others than its web models).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """A model type of transformers.

    Attributes:
        model_class: its class in transformers.
        mean: of the training images' red, green and blue, 0..1.
        std: likewise.
        embed: (model, (n, 3, S, S) normalised pixels) to the (n, feature) global embedding.
    """

    model_class: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    embed: Callable[[nn.Module, Tensor], Tensor]


def cls_token(model: nn.Module, pixels: Tensor) -> Tensor:
    """The [CLS] token after the final layernorm; register tokens come after it. Positions fit any size."""
    return model(pixel_values=pixels).last_hidden_state[:, 0]


def attention_pooled(model: nn.Module, pixels: Tensor) -> Tensor:
    """SigLIP has no [CLS] token: a learned query attends to all patches; its table of positions is interpolated."""
    return model(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output


def attention_pooled_patches(model: nn.Module, pixels: Tensor) -> Tensor:
    """The same for SigLIP 2 of any aspect (NaFlex), which takes patches as vectors, rows first, colours last."""
    config: Any = model.config
    patch = config.patch_size
    rows, cols = pixels.shape[2] // patch, pixels.shape[3] // patch
    whole = pixels[:, :, : rows * patch, : cols * patch].unflatten(3, (cols, patch)).unflatten(2, (rows, patch))
    patches = whole.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (n, rows * cols, patch * patch * 3)
    mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=pixels.device)
    shapes = torch.tensor([[rows, cols]], device=pixels.device).expand(len(pixels), 2)
    return model(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes).pooler_output


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

#: By `model_type` of the config. A SigLIP checkpoint of both towers gives its vision tower.
FAMILIES = {
    "dinov2": Family("Dinov2Model", *_IMAGENET, cls_token),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", *_IMAGENET, cls_token),
    "dinov3_vit": Family("DINOv3ViTModel", *_IMAGENET, cls_token),
    "siglip": Family("SiglipVisionModel", *_HALF, attention_pooled),
    "siglip_vision_model": Family("SiglipVisionModel", *_HALF, attention_pooled),
    "siglip2": Family("Siglip2VisionModel", *_HALF, attention_pooled_patches),
    "siglip2_vision_model": Family("Siglip2VisionModel", *_HALF, attention_pooled_patches),
}
