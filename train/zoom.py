"""What stage two and fine-tuning share: the decoder to start from, and validation as the zoom is used."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere

from jzi.decode.config import DecoderConfig
from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.model import ZoomModel
from jzi.decode.search import BATCH, greedy_paths
from jzi.decode.tile_table import TileTable
from jzi.errors import ConfigError, ModelError
from jzi.evaluate.metrics import RADII, cell_error
from jzi.store.files import file_sha256
from jzi.train.run import Metrics


def start_config(config: DecoderConfig, start: ZoomModel | None) -> DecoderConfig:
    """The architecture of a decoder that starts from a model: the model's, with the dropout of `config`.

    Patch tokens have no parameters: as many are read as `config` has, or as the model's decoder reads if it has none. A
    model that does not look ahead may be the start of one that does.
    """
    if start is None:
        return config
    theirs = start.decoder.config
    patch_tokens = config.patch_tokens or theirs.patch_tokens
    look_ahead = theirs.look_ahead if config.look_ahead == "none" else config.look_ahead
    return replace(theirs, dropout=config.dropout, patch_tokens=patch_tokens, look_ahead=look_ahead)


def check_overrides(config: DecoderConfig, overridden: Collection[str], start: ZoomModel | None, init: str) -> None:
    """Refuse an override of the architecture that has no effect, because the model to start from has another one.

    Args:
        config: the settings of the decoder.
        overridden: names of the settings that were overridden, such as "decoder.layers".
        start: the model to start from.
        init: the setting that names it.

    Raises:
        ConfigError: an override contradicts the model.
    """
    if start is None:
        return
    actual = start_config(config, start)
    for section, _, name in (each.partition(".") for each in sorted(overridden)):
        if section == "decoder" and (value := getattr(config, name)) != (theirs := getattr(actual, name)):
            raise ConfigError(
                f"decoder.{name} is {value!r}, but it is {theirs!r} in {start.folder}, which {init} starts from: leave "
                f"decoder.{name} out, or start from scratch (--set {init}='')"
            )


def make_decoder(config: DecoderConfig, start: ZoomModel | None) -> ZoomDecoder:
    """A new decoder, or one with the architecture and the weights of a model (`start_config`).

    Raises:
        ModelError: the model's decoder is for another width or grid.
    """
    if start is None:
        return ZoomDecoder(config)
    theirs = start.decoder.config
    if (theirs.width, theirs.actions) != (config.width, config.actions):
        raise ModelError(
            f"{start.folder} cannot be started from: its decoder is for {theirs.width} features and {theirs.actions} "
            f"actions, not for {config.width} and {config.actions}"
        )
    decoder = ZoomDecoder(start_config(config, start))
    decoder.load_state_dict({**decoder.state_dict(), **start.decoder.state_dict()})
    return decoder


def init_digest(start: ZoomModel | None) -> str:
    """First digits of the SHA-256 of the weights that a run starts from; empty where it starts from scratch."""
    return file_sha256(start.folder / "decoder.safetensors")[:16] if start else ""


def validate(decoder: ZoomDecoder, table: TileTable, samples: ZoomDataset) -> Metrics:
    """Greedy search off the cache, as in use, and the teacher-forced loss; nothing where there are no photos."""
    if not len(samples):
        return {}
    decoder.eval()
    row, col = table.pyramid.path_to_tile(greedy_paths(decoder, table, samples.query[:, 0]))
    error = cell_error(table.pyramid, row, col, samples.latitude, samples.longitude)
    recall = {f"recall@{radius:g}m": float((error <= radius).mean()) for radius in RADII}
    return {"val_loss": _loss(decoder, table, samples), **recall, "median_error_m": float(np.median(error))}


@torch.inference_mode()
def _loss(decoder: ZoomDecoder, table: TileTable, samples: ZoomDataset) -> float:
    total = torch.zeros((), device=table.device)
    for index in torch.arange(len(samples), device=table.device).split(decoder.config.batch(BATCH)):
        query, actions = samples.query[index, 0].float(), samples.actions[index]
        tokens, children = table.inputs(decoder.config, samples.tiles[index], query)
        logits = decoder(query, tokens, actions, children)
        total += F.cross_entropy(logits.flatten(0, 1), actions.flatten(), reduction="sum")
    return float(total) / samples.actions.numel()
