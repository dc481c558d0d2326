"""An encoder family of one's own: a small vision model of patches, a `PreTrainedModel` with a config of its own.

    python -m jzi_toy.encoder my-encoder      # writes one with random weights, to be fine-tuned

The entry point `toy` of the group `jzi.encoders` is the `FAMILY` below; its name is the config's `model_type`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

import jzi


class ToyConfig(PreTrainedConfig):
    """Width, number of blocks and side of a patch, pixels."""

    model_type = "toy"

    def __init__(self, hidden_size: int = 64, blocks: int = 4, patch_size: int = 14, **entries: Any) -> None:
        # The file may come from a stranger: no number of it may make the model larger than it can be
        if not (1 <= hidden_size <= 1024 and 1 <= blocks <= 32 and 1 <= patch_size <= 64):
            raise ValueError(f"hidden_size {hidden_size}, blocks {blocks} or patch_size {patch_size} is out of range")
        self.hidden_size, self.blocks, self.patch_size = hidden_size, blocks, patch_size
        super().__init__(**entries)


class ToyBlock(nn.Module):
    """Mixes each patch with the mean of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, token, feature) to the same shape."""
        normed = self.norm(tokens)
        return tokens + self.layers(torch.cat([normed, normed.mean(1, keepdim=True).expand_as(normed)], -1))


class ToyModel(PreTrainedModel):
    """Patches, blocks and a norm. The blocks are the first `ModuleList`, as jzi expects."""

    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.layers = nn.ModuleList(ToyBlock(config.hidden_size) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()


def patch_tokens(model: ToyModel, pixels: Tensor) -> Tensor:
    """(n, 3, S, S) normalised pixels to (n, patch, feature), the input of the first block."""
    return model.patches(pixels).flatten(2).transpose(1, 2)


def mean_token(model: ToyModel, tokens: Tensor) -> Tensor:
    """The output of the last block to the (n, feature) global embedding."""
    return model.norm(tokens).mean(1)


def normed_tokens(model: ToyModel, tokens: Tensor) -> Tensor:
    """The output of the last block to (n, patch, feature)."""
    return model.norm(tokens)


FAMILY = jzi.Family(
    model_class=ToyModel,
    config_class=ToyConfig,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    tokens=patch_tokens,
    pool=mean_token,  # its name is part of the encoder's fingerprint: a lambda has none
    patches=normed_tokens,
    final=("norm",),
)

if __name__ == "__main__":
    torch.manual_seed(0)
    ToyModel(ToyConfig()).save_pretrained(sys.argv[1])
