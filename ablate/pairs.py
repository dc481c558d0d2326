"""Ablations on a data set of pairs: variants of the settings, each trained and evaluated with several seeds.

ablations/<name>/<variant>-seed<k>/    network of a trial, unless another variant trained the same, and result.json
ablations/<name>/table.{txt,csv,json}  results as a table
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jzi.ablate.table import Figure
from jzi.ablate.variants import REFERENCE, Variant, folder_name
from jzi.errors import ConfigError, TrainingError
from jzi.evaluate.published import PublishedPairs, published_pairs
from jzi.store.disk.files import write_whole
from jzi.store.plain import plain
from jzi.store.printable import quote_formula
from jzi.workspace.pair_runs import evaluate_on_pairs, train_on_pairs
from jzi.workspace.pairs import PairSettings, chosen_split, load_pairs

#: Settings of the section [pairs] that evaluation alone depends on, so that variants of them share a training.
EVALUATION = ("rerank", "top", "batch_size", "orientations")

#: Figures of the table: group and name in `CrossViewEvaluation.figures`, and title.
FIGURES = {
    ("retrieval", "recall@1"): "R@1",
    ("retrieval", "recall@5"): "R@5",
    ("retrieval", "recall@10"): "R@10",
    ("retrieval", "recall@1%"): "R@1%",
    ("retrieval", "hit_rate"): "hit rate",
    ("final", "recall@1m"): "R@1m",
    ("final", "recall@10m"): "R@10m",
    ("localized", "mean_m"): "mean m",
    ("localized", "median_m"): "median m",
}


@dataclass(frozen=True)
class PairTrial:
    """A variant with a seed.

    Attributes:
        variant: name of the variant.
        settings: its effective settings, with the seed.
        folder: where its result is written.
        network: folder of its network; that of another trial if it is trained the same.
        split: split to evaluate on; None for the data set's first.
    """

    variant: str
    settings: PairSettings
    folder: Path
    network: Path
    split: str | None

    @property
    def key(self) -> dict[str, Any]:
        """What the result depends on, as JSON holds it."""
        values = {**_values(self.settings), "split": self.split}
        return dict(json.loads(json.dumps(values)))

    @property
    def result(self) -> dict[str, Any] | None:
        """What `run` wrote for these settings; None if the trial has not been run."""
        try:
            result = json.loads((self.folder / "result.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return result if isinstance(result, dict) and result.get("settings") == self.key else None

    def run(self, *, main: bool = True) -> None:
        """Train, evaluate, and write result.json, unless that is done; an interrupted training is resumed.

        A loss that is not finite is the result, so that the other trials are still run.

        Args:
            main: whether this process evaluates.

        Raises:
            JziError: the data set or a folder cannot be used.
        """
        if self.result is not None:
            return
        values: dict[str, Any] = {"variant": self.variant, "settings": self.key}
        try:
            report, _, _ = train_on_pairs(self.settings, self.network, progress=main)
        except TrainingError as error:
            values["error"] = str(error)
        else:
            if not main:
                return
            evaluation, _, _ = evaluate_on_pairs(self.settings, self.network, self.split)
            values |= {"seconds": report.seconds, "evaluation": evaluation.to_dict()}
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(values, indent=2) + "\n"
        write_whole(self.folder / "result.json", lambda path: path.write_text(text))


@dataclass(frozen=True)
class PairRow:
    """The results of variants with the same settings.

    Attributes:
        variant: their names, joined.
        figures: group and name to figure; those that no trial has are left out.
        failed: error messages of the trials that failed.
        photos: number of photos and their data set and split; None if every trial failed.
        published: published results of the variant.
        folders: folders of the trials.
    """

    variant: str
    figures: dict[tuple[str, str], Figure]
    failed: tuple[str, ...]
    photos: tuple[int, str] | None
    published: tuple[PublishedPairs, ...]
    folders: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "variant": self.variant,
            "photos": self.photos[0] if self.photos else None,
            "of": self.photos[1] if self.photos else None,
            **{f"{group}_{name}": figure.to_dict() for (group, name), figure in self.figures.items()},
            "published": {each.table: each.figures for each in self.published},
            "failed": list(self.failed),
            "folders": [str(folder) for folder in self.folders],
        }


class PairAblation:
    """Variants of the settings in the jzi.toml of a data set of pairs.

    Args:
        config_file: path of the jzi.toml.
        overrides: overrides for all variants, "section.name=value" as for --set.
        variants: the variants; those with the same effective settings become one row.
        name: name of the folder in `ablations`.
        reference: whether to include the plain settings.

    Raises:
        ConfigError: a setting is unknown or invalid, or two variants have the same folder name.
    """

    def __init__(
        self, config_file: Path, overrides: Sequence[str], variants: Sequence[Variant], name: str, reference: bool
    ) -> None:
        self.folder = config_file.parent / "ablations" / folder_name(name)
        groups: dict[str, tuple[list[str], PairSettings]] = {}
        for variant in [*([Variant(REFERENCE)] if reference else []), *variants]:
            try:
                settings = load_pairs(config_file, (*overrides, *variant.overrides))
            except ConfigError as error:
                raise ConfigError(f"variant {variant.name}: {error}") from error
            names, _ = groups.setdefault(json.dumps(_values(settings)), ([], settings))
            names.append(variant.name)
        self.groups = list(groups.values())
        folders = [folder_name(names[0]) for names, _ in self.groups]
        if duplicates := {folder for folder in folders if folders.count(folder) > 1}:
            raise ConfigError(f"two variants would share the folder {duplicates.pop()}: name them in a TOML file")

    def trials(self, seeds: int, split: str | None) -> dict[str, list[PairTrial]]:
        """The trials of each row of the table.

        Args:
            seeds: number of trials of each variant, with refiner.seed, refiner.seed + 1, ...
            split: split of the photos to evaluate on; None for the data set's first.

        Raises:
            ConfigError: the data set has no such split.
        """
        for _, settings in self.groups:
            chosen_split(settings, split)
        networks: dict[str, Path] = {}
        rows: dict[str, list[PairTrial]] = {}
        for names, settings in self.groups:
            trials = rows.setdefault(" = ".join(names), [])
            for number in range(seeds):
                training = replace(settings.refiner, seed=settings.refiner.seed + number)
                effective = replace(settings, refiner=training)
                effective.folder = settings.folder
                folder = self.folder / f"{folder_name(names[0])}-seed{training.seed}"
                network = networks.setdefault(_training_key(effective), folder)
                trials.append(PairTrial(names[0], effective, folder, network, split))
        return rows


def _values(settings: PairSettings) -> dict[str, Any]:
    """The settings that an outcome depends on."""
    return {
        "pairs": plain(settings.pairs),
        "refine": plain(settings.refine),
        "refiner": plain(settings.refiner.fingerprint()),
    }


def _training_key(settings: PairSettings) -> str:
    """Identifies a training."""
    pairs = {name: value for name, value in asdict(settings.pairs).items() if name not in EVALUATION}
    return json.dumps({**_values(settings), "pairs": pairs})


def gather_pair_rows(trials: dict[str, list[PairTrial]]) -> list[PairRow]:
    """One row per variant, of trials that have been run."""
    rows: list[PairRow] = []
    for name, group in trials.items():
        results = [trial.result or {} for trial in group]
        evaluated = [result["evaluation"] for result in results if "evaluation" in result]
        figures = {}
        for key in FIGURES:
            values = [each[key[0]][key[1]]["value"] for each in evaluated if key[1] in each.get(key[0], {})]
            if values and None not in values:
                first = rows[0].figures.get(key) if rows and rows[0].variant.startswith(REFERENCE) else None
                figures[key] = Figure(tuple(values), float(np.mean(values)) - first.mean if first else None)
        photos = (evaluated[0]["photos"], f"{evaluated[0]['dataset']}, {evaluated[0]['split']}") if evaluated else None
        area = photos[1].removesuffix(", test") if photos and photos[1].startswith("VIGOR") else ""
        names = name.split(" = ")
        rows.append(
            PairRow(
                variant=name,
                figures=figures,
                failed=tuple(result["error"] for result in results if "error" in result),
                photos=photos,
                published=tuple(e for e in published_pairs(area, ("V", "VI", "VII")) if e.method in names),
                folders=tuple(trial.folder for trial in group),
            )
        )
    return rows


def pair_rows_to_text(rows: Sequence[PairRow]) -> str:
    """The rows as a table in plain text; published values of a variant are in brackets below its own."""
    photos = next((row.photos for row in rows if row.photos), None)
    spread = any(len(figure.values) > 1 for row in rows for figure in row.figures.values())
    title = f"{photos[0]} photos of {photos[1]}" if photos else "every run failed"
    lines = [title + ("; mean ± standard deviation over seeds" if spread else "")]
    keys = [key for key in FIGURES if any(key in row.figures for row in rows)]
    width = max(len("variant"), *(len(row.variant) for row in rows))
    table = []
    for row in rows:
        cells = [_cell(row.figures[key], key[1]) if key in row.figures else "-" for key in keys]
        failed = f"  {len(row.failed)} failed: {row.failed[0]}" if row.failed else ""
        table.append((row.variant, cells, failed))
        measured = {name for _, name in row.figures}
        known = {name: value for each in row.published for name, value in each.figures.items() if name in measured}
        if known:
            table.append(("", [f"[{_number(known[key[1]], key[1])}]" if key[1] in known else "" for key in keys], ""))
    columns = [max(len(FIGURES[key]), *(len(cells[at]) for _, cells, _ in table)) for at, key in enumerate(keys)]

    def line(name: str, cells: Sequence[str]) -> str:
        return f"  {name:<{width}}" + "".join(f"   {cell:>{size}}" for cell, size in zip(cells, columns, strict=True))

    lines.append(line("variant", [FIGURES[key] for key in keys]).rstrip())
    lines += [(line(name, cells) + failed).rstrip() for name, cells, failed in table]
    return "\n".join(lines)


def _cell(figure: Figure, name: str) -> str:
    text = _number(figure.mean, name)
    return text if figure.deviation is None else f"{text} ± {_number(figure.deviation, name)}"


def _number(value: float, name: str) -> str:
    return f"{value:.2f}" if name.endswith("_m") else f"{100 * value:.2f}"


def write_pair_tables(rows: Sequence[PairRow], folder: Path) -> None:
    """Write table.txt, table.csv and table.json to a folder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("mean", "deviation", "difference")
    writer.writerow(["variant", *(f"{group}_{name}_{column}" for group, name in FIGURES for column in columns)])
    for row in rows:
        cells = [getattr(row.figures[key], column) if key in row.figures else None for key in FIGURES
                 for column in columns]  # fmt: skip
        writer.writerow([quote_formula(row.variant), *cells])
    values = json.dumps([row.to_dict() for row in rows], indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, data in (("txt", pair_rows_to_text(rows) + "\n"), ("csv", text.getvalue()), ("json", values)):
        write_whole(folder / f"table.{suffix}", partial(Path.write_text, data=data))
