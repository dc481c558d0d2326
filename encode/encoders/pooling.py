"""Poolings of feature maps to one embedding: attention over all tokens, and those of other methods.

As in the code of Fervers et al. 2024 (github.com/fferflo/statewide-visual-geolocalization), whose table 4 compares
them. Every module takes the feature maps of the images of a photo (one) or of a cell (one per level of detail).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jzi.errors import ConfigError

#: Poolings by name. "class" is TransGeo's, for transformers with a class and a distillation token.
POOLINGS = ("attention", "mean", "sample4geo", "safa", "smd", "class")

#: Heads of "smd", fixed in the authors' code.
SMD_HEADS = 8


class AttentionPooling(nn.Module):
    """Attention of one learned query per head over the tokens of all images (Fervers et al. 2024, section 3.3).

    As in the authors' code, the scores of all heads are one linear map of the token, without a bias, and there is no
    projection of the output: `nn.MultiheadAttention` with one learned query and an identity output projection computes
    the same. The embedding does not depend on the order of the tokens; there are no positions.

    Args:
        channels: number of features of a token.
        width: number of features of the embedding, a multiple of the heads.
        heads: number of heads.

    Example:
        >>> pooling = AttentionPooling(1024, 1024, 64)
        >>> sum(parameter.numel() for parameter in pooling.parameters())
        1117184
        >>> pooling(torch.randn(2, 4, 12, 12, 1024)).shape
        torch.Size([2, 1024])
    """

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)  # eps 1e-5
        self.score = nn.Linear(channels, heads, bias=False)
        self.value = nn.Linear(channels, width)
        _initialise(self)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool feature maps, (n, image, row, col, feature), to (n, width)."""
        tokens = self.norm(maps.flatten(1, 3))
        share = self.score(tokens).softmax(1)  # (n, token, head)
        value = self.value(tokens).unflatten(2, (self.heads, -1))  # (n, token, head, feature)
        return torch.einsum("nthf,nth->nhf", value, share).flatten(1)


class MeanPooling(nn.Module):
    """The mean of all tokens, a layernorm and a linear map.

    Args:
        channels: number of features of a token.
        width: number of features of the embedding.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.value = nn.Linear(channels, width)
        _initialise(self)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool feature maps, (n, image, row, col, feature), to (n, width)."""
        return self.value(self.norm(maps.mean((1, 2, 3))))


class Sample4GeoPooling(nn.Module):
    """The mean of all tokens and a layernorm, as in Sample4Geo (Deuser et al. 2023); the width is that of the tokens.

    Args:
        channels: number of features of a token and of the embedding.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool feature maps, (n, image, row, col, feature), to (n, feature)."""
        return self.norm(maps.mean((1, 2, 3)))


class SafaPooling(nn.Module):
    """Spatial-aware feature aggregation (Shi et al. 2019): weighted sums over positions, with weights from all of them.

    Its weights belong to positions, so that it is for one size and number of images.

    Args:
        channels: number of features of a token.
        width: number of features of the embedding, a multiple of the heads.
        heads: number of weighted sums.
        shape: number of images, and rows and columns of a feature map.
    """

    def __init__(self, channels: int, width: int, heads: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        images, rows, cols = shape
        positions = images * math.ceil(rows / 2) * math.ceil(cols / 2)
        hidden = positions // 2
        if not hidden:
            raise ConfigError(f"the pooling safa has no weights for {rows} x {cols} tokens: give larger images")
        self.shape = shape
        self.norm = nn.LayerNorm(channels)
        self.value = nn.Linear(channels, width // heads)
        self.halve = nn.MaxPool2d(2, ceil_mode=True)  # padding "SAME" of Flax
        self.squeeze = nn.Linear(positions, heads * hidden)
        self.expand = nn.Parameter(torch.empty(heads, hidden, positions))
        self.bias = nn.Parameter(torch.zeros(heads, positions))
        _initialise(self)
        _lecun_normal(self.expand, hidden)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool feature maps, (n, image, row, col, feature), to (n, width)."""
        _check_shape("safa", maps, self.shape)
        features = self.value(self.norm(maps)).permute(0, 1, 4, 2, 3)  # (n, image, feature, row, col)
        halved = self.halve(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        tokens = halved.permute(0, 1, 3, 4, 2).flatten(1, 3)  # (n, position, feature)
        hidden = self.squeeze(tokens.mean(2)).unflatten(1, (self.expand.shape[:2]))  # (n, head, hidden)
        weight = torch.einsum("nhs,hsp->nhp", hidden, self.expand) + self.bias
        return torch.einsum("npf,nhp->nhf", tokens, weight).flatten(1)


class SmdPooling(nn.Module):
    """The spatial-mixed descriptor of SAIG (Zhu et al. 2023): an MLP over positions, then weighted sums over them.

    Its weights belong to positions, so that it is for one size and number of images.

    Args:
        channels: number of features of a token.
        width: number of features of the embedding, a multiple of 8.
        shape: number of images, and rows and columns of a feature map.
    """

    def __init__(self, channels: int, width: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        positions = math.prod(shape)
        self.shape = shape
        self.norm = nn.LayerNorm(channels)
        self.value = nn.Linear(channels, width // SMD_HEADS)
        self.mix = nn.Sequential(
            nn.Linear(positions, 4 * positions), nn.GELU("tanh"), nn.Linear(4 * positions, positions)
        )
        self.sum = nn.Linear(positions, SMD_HEADS)
        _initialise(self)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool feature maps, (n, image, row, col, feature), to (n, width)."""
        _check_shape("smd", maps, self.shape)
        tokens = self.value(self.norm(maps.flatten(1, 3))).mT  # (n, feature, position)
        return self.sum(self.mix(tokens)).mT.flatten(1)  # (n, head * feature)


class ClassPooling(nn.Module):
    """The mean of linear maps of the class and the distillation token, as in TransGeo (Zhu et al. 2022).

    Args:
        channels: number of features of a token.
        width: number of features of the embedding.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.class_value = nn.Linear(channels, width)
        self.distillation_value = nn.Linear(channels, width)
        _initialise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool the class and the distillation token, (n, token, feature), to (n, width)."""
        tokens = self.norm(tokens)
        return 0.5 * (self.class_value(tokens[:, 0]) + self.distillation_value(tokens[:, 1]))


def make_pooling(name: str, channels: int, width: int, heads: int, shape: tuple[int, int, int]) -> nn.Module:
    """Make a pooling with random weights.

    Args:
        name: one of `POOLINGS`.
        channels: number of features of a token.
        width: number of features of the embedding.
        heads: of "attention" and "safa".
        shape: number of images, and rows and columns of a feature map; for "safa" and "smd", whose weights belong to
            positions.

    Returns:
        The module. It takes (n, image, row, col, feature) feature maps, "class" (n, token, feature) tokens.

    Raises:
        ConfigError: there is no such pooling, or the numbers do not fit it.
    """
    divisor = {"attention": heads, "safa": heads, "smd": SMD_HEADS}.get(name, 1)
    if width % divisor:
        raise ConfigError(
            f"the pooling {name} of {divisor} heads has a width of {width}: it must be a multiple of them"
        )
    if name == "sample4geo" and width != channels:
        raise ConfigError(
            f"the pooling sample4geo has a width of {width}: it must be that of its encoder's features, {channels}"
        )
    match name:
        case "attention":
            return AttentionPooling(channels, width, heads)
        case "mean":
            return MeanPooling(channels, width)
        case "sample4geo":
            return Sample4GeoPooling(channels)
        case "safa":
            return SafaPooling(channels, width, heads, shape)
        case "smd":
            return SmdPooling(channels, width, shape)
        case "class":
            return ClassPooling(channels, width)
    raise ConfigError(f"there is no pooling {name!r:.60}: use one of {', '.join(POOLINGS)}")


def _initialise(module: nn.Module) -> None:
    """LeCun normal weights and zero biases, the defaults of Flax."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            _lecun_normal(part.weight, part.in_features)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _lecun_normal(weight: Tensor, inputs: int) -> None:
    """Normal of variance 1 / inputs, cut at two standard deviations, whose own variance is 0.8796 squared."""
    std = math.sqrt(1 / inputs) / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def _check_shape(name: str, maps: Tensor, shape: tuple[int, int, int]) -> None:
    if maps.shape[1:4] != shape:
        raise ConfigError(
            f"the pooling {name} is for {' x '.join(map(str, shape))} images, rows and columns of features, not "
            f"{' x '.join(map(str, maps.shape[1:4]))}: images must have the size that it was made for"
        )
