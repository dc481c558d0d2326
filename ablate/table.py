"""Results of an ablation: one row per variant, as text, CSV, JSON and a plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jzi.ablate.trials import Trial
from jzi.ablate.variants import REFERENCE
from jzi.evaluate.metrics import RADII
from jzi.store.disk.files import write_whole
from jzi.store.printable import quote_formula

#: Names of the figures that are averaged over seeds.
FIGURES = (*(f"recall@{radius:g}m" for radius in RADII), "median_error_m", "seconds")


@dataclass(frozen=True)
class Figure:
    """One figure of a variant.

    Attributes:
        values: the figure of each seed.
        difference: its mean minus the reference's mean; None if there is no reference to compare with.
    """

    values: tuple[float, ...]
    difference: float | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "mean": self.mean,
            "deviation": self.deviation,
            "difference": self.difference,
            "values": list(self.values),
        }


@dataclass(frozen=True)
class Row:
    """The results of a variant.

    Attributes:
        variant: its name, joined with the names of variants with the same effective settings.
        seeds: seeds of its trials.
        folders: model folders of its trials.
        figures: name from `FIGURES` to figure; empty if every trial failed.
        failed: error messages of the trials that failed.
        photos: number of photos that were located, and their split; None if every trial failed.
        reference: whether it is the row of the plain settings.
    """

    variant: str
    seeds: tuple[int, ...]
    folders: tuple[Path, ...]
    figures: dict[str, Figure]
    failed: tuple[str, ...]
    photos: tuple[int, str] | None
    reference: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "variant": self.variant,
            "seeds": list(self.seeds),
            "photos": self.photos[0] if self.photos else None,
            "split": self.photos[1] if self.photos else None,
            **{name: figure.to_dict() for name, figure in self.figures.items()},
            "failed": list(self.failed),
            "folders": [str(folder) for folder in self.folders],
        }


def gather_rows(variants: dict[str, list[Trial]]) -> list[Row]:
    """One row per variant.

    Args:
        variants: title of each row to its trials, all of which have been run.
    """
    rows: list[Row] = []
    for name, trials in variants.items():
        results = [trial.result or {} for trial in trials]
        evaluated = [result for result in results if "evaluation" in result]
        reference = next((row for row in rows if row.reference), None)
        figures = {}
        for figure in FIGURES if evaluated else ():
            values = tuple(_value(result, figure) for result in evaluated)
            compared = reference.figures.get(figure) if reference else None
            figures[figure] = Figure(values, float(np.mean(values)) - compared.mean if compared else None)
        rows.append(
            Row(
                variant=name,
                seeds=tuple(trial.train.seed for trial in trials),
                folders=tuple(trial.folder for trial in trials),
                figures=figures,
                failed=tuple(result["error"] for result in results if "error" in result),
                photos=(evaluated[0]["evaluation"]["photos"], evaluated[0]["split"]) if evaluated else None,
                reference=trials[0].variant == REFERENCE,
            )
        )
    return rows


def _value(result: dict[str, Any], figure: str) -> float:
    return float(result["seconds"] if figure == "seconds" else result["evaluation"][figure]["value"])


def to_text(rows: Sequence[Row]) -> str:
    """The rows as a table in plain text."""
    photos = next((row.photos for row in rows if row.photos), None)
    located = f"{photos[0]} photos of the {photos[1]} split, greedy search" if photos else "every run failed"
    spread = any(len(row.seeds) > 1 for row in rows)
    over = f"; mean ± standard deviation over {len(rows[0].seeds)} seeds" if spread else ""
    compared = any(figure.difference is not None for row in rows for figure in row.figures.values())
    over += "; in parentheses: difference from the reference" if compared else ""
    width = max(len("variant"), *(len(row.variant) for row in rows))
    titles = [f"within {radius:g} m" for radius in RADII] + ["median error", "seconds"]
    table = [[_cell(row.figures[name], name) for name in FIGURES] if row.figures else None for row in rows]
    widths = [max(len(title), *(len(line[column]) for line in table if line), 0) for column, title in enumerate(titles)]
    lines = [located + over, f"  {'variant':<{width}}" + _joined(titles, widths)]
    for row, line in zip(rows, table, strict=True):
        cells = _joined(line, widths) if line else ""
        failed = f"  {len(row.failed)} of {len(row.seeds)} failed: {row.failed[0]}" if row.failed else ""
        lines.append(f"  {row.variant:<{width}}{cells}{failed}")
    return "\n".join(lines)


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"   {cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _cell(figure: Figure, name: str) -> str:
    scale, unit = {"median_error_m": (1.0, " m"), "seconds": (1.0, " s")}.get(name, (100.0, "%"))
    digits = 1 if name in ("median_error_m", "seconds") else 2
    text = f"{scale * figure.mean:.{digits}f}"
    if figure.deviation is not None:
        text += f" ± {scale * figure.deviation:.{digits}f}"
    text += unit
    if figure.difference is not None and name != "seconds":
        text += f" ({scale * figure.difference:+.{digits}f})"
    return text


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV: mean, deviation and difference of each figure, one line per variant."""
    columns = ("mean", "deviation", "difference")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variant", "seeds", "failed", *(f"{name}_{column}" for name in FIGURES for column in columns)])
    for row in rows:
        values = [getattr(row.figures[name], column) if row.figures else None for name in FIGURES for column in columns]
        writer.writerow([quote_formula(row.variant), len(row.seeds), len(row.failed), *values])
    return text.getvalue()


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """Write table.txt, table.csv, table.json and table.png to a folder."""
    values = json.dumps([row.to_dict() for row in rows], indent=2)
    for suffix, text in (("txt", to_text(rows) + "\n"), ("csv", to_csv(rows)), ("json", values + "\n")):
        write_whole(folder / f"table.{suffix}", partial(Path.write_text, data=text))
    write_whole(folder / "table.png", lambda path: draw_rows(rows, path))


def draw_rows(rows: Sequence[Row], output: Path) -> None:
    """Draw the rows as a PNG: one line per variant with its mean, its deviation as a bar, and a point per seed."""
    from matplotlib.figure import Figure as Drawing

    drawn = [row for row in rows if row.figures]
    recalls = {f"recall@{radius:g}m": f"within {radius:g} m" for radius in RADII}
    panels: list[tuple[dict[str, str], float, str]] = [
        (recalls, 100.0, "recall, %"),
        ({"median_error_m": ""}, 1.0, "median error, m"),
        ({"seconds": ""}, 1.0, "seconds to train"),
    ]
    drawing = Drawing(figsize=(13, 1.6 + 0.34 * len(drawn)), layout="constrained")
    axes = drawing.subplots(1, len(panels), sharey=True, width_ratios=[3, 1.5, 1.5])
    for axis, (figures, scale, title) in zip(axes, panels, strict=True):
        for index, (name, label) in enumerate(figures.items()):
            color = f"C{index}"
            for y, row in enumerate(drawn):
                figure = row.figures[name]
                axis.plot(np.multiply(scale, figure.values), [y] * len(figure.values), ".", color=color, alpha=0.35)
                axis.errorbar(
                    scale * figure.mean,
                    y,
                    xerr=None if figure.deviation is None else scale * figure.deviation,
                    fmt="o",
                    color=color,
                    capsize=3,
                    markersize=5,
                    label=label if y == 0 else None,
                )
            if drawn and drawn[0].reference and name != "seconds":
                axis.axvline(scale * drawn[0].figures[name].mean, color=color, linestyle=":", linewidth=1)
        low, high = axis.get_xlim()
        middle, width = (low + high) / 2, 0.1 if scale == 1 else 2.0  # equal values: a tenth, or two points of recall
        if high - low < width:
            axis.set_xlim(middle - width / 2, middle + width / 2)
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.set_xlabel(title)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(drawn)), [row.variant.replace(" = ", "\n= ") for row in drawn])
    axes[0].set_ylim(len(drawn) - 0.5, -0.5)  # in the order of the table
    if drawn:
        drawing.legend(
            *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(recalls), frameon=False
        )
    drawing.savefig(output, dpi=110, format="png")
