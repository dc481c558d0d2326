"""`init`, `train-refiner` and `evaluate` on data sets of pairs of photos and aerial images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jzi.commands.shared.common import UsageError, gallery_text, list_rejected, print_result

if TYPE_CHECKING:
    from jzi.ablate.variants import Variant
    from jzi.evaluate.cross_view import CrossViewEvaluation
    from jzi.evaluate.intervals import Interval
    from jzi.train.run import TrainReport
    from jzi.workspace.pairs import Dataset


def init_pairs_command(folder: Path, name: Dataset, data: Path | None, area: Any, force: bool, as_json: bool) -> None:
    """Set up a working directory for a data set of pairs."""
    from jzi.datasets.pairs import check_panoramas
    from jzi.workspace.pairs import SPLITS, new_pair_settings, read_split, training_pairs, write_pair_settings
    from jzi.workspace.setup.settings import FILE

    if (folder / FILE).exists() and not force:
        raise UsageError(f"{folder / FILE} exists: edit it, or pass --force to replace it")
    settings = new_pair_settings(name, folder, data, area)
    train, held = training_pairs(settings)
    test = read_split(settings, SPLITS[name][0])
    check_panoramas(train)
    check_panoramas(test)
    list_rejected(train.rejected, f"entries of {train.name}, train, left out")
    list_rejected(test.rejected, f"entries of {test.name}, {test.split}, left out")
    if train.not_metric and settings.refiner.locates:
        click.echo(f"no metres can be trained or measured: {train.not_metric}", err=True)
    write_pair_settings(settings)
    steps = "" if folder == Path() else f"cd {folder}; "
    values = {
        "dataset": test.name,
        "train": len(train),
        "held_out": len(held),
        test.split: len(test),
        "references": len(test.references),
        "rejected": len(train.rejected) + len(test.rejected),
        "file": str(folder / FILE),
    }
    text = (
        f"{test.name}: {len(train)} photos to train on, {len(held)} held out of them to select the epoch, {len(test)} "
        f"of the {test.split} split among {len(test.references)} aerial images\n"
        f"wrote {folder / FILE}; next: {steps}jzi train-refiner"
    )
    print_result(as_json, values, text)


def train_pairs_command(config_file: Path, overrides: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Train UnifyGeo on a data set of pairs."""
    from jzi.commands.shared.common import report_left_out
    from jzi.encode.device import processes
    from jzi.store.photos.photo_table import Rejected
    from jzi.store.plain import plain
    from jzi.workspace.pair_runs import train_on_pairs
    from jzi.workspace.pairs import load_pairs

    settings = load_pairs(config_file, overrides)
    folder = settings.path(output or settings.model.path)
    report, train, unreadable = train_on_pairs(settings, folder)
    if not processes().is_main_process:
        return
    list_rejected(train.rejected, f"entries of {train.name} left out")
    list_rejected(tuple(Rejected(name, "cannot be read") for name in unreadable), "images left out")
    report_left_out(report)
    print_result(as_json, {**plain(report), "unreadable": len(unreadable)}, training_text(report))


def evaluate_pairs_command(
    config_file: Path,
    overrides: tuple[str, ...],
    folder: Path | None,
    split: str | None,
    as_json: bool,
    gallery: Path | None = None,
    count: int = 1,
) -> None:
    """Evaluate UnifyGeo on a data set of pairs; `gallery` is a page to write of `count` photos."""
    from jzi.store.photos.photo_table import Rejected
    from jzi.workspace.pair_runs import evaluate_on_pairs
    from jzi.workspace.pairs import load_pairs

    settings = load_pairs(config_file, overrides)
    refiner = folder or settings.path(settings.model.path)
    evaluation, dataset, outcome = evaluate_on_pairs(settings, refiner, split, progress=not as_json)
    list_rejected(dataset.rejected, f"entries of {dataset.name} left out")
    unreadable = tuple(Rejected(path, "cannot be read") for path in evaluation.unreadable)
    list_rejected(unreadable, "images left out")
    values = {**evaluation.to_dict(), "rejected": len(dataset.rejected)}
    text = evaluation_text(evaluation)
    if gallery:
        from jzi.export.gallery.pairs import write_pair_gallery

        size = write_pair_gallery(gallery, outcome, count, title=f"{dataset.name}, {dataset.split}")
        text += gallery_text(gallery, size, values)
    print_result(as_json, values, text)


def ablate_pairs_command(
    config_file: Path,
    overrides: Sequence[str],
    variants: Sequence[Variant],
    name: str,
    reference: bool,
    seeds: int,
    split: str | None,
    as_json: bool,
) -> None:
    """Train and evaluate variants of the settings on a data set of pairs."""
    from jzi.ablate.pairs import PairAblation, gather_pair_rows, pair_rows_to_text, write_pair_tables
    from jzi.encode.device import processes

    ablation = PairAblation(config_file, overrides, variants, name, reference)
    trials = ablation.trials(seeds, split)
    state = processes()
    for trial in (each for group in trials.values() for each in group):
        trial.run(main=state.is_main_process)
        state.wait_for_everyone()
    if not state.is_main_process:
        return
    rows = gather_pair_rows(trials)
    write_pair_tables(rows, ablation.folder)
    if as_json:
        for row in rows:
            print_result(True, row.to_dict(), "")
    else:
        click.echo(f"{pair_rows_to_text(rows)}\nwrote {ablation.folder / 'table.txt'}, .csv and .json")
    if any(row.failed for row in rows):
        raise SystemExit(1)


def training_text(report: TrainReport) -> str:
    """What a training did, and the figures of the best epoch."""
    from jzi.store.plain import share_text

    names = {
        "recall@1": "recall at 1",
        "final_recall@10m": "within 10 m",
        "localized_recall@5m": "within 5 m in the positive",
    }
    best = report.best
    figures = [f"{label} {share_text(best[name])}" for name, label in names.items() if name in best]
    if "localized_median_m" in best:
        figures.append(f"median error {best['localized_median_m']:.1f} m")
    trained = f"{report.epochs} epochs" if report.epochs else "complete already"
    kept = f"; best epoch {int(best['epoch'])}" if best else ""
    of_photos = f"{report.train} photos, {report.val} to validate"
    return f"{trained} ({of_photos}){kept}{': ' + ', '.join(figures) if figures else ''}\nwrote {report.folder}"


def evaluation_text(evaluation: CrossViewEvaluation) -> str:
    """The figures with their intervals, and the published ones of the same data set and protocol."""
    from math import isfinite

    from jzi.commands.shared.tables import share_with_interval
    from jzi.store.geometry.lengths import in_readable_unit

    def quantity(value: Interval, unit: str) -> str:
        factor, unit = in_readable_unit(value.value) if unit == "m" else (1.0, unit)
        low, high = factor * value.low, factor * value.high
        known = f"{low:.2f} .. {high:.2f} {unit}" if low or isfinite(high) else "unknown"
        return f"{factor * value.value:>6.2f} {unit:<1}   ({known})"

    title = f"{evaluation.dataset}, {evaluation.split}: {evaluation.photos} photos"
    if evaluation.retrieval:
        title += f" among {evaluation.retrieval.references} aerial images"
    lines = [f"{title}; in brackets 95 % intervals"]
    if (retrieval := evaluation.retrieval) is not None:
        if retrieval.reranked:
            lines.append(f"  recall at 1, re-ranked   {share_with_interval(retrieval.reranked)}")
        lines += [f"  recall at {k:<14} {share_with_interval(value)}" for k, value in retrieval.recall.items()]
        lines.append(f"  recall at 1 %            {share_with_interval(retrieval.one_percent)}")
        lines.append(f"  hit rate                 {share_with_interval(retrieval.hit_rate)}")
    groups = (
        ("final place", evaluation.final, "m"),
        ("place in the positive", evaluation.localized, "m"),
        ("across the heading", evaluation.lateral, "m"),
        ("along the heading", evaluation.longitudinal, "m"),
        ("heading", evaluation.heading, "°"),
    )
    for name, errors, unit in groups:
        if errors is None:
            continue
        lines.append(f"  {name}")
        lines.append(f"    mean error             {quantity(errors.mean, unit)}")
        lines.append(f"    median error           {quantity(errors.median, unit)}")
        lines += [
            f"    within {limit:>4g} {unit:<11} {share_with_interval(value)}" for limit, value in errors.recall.items()
        ]
    lines += [f"  note: {note}" for note in evaluation.notes]
    return "\n".join(lines + _published_lines(evaluation))


#: Groups of figures that the tables of UnifyGeo compare with.
_TABLES = {"I": "final", "II": "retrieval", "III": "localized", "IV": "retrieval"}


def _published_lines(evaluation: CrossViewEvaluation) -> list[str]:
    """A block for each published table whose figures were measured too, with this model in the last line."""
    lines: list[str] = []
    groups = evaluation.figures()
    for table, group in _TABLES.items():
        rows = [each for each in evaluation.published if each.table == table]
        own = groups.get(group, {})
        names = [name for name in rows[0].figures if name in own] if rows else []
        if not names:
            continue
        width = max(len("this model"), *(len(each.method) for each in rows))
        lines += ["", f"UnifyGeo, table {table} (others as published)"]
        lines.append(f"  {'':<{width}}" + "".join(f"  {name:>10}" for name in names))
        for method, figures in [
            *((each.method, each.figures) for each in rows),
            ("this model", {name: own[name].value for name in names}),
        ]:
            cells = (_cell(name, figures.get(name)) for name in names)
            lines.append(f"  {method:<{width}}" + "".join(f"  {cell:>10}" for cell in cells))
    return lines


def _cell(name: str, value: float | None) -> str:
    from jzi.store.plain import share_text

    if value is None:
        return "-"
    return f"{value:.2f} m" if name.endswith("_m") else share_text(value)
