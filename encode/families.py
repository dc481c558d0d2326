"""The kinds of vision transformer that can be the encoder: how each is loaded, fed and read (the paper's ablation).

Mean and standard deviation are those that the family was trained with; a `preprocessor_config.json` beside the weights
overrides them (DINOv3's satellite models have others than its web models).

A model is run in three parts, which fine-tuning takes apart at a block: pixels to tokens, the blocks one after the
other, and the last tokens to one embedding, and to patch tokens where they are wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def _nothing(model: nn.Module, pixels: Tensor) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """A model type of transformers.

    Attributes:
        model_class: its class in transformers.
        mean: of the training images' red, green and blue, 0..1.
        std: likewise.
        tokens: (model, (n, 3, S, S) normalised pixels) to the (n, token, feature) that the first block takes.
        pool: (model, (n, token, feature) out of the last block) to the (n, feature) global embedding.
        patches: (model, (n, token, feature) out of the last block) to the (n, patch, feature) tokens of the patches,
            row by row from the top left.
        context: (model, pixels) to what every block takes beside the tokens; it depends on the size of the pixels only.
        final: names of the parts that come after the last block.
    """

    model_class: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tokens: Callable[[Any, Tensor], Tensor]
    pool: Callable[[Any, Tensor], Tensor]
    patches: Callable[[Any, Tensor], Tensor]
    final: tuple[str, ...]
    context: Callable[[Any, Tensor], dict[str, Any]] = _nothing

    def embed(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) normalised pixels to the (n, feature) global embedding."""
        return self.pool(model, self.last_tokens(model, pixels))

    def last_tokens(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) normalised pixels to the (n, token, feature) that the last block gives."""
        tokens, context = self.tokens(model, pixels), self.context(model, pixels)
        for block in blocks_of(model):
            tokens = block(tokens, **context)
        return tokens


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The transformer's blocks, first to last."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def _embeddings(model: Any, pixels: Tensor) -> Tensor:
    """Positions fit any size."""
    return model.embeddings(pixels)


def _cls_after_layernorm(model: Any, tokens: Tensor) -> Tensor:
    """The [CLS] token after the final layernorm; register tokens come after it."""
    return model.layernorm(tokens)[:, 0]


def _cls_after_norm(model: Any, tokens: Tensor) -> Tensor:
    """The same by DINOv3's name."""
    return model.norm(tokens)[:, 0]


def _patches_after_layernorm(model: Any, tokens: Tensor) -> Tensor:
    """Without [CLS] and the registers, which come first."""
    return model.layernorm(tokens)[:, 1 + getattr(model.config, "num_register_tokens", 0) :]


def _patches_after_norm(model: Any, tokens: Tensor) -> Tensor:
    """The same by DINOv3's name."""
    return model.norm(tokens)[:, 1 + model.config.num_register_tokens :]


def _all_after_layernorm(model: Any, tokens: Tensor) -> Tensor:
    """SigLIP has patches only; the global embedding is made of these, and lies in another space."""
    return model.post_layernorm(tokens)


def _rotary_positions(model: Any, pixels: Tensor) -> dict[str, Any]:
    return {"position_embeddings": model.rope_embeddings(pixels)}


def _interpolated_embeddings(model: Any, pixels: Tensor) -> Tensor:
    """SigLIP's table of positions is interpolated."""
    return model.embeddings(pixels, interpolate_pos_encoding=True)


def _patch_embeddings(model: Any, pixels: Tensor) -> Tensor:
    """SigLIP 2 of any aspect (NaFlex) takes patches as vectors, rows first, colours last."""
    patch = model.config.patch_size
    rows, cols = pixels.shape[2] // patch, pixels.shape[3] // patch
    whole = pixels[:, :, : rows * patch, : cols * patch].unflatten(3, (cols, patch)).unflatten(2, (rows, patch))
    patches = whole.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (n, rows * cols, patch * patch * 3)
    return model.embeddings(patches, torch.tensor([[rows, cols]], device=pixels.device).expand(len(pixels), 2))


def _attention_pooled(model: Any, tokens: Tensor) -> Tensor:
    """SigLIP has no [CLS] token: a learned query attends to all patches."""
    return model.head(model.post_layernorm(tokens))


def _no_mask(model: Any, pixels: Tensor) -> dict[str, Any]:
    return {"attention_mask": None}


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

_DINOV2 = (*_IMAGENET, _embeddings, _cls_after_layernorm, _patches_after_layernorm, ("layernorm",))
_DINOV3 = (*_IMAGENET, _embeddings, _cls_after_norm, _patches_after_norm, ("norm",), _rotary_positions)
_POOLED = (_attention_pooled, _all_after_layernorm, ("post_layernorm", "head"), _no_mask)
_SIGLIP = (*_HALF, _interpolated_embeddings, *_POOLED)
_SIGLIP2 = (*_HALF, _patch_embeddings, *_POOLED)

#: By `model_type` of the config. A SigLIP checkpoint of both towers gives its vision tower.
FAMILIES = {
    "dinov2": Family("Dinov2Model", *_DINOV2),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", *_DINOV2),
    "dinov3_vit": Family("DINOv3ViTModel", *_DINOV3),
    "siglip": Family("SiglipVisionModel", *_SIGLIP),
    "siglip_vision_model": Family("SiglipVisionModel", *_SIGLIP),
    "siglip2": Family("Siglip2VisionModel", *_SIGLIP2),
    "siglip2_vision_model": Family("Siglip2VisionModel", *_SIGLIP2),
}
