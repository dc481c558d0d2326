"""What the decoder is to answer at a step: labels smoothed over children, and the way on where a zoom went wrong."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

from jzi.decode.decoder import ZoomDecoder
from jzi.decode.tile_table import TileTable
from jzi.train.config import TrainConfig


def next_action_loss(logits: Tensor, right: Tensor, config: TrainConfig) -> Tensor:
    """Cross-entropy of (photo, step, action) logits with (photo, step) right answers, smoothed as the settings say."""
    flat, wanted = logits.float().flatten(0, 1), right.flatten()
    if config.targets == "distance":
        labels = distance_labels(logits.shape[-1], config.label_smoothing, config.target_sigma)
        return F.cross_entropy(flat, labels.to(flat.device)[wanted])
    return F.cross_entropy(flat, wanted, label_smoothing=config.label_smoothing)


@lru_cache(maxsize=8)
def distance_labels(actions: int, smoothing: float, sigma: float) -> Tensor:
    """(action, action): the distribution that stands for each true action.

    A share of `smoothing` is spread over all children as a Gaussian of `sigma` child widths around the true one. As
    wide as can be it is the usual label smoothing (Szegedy et al. 2016), which knows nothing of where children lie.
    """
    grid = round(sqrt(actions))
    child = torch.arange(actions)
    place = torch.stack([child // grid, child % grid], -1).double()
    spread = torch.softmax(-torch.cdist(place, place).square() / (2 * sigma**2), -1)
    return ((1 - smoothing) * torch.eye(actions, dtype=torch.float64) + smoothing * spread).float()


@torch.no_grad()
def own_turns(
    decoder: ZoomDecoder, table: TileTable, query: Tensor, actions: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """BeamSearchResult on which some turns are the decoder's own (scheduled sampling, Bengio et al. 2015).

    Where a turn was wrong the photo lies outside of all that is below; the right answer then is the child that is
    nearest to its cell, which is the true child as long as the way is right.

    Args:
        decoder: whose turns; in whatever mode it is.
        table: the map.
        query: (photo, feature).
        actions: (photo, L) true actions.
        share: of the turns that are drawn from what the decoder says.

    Returns:
        (photo, L) tiles along each zoom, (photo, L) the actions taken, and (photo, L) the right answers.
    """
    pyramid, n = table.pyramid, len(query)
    g = pyramid.grid
    place = torch.arange(pyramid.actions, device=table.device)
    true_row, true_col = torch.zeros_like(actions[:, 0]), torch.zeros_like(actions[:, 0])
    for action in actions.unbind(1):
        true_row, true_col = true_row * g + action // g, true_col * g + action % g
    row, col = torch.zeros_like(true_row), torch.zeros_like(true_row)
    tiles, taken, right = [], [], []
    past = None
    for level in range(pyramid.levels):
        tile = table.index(level, row, col)
        open_ = table.child_mask[tile]
        open_ = open_ | ~open_.any(-1, keepdim=True)  # a tile with nothing below is left by any child
        side = g ** (pyramid.levels - level - 1)  # of a child, in cells
        rows, cols = (row[:, None] * g + place // g) * side, (col[:, None] * g + place % g) * side
        away = _outside(true_row[:, None], rows, side) ** 2 + _outside(true_col[:, None], cols, side) ** 2
        nearest = away.masked_fill(~open_, torch.iinfo(away.dtype).max).argmin(-1)
        action = nearest
        if level + 1 < pyramid.levels:
            seen, below = table.read(decoder.config, tile[:, None], query)
            below = None if below is None else below[:, 0]
            if past is None:
                logits, past = decoder.prefill(query, seen[:, 0], below)
            else:
                logits, past = decoder.step(taken[-1], seen[:, 0], past, below)
            drawn = logits.float().masked_fill(~open_, -torch.inf).softmax(-1).multinomial(1)[:, 0]
            action = torch.where(torch.rand(n, device=table.device) < share, drawn, nearest)
        tiles.append(tile)
        taken.append(action)
        right.append(nearest)
        row, col = row * g + action // g, col * g + action % g
    return torch.stack(tiles, 1), torch.stack(taken, 1), torch.stack(right, 1)


def _outside(value: Tensor, first: Tensor, side: int) -> Tensor:
    """How far a cell lies outside of a range of cells, along one axis."""
    return (first - value).clamp(min=0) + (value - first - side + 1).clamp(min=0)
