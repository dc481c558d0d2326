"""`ablate`."""

from __future__ import annotations

from pathlib import Path

import click

from jzi.commands.datasets.pairs import ablate_pairs_command
from jzi.commands.shared.common import UsageError, json_option, print_result, settings_options, was_given


@click.command(short_help="Compare variants of the settings.")
@click.argument("what", nargs=-1, metavar="[SECTION.NAME=VALUE,VALUE... | VARIANTS.toml]")
@settings_options
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="Runs of each variant.")
@click.option("--name", help="Name of the folder in ablations/.  [default: grid, or the name of the TOML file]")
@click.option("--split", type=click.Choice(["train", "val", "test", "test1", "test2"]),
              help="[default: test, or val if there is none]")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True,
              help="Concurrent runs on each device.")  # fmt: skip
@click.option("--no-reference", is_flag=True, help="Do not run the settings without changes.")
@json_option
def ablate(
    what: tuple[str, ...],
    config_file: Path,
    overrides: tuple[str, ...],
    seeds: int,
    name: str | None,
    split: str | None,
    jobs: int,
    no_reference: bool,
    as_json: bool,
) -> None:
    """Train and evaluate variants of the settings on one cache.

    \b
    jzi ablate decoder.layers=2,4,6 train.label_smoothing=0,0.1 --seeds 3
    jzi ablate variants.toml

    Runs every combination, or every variant in the file, and the unchanged settings as the reference. Finished runs are
    not repeated, interrupted ones are resumed. Variants of encoder.* get caches of their own; for variants of
    finetune.* an encoder is fine-tuned first. Under `accelerate launch` the processes share the runs. On a data set of
    pairs, variants are of pairs.*, refine.* and refiner.*, and run one after another. Variants of statewide.* and
    region.* are for `python -m benchmarks.statewide`, in a checkout of jzi.
    """
    from jzi.ablate.variants import PAIR_SECTIONS, SECTIONS, expand_grid, read_variants
    from jzi.workspace.setup.settings_file import is_pairs

    pairs = is_pairs(config_file)
    sections = PAIR_SECTIONS if pairs else SECTIONS
    if len(what) == 1 and "=" not in what[0] and what[0].endswith(".toml"):
        shared, variants = read_variants(Path(what[0]), sections)
        overrides, name = (*shared, *overrides), name or Path(what[0]).stem
    else:
        variants = expand_grid(what, sections)
    if not variants:
        raise UsageError(
            "no variants are given: pass settings with values, such as decoder.layers=2,4,6, or a file of variants"
        )
    if pairs:
        if was_given("jobs"):
            raise UsageError(
                "--jobs does not apply to a data set of pairs, whose runs take a device each: leave it out"
            )
        ablate_pairs_command(config_file, overrides, variants, name or "grid", not no_reference, seeds, split, as_json)
        return
    if split in ("test1", "test2"):
        raise UsageError(f"--split {split} is of the data set KITTI: give train, val or test")
    from jzi.ablate.ablation import Ablation

    ablation = Ablation(config_file, overrides, variants, name or "grid", not no_reference)
    from jzi.ablate.table import gather_rows, to_text, write_tables
    from jzi.ablate.workers import run_trials
    from jzi.commands.shared.reports import map_text, photos_text, training_text
    from jzi.encode.device import processes
    from jzi.encode.encode_map import MapReport
    from jzi.encode.encode_queries import PhotoReport
    from jzi.train.encoders.encoder import EncoderTrainingReport

    state = processes()

    def log(message: str | MapReport | PhotoReport | EncoderTrainingReport) -> None:
        if not state.is_main_process:
            return
        if isinstance(message, MapReport):
            message = map_text(message)
        elif isinstance(message, PhotoReport):
            message = photos_text(message)
        elif isinstance(message, EncoderTrainingReport):
            message = training_text(message)
        click.echo(message, err=True)

    trials = ablation.trials(seeds, split, log)
    run_trials(list(trials.values()), jobs, device=state.local_process_index, first=state.is_main_process)
    if not state.is_main_process:
        return
    rows = gather_rows(trials)
    write_tables(rows, ablation.folder)
    if as_json:
        for row in rows:
            print_result(True, row.to_dict(), "")
    else:
        click.echo(f"{to_text(rows)}\nwrote {ablation.folder / 'table.png'}, .csv, .json and .txt")
    if any(row.failed for row in rows):
        raise SystemExit(1)
