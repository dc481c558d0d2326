"""Training of the refiner that looks along rays, on the images of one or several areas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from jzi.refine.config import RefineConfig
from jzi.refine.info import RefinerInfo
from jzi.refine.networks.ray_shifts import Places, between_tokens
from jzi.refine.networks.rays import RayRefiner
from jzi.refine.outputs import PhotoInput
from jzi.train.config.refiner import RefinerTrainingConfig
from jzi.train.encoders.encoder import seeded_generator
from jzi.train.refine.ray_images import RaySource, RaySources
from jzi.train.refine.ray_losses import RayPairs, place_weights, ray_losses
from jzi.train.refine.refine_augment import PairLabels, Symmetry, coarsen_images
from jzi.train.refine.refine_data import IMAGENET, Pairs, read_ahead
from jzi.train.refine.refine_losses import RefinerLosses, false_negatives
from jzi.train.refine.refine_pairs import draw_windows
from jzi.train.refine.refine_validation import Accuracy, measure, validation
from jzi.train.refine.refiner import RefinerTask
from jzi.train.run import Metrics, TrainingRun
from jzi.train.task import Batch

#: Tokens from one place to the next in training; the first one is drawn anew for each batch.
STRIDE = 2

#: Standard deviations of the contrast and brightness of the channels of photos and of windows, normalised pixels.
PHOTO_JITTER, MAP_JITTER = 0.2, 0.1


class RayNetwork(nn.Module):
    """A refiner whose forward pass computes the scores that its losses need.

    Args:
        refiner: the refiner, which shares its weights.
    """

    def __init__(self, refiner: RayRefiner) -> None:
        super().__init__()
        self.refiner = refiner

    def forward(
        self,
        photos: PhotoInput,
        windows: Tensor,
        mask: Tensor,
        pairs: RayPairs,
        places: Places,
        between: tuple[float, float],
    ) -> Tensor:
        """Scores of pairs.

        Args:
            photos: of n photos.
            windows: (n, 3, S, S) pixels.
            mask: (n, T, T) bool, tokens with imagery.
            pairs: m pairs.
            places: P x P places.
            between: rows and columns by which places lie beside the centres of tokens.

        Returns:
            (m, P, P).
        """
        (maps,) = self.refiner.aerial(windows).maps
        tokens = between_tokens(maps.permute(0, 2, 3, 1) * mask[..., None], *between)
        photo, window, roll = (each.tolist() for each in (pairs.photo, pairs.window, pairs.roll))
        return self.refiner.pair_scores(self.refiner.ground(photos), tokens, photo, window, roll, places)


class RayTask(RefinerTask):
    """Training of a refiner that looks along rays; a batch is of one area.

    Args:
        accelerator: device, precision and processes. Each process compares its photos with its own windows.
        refiner: the refiner to train, in place.
        source: the areas.
        refine: side of the windows.
        config: the settings of training; of the losses, `decoder` and `rerank`.
        info: what to record beside the weights.
        run: the run whose folder the weights are written to.
    """

    label = "rays"
    network: RayNetwork

    def __init__(
        self,
        accelerator: Accelerator,
        refiner: RayRefiner,
        source: RaySources,
        refine: RefineConfig,
        config: RefinerTrainingConfig,
        info: RefinerInfo,
        run: TrainingRun,
    ) -> None:
        super().__init__(accelerator, refiner, source, refine, config, info, run)
        self.network = RayNetwork(refiner)
        self.parts: tuple[RaySource, ...] = source.parts

    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return sum(-(-len(part.train) // self.config.batch_size) for part in self.parts)

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """This process's pairs of one area a batch, read ahead; a part is the epoch, the step and the pairs."""
        world, process, config = self.accelerator.num_processes, self.accelerator.process_index, self.config
        if not first:
            self.sums.zero_()
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        pixels, window_m = self.refiner.config.pixels, self.refine.window_m
        plan: list[tuple[int, np.ndarray]] = []
        windows = []
        for number, part in enumerate(self.parts):
            seed = config.seed, epoch, number
            windows.append(draw_windows(part.train, part.area, window_m, pixels, config.offsets, seed))
            chosen = self.shuffle(len(part.train), generator) if len(part.train) else ()
            plan += [(number, batch.cpu().numpy()[process::world]) for batch in chosen]
        order = torch.randperm(len(plan), generator=generator).tolist()[first:]

        def read() -> Iterator[Batch]:
            readers = [
                read_ahead(
                    part, part.train, windows[number], [plan[each][1] for each in order if plan[each][0] == number]
                )
                for number, part in enumerate(self.parts)
            ]
            for step, each in enumerate(order, first):
                pairs = next(readers[plan[each][0]])
                yield Batch([(epoch, step, pairs)], [len(pairs)], len(pairs) * world)

        return read()

    def loss(self, model: nn.Module, part: tuple[int, int, Pairs]) -> Tensor:
        """The weighted sum of L_D and L_R of a batch, with everything random seeded by the step."""
        epoch, step, pairs = part
        seed = self.config.seed, epoch, step, self.accelerator.process_index
        torch.manual_seed(seeded_generator(*seed, 1).initial_seed())  # for dropout
        generator = seeded_generator(*seed, 2)
        known = torch.rand(len(pairs), generator=generator) < self.config.heading_known
        photos, windows, mask, place, heading = self._augment(pairs, generator)
        shape = self.network.refiner.config
        compared = RayPairs.draw(heading, known, false_negatives(pairs.places), shape.rolls, generator)
        down, right, row, col = torch.rand(4, generator=generator).tolist()
        between = down - 0.5, right - 0.5
        first = int(STRIDE * row), int(STRIDE * col)
        places = Places((shape.margin + first[0], shape.margin + first[1]), shape.side // STRIDE, STRIDE)
        flat = torch.zeros(len(pairs), shape.rolls)
        photo = PhotoInput(pairs.hfov_deg, pairs.panorama, flat, pixels=photos, fill=pairs.fill).to(self.device)
        mask, place = mask.to(self.device), place.to(self.device)
        with self.accelerator.autocast():
            scores = model(photo, windows, mask, compared, places, between)
        compared = RayPairs(*(getattr(compared, each.name).to(self.device) for each in fields(RayPairs)))
        steps = torch.arange(places.count, device=self.device) * STRIDE + 0.5
        points = torch.stack([steps + first[1] + between[1], steps + first[0] + between[0]], 1)
        inner = mask[(slice(None), *places.shifted((0, 0)))]
        covered = inner.flatten(1).any(1)[:, None, None]  # a window without any imagery is compared everywhere
        weights = place_weights(
            (place + 0.5) * shape.side, points, inner | ~covered, self.config.sigma_m / shape.token_m
        )
        decoder, rerank = ray_losses(scores, inner | ~covered, weights, compared)
        off = decoder.new_zeros(())
        losses = RefinerLosses(decoder, off, off, rerank)
        self.sums += torch.cat([losses.values(), torch.ones(1, device=self.device)])
        return losses.total(self.weights)

    def _augment(self, pairs: Pairs, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Pixels of photos and windows, masks, and (n, 2) places and (n,) headings; flipped, turned and coloured."""
        photos, windows, mask = pairs.photos, pairs.windows, pairs.mask
        labels = PairLabels(pairs.places.diagonal(dim1=0, dim2=1).T, pairs.heading_deg)
        count = len(pairs)
        if self.config.augment:
            symmetry = Symmetry.draw(count, generator)
            photos, labels = symmetry.photos(photos, 3), symmetry.labels(labels)
            windows, mask = symmetry.windows(windows, 2, 3), symmetry.windows(mask, 1, 2)
        mean, sd = (torch.tensor(each, device=self.device)[:, None, None] for each in IMAGENET)
        images = []
        for pixels, deviation, largest in ((photos, PHOTO_JITTER, 1.0), (windows, MAP_JITTER, self.config.gsd_jitter)):
            image = (pixels.to(self.device).float() / 255 - mean) / sd
            if self.config.augment:
                image = coarsen_images(image, largest, generator)
                contrast, light = torch.randn(2, count, 3, 1, 1, generator=generator).to(self.device) * deviation
                image = image * (1 + contrast) + light
            images.append(image)
        return images[0], images[1], mask, labels.place, labels.heading_deg

    def validate(self) -> Metrics:
        """Metres, degrees and the likelihood of the validation photos of all areas, at a point per token."""
        names = [f"loss_{each.name}" for each in fields(RefinerLosses)]
        metrics: Metrics = dict(zip(names, (self.sums[:-1] / self.sums[-1].clamp(min=1)).tolist(), strict=True))
        parts, network = [], self.network.refiner
        network.fine = 1
        try:
            with self.accelerator.autocast():
                for area in self.parts:
                    if len(area.val):
                        batches = validation(network, area, self.refine, self.config, self.device)
                        parts += [measure(output, batch.truth, self.refine.window_m) for output, batch in batches]
        finally:
            network.fine = network.config.fine
        return {**metrics, **Accuracy.of(parts).metrics()} if parts else metrics
