"""`ablate`."""

from __future__ import annotations

from pathlib import Path

import click

from jzi.commands.common import UsageError, json_option, print_result, settings_options


@click.command()
@click.argument("what", nargs=-1, metavar="[SECTION.NAME=VALUE,VALUE... | VARIANTS.toml]")
@settings_options
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="How many runs of each variant.")
@click.option("--name", help="Of the folder below ablations/.  [default: grid, or that of the TOML file]")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="[default: test, or val if there is none]")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Runs at once, on each device.")
@click.option("--no-reference", is_flag=True, help="Leave out the row of the plain settings.")
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
    """Compare decoders: train and evaluate variants of the settings, off the same cache.

    \b
    jzi ablate decoder.layers=2,4,6 train.label_smoothing=0,0.1 --seeds 3
    jzi ablate variants.toml

    Every combination is run, or every variant that the file names, and the plain settings, the reference. Runs that are
    done are not run again, and one that was stopped goes on where it was. Variants of encoder.* get a cache of their
    own; for those of finetune.* an encoder is fine-tuned first. Under `accelerate launch` each process runs others.
    """
    from jzi.ablate.variants import expand_grid, read_variants

    if len(what) == 1 and "=" not in what[0] and what[0].endswith(".toml"):
        shared, variants = read_variants(Path(what[0]))
        overrides, name = (*shared, *overrides), name or Path(what[0]).stem
    else:
        variants = expand_grid(what)
    if not variants:
        raise UsageError(
            "there is nothing to compare: name settings and values, such as decoder.layers=2,4,6, or a file of variants"
        )
    from jzi.ablate.ablation import Ablation

    ablation = Ablation(config_file, overrides, variants, name or "grid", not no_reference)
    from jzi.ablate.table import gather_rows, to_text, write_tables
    from jzi.ablate.workers import run_trials
    from jzi.encode.device import processes

    state = processes()

    def tell(line: str) -> None:
        if state.is_main_process:
            click.echo(line, err=True)

    trials = ablation.trials(seeds, split, tell)
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
