"""`train-refiner`, and `evaluate --refine`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jzi.commands.datasets.pairs import train_pairs_command
from jzi.commands.shared.common import (
    UsageError,
    gallery_text,
    json_option,
    print_result,
    print_warnings,
    settings_options,
)

if TYPE_CHECKING:
    from jzi.evaluate.intervals import Interval
    from jzi.evaluate.stages.metres import MetreFigures
    from jzi.evaluate.stages.refinement import Control
    from jzi.refine.windows.fuse import FittedWeights
    from jzi.workspace.setup.settings import Settings
    from jzi.workspace.stages.refiner_training import TrainedRefiner


@click.command("train-refiner", short_help="Train the network that locates to metres.")
@settings_options
@click.option("-o", "--output", metavar="FOLDER", help="Folder of the refiner.  [default: refiner/ in the model's]")
@click.option(
    "--also",
    "others",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help='Also train on another area: a folder with a jzi.toml; may be repeated. For refine.kind = "rays".',
)
@json_option
def train_refiner_command(
    config_file: Path, overrides: tuple[str, ...], output: str | None, others: tuple[Path, ...], as_json: bool
) -> None:
    """Train the network that locates photos to metres within the cells that the model proposes.

    It is trained on the tokens of the cache (`jzi encode-map --detail`, `jzi encode-queries --tokens`), or on images
    with refine.source = "trained" or refine.kind = "rays". Its fusion with the model is fitted on validation photos. An
    interrupted run is resumed; a finished one is not repeated. On a data set of pairs, UnifyGeo is trained.
    """
    from jzi.workspace.setup.settings import FILE
    from jzi.workspace.setup.settings_file import is_pairs, load_settings

    if is_pairs(config_file):
        train_pairs_command(config_file, overrides, output, as_json)
        return
    settings = load_settings(config_file, overrides, training=("refiner", "queries"))
    from jzi.encode.device import processes
    from jzi.store.plain import plain
    from jzi.workspace.stages.refiner import REFINER
    from jzi.workspace.stages.refiner_training import coarse_map_warnings, train_area_refiner

    folder = settings.path(output) if output else settings.path(settings.model.path) / REFINER
    areas = [load_settings(other / FILE) for other in others]
    if processes().is_main_process:
        for each in (settings, *(replace(area, refine=settings.refine) for area in areas)):
            print_warnings(coarse_map_warnings(each))
    trained = train_area_refiner(settings, folder, areas)
    if not processes().is_main_process:
        return
    if trained.note:
        click.echo(trained.note, err=True)
    if trained.report.epochs and not trained.report.val:
        click.echo("there is no photo with split 'val': the weights of the last epoch are kept", err=True)
    values = {**plain(trained.report), "temperature": trained.info.temperature,
              "heading_temperature": trained.info.heading_temperature, "fusion": plain(trained.info.fusion),
              "fusion_gain": trained.weights and list(trained.weights.gain),
              "fusion_median_m": trained.weights and plain(trained.weights.median_m),
              "fusion_unknown": plain(trained.info.fusion_unknown),
              "fusion_unknown_gain": trained.weights_unknown and list(trained.weights_unknown.gain),
              "fusion_unknown_median_m": trained.weights_unknown and plain(trained.weights_unknown.median_m),
              "note": trained.note}  # fmt: skip
    print_result(as_json, values, training_text(trained))


def training_text(trained: TrainedRefiner) -> str:
    """What a training did, the figures of the best epoch, the fitted temperatures and the fusion."""
    from jzi.store.plain import share_text

    report, info = trained.report, trained.info
    best, after = report.best, f" in {report.seconds:.0f} s" if report.epochs else ""
    done = f"{report.epochs} epochs{after}" if report.epochs else "complete already"
    if report.epochs and report.stopped:
        done += ", ended early: the validation loss no longer fell"
    lines = [f"{done} ({report.train} photos, {report.val} to validate)"]
    if report.duplicates:
        lines.append(f"  {report.duplicates} validation photos were taken within 5 m of a training photo")
    if "median_error_m" in best:
        within = ", ".join(
            f"{share_text(best[name])} within {name[7:-1]} m" for name in best if name.startswith("recall@")
        )
        heading = f", heading {best['heading_error_deg']:.0f}°" if "heading_error_deg" in best else ""
        lines.append(
            f"  best epoch {best['epoch']:.0f}: median {best['median_error_m']:.1f} m in windows with the photo, "
            f"{within}{heading}"
        )
    lines.append(f"  temperatures: {info.temperature:.2f} of places, {info.heading_temperature:.3f} of headings")
    if trained.weights is not None:
        lines.append(f"  fusion with the model on {trained.weights.photos} photos: {_fusion_text(trained.weights)}")
    if trained.weights_unknown is not None:
        photos = trained.weights_unknown.photos
        lines.append(f"  on {photos} photos without their headings: {_fusion_text(trained.weights_unknown)}")
    return "\n".join([*lines, f"wrote {report.folder}"])


def _fusion_text(fitted: FittedWeights) -> str:
    """The weights and the gain of a fusion."""
    prior, density, match = fitted.weights
    gain = f"{fitted.gain[0]:+.3f} ± {fitted.gain[1]:.3f} nats"
    if fitted.median_m is None:
        return f"the refiner has no clear gain ({gain}) and gets weight 0: answers stay those of the model"
    before, after = fitted.median_m
    if not fitted.weights.refines:
        return (
            f"the median error of the refiner's answers is {after:.1f} m instead of {before:.1f}: it gets weight 0 in "
            f"spite of its gain of {gain}, and answers stay those of the model"
        )
    return (
        f"weights {prior:.2f} of the model, {density:.2f} of the places in windows and {match:.2f} of the match; the "
        f"refiner's gain is {gain}, the median error {after:.1f} m instead of {before:.1f}"
    )


def evaluate_refined(
    settings: Settings,
    refiner: Path | None,
    split: str | None,
    *,
    top: int | None,
    control: Control,
    headings: bool,
    experts: tuple[str, ...],
    as_json: bool,
    gallery: Path | None = None,
    count: int = 1,
) -> None:
    """Print the metres before and after refinement on held-out photos; `gallery` shows `count` of them."""
    from jzi.workspace.stages.refiner_training import OpenedRefiner

    folder = refiner or settings.path(settings.model.path)
    opened = OpenedRefiner.open(settings, folder, split, top=top, experts=experts)
    figures = opened.evaluate(control=control, headings=headings, progress=not as_json)
    values: dict[str, Any] = {"split": opened.split, "headings_given": headings, **figures.to_dict()}
    text = metres_table(figures, headings)
    if gallery:
        title = f"{folder.name}, refined to metres: {figures.photos} photos"
        size = opened.write_failures(gallery, figures, count, headings=headings, title=title)
        text += gallery_text(gallery, size, values)
    print_result(as_json, values, text)


def metres_table(figures: MetreFigures, headings: bool = True) -> str:
    """Metres of the model, refined in its order, and refined and re-ranked; coverage, likelihood and heading."""
    from jzi.commands.shared.tables import in_brackets
    from jzi.store.plain import share_text

    title = "1 photo" if figures.photos == 1 else f"{figures.photos} photos"
    if figures.duplicates:
        were = "was" if figures.duplicates == 1 else "were"
        title += f" ({figures.duplicates} more {were} taken within 5 m of a training photo)"
    title += {"": "", "black": ", replaced with black ones", "shuffled": ", in the wrong order"}[figures.control]
    lines = [f"{title}; {in_brackets(figures.photos, figures.effective_photos)}"]
    columns = {"model": figures.before, "refined": figures.unranked, "and re-ranked": figures.after}
    lines.append("  " + " " * 14 + "".join(f"{name:>28}" for name in columns))
    for radius in figures.after.recall:
        cells = (_share(each.recall[radius]) for each in columns.values())
        lines.append(f"  within {radius:>4g} m " + "".join(f"{cell:>28}" for cell in cells))
    for name in ("median", "mean"):
        cells = (_metres(getattr(each, name)) for each in columns.values())
        lines.append(f"  {name:<13} " + "".join(f"{cell:>28}" for cell in cells))
    for share, interval in figures.coverage.items():
        lines.append(f"  circles of {share_text(share, 0)} hold the place of {_share(interval)} of the photos")
    lines.append(
        f"  negative log-likelihood of the place: {figures.nll_before:.2f} before, {figures.nll_after:.2f} after "
        "(nats, per square metre)"
    )
    if figures.heading_error:
        error = figures.heading_error
        given = "given to the refiner where it is recorded" if headings else "not given to the refiner"
        lines.append(
            f"  heading: median error {error.value:.1f}° ({error.low:.1f} .. {error.high:.1f}) of "
            f"{figures.headings} photo{'' if figures.headings == 1 else 's'}, {given}"
        )
    if figures.not_refined == figures.photos:
        lines.append(
            "  no photo was refined: the refiner has weight 0, as it was no gain on validation photos, or there are no "
            "tokens of the photos"
        )
    elif figures.not_refined:
        lines.append(f"  {figures.not_refined} photos could not be refined; their answer is the model's")
    return "\n".join(lines)


def check_refine_options(refine: str | None, top: int | None, control: str | None, headings: bool) -> None:
    """Refuse options about refinement without --refine.

    Raises:
        UsageError: there is one.
    """
    given = {"--refine-top": top is not None, "--control": control, "--no-headings": not headings}
    if refine is None and (names := [name for name, value in given.items() if value]):
        raise UsageError(f"{', '.join(names)} goes with --refine: add it")


def _share(interval: Interval) -> str:
    from jzi.commands.shared.tables import share_range
    from jzi.store.plain import share_text

    return f"{share_text(interval.value)} ({share_range(interval)})"


def _metres(interval: Interval) -> str:
    known = math.isfinite(interval.high)
    return f"{interval.value:.1f} m ({f'{interval.low:.1f} .. {interval.high:.1f}' if known else 'unknown'})"
