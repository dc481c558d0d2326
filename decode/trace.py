"""What a zoom decided at each of its steps, and what it attended to: for reports of single photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.decode.decoder import Block, SelfAttention, ZoomDecoder, rotary, rotate
from jzi.decode.expert import ZoomExpert
from jzi.decode.search import greedy_paths

#: Photos that are traced at once: attention of all layers is kept for one of them at a time.
BATCH = 16


@dataclass(frozen=True)
class ZoomTrace:
    """Greedy zooms, as in the paper's protocol, step by step.

    Attributes:
        paths: (photo, L) actions that greedy search chose.
        probability: (photo, L, action) probability of each child of the tile of a step, 0 without imagery; with the
            model's temperatures.
        patch: (photo, L, k) numbers of the patch tokens of each step's tile that the decoder reads, row by row; None
            if it reads none.
        attention: (photo, L, k) attention of the step's last token, of which its logits are computed, to these tokens:
            the mean over heads and layers; None if it reads none.
    """

    paths: NDArray[np.int64]
    probability: NDArray[np.float64]
    patch: NDArray[np.int64] | None
    attention: NDArray[np.float64] | None


@torch.inference_mode()
def trace_zoom(expert: ZoomExpert, query: Tensor) -> ZoomTrace:
    """Zoom greedily, and record every step.

    Args:
        expert: the zoom.
        query: (photo, feature) embeddings of photos; at least one.

    Raises:
        CacheError: the decoder reads patch tokens, and the map has none.
    """
    decoder, table, k = expert.model.decoder, expert.table, expert.model.decoder.config.patch_tokens
    paths = greedy_paths(decoder, table, query)
    tiles, actions = table.tiles_along(paths), torch.from_numpy(paths).to(table.device)
    probability, patch, attention = [], [], []
    for part in torch.arange(len(paths)).split(BATCH):
        photos = query[part].to(table.device).float()
        tokens = table.tokens(tiles[part], photos, k)
        logits = decoder(photos, tokens, actions[part])
        if expert.model.temperature is not None:
            logits = logits / expert.model.temperature[:, None]
        logits = logits.masked_fill(~table.child_mask[tiles[part]], -torch.inf)
        probability.append(logits.double().softmax(-1).nan_to_num(nan=0.0))
        if k:
            patches = table.require_patches(k)
            patch.append(
                torch.stack(
                    [
                        patches.similarity(tiles[index], query[index][None].expand(tiles.shape[1], -1)).topk(k).indices
                        for index in part.tolist()
                    ]
                )
            )
            attention.append(patch_attention(decoder, photos, tokens, actions[part]))
    return ZoomTrace(
        paths,
        torch.cat(probability).cpu().numpy(),
        torch.cat(patch).cpu().numpy() if patch else None,
        torch.cat(attention).double().cpu().numpy() if attention else None,
    )


@torch.inference_mode()
def patch_attention(decoder: ZoomDecoder, query: Tensor, tiles: Tensor, actions: Tensor) -> Tensor:
    """Attention of the last token of each step to the patch tokens of its tile, the mean over heads and layers.

    Args:
        decoder: in eval mode.
        query: (photo, feature) embeddings of photos.
        tiles: (photo, step, 1 + k, feature) embeddings of tiles, each followed by its patch tokens.
        actions: (photo, step) int64.

    Returns:
        (photo, step, k); a step's sum is the share of the attention that its patch tokens get, at most 1.
    """
    before = torch.cat([query[:, None], decoder.action_embed(actions[:, :-1])], dim=1)
    groups = torch.cat([before[:, :, None], tiles], dim=2)  # (photo, step, 2 + k, feature), as the decoder reads them
    steps, size = groups.shape[1:3]
    x = groups.flatten(1, 2)
    cos_sin = rotary(x.shape[1], 0, decoder.config.width // decoder.config.heads, x.device)
    last = torch.arange(steps, device=x.device) * size + size - 1
    own = last[:, None] - size + 3 + torch.arange(size - 2, device=x.device)  # (step, k)
    total = torch.zeros(len(x), steps, size - 2, device=x.device)
    for module in decoder.blocks:
        block = cast(Block, module)
        weights = _attention_weights(block.self_attn, block.norm1(x), cos_sin).mean(1)
        total += weights[:, last[:, None], own]
        x, _ = block(x, None, cos_sin)
    return total / len(decoder.blocks)


def _attention_weights(attention: SelfAttention, x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """(photo, head, token, token) causal attention of `SelfAttention.forward`."""
    q, k = (
        part(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in (attention.q_proj, attention.k_proj)
    )
    q, k = rotate(q, *cos_sin), rotate(k, *cos_sin)
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).tril()
    return scores.masked_fill(~mask, -torch.inf).softmax(-1)
