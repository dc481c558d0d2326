"""Measure what spread and power of the fused posterior do to its likelihood and calibration, and fits on few photos.

    python -m benchmarks.fusion FOLDER [SECTION.NAME=VALUE ...]      # a folder with a trained model, such as a demo's
    python -m benchmarks.fusion FOLDER --few 1 --few 5               # weights of so few validation photos

Weights are fitted on the validation photos without a spread, with one, and with a power of each photo's product too,
for the experts that are cross-view and for all of them, and these fusions locate the test photos. With --few, weights
of all experts are fitted on random validation photos, as jzi fits them, without a prior and dropping experts, and not
at all (equal weights whose sum is 1).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from jzi.benchmarks.device import device_option
from jzi.evaluate.experts import evaluate_experts
from jzi.evaluate.photos import LabelledPhotos
from jzi.locate.joint.fusion import FLOOR, Fusion, Stacked
from jzi.locate.joint.fusion_weights import PRIOR_PHOTOS, FusionFit
from jzi.locate.joint.gain import MIN_PHOTOS
from jzi.locate.joint.sharpness import UNIFORM
from jzi.locate.posterior import Posterior
from jzi.train.experts import VAL_PHOTOS, posterior_of
from jzi.workspace.evaluation import EvaluatedModel
from jzi.workspace.models.experts import NOT_CROSS_VIEW
from jzi.workspace.setup.settings import FILE
from jzi.workspace.setup.settings_file import load_settings


def few_photos(model: EvaluatedModel, val: LabelledPhotos, counts: tuple[int, ...], seeds: int) -> None:
    """Print the table of fits on few photos."""
    names, experts = list(model.experts), list(model.experts.values())
    cols, mask = model.expert.area.shape[1], model.expert.cell_mask
    posteriors, test = ([posterior_of(expert, photos) for expert in experts] for photos in (val, model.photos))
    key, truth = val.row * cols + val.col, model.photos.row * cols + model.photos.col
    held_out = Stacked.of(test, mask, [FLOOR] * len(names))
    jzi = PRIOR_PHOTOS, MIN_PHOTOS
    click.echo("| photos | as jzi: NLL, worst | without a prior: NLL, worst | equal weights |")
    click.echo("|---|---|---|---|")
    equal = held_out.log_likelihood(torch.full((len(names),), 1 / len(names), dtype=torch.float64), truth)
    for count in counts:
        losses: dict[tuple[float, int], list[float]] = {jzi: [], (0.0, 0): []}
        for seed in range(seeds):
            chosen = np.random.default_rng(seed).choice(len(val), count, replace=False).tolist()
            parts = [Posterior.concatenate([each.of(photo) for photo in chosen]) for each in posteriors]
            for (prior, fewest), values in losses.items():
                fitted = FusionFit(names, parts, mask, key[chosen], prior=prior, fewest=fewest).product()
                weights = torch.tensor([fitted.weights[name] for name in names], dtype=torch.float64)
                values.append(-float(held_out.log_likelihood(weights, truth).mean()))
        cells = " | ".join(f"{np.mean(values):.2f}, {max(values):.2f}" for values in losses.values())
        click.echo(f"| {count} | {cells} | {-float(equal.mean()):.2f} |")


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
    click.echo("| experts | spread | slope | within 50 m, % | confidence, % | calibration error, % | by chance | NLL |")
    click.echo("|---|---|---|---|---|---|---|---|")
    subsets = [name for name in model.experts if name not in NOT_CROSS_VIEW], list(model.experts)
    fits = []
    for names in subsets:
        whole = fit.weights(names)
        fits += [fit.product(names), replace(whole, sharpness=UNIFORM), whole]
    fusions = {str(number): Fusion(each.weights, each.spread, each.sharpness) for number, each in enumerate(fits)}
    figures = evaluate_experts(model.experts, fusions, model.photos)
    for each, row in zip(fits, (figures[name] for name in fusions), strict=True):
        shares = row.recall[50.0].value, row.confidence, row.calibration_error, row.error_by_chance.value
        cells = " | ".join(f"{100 * share:.1f}" for share in shares)
        shape = f"{each.spread:.3f} | {each.sharpness.slope:.3f}"
        click.echo(f"| {' + '.join(each.used)} | {shape} | {cells} | {row.nll:.3f} |")


if __name__ == "__main__":
    main()
