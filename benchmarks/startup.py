"""Measure the start-up of `jzi locate` against `import torch`.

    python -m benchmarks.startup MODEL PHOTO [--rounds 5]

`python -c 'import torch'`, `python -c 'import jzi; jzi.load(MODEL)'` and `jzi locate PHOTO --model MODEL` run in turn,
each in a process of its own; medians of wall and CPU time are printed, with the median of the ratios to torch of the
same round. Then `jzi locate` runs once more with `-X importtime`, and the packages that it imports are listed with the
time that each takes by itself; what remains is reading, encoding and searching. A first round is left out: it reads the
files from disk and keeps the bytecode of modules, as pip does on installation, whatever PYTHONDONTWRITEBYTECODE says.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from statistics import median

import click

#: A line of `-X importtime`: microseconds of the module itself, and its name.
LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")

#: The environment of the commands.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds(command: list[str]) -> tuple[float, float]:
    """Run a command; return its wall time and its CPU time."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    wall, after = time.perf_counter() - start, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, spent


def import_times(command: list[str]) -> dict[str, float]:
    """Seconds that each package takes to import, without the packages that it imports in turn; longest first."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    packages: defaultdict[str, float] = defaultdict(float)
    for microseconds, module in LINE.findall(run.stderr.decode()):
        package = module.split(".")[0]
        packages["Python's own" if package.lstrip("_") in sys.stdlib_module_names else package] += int(microseconds)
    return {name: packages[name] / 1e6 for name in sorted(packages, key=lambda name: -packages[name])}


@click.command()
@click.argument("model", type=click.Path(exists=True))
@click.argument("photo", type=click.Path(exists=True))
@click.option("--rounds", default=5, show_default=True)
def main(model: str, photo: str, rounds: int) -> None:
    """Measure and print both tables."""
    locate = ["-m", "jzi", "locate", photo, "--model", model]
    commands = {
        "import torch": ["-c", "import torch"],
        "jzi.load(MODEL)": ["-c", "import sys, jzi; jzi.load(sys.argv[1])", model],
        "jzi locate PHOTO": locate,
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            measured = seconds(command)
            if number:
                results[name].append(measured)
    click.echo(f"{'':<20}{'wall, s':>9}{'CPU, s':>9}{'of torch':>10}{'CPU of torch':>14}")
    for name, measured_rounds in results.items():
        wall, spent = (median(values) for values in zip(*measured_rounds, strict=True))
        pairs = zip(measured_rounds, results["import torch"], strict=True)
        ratios = [(own[0] / torch[0], own[1] / torch[1]) for own, torch in pairs]
        of_wall, of_cpu = (median(values) for values in zip(*ratios, strict=True))
        click.echo(f"{name:<20}{wall:>9.2f}{spent:>9.2f}{of_wall:>10.2f}{of_cpu:>14.2f}")
    times = import_times(locate)
    click.echo(f"\nimports of `jzi locate`, {sum(times.values()):.2f} s in all (slower while they are timed)")
    for name, own in list(times.items())[:12]:
        click.echo(f"{name:<20}{own:>9.3f}")


if __name__ == "__main__":
    main()
