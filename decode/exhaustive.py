"""Probabilities of all cells of a small pyramid: the zoom follows every path that matters.

Search expands, for each photo, the fewest tiles that hold nearly all of its probability. The rest is spread evenly over
the cells below the other tiles, so that every cell has a probability and their sum is 1. A beam of fixed width spends
most of its time on tiles that have next to none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jzi.decode.decoder import KeyValues, ZoomDecoder
from jzi.decode.packed import PackedDecoder, PackedKeyValues
from jzi.decode.search import HYPOTHESES, BeamSearchResult, step_log_probability
from jzi.decode.tile_table import TileTable
from jzi.locate.posterior import require_finite

#: Probability of a photo that is spread evenly over the cells of tiles that are not expanded, at most.
SPREAD = 0.003


@torch.inference_mode()
def zoom_everywhere(
    decoder: ZoomDecoder | PackedDecoder,
    table: TileTable,
    query: Tensor,
    *,
    temperature: Tensor | None = None,
    spread: float = SPREAD,
) -> BeamSearchResult:
    """Compute the probabilities of all cells for each photo.

    The number of tiles differs by photo and is read on the host, so this is meant for the CPU; accelerators are faster
    with the fixed shapes of `jzi.decode.search.zoom` and a beam that is as wide as the map.

    Args:
        decoder: in eval mode, on the table's device.
        table: the map.
        query: (query, feature) embeddings of photos on the table's device.
        temperature: (L,) divisors of the logits of each step; ones by default.
        spread: probability that may be spread evenly, 0..1; with 0 every tile is expanded.

    Returns:
        The paths of all cells; nothing is dropped.

    Raises:
        CacheError: the decoder reads patch tokens, and the table has none.
        ConfigError: the decoder reads more patch tokens than a tile has.
        ModelError: the probabilities of all photos are nan.
    """
    actions, levels = table.pyramid.actions, table.pyramid.levels
    photos = max(1, decoder.config.batch(HYPOTHESES) // actions ** (levels - 1))
    tiles = _tiles_by_path(table)
    even = _even_steps(table, tiles)
    parts = [_search(decoder, table, tiles, even, part, temperature, spread) for part in query.split(photos)]
    steps, order = (torch.cat(values) for values in zip(*parts, strict=True))
    paths = torch.stack([order // actions ** (levels - 1 - level) % actions for level in range(levels)], -1)
    return BeamSearchResult(paths, steps, torch.zeros(len(query), dtype=torch.float64, device=table.device))


def _search(
    decoder: ZoomDecoder | PackedDecoder,
    table: TileTable,
    tiles: list[Tensor],
    even: list[Tensor],
    query: Tensor,
    temperature: Tensor | None,
    spread: float,
) -> tuple[Tensor, Tensor]:
    """(query, cell, L) log-probability of each step to the cells, the most probable first, and (query, cell) paths."""
    n, actions, device = len(query), table.pyramid.actions, table.device
    total = torch.zeros(n, 1, device=device)  # (query, path)
    parent = torch.zeros(n, 1, dtype=torch.int64, device=device)  # (query, path) row of the tile before; -1 if `even`
    past: KeyValues | PackedKeyValues | None = None
    steps = []
    for level in range(table.pyramid.levels):
        photo, path = _worth_expanding(total.exp().masked_fill(parent < 0, 0.0), spread).nonzero(as_tuple=True)
        if not len(photo):  # those of all photos are nan
            require_finite("zoom", total.double().cpu().numpy())
        tile = tiles[level][path]
        tokens = table.tokens(tile[:, None], query[photo], decoder.config.patch_tokens).flatten(0, 1)
        if past is None:
            logits, past = decoder.prefill(query[photo].float(), tokens)
        else:
            past = past.select(parent[photo, path])
            logits, past = decoder.step(path % actions, tokens, past)  # type: ignore[arg-type]
        step = even[level].expand(n, -1, -1).clone()
        divisor = None if temperature is None else temperature[level]
        step[photo, path] = step_log_probability(logits, table.child_mask[tile], divisor)
        steps.append(step.flatten(1))
        total = (total[..., None] + step).flatten(1)
        row = torch.full((n, len(tiles[level])), -1, device=device)
        row[photo, path] = torch.arange(len(photo), device=device)
        parent = row.repeat_interleave(actions, 1)
    order = total.sort(1, descending=True).indices
    each = [step.gather(1, order // actions ** (len(steps) - 1 - level)) for level, step in enumerate(steps)]
    return torch.stack(each, -1), order


def _worth_expanding(mass: Tensor, spread: float) -> Tensor:
    """(query, path) whether each tile is among the fewest that hold all but `spread` of the probability."""
    ordered, order = mass.sort(1, descending=True)
    before = ordered.cumsum(1) - ordered
    needed = (ordered > 0) & ((before < 1 - spread) if spread else True)
    return torch.zeros_like(needed).scatter(1, order, needed)


def _tiles_by_path(table: TileTable) -> list[Tensor]:
    """For each level, (path,) indices of its tiles in the order of the paths that lead to them."""
    grid, device = table.pyramid.grid, table.device
    row = col = torch.zeros(1, dtype=torch.int64, device=device)
    action = torch.arange(grid * grid, device=device)
    tiles = []
    for level in range(table.pyramid.levels):
        tiles.append(table.index(level, row, col))
        row = (row[:, None] * grid + action // grid).flatten()
        col = (col[:, None] * grid + action % grid).flatten()
    return tiles


def _even_steps(table: TileTable, tiles: list[Tensor]) -> list[Tensor]:
    """For each level, (path, action) log-probability of each child if all cells below a tile are equally probable."""
    below = table.child_mask[tiles[-1]].float()
    steps = [below]
    for tile in reversed(tiles[:-1]):
        below = below.sum(1).view(len(tile), -1) * table.child_mask[tile]
        steps.append(below)
    return [
        (below / below.sum(1, keepdim=True)).log().nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        for below in reversed(steps)
    ]
