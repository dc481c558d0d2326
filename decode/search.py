"""Zooming: from the embeddings of photos to paths with probabilities, off the cache.

A beam of one is greedy search, the reference's protocol. By the chain rule the product over the steps is the
probability of the cell; children with no imagery are left out of every step's softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.decode.decoder import KeyValues, ZoomDecoder
from jzi.decode.tile_table import TileTable

#: Photos times beams that would be searched at once without patch tokens; with them it is as many as take as much room.
#: Keys and values of the paper's decoder then take 1.2 GB.
PAIRS = 4096


#: Photos to a batch of greedy search: 4096 x 9 tokens of the paper's decoder take about 0.5 GB.
BATCH = 4096


@dataclass(frozen=True)
class BeamSearchResult:
    """What a search found, best first.

    Attributes:
        paths: (query, beam, L) actions.
        log_probability: (query, beam, L) of each action given those before it; -inf in beams that fill up the tensor
            where fewer cells have imagery than beams were asked for.
    """

    paths: Tensor
    log_probability: Tensor


@torch.inference_mode()
def zoom(
    decoder: ZoomDecoder,
    table: TileTable,
    query: Tensor,
    beams: int = 1,
    *,
    cells: int | None = None,
    temperature: Tensor | None = None,
) -> BeamSearchResult:
    """Search the pyramid for each photo.

    Args:
        decoder: in eval mode, on the table's device.
        table: the map.
        query: (query, feature) embeddings of photos on the table's device.
        beams: hypotheses kept after every step.
        cells: hypotheses kept after the last step; as many as `beams` if not given.
        temperature: (L,) what the logits of each step are divided by; ones if not given.
    """
    most = max(1, decoder.config.batch(PAIRS) // beams)
    if decoder.config.patch_tokens and len(query) > most:
        parts = [zoom(decoder, table, part, beams, cells=cells, temperature=temperature) for part in query.split(most)]
        return BeamSearchResult(
            torch.cat([part.paths for part in parts]), torch.cat([part.log_probability for part in parts])
        )
    pyramid, n = table.pyramid, len(query)
    g, actions = pyramid.grid, pyramid.actions
    row = torch.zeros(n, 1, dtype=torch.int64, device=table.device)  # (query, beam)
    col = torch.zeros_like(row)
    paths = torch.empty(n, 1, 0, dtype=torch.int64, device=table.device)
    steps = torch.empty(n, 1, 0, device=table.device)
    past: KeyValues | None = None
    for level in range(pyramid.levels):
        tile = table.index(level, row, col)  # (query, beam)
        seen, below = table.read(decoder.config, tile, query)
        seen = seen.flatten(0, 1)  # (query * beam, ...)
        below = None if below is None else below.flatten(0, 1)
        tile = tile.flatten()
        if past is None:
            logits, past = decoder.prefill(query.float(), seen, below)
        else:
            logits, past = decoder.step(paths[..., -1].flatten(), seen, past, below)
        if temperature is not None:
            logits = logits / temperature[level]
        logits = logits.float().masked_fill(~table.child_mask[tile], -torch.inf)
        step = logits.log_softmax(-1).nan_to_num(nan=-torch.inf).view(n, -1, actions)  # nan: there is nothing below
        total = (steps.sum(-1, keepdim=True) + step).flatten(1)  # (query, beam * action)
        kept = cells if cells and level + 1 == pyramid.levels else beams
        best = total.topk(min(kept, total.shape[1]), dim=1).indices
        beam, action = best // actions, best % actions
        paths = torch.cat([_take(paths, beam), action[..., None]], dim=-1)
        steps = torch.cat([_take(steps, beam), step.flatten(1).gather(1, best)[..., None]], dim=-1)
        row = row.gather(1, beam) * g + action // g
        col = col.gather(1, beam) * g + action % g
        if beams > 1 and level + 1 < pyramid.levels:
            first = torch.arange(n, device=table.device)[:, None] * step.shape[1]
            past = past.select((first + beam).flatten())
    return BeamSearchResult(paths, steps)


def _take(values: Tensor, beam: Tensor) -> Tensor:
    """(query, beam, step) of the beams that live on."""
    return values.gather(1, beam[..., None].expand(-1, -1, values.shape[-1]))


def greedy_paths(decoder: ZoomDecoder, table: TileTable, query: Tensor) -> NDArray[np.int64]:
    """(photo, L) actions of greedy search, the reference's protocol, for (photo, feature) embeddings."""
    paths = [zoom(decoder, table, batch.to(table.device)).paths[:, 0] for batch in query.split(BATCH)]
    return torch.cat(paths).cpu().numpy()
