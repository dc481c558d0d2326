"""Attack jzi: kill its commands, damage its files, give it hostile ones, and flood its service; count what fails.

    python -m jzi.tests.attack                      # a few of each, some minutes
    python -m jzi.tests.attack --kills 100 --flips 400 --files 10000 --requests 200 --seed 1     # hours on two cores

Run it from the root of the repository; it uses the generators and processes of `tests/`, and no network. It makes a
small town with a tiny random encoder, so that a command takes seconds:

- kills: long commands are killed (SIGKILL) at random moments, up to three times, resumed, and compared byte by byte
  with a run that nothing interrupted;
- flips: a file of a cache or of a model folder is flipped, truncated, edited or removed. Commands must refuse it in a
  sentence with exit code 2, or answer as before; every third damaged cache is repaired, and must be as before;
- files: hostile files of every kind that comes from strangers are read, with bounded memory and time;
- requests: all at once to `jzi serve`, beside slow, abandoned and malformed ones; then SIGTERM during others.

Faults are printed when they are found, with the seed that makes a file again. The exit code is 1 if there were any.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

#: Most characters of a fault that are printed.
LONGEST = 3000


class Table:
    """Rows that are printed at the end, and the number of faults."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, int]] = []

    def add(self, what: str, tried: str, found: str, faults: int) -> None:
        self.rows.append((what, tried, found, faults))

    def text(self) -> str:
        header = ("attack", "tried", "result", "faults")
        rows = [header, ("---",) * 4, *((*row[:3], str(row[3])) for row in self.rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def say(text: str) -> None:
    click.echo(text[:LONGEST])


def kill(count: int, seed: int, folder: Path, table: Table, only: tuple[str, ...]) -> None:
    from jzi.tests.attacks import kills

    rows: dict[str, list[kills.Outcome]] = {}
    for outcome in kills.attack(count, seed, folder, only):
        rows.setdefault(outcome.name, []).append(outcome)
        if outcome.fault:
            say(f"FAULT {outcome.name}: {outcome.fault}")
    for name, outcomes in rows.items():
        tried, faults = sum(each.kills for each in outcomes), sum(bool(each.fault) for each in outcomes)
        equal = f"{len(outcomes) - faults} of {len(outcomes)} resumed runs equal"
        table.add(f"kill `{name}`", f"{tried} kills", equal, faults)


def flip(count: int, seed: int, folder: Path, table: Table, only: tuple[str, ...]) -> None:
    from jzi.tests.attacks import flips

    rows: dict[str, Counter[str]] = {}
    for outcome in flips.attack(count, seed, flips.prepare(folder), only):
        row = rows.setdefault(outcome.target, Counter())
        fine = outcome.outcome in ("refused", "noticed", "unchanged")
        row[outcome.outcome if fine else "faults"] += 1
        row["repaired"] += outcome.repaired
        if not fine:
            say(f"FAULT {outcome.file} ({outcome.damage}): {outcome.outcome}")
    for target, row in rows.items():
        tried = sum(row[name] for name in ("refused", "noticed", "unchanged", "faults"))
        found = ", ".join(
            f"{row[name]} {name}" for name in ("refused", "noticed", "unchanged", "repaired") if row[name]
        )
        table.add(f"damage `{target}`", f"{tried} files", found, row["faults"])


def read(count: int, seed: int, table: Table, only: tuple[str, ...]) -> None:
    from jzi.tests.attacks import files, readers

    kinds = [kind for kind in readers.ATTACKS if not only or kind in only]
    for kind, outcomes in files.attack(count, seed, kinds, say).items():
        refused, faults = (sum(map(bool, (getattr(each, name) for each in outcomes))) for name in ("refused", "fault"))
        slowest, most = (max(getattr(each, name) for each in outcomes) for name in ("seconds", "memory"))
        found = f"{refused} refused, at most {slowest:.1f} s and {most / 1e6:.0f} MB"
        table.add(f"read {kind}", f"{len(outcomes)} files", found, faults)


def request(count: int, seed: int, folder: Path, table: Table) -> None:
    from jzi.tests.attacks import service

    answers = service.attack(count, seed, service.prepare(folder), say)
    for fault in answers.faults:
        say(f"FAULT requests: {fault}")
    statuses = ", ".join(f"{number} x {name}" for name, number in sorted(answers.statuses.items()))
    found = f"{statuses} in {answers.seconds:.0f} s; {answers.memory_mb:.0f} of at most {answers.bound_mb:.0f} MB"
    table.add("requests at once", f"{count} and {answers.beside.total()} others", found, len(answers.faults))
    table.add("SIGTERM during requests", "1", f"ended after {answers.ended_s:.1f} s", 0)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--kills", default=22, show_default=True, help="SIGKILLs; 0 for none, as of the others.")
@click.option("--flips", default=40, show_default=True, help="Damaged files of caches and models.")
@click.option("--files", default=500, show_default=True, help="Hostile files.")
@click.option("--requests", default=100, show_default=True, help="Requests at once.")
@click.option("--seed", default=0, show_default=True)
@click.option("--only", multiple=True, help="Only this command, folder or kind of file; may be repeated.")
def main(kills: int, flips: int, files: int, requests: int, seed: int, only: tuple[str, ...]) -> None:
    table, start = Table(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if files:
            read(files, seed, table, only)
        if flips:
            flip(flips, seed, folder / "flips", table, only)
        if requests:
            request(requests, seed, folder / "requests", table)
        if kills:
            kill(kills, seed, folder / "kills", table, only)
    say(table.text())
    faults = sum(row[3] for row in table.rows)
    say(f"\nseed {seed}: {faults} faults in {time.monotonic() - start:.0f} s")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
