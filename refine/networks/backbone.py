"""ConvNeXt (Liu et al. 2022), cut into stages that two heads share, with circular padding for panoramas.

Names of parameters are those of transformers' `ConvNextModel`. Blocks are written anew here because its padding cannot
be circular for some images of a batch only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from jzi.encode.encoders.families import IMAGENET
from jzi.encode.encoders.hf_model import load_model
from jzi.errors import EncoderError
from jzi.refine.config import STEM, UnifyGeoConfig

#: Added to the variance by every layer norm of a ConvNeXt.
_EPSILON = 1e-6

#: Deviation of random weights, as in transformers.
_DEVIATION = 0.02


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (n, channel, row, col)."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise each position."""
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """Depthwise convolution, layer norm and a two-layer perceptron, with a residual connection.

    Args:
        width: number of channels.
        layer_scale: initial scale of the residual branch.
        kernel: side of the depthwise convolution, odd.
        dropout: probability of dropout of the residual branch's hidden features.
    """

    def __init__(self, width: int, layer_scale: float, kernel: int = 7, dropout: float = 0.0) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.layernorm = nn.LayerNorm(width, eps=_EPSILON)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.layer_scale_parameter = nn.Parameter(torch.full((width,), layer_scale))
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, ring: Tensor | None = None) -> Tensor:
        """Run the block.

        Args:
            features: (n, width, row, col).
            ring: (n,) bool, the images that are padded circularly along the columns; none by default.
        """
        mixed = self.dwconv(features) if ring is None else self._convolve_ring(features, ring)
        hidden = self.dropout(functional.gelu(self.pwconv1(self.layernorm(mixed.permute(0, 2, 3, 1)))))
        return features + (self.layer_scale_parameter * self.pwconv2(hidden)).permute(0, 3, 1, 2)

    def _convolve_ring(self, features: Tensor, ring: Tensor) -> Tensor:
        pad, columns = self.dwconv.kernel_size[1] // 2, features.shape[3]
        column = torch.arange(-pad, columns + pad, device=features.device)
        inside = (column >= 0) & (column < columns)
        kept = inside | ring[:, None]  # (n, columns + 2 pad)
        padded = features[..., column % columns] * kept[:, None, None]
        weight, bias = self.dwconv.weight, self.dwconv.bias
        return functional.conv2d(padded, weight, bias, padding=(pad, 0), groups=features.shape[1])


class ConvNextStage(nn.Module):
    """Blocks, after halving the resolution unless it is the first stage.

    Args:
        channels: channels of the input; None for the first stage, which keeps them.
        width: channels of the output.
        depth: number of blocks.
        layer_scale: initial scale of the residual branches.
        kernel: side of the depthwise convolutions.
    """

    def __init__(self, channels: int | None, width: int, depth: int, layer_scale: float, kernel: int = 7) -> None:
        super().__init__()
        down = [] if channels is None else [ChannelNorm(channels, eps=_EPSILON), nn.Conv2d(channels, width, 2, 2)]
        self.downsampling_layer = nn.ModuleList(down)
        self.layers = nn.ModuleList(ConvNextBlock(width, layer_scale, kernel) for _ in range(depth))

    def forward(self, features: Tensor, ring: Tensor | None = None) -> Tensor:
        """(n, channel, row, col) to half the resolution; `ring` as of `ConvNextBlock`."""
        for layer in self.downsampling_layer:
            features = layer(features)
        for block in self.layers:
            features = block(features, ring)
        return features


class ConvNextStem(nn.Module):
    """Patches of 4 x 4 pixels, normalised.

    Args:
        width: channels of the output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch_embeddings = nn.Conv2d(3, width, STEM, STEM)
        self.layernorm = ChannelNorm(width, eps=_EPSILON)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, H, W) to (n, width, H / 4, W / 4)."""
        return self.layernorm(self.patch_embeddings(pixels))


@dataclass(frozen=True)
class BranchFeatures:
    """Feature maps of a branch.

    Attributes:
        maps: (n, C, row, col) F^0 to F^3: of the head for positions, and of the shared stages from the last to the
            first.
        semantic: (n, C, row, col) G, of the head for retrieval.
    """

    maps: tuple[Tensor, ...]
    semantic: Tensor


class ConvNextBranch(nn.Module):
    """Three stages of a ConvNeXt, and its last one twice, cut short: for positions and for retrieval.

    Args:
        config: of UnifyGeo.
    """

    def __init__(self, config: UnifyGeoConfig) -> None:
        super().__init__()
        widths, scale = config.widths, config.layer_scale
        self.embeddings = ConvNextStem(widths[0])
        self.stages = nn.ModuleList(
            ConvNextStage(widths[index - 1] if index else None, widths[index], depth, scale)
            for index, depth in enumerate(config.depths)
        )
        self.fine_head, self.semantic_head = (
            ConvNextStage(widths[2], widths[3], config.head_blocks, scale) for _ in range(2)
        )
        self.apply(init_weights)

    def forward(self, pixels: Tensor, ring: Tensor | None = None) -> BranchFeatures:
        """Feature maps of (n, 3, H, W) images; `ring` as of `ConvNextBlock`."""
        shared = self._shared(pixels, ring)
        fine = self.fine_head(shared[-1], ring)
        return BranchFeatures((fine, *shared[::-1]), self.semantic_head(shared[-1], ring))

    def semantic(self, pixels: Tensor, ring: Tensor | None = None) -> Tensor:
        """G alone, (n, C, row, col)."""
        return self.semantic_head(self._shared(pixels, ring)[-1], ring)

    def _shared(self, pixels: Tensor, ring: Tensor | None) -> list[Tensor]:
        features, maps = self.embeddings(pixels), []
        for stage in self.stages:
            features = stage(features, ring)
            maps.append(features)
        return maps

    def load_pretrained(self, name: str | Path) -> None:
        """Take the weights of a ConvNeXt of transformers; both heads become copies of the beginning of its last stage.

        Args:
            name: Hugging Face id, or a folder written by `save_pretrained`.

        Raises:
            EncoderError: the model cannot be loaded, is no ConvNeXt, or has other widths or fewer blocks.
        """
        loaded = load_model(name, global_embedding=False)
        model: Any = loaded.model
        if model.config.model_type != "convnext":
            raise EncoderError(f"{name} is a {model.config.model_type!r} model, but UnifyGeo is made of a ConvNeXt")
        if (loaded.mean, loaded.std) != IMAGENET:
            raise EncoderError(f"{name} expects pixels that are not normalised as ImageNet's: give another ConvNeXt")
        stages = model.encoder.stages
        parts = [(self.embeddings, model.embeddings), *zip(self.stages, stages, strict=False)]
        parts += [(self.fine_head, stages[-1]), (self.semantic_head, stages[-1])]
        for part, source in parts:
            own, weights = part.state_dict(), source.state_dict()
            if len(stages) != 4 or any(key not in weights or weights[key].shape != own[key].shape for key in own):
                raise EncoderError(
                    f"{name} has widths {model.config.hidden_sizes} and depths {model.config.depths}, which do not fit "
                    "refine.widths and refine.depths: give a ConvNeXt of the same size, such as "
                    "facebook/convnext-tiny-224"
                )
            part.load_state_dict({key: weights[key] for key in own})


def init_weights(module: nn.Module) -> None:
    """Set random weights of linear and convolutional layers as transformers does for a ConvNeXt."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=_DEVIATION)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
