"""Temperature scaling: calibrate the decoder's steps on held-out photos."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.tile_table import TileTable

#: Logit of children without imagery: negligible at any temperature, and with a finite gradient, unlike -inf.
MASKED_LOGIT = -1e9


@torch.no_grad()
def _logits(decoder: ZoomDecoder, table: TileTable, samples: ZoomDataset) -> Tensor:
    """(photo, step, action) teacher-forced logits; `MASKED_LOGIT` where there is no imagery."""
    parts = []
    for index in torch.arange(len(samples), device=table.device).split(decoder.config.batch(1024)):
        tiles, query = samples.tiles[index], samples.query[index, 0].float()
        tokens = table.tokens(tiles, query, decoder.config.patch_tokens)
        logits = decoder(query, tokens, samples.actions[index])
        parts.append(logits.masked_fill(~table.child_mask[tiles], MASKED_LOGIT))
    return torch.cat(parts)


def fit_temperature(decoder: ZoomDecoder, table: TileTable, samples: ZoomDataset) -> list[float]:
    """Fit one temperature per step by minimising the cross-entropy of held-out photos.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Args:
        decoder: in eval mode.
        table: the map.
        samples: held-out photos, at least one.

    Returns:
        L temperatures, 0.05..20, by which the logits of each step are to be divided.
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
