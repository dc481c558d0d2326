"""Temperatures of the zoom's steps, fitted on held-out photos so that its probabilities are calibrated."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.tile_table import TileTable

#: A logit that no temperature makes likely, and that has a gradient, which -inf has not.
NOTHING = -1e9


@torch.no_grad()
def _logits(decoder: ZoomDecoder, table: TileTable, samples: ZoomDataset) -> Tensor:
    """(photo, step, action), teacher-forced; next to nothing, but finite, where there is no imagery."""
    parts = []
    for index in torch.arange(len(samples), device=table.device).split(decoder.config.batch(1024)):
        tiles, query = samples.tiles[index], samples.query[index, 0].float()
        seen, below = table.read(decoder.config, tiles, query)
        logits = decoder(query, seen, samples.actions[index], below)
        parts.append(logits.masked_fill(~table.child_mask[tiles], NOTHING))
    return torch.cat(parts)


def fit_temperature(decoder: ZoomDecoder, table: TileTable, samples: ZoomDataset) -> list[float]:
    """One temperature per step, which makes the steps' probabilities as likely as they can be on held-out photos.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Args:
        decoder: in eval mode.
        table: the map.
        samples: held-out photos, at least one.

    Returns:
        L numbers, 0.05..20; what logits are divided by.
    """
    logits, actions = _logits(decoder, table, samples).double().cpu(), samples.actions.cpu()
    log_temperature = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scaled = logits / log_temperature.clamp(-3, 3).exp()[:, None]
        value = F.cross_entropy(scaled.flatten(0, 1), actions.flatten())
        value.backward()
        return value

    optimizer.step(loss)
    return [float(value) for value in log_temperature.detach().clamp(-3, 3).exp()]
