"""Beam search over the pyramid: paths and their probabilities from embeddings of photos.

By the chain rule the product over the steps is the probability of the cell; children without imagery are masked in
every step's softmax. A restricted table (`TileTable.restricted`) confines search to some of the tiles, and leaves their
probabilities unchanged. One beam is greedy search, the reference's protocol.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.decode.decoder import KeyValues, ZoomDecoder
from jzi.decode.packed import PackedDecoder, PackedKeyValues
from jzi.decode.tile_table import TileTable

#: Photos times beams of one search, before `DecoderConfig.batch` scales it down for patch tokens: keys and values of
#: the paper's decoder then take 1.2 GB.
HYPOTHESES = 4096

#: Photos per batch of greedy search: 4096 x 9 tokens of the paper's decoder take about 0.5 GB.
BATCH = 4096


@dataclass(frozen=True)
class BeamSearchResult:
    """Paths of a search, the most probable first.

    Attributes:
        paths: (query, beam, L) int64 actions.
        log_probability: (query, beam, L) log-probability of each action given those before it; -inf in surplus beams
            if fewer cells have imagery than there are beams.
        dropped: (query,) float64 total probability of the tiles and cells that search could enter, but dropped for
            others that are more probable.
    """

    paths: Tensor
    log_probability: Tensor
    dropped: Tensor


@torch.inference_mode()
def zoom(
    decoder: ZoomDecoder | PackedDecoder,
    table: TileTable,
    query: Tensor,
    beams: int = 1,
    *,
    cells: int | None = None,
    temperature: Tensor | None = None,
) -> BeamSearchResult:
    """Search the pyramid for each photo.

    Args:
        decoder: in eval mode, on the table's device; `PackedDecoder` is the faster one for many searches.
        table: the map.
        query: (query, feature) embeddings of photos on the table's device.
        beams: hypotheses kept after every step.
        cells: hypotheses kept after the last step; `beams` by default.
        temperature: (L,) divisors of the logits of each step; ones by default.

    Returns:
        The paths.

    Raises:
        CacheError: the decoder reads patch tokens, and the table has none.
        ConfigError: the decoder reads more patch tokens than a tile has.
    """
    limit = max(1, decoder.config.batch(HYPOTHESES) // beams)
    if len(query) > limit:
        parts = [zoom(decoder, table, part, beams, cells=cells, temperature=temperature) for part in query.split(limit)]
        return BeamSearchResult(
            torch.cat([part.paths for part in parts]),
            torch.cat([part.log_probability for part in parts]),
            torch.cat([part.dropped for part in parts]),
        )
    pyramid, n = table.pyramid, len(query)
    g, actions = pyramid.grid, pyramid.actions
    row = torch.zeros(n, 1, dtype=torch.int64, device=table.device)  # (query, beam)
    col = torch.zeros_like(row)
    paths = torch.empty(n, 1, 0, dtype=torch.int64, device=table.device)
    steps = torch.empty(n, 1, 0, device=table.device)
    dropped = torch.zeros(n, dtype=torch.float64, device=table.device)
    past: KeyValues | PackedKeyValues | None = None
    for level in range(pyramid.levels):
        tile = table.index(level, row, col)  # (query, beam)
        tokens = table.tokens(tile, query, decoder.config.patch_tokens).flatten(0, 1)  # (query * beam, ...)
        tile = tile.flatten()
        if past is None:
            logits, past = decoder.prefill(query.float(), tokens)
        else:
            logits, past = decoder.step(paths[..., -1].flatten(), tokens, past)  # type: ignore[arg-type]
        step = step_log_probability(logits, table.child_mask[tile], None if temperature is None else temperature[level])
        step = step.masked_fill(~table.search_mask[tile], -torch.inf).view(n, -1, actions)
        total = (steps.sum(-1, keepdim=True) + step).flatten(1)  # (query, beam * action)
        width = cells if cells and level + 1 == pyramid.levels else beams
        best = total.topk(min(width, total.shape[1]), dim=1).indices
        dropped += total.double().scatter(1, best, -torch.inf).exp().sum(1)
        beam, action = best // actions, best % actions
        paths = torch.cat([_take(paths, beam), action[..., None]], dim=-1)
        steps = torch.cat([_take(steps, beam), step.flatten(1).gather(1, best)[..., None]], dim=-1)
        row = row.gather(1, beam) * g + action // g
        col = col.gather(1, beam) * g + action % g
        if beams > 1 and level + 1 < pyramid.levels:
            first = torch.arange(n, device=table.device)[:, None] * step.shape[1]
            past = past.select((first + beam).flatten())
    return BeamSearchResult(paths, steps, dropped)


def step_log_probability(logits: Tensor, child_mask: Tensor, temperature: Tensor | None) -> Tensor:
    """Log-probabilities of the children of tiles; -inf for those without imagery.

    Args:
        logits: (tile, action).
        child_mask: (tile, action) whether each child has imagery.
        temperature: divisor of the logits; one by default.
    """
    if temperature is not None:
        logits = logits / temperature
    logits = logits.float().masked_fill(~child_mask, -torch.inf)
    return logits.log_softmax(-1).masked_fill(~child_mask, -torch.inf)  # NaN if all are masked


def _take(values: Tensor, beam: Tensor) -> Tensor:
    """Select beams of (query, beam, step) values."""
    return values.gather(1, beam[..., None].expand(-1, -1, values.shape[-1]))


def greedy_paths(decoder: ZoomDecoder, table: TileTable, query: Tensor) -> NDArray[np.int64]:
    """Search greedily, as in the reference's protocol.

    Args:
        decoder: in eval mode, on the table's device.
        table: the map.
        query: (photo, feature) embeddings of photos.

    Returns:
        (photo, L) actions.
    """
    paths = [zoom(decoder, table, batch.to(table.device)).paths[:, 0] for batch in query.split(BATCH)]
    return torch.cat(paths).cpu().numpy()
