"""`evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from jzi.commands.datasets.pairs import evaluate_pairs_command
from jzi.commands.shared.common import (
    UsageError,
    approximate_option,
    beams_option,
    experts_option,
    gallery_text,
    json_option,
    number,
    print_result,
    print_warnings,
    refine_options,
    refuse,
    refuse_others,
    report_unreachable,
    settings_options,
    was_given,
)
from jzi.commands.training.refiner import check_refine_options, evaluate_refined
from jzi.commands.training.statewide import evaluate_region_command
from jzi.locate.ranges import CASES, DISTANCE, RANKS, SHARE

if TYPE_CHECKING:
    from jzi.evaluate.calibration import Calibration
    from jzi.evaluate.retrieval import Distance
    from jzi.workspace.evaluation import EvaluatedModel

#: Options that apply to whatever is evaluated.
_ANY = {"config_file", "overrides", "split", "as_json", "gallery_html", "gallery_photos"}

#: Options of regions, and of refined answers.
_REGION = {"distance", "time_zone", "min_bin", "zoom"}
_REFINED = {"refine", "refine_top", "control", "headings"}


@click.command("evaluate")
@settings_options
@click.option("--split", type=click.Choice(["train", "val", "test", "all", "test1", "test2"]),
              help="In a region also all photos; test1 and test2 are of KITTI.  [default: test, or val if there is "
              "none]")  # fmt: skip
@click.option("--gallery", type=click.Choice(["all", "occupied"]), default="all", show_default=True,
              help="Cells to choose among: all, or only those that hold a photo of the split.")  # fmt: skip
@click.option("--radii", help="Metres, separated by commas.  [default: 40,50,100; in a region 0,25,50,100]")
@click.option("--distance", type=click.Choice(["ellipsoid", "sphere"]),
              help="How distances are measured in a region.  [default: ellipsoid]")  # fmt: skip
@click.option("--time-zone", help="Of the photos of a region, such as America/New_York: recall by hour.")
@click.option("--min-bin", type=number(RANKS),
              help="Photos of a year or hour from which its recall is shown.  [default: 1]")  # fmt: skip
@click.option("--estimates", is_flag=True, help="Also compare the estimates and measure calibration.")
@click.option("--radius", type=number(DISTANCE), default=50.0, show_default=True,
              help="Radius of the default answer, metres; at most the area's side.")  # fmt: skip
@click.option("--abstain", type=number(SHARE), help="Withhold answers below this confidence; with --estimates.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw reliability and coverage as a PNG; with --estimates."
)
@click.option("--gallery-html", type=click.Path(path_type=Path, dir_okay=False),
              help="Write an HTML page of the worst and best photos: truth, answer, zoom steps, and what was matched "
              "in each; with --refine the answer to metres, of pairs the aerial images. It opens the map and these "
              "photos.")  # fmt: skip
@click.option("--gallery-photos", type=number(CASES), default=24, show_default=True,
              help="Photos of --gallery-html, half of them the worst; about 0.1 MB each.")  # fmt: skip
@click.option("--retriever", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Evaluate this retriever instead of the zoom model.")  # fmt: skip
@click.option("--zoom", type=click.Path(path_type=Path), metavar="AREA",
              help="In a region: also evaluate the fusion with the zoom of a square, as train-fusion.")  # fmt: skip
@refine_options
@click.option("--control", type=click.Choice(["black", "shuffled"]), help="With --refine: replace photos with black "
              "ones or other ones, to check that answers come from the photos.")  # fmt: skip
@click.option("--headings/--no-headings", default=True, help="With --refine: whether the refiner is given the headings "
              "that photos record.  [default: given]")  # fmt: skip
@approximate_option
@experts_option("Experts of the model to evaluate, and to fuse.  [default: all]")
@beams_option
@json_option
def evaluate_command(
    config_file: Path,
    overrides: tuple[str, ...],
    split: str | None,
    gallery: str,
    radii: str | None,
    distance: Distance | None,
    time_zone: str | None,
    min_bin: int | None,
    estimates: bool,
    radius: float,
    abstain: float | None,
    plot: Path | None,
    gallery_html: Path | None,
    gallery_photos: int,
    retriever: Path | None,
    zoom: Path | None,
    refine: str | None,
    refine_top: int | None,
    control: Literal["black", "shuffled"] | None,
    headings: bool,
    approximate: bool,
    experts: tuple[str, ...],
    beams: int | None,
    as_json: bool,
) -> None:
    """Measure recall on held-out photos of the cache.

    Reports the most probable cell of the fused experts (of the zoom alone, greedy search, the paper's protocol), and
    then the default answer, of each expert and of their fusion.
    --estimates compares the ways to choose an answer, and reports how well confidences are calibrated. Results of
    different --gallery do not compare. --gallery-html shows single photos, to find out why answers are wrong.

    --refine reports metres before and after the candidates are refined. Photos taken within 5 m of a training photo are
    left out and counted.
    """
    from jzi.workspace.models.hub import local_folder
    from jzi.workspace.setup.settings_file import is_pairs, is_region, load_settings

    if gallery_html and not gallery_html.parent.is_dir():
        raise UsageError(f"there is no folder {gallery_html.parent} to write {gallery_html.name} into")
    if was_given("gallery_photos") and not gallery_html:
        raise UsageError("--gallery-photos goes with --gallery-html: add it, or leave it out")
    if is_pairs(config_file):
        refuse_others(_ANY | {"refine"}, "not for a data set of pairs")
        evaluate_pairs_command(config_file, overrides, Path(refine) if refine else None, split, as_json, gallery_html,
                               gallery_photos)  # fmt: skip
        return
    if split in ("test1", "test2"):
        raise UsageError(f"--split {split} is of the data set KITTI: give train, val or test")
    if is_region(config_file):
        refuse_others(_ANY | _REGION | {"radii", "radius", "retriever"}, "not for a region")
        if not retriever:
            raise UsageError("in a region, a retriever is evaluated: add --retriever FOLDER")
        chosen = _metres(radii, region=True) if radii else None
        evaluate_region_command(config_file, overrides, local_folder(retriever), split, chosen,
                                distance or "ellipsoid", time_zone, min_bin or 1, zoom, radius, as_json, gallery_html,
                                gallery_photos)  # fmt: skip
        return
    if refine is not None:
        refuse_others(_ANY | _REFINED | {"experts"}, "not for --refine")
    check_refine_options(refine, refine_top, control, headings)
    metres = _metres(radii or "40,50,100")
    if split == "all" or distance or time_zone or min_bin or zoom:
        raise UsageError("--split all, --distance, --time-zone, --min-bin and --zoom are for regions: leave them out")
    refuse(
        (gallery_html and control, "--gallery-html shows the photos, which --control replaces: leave one of them out"),
        (
            not estimates and (plot or abstain is not None),
            "--plot and --abstain go with --estimates: add it, or leave them out",
        ),
        (retriever and (beams or experts), "--beams and --experts do not apply to --retriever: leave them out"),
        (approximate and not retriever, "--approximate requires --retriever"),
    )
    folder = retriever and local_folder(retriever)
    settings = load_settings(config_file, overrides, training=())
    if refine is not None:
        evaluate_refined(settings, Path(refine) if refine else None, split, top=refine_top, control=control or "",
                         headings=headings, experts=experts, as_json=as_json, gallery=gallery_html,
                         count=gallery_photos)  # fmt: skip
        return
    from jzi.commands.shared.tables import experts_table, experts_values
    from jzi.evaluate.metrics import RADII
    from jzi.locate.points.discs import check_radius
    from jzi.workspace.evaluation import EvaluatedModel

    model = EvaluatedModel.open(settings, split, names=experts, retriever=folder, approximate=approximate,
                                occupied=gallery == "occupied")  # fmt: skip
    check_radius(model.expert.area, radius)
    values, text = _cells(model, metres)
    if model.experts:
        figures = model.evaluate_experts(sorted({*metres, *RADII}), radius=radius, beams=beams)
        values["experts"] = experts_values(figures)
        text += "\n\n" + experts_table(figures, metres, radius)
    if estimates:
        calibration = model.calibrate(radius=radius, beams=beams)
        text += "\n\n" + _calibration(calibration, metres, radius, abstain, values)
        if plot:
            from jzi.export.picture import draw_calibration

            draw_calibration(calibration, plot)
            text += f"\nwrote {plot}"
    if gallery_html:
        size = model.write_cases(gallery_html, gallery_photos, name=retriever.name if retriever else "",
                                 radius=radius, beams=beams)  # fmt: skip
        text += gallery_text(gallery_html, size, values)
    print_result(as_json, values, text)


def _cells(model: EvaluatedModel, metres: tuple[float, ...]) -> tuple[dict[str, Any], str]:
    """Evaluate the most probable cell: values for JSON, and a table."""
    from jzi.commands.shared.tables import evaluation_table

    photos = model.photos
    report_unreachable(photos.unreachable)
    warnings = [] if len(photos) >= FEW else [few_text(len(photos), photos.split)]
    print_warnings(warnings)
    evaluation = model.evaluate(metres)
    cells = f"among all {evaluation.gallery_cells} cells"
    if model.occupied:
        several = f"{evaluation.gallery_cells} cells that hold"
        cells = f"only among the {several if evaluation.gallery_cells > 1 else 'cell that holds'} a photo of the split"
    count = "1 photo" if len(photos) == 1 else f"{len(photos)} photos"
    table = evaluation_table(evaluation, f"{count} of the {photos.split} split, {model.method} {cells}")
    values = {"split": photos.split, "unreachable": photos.unreachable, **evaluation.to_dict(), "warnings": warnings}
    return values, table


def _calibration(
    calibration: Calibration, metres: tuple[float, ...], radius: float, abstain: float | None, values: dict[str, Any]
) -> str:
    """The table of the estimates and of calibration, whose values are added to those for JSON."""
    from jzi.commands.shared.tables import calibration_table
    from jzi.store.plain import share_text

    values["posterior"] = calibration.to_dict(metres)
    text = calibration_table(calibration, metres)
    if abstain is not None:
        coverage, recall = calibration.abstaining(abstain)
        values["abstain"] = {"confidence": abstain, "coverage": coverage, "recall": recall if coverage else None}
        text += f"\n  answers of {share_text(abstain)} confidence or more: {share_text(coverage)} of the photos"
        text += f", {share_text(recall)} of them within {radius:g} m" if coverage else ""
    return text


#: Photos below which results are warned about: a recall of one half then has an interval of 17 points to each side.
FEW = 30


def few_text(photos: int, split: str) -> str:
    """The warning about an evaluation of few photos."""
    what = "1 photo" if photos == 1 else f"{photos} photos"
    return f"the {split} split has {what}: too few to measure recall, as the intervals show; {FEW} are the least"


def _metres(radii: str, region: bool = False) -> tuple[float, ...]:
    """The radii of --radii; in a region, 0 stands for the photo's own cell."""
    try:
        metres = tuple(float(each) for each in radii.split(","))
    except ValueError:
        metres = ()
    if not metres or not all(each in DISTANCE or (region and each == 0) for each in metres):
        raise UsageError(f"--radii takes metres separated by commas, each {DISTANCE}, not {radii!r}")
    return metres
