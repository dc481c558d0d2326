"""`evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jzi.commands.common import (
    UsageError,
    approximate_option,
    beams_option,
    json_option,
    print_result,
    report_unreachable,
    settings_options,
)


@click.command("evaluate")
@settings_options
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="[default: test, or val if there is none]")
@click.option("--gallery", type=click.Choice(["all", "occupied"]), default="all", show_default=True,
              help="Cells to choose among: all, or only those that hold a photo of the split.")  # fmt: skip
@click.option("--radii", default="40,50,100", show_default=True, help="Metres, separated by commas.")
@click.option("--estimates", is_flag=True, help="Also compare the estimates and measure calibration.")
@click.option("--radius", type=click.FloatRange(0, min_open=True), default=50.0, show_default=True,
              help="Radius of the default estimate, metres; with --estimates.")  # fmt: skip
@click.option(
    "--abstain", type=click.FloatRange(0, 1), help="Withhold answers below this confidence; with --estimates."
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw reliability and coverage as a PNG; with --estimates."
)
@click.option("--retriever", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Evaluate this retriever instead of the zoom model.")  # fmt: skip
@approximate_option
@beams_option
@json_option
def evaluate_command(
    config_file: Path,
    overrides: tuple[str, ...],
    split: str | None,
    gallery: str,
    radii: str,
    estimates: bool,
    radius: float,
    abstain: float | None,
    plot: Path | None,
    retriever: Path | None,
    approximate: bool,
    beams: int | None,
    as_json: bool,
) -> None:
    """Measure recall on held-out photos of the cache.

    Uses greedy search, the paper's protocol. --estimates compares it with the most probable cell and with the point
    that has the most probability within a radius, and reports how well confidences are calibrated. Results of
    different --gallery do not compare.
    """
    from jzi.workspace.settings import load_settings

    settings = load_settings(config_file, overrides, training=())
    try:
        metres = tuple(float(each) for each in radii.split(","))
    except ValueError:
        metres = ()
    if not metres or min(metres) <= 0:
        raise UsageError(f"--radii takes metres separated by commas, not {radii!r}")
    if not estimates and (plot or abstain is not None or beams):
        raise UsageError("--plot, --abstain and --beams go with --estimates: add it, or leave them out")
    if retriever and beams:
        raise UsageError("--beams does not apply to --retriever: leave it out")
    if approximate and not retriever:
        raise UsageError("--approximate requires --retriever")
    from jzi.commands.tables import calibration_table, evaluation_table
    from jzi.evaluate.calibration import calibrate
    from jzi.evaluate.gallery import restrict_to_occupied
    from jzi.evaluate.photos import LabelledPhotos
    from jzi.evaluate.protocol import evaluate
    from jzi.workspace.open import open_expert

    expert, cache = open_expert(settings, retriever, approximate=approximate)
    photos = LabelledPhotos.load(cache, expert, split)
    report_unreachable(photos.unreachable)
    if gallery == "occupied":
        expert = restrict_to_occupied(expert, photos)
    evaluation = evaluate(expert, photos, radii=metres)
    values: dict[str, Any] = {"split": photos.split, "unreachable": photos.unreachable, **evaluation.to_dict()}
    method = "greedy search" if gallery == "all" else "most probable cell"
    if retriever:
        method = f"flat retrieval ({'HNSW' if approximate else 'exact search'})"
    cells = f"among all {evaluation.gallery_cells} cells"
    if gallery == "occupied":
        cells = f"only among the {evaluation.gallery_cells} cells that hold a photo of the split"
    text = evaluation_table(evaluation, f"{len(photos)} photos of the {photos.split} split, {method} {cells}")
    if estimates:
        calibration = calibrate(expert, photos, radius=radius, beams=beams)
        values["posterior"] = calibration.to_dict(metres)
        text += "\n\n" + calibration_table(calibration, metres)
        if abstain is not None:
            coverage, recall = calibration.abstaining(abstain)
            values["abstain"] = {"confidence": abstain, "coverage": coverage, "recall": recall if coverage else None}
            text += f"\n  answers of {abstain:.0%} confidence or more: {coverage:.1%} of the photos"
            text += f", {recall:.1%} of them within {radius:g} m" if coverage else ""
        if plot:
            from jzi.export.picture import draw_calibration

            draw_calibration(calibration, plot)
    print_result(as_json, values, text)
