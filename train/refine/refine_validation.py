"""Metres, degrees and likelihood of a refiner's output on windows that contain their photos."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from jzi.evaluate.stages.metres import RADII
from jzi.refine.config import RefineConfig
from jzi.refine.networks.files import Refiner
from jzi.refine.outputs import RefinerOutput
from jzi.refine.temperature import fit_heading_temperature, fit_temperature
from jzi.train.config.refiner import RefinerTrainingConfig
from jzi.train.encoders.encoder import seeded_generator
from jzi.train.refine.refine_data import PairSource, Prepared, prepare, read_ahead, split_evenly, window_tokens
from jzi.train.refine.refine_losses import PairTruth
from jzi.train.refine.refine_pairs import draw_windows
from jzi.train.run import Metrics

#: Number of the epoch in the seed of the windows of validation photos, which are the same in every epoch.
VALIDATION = 2**31

#: Photos whose headings fit T_h: the finest level of a photo takes a megabyte and a half at the default size.
HEADING_PHOTOS = 256

#: Least log-likelihood of a pixel, for a place without imagery.
LEAST = -30.0


@dataclass(frozen=True)
class Accuracy:
    """How near the most probable pixels are to the true places.

    Attributes:
        error_m: (photo,) distance in the window's plane, metres.
        heading_error_deg: (photo,) of the most probable heading, 0..180; nan where none is known.
        nll: (photo,) negative log-likelihood of the true place, nats, of a density per square metre.
    """

    error_m: Tensor
    heading_error_deg: Tensor
    nll: Tensor

    @classmethod
    def of(cls, parts: Sequence[Accuracy]) -> Accuracy:
        """Of several batches."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    def metrics(self) -> Metrics:
        """Means and medians over the photos, for the log of training."""
        known = self.heading_error_deg[~self.heading_error_deg.isnan()]
        heading = {"heading_error_deg": float(known.median())} if len(known) else {}
        return {
            "val_loss": float(self.nll.mean()),
            **{f"recall@{radius:g}m": float((self.error_m <= radius).float().mean()) for radius in RADII},
            "median_error_m": float(self.error_m.median()),
            **heading,
        }


def measure(output: RefinerOutput, truth: PairTruth, window_m: float) -> Accuracy:
    """Compare a refiner's output with the truth.

    Args:
        output: of each photo and its own window.
        truth: where the photos were taken.
        window_m: side of a window, metres.
    """
    size = output.logits.shape[-1]
    pixel_m = window_m / size
    log_density = output.log_density().float().flatten(1)
    best = log_density.argmax(1)
    found = torch.stack([best % size, best // size], 1) + 0.5
    place = (truth.place + 0.5) * size
    col, row = place.floor().long().clamp(0, size - 1).unbind(1)
    log_share = log_density.gather(1, (row * size + col)[:, None])[:, 0].clamp(min=LEAST)
    heading = output.heading_posterior().argmax(1) * (360 / output.log_heading.shape[1])
    away = ((heading - truth.heading_deg + 180) % 360 - 180).abs()
    return Accuracy(
        ((found - place).norm(dim=1) * pixel_m).cpu(),
        away.cpu(),
        (2 * math.log(pixel_m) - log_share).cpu(),
    )


def validation(
    refiner: Refiner, source: PairSource, refine: RefineConfig, config: RefinerTrainingConfig, device: torch.device
) -> Iterator[tuple[RefinerOutput, Prepared]]:
    """Output and truth of batches of validation photos, as many with the heading given as in training; always the same.

    Args:
        refiner: the refiner, which is put into eval mode.
        source: the photos.
        refine: side of the windows.
        config: offsets, seed, size of a batch and share of known headings.
        device: of the refiner.
    """
    refiner.eval()
    shape = refiner.config
    windows = draw_windows(
        source.val, source.area, refine.window_m, shape.pixels, config.offsets, (config.seed, VALIDATION)
    )
    generator = seeded_generator(config.seed, VALIDATION)
    for pairs in read_ahead(source, source.val, windows, split_evenly(len(source.val), config.batch_size)):
        known = (torch.rand(len(pairs), generator=generator) < config.heading_known).to(device)
        batch = prepare(pairs.to(device), shape.rolls, known, generator, images=source.images, augment=False)
        with torch.inference_mode():
            aerial = refiner.aerial(window_tokens(refiner, batch.windows, batch.grid))
            output = refiner.match(refiner.ground(batch.photos), aerial, batch.mask)
        yield output, batch


def fit_temperatures(
    refiner: Refiner, source: PairSource, refine: RefineConfig, config: RefinerTrainingConfig, device: torch.device
) -> tuple[float, float]:
    """T_D and T_h with the greatest likelihood of places and headings of validation photos; arguments as above."""
    logits, masks, places, outputs = list[Tensor](), list[Tensor](), list[Tensor](), list[RefinerOutput]()
    headings: list[Tensor] = []
    for output, batch in validation(refiner, source, refine, config, device):
        logits.append(output.logits.float().cpu())
        masks.append(output.mask.cpu())
        places.append((batch.truth.place.cpu() + 0.5) * output.mask.shape[-1])
        if sum(len(each) for each in headings) < HEADING_PHOTOS:
            outputs.append(output)
            headings.append(batch.truth.heading_deg.cpu())
    place = torch.cat(places).double().numpy()
    temperature = fit_temperature(torch.cat(logits), torch.cat(masks), place[:, 0], place[:, 1])
    joined = _concatenate(outputs)
    density = joined.density(temperature).double().numpy()
    return temperature, fit_heading_temperature(joined, density, torch.cat(headings).double().numpy())


def _concatenate(outputs: Sequence[RefinerOutput]) -> RefinerOutput:
    """Outputs of several batches as one, on the CPU."""
    joined = {
        name: torch.cat([getattr(each, name).float().cpu() for each in outputs]) for name in ("logits", "log_heading")
    }
    levels = [
        torch.cat([each.float().cpu() for each in level]) for level in zip(*(o.levels for o in outputs), strict=True)
    ]
    mask = torch.cat([each.mask.cpu() for each in outputs])
    return RefinerOutput(joined["logits"], tuple(levels), mask, joined["log_heading"], outputs[0].temperature)
