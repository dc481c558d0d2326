"""Stage two: `train-decoder`, `evaluate`, `locate`, `import-checkpoint`."""

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
    report_left_out,
    report_unreachable,
    settings_options,
)


@click.command("train-decoder")
@settings_options
@json_option
def train_decoder_command(config_file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train the decoder off the cache.

    A run that was stopped goes on where it was; one that is done is left alone.
    """
    from jzi.workspace.settings import load_settings

    settings = load_settings(config_file, overrides)
    from jzi.decode.model import ZoomModel
    from jzi.encode.device import processes
    from jzi.store.cache import FeatureCache
    from jzi.train.decoder import train_decoder
    from jzi.train.zoom import check_overrides
    from jzi.workspace.open import load_encoder

    cache = FeatureCache.open(settings.cache_path)
    if settings.encoder_folder is None and not cache.encoder.from_hub:
        raise UsageError(
            f"there is no encoder in {settings.encoder.name} any more, and the model must carry it: set encoder.name "
            f"to the folder of {cache.encoder.label}"
        )
    cache.check(pyramid=settings.pyramid, encoder=load_encoder(settings).info)
    init = settings.train.init
    start = ZoomModel.load(settings.path(init)) if init else None
    check_overrides(settings.decoder, settings.overridden, start, "train.init")
    report = train_decoder(
        cache,
        settings.path(settings.model.path),
        settings.decoder,
        settings.train,
        encoder_folder=settings.encoder_folder,
        start=start,
        settings=settings.to_toml(),
    )
    if not processes().is_main_process:
        return
    report_left_out(report)
    print_result(as_json, report.to_dict(), f"{report.to_text()}: {report.folder}")


@click.command()
@settings_options
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="[default: test, or val if there is none]")
@click.option("--radii", default="40,50,100", show_default=True, help="Metres, separated by commas.")
@click.option("--estimates", is_flag=True, help="Compare what can be answered with, and how true confidences are.")
@click.option("--radius", type=click.FloatRange(0, min_open=True), default=50.0, show_default=True,
              help="Of the point with the most probability within so many metres.")  # fmt: skip
@click.option("--abstain", type=click.FloatRange(0, 1), help="Withhold answers of less confidence; with --estimates.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw reliability and coverage; with --estimates.")
@click.option("--retriever", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Evaluate flat retrieval instead of the zoom.")  # fmt: skip
@approximate_option
@beams_option
@json_option
def evaluate(
    config_file: Path,
    overrides: tuple[str, ...],
    split: str | None,
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
    """Measure recall on held-out photos, off the cache.

    By greedy search, the paper's protocol; --estimates compares it with the most probable cell and with the point that
    has the most probability within a radius, and tells how far confidences can be believed.
    """
    from jzi.workspace.settings import load_settings

    settings = load_settings(config_file, overrides)
    try:
        metres = tuple(float(each) for each in radii.split(","))
    except ValueError:
        metres = ()
    if not metres or min(metres) <= 0:
        raise UsageError(f"--radii takes metres separated by commas, not {radii!r}")
    if not estimates and (plot or abstain is not None or beams):
        raise UsageError("--plot, --abstain and --beams go with --estimates")
    if retriever and (estimates or beams):
        raise UsageError("--estimates and --beams are of the zoom, and --retriever is not one")
    if approximate and not retriever:
        raise UsageError("--approximate goes with --retriever")
    from jzi.evaluate.evaluate import evaluate_model, to_table

    if retriever:
        from jzi.retrieve.evaluate import evaluate_retriever

        split, unreachable, evaluation = evaluate_retriever(retriever, split, radii=metres, approximate=approximate)
        report_unreachable(unreachable)
        values = {"split": split, "unreachable": unreachable, **evaluation.to_dict()}
        how = "HNSW" if approximate else "exact search"
        title = f"{evaluation.photos} photos of the {split} split, flat retrieval ({how})"
        print_result(as_json, values, to_table(evaluation, title))
        return
    split, unreachable, evaluation, calibration = evaluate_model(
        settings.path(settings.model.path),
        settings.cache_path,
        split,
        radii=metres,
        estimates=estimates,
        radius=radius,
        beams=beams,
    )
    report_unreachable(unreachable)
    values = {"split": split, "unreachable": unreachable, **evaluation.to_dict()}
    text = to_table(evaluation, f"{evaluation.photos} photos of the {split} split, greedy search")
    if calibration:
        values["posterior"] = calibration.to_dict(metres)
        text += "\n\n" + calibration.to_text(metres)
        if abstain is not None:
            coverage, recall = calibration.abstaining(abstain)
            values["abstain"] = {"confidence": abstain, "coverage": coverage, "recall": recall if coverage else None}
            text += f"\n  answers of {abstain:.0%} confidence or more: {coverage:.1%} of the photos"
            text += f", {recall:.1%} of them within {radius:g} m" if coverage else ""
        if plot:
            from jzi.export.picture import draw_calibration

            draw_calibration(calibration, plot)
    print_result(as_json, values, text)


@click.command("import-checkpoint")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The model folder to make.")
@click.option("--encoder", default="facebook/dinov2-base", show_default=True, help="Id or folder of its config.json.")
@click.option("--heads", type=int, help="Of the decoder.  [default: what the checkpoint says, or 8]")
@click.option("--image-size", type=int, default=384, show_default=True, help="Side of a tile as it saw it, pixels.")
@click.option("--layout", default="halves", show_default=True, help="How a photo becomes squares.")
@click.option("--preset", default="just-zoom-in-dc", show_default=True, help="The area that it was trained on.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Take the area from a jzi.toml instead.")
def import_checkpoint_command(
    checkpoint: Path, output: Path, preset: str, config_file: Path | None, **options: Any
) -> None:
    """Make a model of a checkpoint of the reference implementation."""
    from jzi.store.pyramid import preset as published
    from jzi.workspace.settings import load_settings

    pyramid = load_settings(config_file).pyramid if config_file else published(preset)
    from jzi.decode.import_checkpoint import import_checkpoint

    import_checkpoint(checkpoint, output, pyramid, **options)
    sets = f"--set encoder.name={output / 'encoder'} --set encoder.image_size={options['image_size']}"
    click.echo(f"wrote {output}; for its map: jzi encode-map {sets}, then jzi locate --model {output} --cache CACHE")
