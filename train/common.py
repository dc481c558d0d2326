"""What training the decoder off the cache and training it with the encoder have in common."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from jzi.decode.config import DecoderConfig
from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.model import ZoomModel
from jzi.decode.search import BATCH, greedy_paths
from jzi.decode.tile_table import TileTable
from jzi.encode.device import best_device
from jzi.errors import ConfigError, ModelError
from jzi.evaluate.metrics import RADII, cell_error
from jzi.store.files import file_sha256
from jzi.train.config import TrainingConfig
from jzi.train.run import Metrics


def make_accelerator(config: TrainingConfig, folder: Path) -> Accelerator:
    """Accelerate's device, precision, processes and trackers.

    Raises:
        ConfigError: the precision or a tracker cannot be had, or the processes cannot share a batch.
    """
    available = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in config.trackers if name not in available]:  # Accelerate would say nothing
        raise ConfigError(
            f"{config.section}.trackers names {', '.join(missing)}, which must be installed first (pip install ...)"
        )
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    try:
        accelerator = Accelerator(
            cpu=best_device() == "cpu",
            mixed_precision=precision,
            log_with=list(config.trackers) or None,
            project_dir=str(folder / "train"),
        )
    except (ValueError, ImportError) as error:
        what = f"{config.section}.precision or {config.section}.trackers"
        raise ConfigError(f"{what} cannot be had here: {error}") from error
    if config.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"{config.section}.batch_size is {config.batch_size}, which {accelerator.num_processes} processes cannot "
            "share evenly"
        )
    return accelerator


def start_trackers(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Tell the trackers, if there are any, how is trained."""
    if config.trackers:
        accelerator.init_trackers("jzi", config={k: v for k, v in asdict(config).items() if k != "trackers"})


def make_decoder(wanted: DecoderConfig, start: ZoomModel | None) -> ZoomDecoder:
    """A new decoder, or one that starts where a model's is: with its architecture, and the dropout that is wanted.

    Patch tokens have no parameters: as many are read as are wanted, or as the model's decoder does if none are. One
    that does not look ahead may be the start of one that does.

    Raises:
        ModelError: the model's decoder is for another width or grid.
    """
    if start is None:
        return ZoomDecoder(wanted)
    theirs = start.decoder.config
    if (theirs.width, theirs.actions) != (wanted.width, wanted.actions):
        raise ModelError(
            f"{start.folder} cannot be started from: its decoder is for {theirs.width} features and {theirs.actions} "
            f"actions, not for {wanted.width} and {wanted.actions}"
        )
    patch_tokens = wanted.patch_tokens or theirs.patch_tokens
    look_ahead = theirs.look_ahead if wanted.look_ahead == "none" else wanted.look_ahead
    decoder = ZoomDecoder(replace(theirs, dropout=wanted.dropout, patch_tokens=patch_tokens, look_ahead=look_ahead))
    decoder.load_state_dict({**decoder.state_dict(), **start.decoder.state_dict()})
    return decoder


def init_digest(start: ZoomModel | None) -> str:
    """What a run's fingerprint says of the model that it started from."""
    return file_sha256(start.folder / "decoder.safetensors")[:16] if start else ""


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then a cosine to zero."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


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
        seen, below = table.read(decoder.config, samples.tiles[index], query)
        logits = decoder(query, seen, actions, below)
        total += F.cross_entropy(logits.flatten(0, 1), actions.flatten(), reduction="sum")
    return float(total) / samples.actions.numel()
