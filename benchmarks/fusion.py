"""Measure what the spread of the fused posterior does to its likelihood and calibration, and fits on few photos.

    python -m benchmarks.fusion FOLDER [SECTION.NAME=VALUE ...]      # a folder with a trained model, such as a demo's
    python -m benchmarks.fusion FOLDER --few 1 --few 5               # weights of so few validation photos

Weights are fitted on the validation photos with and without a spread, for the experts that are cross-view and for all
of them, and both fusions locate the test photos. With --few, weights of all experts are fitted on random validation
photos, as jzi fits them, without a prior and dropping experts, and not at all (equal weights whose sum is 1).
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from tqdm import tqdm

from jzi.benchmarks.device import device_option
from jzi.evaluate.calibration import calibration_error, error_by_chance
from jzi.evaluate.experts import BATCH, negative_log_likelihood
from jzi.evaluate.photos import LabelledPhotos
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert
from jzi.locate.joint import fusion_weights
from jzi.locate.joint.fusion import FLOOR, FusedExpert, Stacked
from jzi.locate.joint.fusion_weights import FusionFit
from jzi.locate.points.discs import most_probable_discs
from jzi.locate.posterior import Posterior
from jzi.store.geometry.pyramid import geodesic_distance
from jzi.train.experts import VAL_PHOTOS, posterior_of
from jzi.workspace.evaluation import EvaluatedModel
from jzi.workspace.models.experts import NOT_CROSS_VIEW
from jzi.workspace.setup.settings import FILE
from jzi.workspace.setup.settings_file import load_settings

RADIUS = 50.0


def figures(expert: Expert, photos: LabelledPhotos) -> str:
    """Cells of the table: recall, mean confidence, calibration error, likelihood."""
    errors, confidences, losses = [], [], []
    batches = np.array_split(np.arange(len(photos)), range(BATCH, len(photos), BATCH))
    for part in tqdm(batches, leave=False, unit_scale=BATCH, unit="photo"):
        posterior = expert.posterior(photos.query[part], LocateOptions("map"))
        points = most_probable_discs(posterior, RADIUS, mean=True)
        position = posterior.area.unproject(points.x[:, 0], points.y[:, 0])
        errors.append(geodesic_distance(photos.latitude[part], photos.longitude[part], *position))
        confidences.append(np.minimum(points.probability[:, 0], 1.0))
        losses.append(negative_log_likelihood(posterior, expert.cell_mask, photos.row[part], photos.col[part]))
    right, confidence = np.concatenate(errors) <= RADIUS, np.concatenate(confidences)
    error, chance = calibration_error(confidence, right), error_by_chance(confidence).value
    shares = " | ".join(f"{100 * each:.1f}" for each in (right.mean(), confidence.mean(), error, chance))
    return f"{shares} | {np.concatenate(losses).mean():.3f}"


def few_photos(model: EvaluatedModel, val: LabelledPhotos, counts: tuple[int, ...], seeds: int) -> None:
    """Print the table of fits on few photos."""
    names, experts = list(model.experts), list(model.experts.values())
    cols, mask = model.expert.area.shape[1], model.expert.cell_mask
    posteriors, test = ([posterior_of(expert, photos) for expert in experts] for photos in (val, model.photos))
    key, truth = val.row * cols + val.col, model.photos.row * cols + model.photos.col
    held_out = Stacked.of(test, mask, [FLOOR] * len(names))
    jzi = fusion_weights.PRIOR_PHOTOS, fusion_weights.MIN_PHOTOS
    click.echo("| photos | as jzi: NLL, worst | without a prior: NLL, worst | equal weights |")
    click.echo("|---|---|---|---|")
    equal = held_out.log_likelihood(torch.full((len(names),), 1 / len(names), dtype=torch.float64), truth)
    for count in counts:
        losses: dict[tuple[float, int], list[float]] = {jzi: [], (0.0, 0): []}
        for seed in range(seeds):
            chosen = np.random.default_rng(seed).choice(len(val), count, replace=False).tolist()
            parts = [Posterior.concatenate([each.of(photo) for photo in chosen]) for each in posteriors]
            for setting, values in losses.items():
                fusion_weights.PRIOR_PHOTOS, fusion_weights.MIN_PHOTOS = setting
                fitted = FusionFit(names, parts, mask, key[chosen]).product()
                weights = torch.tensor([fitted.weights[name] for name in names], dtype=torch.float64)
                values.append(-float(held_out.log_likelihood(weights, truth).mean()))
        cells = " | ".join(f"{np.mean(values):.2f}, {max(values):.2f}" for values in losses.values())
        click.echo(f"| {count} | {cells} | {-float(equal.mean()):.2f} |")
    fusion_weights.PRIOR_PHOTOS, fusion_weights.MIN_PHOTOS = jzi


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.argument("overrides", nargs=-1)
@click.option("--few", multiple=True, type=int, help="Fit on so many validation photos; may be repeated.")
@click.option("--seeds", default=16, show_default=True, help="Random choices of them.")
@device_option
def main(folder: Path, overrides: tuple[str, ...], few: tuple[int, ...], seeds: int) -> None:
    """Print the tables."""
    model = EvaluatedModel.open(load_settings(folder / FILE, overrides))
    val = LabelledPhotos.load(model.cache, model.expert, "val").spread(VAL_PHOTOS)
    if few:
        few_photos(model, val, few, seeds)
        return
    posteriors = [posterior_of(expert, val) for expert in model.experts.values()]
    key = val.row * model.expert.area.shape[1] + val.col
    fit = FusionFit(list(model.experts), posteriors, model.expert.cell_mask, key)
    click.echo(f"{len(model.photos)} test photos, {len(val)} validation photos")
    click.echo("| experts | spread | within 50 m, % | mean confidence, % | calibration error, % | by chance, % | NLL |")
    click.echo("|---|---|---|---|---|---|---|")
    for names in ([name for name in model.experts if name not in NOT_CROSS_VIEW], list(model.experts)):
        for each in (fit.product(names), fit.weights(names)):
            experts = [model.experts[name] for name in each.used]
            fused = FusedExpert(experts, [each.weights[name] for name in each.used], each.spread)
            click.echo(f"| {' + '.join(each.used)} | {each.spread:.3f} | {figures(fused, model.photos)} |")


if __name__ == "__main__":
    main()
