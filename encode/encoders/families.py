"""Supported vision models: model class, normalisation, input tokens and pooling of each family.

Mean and standard deviation are those of the family's training; a `preprocessor_config.json` saved with the weights
overrides them (DINOv3's satellite models differ from its web models).

A forward pass has three parts, so that fine-tuning can split it at any block: pixels to tokens, the blocks, and the
tokens of the last block to the global embedding or to patch tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from jzi.encode.encoders.plugins import ENCODERS, VARIABLE, installed, load_plugin, named_families
from jzi.errors import EncoderError


def _no_context(model: nn.Module, pixels: Tensor) -> dict[str, Any]:
    """No further arguments of the blocks."""
    return {}


def _hidden_size(config: Any) -> int:
    """The entry hidden_size."""
    return int(config.hidden_size)


def _patch_size(config: Any) -> int:
    """The entry patch_size."""
    return int(config.patch_size)


@dataclass(frozen=True)
class Family:
    """How to run one model type, of transformers or of another package.

    On a CPU its functions are called by several threads at once, with parts of one batch.

    Attributes:
        model_class: name of the class in transformers, or a class derived from its `PreTrainedModel`. The first
            `ModuleList` of a model is its blocks.
        mean: mean of red, green and blue in training, 0..1.
        std: standard deviation of red, green and blue in training, 0..1.
        tokens: (model, normalised pixels (n, 3, S, S)) -> (n, token, feature) input of the first block; a
            convolutional network's is (n, feature, row, col), here and below.
        pool: (model, output of the last block (n, token, feature)) -> (n, feature) global embedding.
        patches: (model, output of the last block (n, token, feature)) -> (n, patch, feature) patch tokens in
            row-major order.
        final: names of the modules after the last block.
        context: (model, pixels) -> further keyword arguments of every block, which depend on the image size only.
        class_tokens: (model, output of the last block) -> (n, token, feature) tokens that stand for the whole image,
            after the final layernorm; None if the model has fewer than two.
        width: config -> number of features of a token.
        stride: config -> side of a patch, pixels.
        options: further keyword arguments of `from_pretrained`.
        global_only: names of the modules that only the global embedding needs.
        config_class: class of the config, derived from `PreTrainedConfig`, of a `model_class` that is not in
            transformers. Its own check of its entries is the only one, beside bounds on their size.
    """

    model_class: str | type
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tokens: Callable[[Any, Tensor], Tensor]
    pool: Callable[[Any, Tensor], Tensor]
    patches: Callable[[Any, Tensor], Tensor]
    final: tuple[str, ...]
    context: Callable[[Any, Tensor], dict[str, Any]] = _no_context
    class_tokens: Callable[[Any, Tensor], Tensor] | None = None
    width: Callable[[Any], int] = _hidden_size
    stride: Callable[[Any], int] = _patch_size
    options: dict[str, Any] = field(default_factory=dict)
    global_only: tuple[str, ...] = ()
    config_class: Any = None

    def load_class(self) -> Any:
        """The class of the model; imports transformers."""
        import transformers

        return getattr(transformers, self.model_class) if isinstance(self.model_class, str) else self.model_class

    def embed(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Compute the (n, feature) global embedding of (n, 3, S, S) normalised pixels."""
        return self.pool(model, self.last_tokens(model, pixels))

    def last_tokens(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Compute the (n, token, feature) output of the last block for (n, 3, S, S) normalised pixels."""
        tokens, context = self.tokens(model, pixels), self.context(model, pixels)
        for block in blocks_of(model):
            tokens = block(tokens, **context)
        return tokens


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the transformer's blocks, first to last; the stages of a ConvNeXt."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def _embeddings(model: Any, pixels: Tensor) -> Tensor:
    return model.embeddings(pixels)


def _cls_after_layernorm(model: Any, tokens: Tensor) -> Tensor:
    return model.layernorm(tokens)[:, 0]


def _cls_after_norm(model: Any, tokens: Tensor) -> Tensor:
    return model.norm(tokens)[:, 0]


def _patches_after_layernorm(model: Any, tokens: Tensor) -> Tensor:
    return model.layernorm(tokens)[:, 1 + getattr(model.config, "num_register_tokens", 0) :]


def _patches_after_norm(model: Any, tokens: Tensor) -> Tensor:
    return model.norm(tokens)[:, 1 + model.config.num_register_tokens :]


def _all_after_layernorm(model: Any, tokens: Tensor) -> Tensor:
    """SigLIP's tokens are all patches; they are in another space than its pooled global embedding."""
    return model.post_layernorm(tokens)


def _rotary_positions(model: Any, pixels: Tensor) -> dict[str, Any]:
    return {"position_embeddings": model.rope_embeddings(pixels)}


def _interpolated_embeddings(model: Any, pixels: Tensor) -> Tensor:
    """SigLIP and DeiT have learned positions, which are interpolated for other image sizes."""
    return model.embeddings(pixels, interpolate_pos_encoding=True)


def _patch_embeddings(model: Any, pixels: Tensor) -> Tensor:
    """SigLIP 2 with variable aspect ratio (NaFlex) takes flattened patches, channels last."""
    patch = model.config.patch_size
    rows, cols = pixels.shape[2] // patch, pixels.shape[3] // patch
    whole = pixels[:, :, : rows * patch, : cols * patch].unflatten(3, (cols, patch)).unflatten(2, (rows, patch))
    patches = whole.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (n, rows * cols, patch * patch * 3)
    return model.embeddings(patches, torch.tensor([[rows, cols]], device=pixels.device).expand(len(pixels), 2))


def _attention_pooled(model: Any, tokens: Tensor) -> Tensor:
    """SigLIP has no [CLS] token; a learned query attends to all patches."""
    return model.head(model.post_layernorm(tokens))


def _no_mask(model: Any, pixels: Tensor) -> dict[str, Any]:
    return {"attention_mask": None}


def _class_and_distillation(model: Any, tokens: Tensor) -> Tensor:
    return model.layernorm(tokens)[:, :2]


def _patches_after_both(model: Any, tokens: Tensor) -> Tensor:
    return model.layernorm(tokens)[:, 2:]


def _averaged(model: Any, features: Tensor) -> Tensor:
    """A ConvNeXt's global embedding: its last feature map, averaged."""
    return model.layernorm(features.mean((2, 3)))


def _last_map(model: Any, features: Tensor) -> Tensor:
    """The last feature map as it is; ConvNeXt's final layernorm follows the average."""
    return features.flatten(2).transpose(1, 2)


def _last_width(config: Any) -> int:
    return int(config.hidden_sizes[-1])


def _total_stride(config: Any) -> int:
    return int(config.patch_size) * 2 ** (len(config.depths) - 1)


#: Mean and standard deviation of most families.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Register tokens come between [CLS] and the patches
_DINOV2 = (*IMAGENET, _embeddings, _cls_after_layernorm, _patches_after_layernorm, ("layernorm",))
_DINOV3 = (*IMAGENET, _embeddings, _cls_after_norm, _patches_after_norm, ("norm",), _rotary_positions)
_POOLED = (_attention_pooled, _all_after_layernorm, ("post_layernorm", "head"), _no_mask)
_DEIT = (*IMAGENET, _interpolated_embeddings, _cls_after_layernorm, _patches_after_both, ("layernorm",), _no_mask)
_CONVNEXT = (*IMAGENET, _embeddings, _averaged, _last_map, ("layernorm",))
_SIGLIP = (*_HALF, _interpolated_embeddings, *_POOLED)
_SIGLIP2 = (*_HALF, _patch_embeddings, *_POOLED)

#: By the config's `model_type`. Of a SigLIP checkpoint with both towers the vision tower is used.
FAMILIES = {
    "convnext": Family(
        "ConvNextModel", *_CONVNEXT, width=_last_width, stride=_total_stride, global_only=("layernorm",)
    ),
    "deit": Family("DeiTModel", *_DEIT, class_tokens=_class_and_distillation, options={"add_pooling_layer": False}),
    "dinov2": Family("Dinov2Model", *_DINOV2),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", *_DINOV2),
    "dinov3_vit": Family("DINOv3ViTModel", *_DINOV3),
    "siglip": Family("SiglipVisionModel", *_SIGLIP, global_only=("head",)),
    "siglip_vision_model": Family("SiglipVisionModel", *_SIGLIP, global_only=("head",)),
    "siglip2": Family("Siglip2VisionModel", *_SIGLIP2, global_only=("head",)),
    "siglip2_vision_model": Family("Siglip2VisionModel", *_SIGLIP2, global_only=("head",)),
}


def find_family(name: str, model_type: Any, code: str = "") -> Family:
    """The family of a model type: one of `FAMILIES`, or of a package that `JZI_PLUGINS` names.

    A config, which may come from a stranger, only chooses among those.

    Args:
        name: of the encoder, for the error message.
        model_type: `model_type` of its config.
        code: remark on the encoder, for the error message.

    Raises:
        EncoderError: the model type is not supported, or its package is broken.
    """
    if isinstance(model_type, str):
        if model_type in FAMILIES:
            return FAMILIES[model_type]
        if model_type in named_families():
            family, label = load_plugin(ENCODERS, model_type, EncoderError)
            if not isinstance(family, Family):
                raise EncoderError(f"{label} is a {type(family).__name__}, not a jzi.Family: ask its authors")
            return family
        if model_type in installed(ENCODERS):
            raise EncoderError(
                f"{name} is a {model_type!r:.60} model, for which the code of another package is needed: if you trust "
                f"that package, which is installed, name it, {VARIABLE}={model_type}"
            )
    raise EncoderError(f"{name} is a {model_type!r:.60} model{code}: use one of {', '.join(FAMILIES)}")
