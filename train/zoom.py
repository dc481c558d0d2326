"""The initial decoder and the validation that stage two and fine-tuning share."""

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
from jzi.store.disk.files import file_sha256
from jzi.train.run import Metrics


def start_config(config: DecoderConfig, start: ZoomModel | None) -> DecoderConfig:
    """The architecture of a decoder that is initialized from a model: the model's, with the dropout of `config`.

    Patch tokens have no parameters: `config` sets their number, unless it is 0, which stands for the model's.

    Args:
        config: the settings of the decoder.
        start: the model to start from; None to start from scratch.
    """
    if start is None:
        return config
    start_architecture = start.decoder.config
    patch_tokens = config.patch_tokens or start_architecture.patch_tokens
    return replace(start_architecture, dropout=config.dropout, patch_tokens=patch_tokens)


def check_overrides(config: DecoderConfig, overridden: Collection[str], start: ZoomModel | None, init: str) -> None:
    """Raise if an override of the architecture has no effect, because the model to start from has another one.

    Args:
        config: the settings of the decoder.
        overridden: names of the settings that were overridden, such as "decoder.layers".
        start: the model to start from; None to start from scratch.
        init: name of the setting that names the model, such as "train.init".

    Raises:
        ConfigError: an override contradicts the model.
    """
    if start is None:
        return
    actual = start_config(config, start)
    for section, _, name in (each.partition(".") for each in sorted(overridden)):
        if section == "decoder" and (value := getattr(config, name)) != (theirs := getattr(actual, name)):
            raise ConfigError(
                f"decoder.{name} is {value!r}, but it is {theirs!r} in {start.folder}, the model of {init}: leave "
                f"decoder.{name} out, or start from scratch (--set {init}='')"
            )


def make_decoder(config: DecoderConfig, start: ZoomModel | None) -> ZoomDecoder:
    """A new decoder, or one with the architecture and the weights of a model (`start_config`).

    Args:
        config: the settings of the decoder.
        start: the model to start from; None to start from scratch.

    Raises:
        ModelError: the model's decoder has another width or number of actions.
    """
    if start is None:
        return ZoomDecoder(config)
    width, actions = start.decoder.config.width, start.decoder.config.actions
    if (width, actions) != (config.width, config.actions):
        raise ModelError(
            f"{start.folder} cannot be started from: its decoder has {width} features and {actions} actions, but the "
            f"encoder and the pyramid have {config.width} and {config.actions}"
        )
    decoder = ZoomDecoder(start_config(config, start))
    decoder.load_state_dict({**decoder.state_dict(), **start.decoder.state_dict()})
    return decoder


def init_digest(start: ZoomModel | None) -> str:
    """First digits of the SHA-256 of the weights that a run starts from; empty if it starts from scratch."""
    return file_sha256(start.folder / "decoder.safetensors")[:16] if start else ""


def validate(decoder: ZoomDecoder, table: TileTable, dataset: ZoomDataset) -> Metrics:
    """Recall and median error of greedy search, and the teacher-forced loss; empty if there are no photos.

    Args:
        decoder: put into evaluation mode.
        table: the map, on the device.
        dataset: validation photos, on the device.
    """
    if not len(dataset):
        return {}
    decoder.eval()
    row, col = table.pyramid.path_to_tile(greedy_paths(decoder, table, dataset.query[:, 0]))
    error = cell_error(table.pyramid, row, col, dataset.latitude, dataset.longitude)
    recall = {f"recall@{radius:g}m": float((error <= radius).mean()) for radius in RADII}
    return {"val_loss": _loss(decoder, table, dataset), **recall, "median_error_m": float(np.median(error))}


@torch.inference_mode()
def _loss(decoder: ZoomDecoder, table: TileTable, dataset: ZoomDataset) -> float:
    total = torch.zeros((), device=table.device)
    for index in torch.arange(len(dataset), device=table.device).split(decoder.config.batch(BATCH)):
        query, actions = dataset.query[index, 0].float(), dataset.actions[index]
        tokens = table.tokens(dataset.tiles[index], query, decoder.config.patch_tokens)
        logits = decoder(query, tokens, actions)
        total += F.cross_entropy(logits.flatten(0, 1), actions.flatten(), reduction="sum")
    return float(total) / dataset.actions.numel()
