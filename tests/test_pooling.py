"""Poolings compute what their papers' code does, on tiny random feature maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from jzi.encode.encoders.pooling import POOLINGS, AttentionPooling, SafaPooling, SmdPooling, make_pooling
from jzi.errors import ConfigError

SHAPE = (3, 5, 4)


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.randn(2, *SHAPE, 32, generator=torch.Generator().manual_seed(0))


def made(name: str, width: int = 48, heads: int = 4) -> nn.Module:
    torch.manual_seed(1)
    pooling = make_pooling(name, 32, width, heads, SHAPE)
    for parameter in pooling.parameters():  # no weight is left at 0 or 1, where an error in it could not be seen
        nn.init.normal_(parameter, std=0.3)
    return pooling.eval()


@torch.no_grad()
def test_attention_pooling_is_multihead_attention_with_one_learned_query(maps) -> None:
    pooling, heads, width = AttentionPooling(32, 32, 4), 4, 32
    nn.init.normal_(pooling.value.bias)
    attention = nn.MultiheadAttention(width, heads, batch_first=True)
    query = torch.randn(1, 1, width)
    # The score of a head is q_h . (K_h x) / sqrt(d): fold the projected query into the keys' weights
    projected = (query[0, 0] @ attention.in_proj_weight[:width].T).view(heads, -1)
    keys = attention.in_proj_weight[width : 2 * width].view(heads, -1, width)
    pooling.score.weight.copy_(torch.einsum("hd,hdc->hc", projected, keys) / math.sqrt(width // heads))
    attention.in_proj_weight[2 * width :] = pooling.value.weight
    attention.in_proj_bias.zero_()
    attention.in_proj_bias[2 * width :] = pooling.value.bias
    attention.out_proj.weight.copy_(torch.eye(width))
    attention.out_proj.bias.zero_()
    tokens = pooling.norm(maps.flatten(1, 3))
    expected, _ = attention(query.expand(2, 1, width), tokens, tokens)
    torch.testing.assert_close(pooling(maps), expected[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["attention", "mean", "sample4geo"])
@torch.no_grad()
def test_the_order_of_tokens_and_images_changes_nothing(maps, name: str) -> None:
    pooling = made(name, 32)
    order = torch.randperm(math.prod(SHAPE), generator=torch.Generator().manual_seed(2))
    shuffled = maps.flatten(1, 3)[:, order].unflatten(1, SHAPE)
    torch.testing.assert_close(pooling(shuffled), pooling(maps), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["safa", "smd"])
@torch.no_grad()
def test_poolings_with_weights_of_positions_depend_on_the_order(maps, name: str) -> None:
    pooling = made(name)
    assert (pooling(maps.flip(2)) - pooling(maps)).abs().max() > 1e-2


@torch.no_grad()
def test_any_number_of_images_and_tokens_is_pooled_by_attention() -> None:
    pooling = made("attention")
    assert pooling(torch.randn(5, 1, 15, 20, 32)).shape == (5, 48)
    assert pooling(torch.randn(5, 4, 3, 3, 32)).shape == (5, 48)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("attention", 2048 + 1024 * 64 + 1024 * 1024 + 1024),
        ("mean", 2048 + 1024 * 1024 + 1024),
        ("sample4geo", 2048),
        ("class", 2048 + 2 * (1024 * 1024 + 1024)),
    ],
)
def test_the_number_of_parameters_is_that_of_the_published_model(name: str, parameters: int) -> None:
    with torch.device("meta"):
        pooling = make_pooling(name, 1024, 1024, 64, (4, 12, 12))
    assert sum(each.numel() for each in pooling.parameters()) == parameters
    assert name != "attention" or parameters == 1_117_184


@torch.no_grad()
def test_safa_weighs_the_maxima_of_squares_of_tokens(maps) -> None:
    pooling = made("safa")
    assert isinstance(pooling, SafaPooling)
    value = pooling.value(pooling.norm(maps)).numpy()  # (n, image, row, col, feature)
    maxima = [
        value[:, image, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].max((1, 2))
        for image in range(3)
        for row in range(3)  # of 5 rows the last stands alone
        for col in range(2)
    ]
    tokens = np.stack(maxima, 1)  # (n, position, feature)
    squeeze = pooling.squeeze.weight.numpy().reshape(4, 9, 18), pooling.squeeze.bias.numpy().reshape(4, 9)
    parts = []
    for head in range(4):
        hidden = tokens.mean(2) @ squeeze[0][head].T + squeeze[1][head]
        weight = hidden @ pooling.expand[head].numpy() + pooling.bias[head].numpy()
        parts.append((tokens * weight[:, :, None]).sum(1))
    np.testing.assert_allclose(pooling(maps), np.concatenate(parts, 1), atol=1e-4)


@torch.no_grad()
def test_smd_mixes_positions_and_sums_over_them_eight_times(maps) -> None:
    pooling = made("smd")
    assert isinstance(pooling, SmdPooling)
    tokens = pooling.value(pooling.norm(maps.flatten(1, 3)))  # (n, position, feature)
    rows = []
    for feature in range(6):
        hidden = nn.functional.gelu(pooling.mix[0](tokens[:, :, feature]), approximate="tanh")
        rows.append(pooling.sum(pooling.mix[2](hidden)))
    torch.testing.assert_close(pooling(maps), torch.stack(rows, 2).flatten(1), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_class_pooling_reads_two_tokens_and_averages() -> None:
    pooling, tokens = made("class"), torch.randn(2, 7, 32)
    first, second = tokens.clone(), tokens.clone()
    first[:, 0], second[:, 1] = 0, 0
    assert (pooling(first) != pooling(tokens)).any() and (pooling(second) != pooling(tokens)).any()
    torch.testing.assert_close(pooling(tokens[:, :2]), pooling(tokens))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("attention", 32, 50, 4, SHAPE), "multiple"),
        (("smd", 32, 42, 4, SHAPE), "multiple"),
        (("sample4geo", 32, 64, 4, SHAPE), "encoder's features, 32"),
        (("safa", 32, 48, 4, (1, 2, 2)), "larger images"),
        (("gem", 32, 48, 4, SHAPE), "attention, mean, sample4geo"),
    ],
)
def test_what_does_not_fit_is_refused(options, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        make_pooling(*options)


@pytest.mark.parametrize("name", ["safa", "smd"])
def test_images_of_another_size_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="3 x 5 x 4"):
        made(name)(torch.randn(2, 3, 5, 5, 32))


def test_every_pooling_has_a_name() -> None:
    for name in POOLINGS:
        assert isinstance(make_pooling(name, 32, 32, 4, SHAPE), nn.Module)
