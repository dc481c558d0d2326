"""Options, printing and errors that several commands share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from jzi.locate.ranges import BEAMS, CANDIDATES, Range
from jzi.store.printable import listed

if TYPE_CHECKING:
    from jzi.cluster.encoding import RunTasks
    from jzi.cluster.worker import Work
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.store.photos.photo_table import PhotoTable, Rejected
    from jzi.train.run import TrainReport
    from jzi.workspace.stages.refiner import RefineRequest


class UsageError(click.ClickException):
    """An error that is printed as one sentence on standard error, with exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print the error to standard error."""
        click.echo(f"jzi: {self.format_message()}", err=True)


class Suggesting(click.Group):
    """Group of commands that suggests the most similar one where there is none of a name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As that of click, with one sentence for an unknown name."""
        name = args[0]
        if self.get_command(ctx, name) is None and name[:1].isalnum() and not ctx.resilient_parsing:
            close = get_close_matches(name, self.list_commands(ctx), 1)
            hint = f"did you mean `{ctx.command_path} {close[0]}`?" if close else f"`{ctx.command_path} -h` lists them"
            raise UsageError(f"there is no command {name!r:.100}: {hint}")
        return super().resolve_command(ctx, args)


def was_given(name: str) -> bool:
    """Whether the user gave an option of the running command, even with its default as the value.

    Args:
        name: of its parameter.
    """
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def refuse(*rules: tuple[object, str]) -> None:
    """Refuse options that do not go together.

    Args:
        rules: what is wrong where it is true, and the sentence that says so.

    Raises:
        UsageError: one of them is true, with the sentence of the first.
    """
    for wrong, sentence in rules:
        if wrong:
            raise UsageError(sentence)


def refuse_others(used: Collection[str], what: str) -> None:
    """Refuse the options of the current command that do not matter to what it is used for.

    Args:
        used: names of the parameters that matter.
        what: what the others are, such as "not for a region".

    Raises:
        UsageError: another value than the default was given for others.
    """
    context = click.get_current_context()
    others = [
        max(each.opts, key=len)
        for each in context.command.params
        if each.name not in used
        and context.get_parameter_source(each.name or "") not in (None, ParameterSource.DEFAULT)
        and context.params.get(each.name or "") != each.get_default(context)
    ]
    if others:
        verb, them = ("is", "it") if len(others) == 1 else ("are", "them")
        raise UsageError(f"{', '.join(others)} {verb} {what}: leave {them} out")


class _FiniteRange(click.FloatRange):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        converted = super().convert(value, param, ctx)
        if math.isnan(converted):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return converted


def number(range: Range) -> click.ParamType:
    """The type of an option whose values lie in a range of `jzi.locate.ranges`."""
    if range.whole:
        return click.IntRange(int(range.low), int(range.high))
    return _FiniteRange(range.low, range.high, min_open=range.above)


def settings_options(command: Callable) -> Callable:
    """Add the options --config and --set."""
    command = click.option(
        "--config", "config_file", type=click.Path(path_type=Path), default="jzi.toml", show_default=True,
        help="The settings of the area.",
    )(command)  # fmt: skip
    return click.option(
        "--set", "overrides", multiple=True, metavar="SECTION.NAME=VALUE", help="Override a setting; may be repeated."
    )(command)


split_by_option = click.option(
    "--split-by", type=click.Choice(["auto", "sequence", "block", "photo"]),
    help="What stays together in a split where the table has none: drives, blocks of the map, or single photos.  "
    "[default: auto, the first of these with three groups or more]",
)  # fmt: skip
allow_outside_option = click.option(
    "--allow-outside", is_flag=True, help="Also read photos outside of their folder, which paths or links lead to."
)
beams_option = click.option(
    "--beams", type=number(BEAMS), help="Width of the beam search.  [default: what matters of a small map, else 64]"
)
retriever_option = click.option(
    "--retriever",
    type=click.Path(path_type=Path),
    metavar="RETRIEVER",
    help="Use this retriever instead of a zoom model: a folder, or USER/NAME of the hub.",
)
approximate_option = click.option(
    "--approximate",
    is_flag=True,
    help="Search the retriever's graph, or the region's index, not all cells.",
)
zoom_option = click.option(
    "--zoom", type=click.Path(path_type=Path), metavar="MODEL",
    help="In a region: search only where this zoom model, of a square in it, finds a photo probable.",
)  # fmt: skip
fuse_option = click.option(
    "--fuse", is_flag=True, help="In a region: multiply the probabilities of --retriever and --zoom instead, with the "
    "weights that train-fusion fitted.",
)  # fmt: skip


def refine_options(command: Callable) -> Callable:
    """Add the options about refining; `refine` is None, or the folder, which is empty for that of the model."""
    options = (
        click.option("--refine", is_flag=False, flag_value="", metavar="[FOLDER]", callback=_refiner, help="Refine "
                     "candidates to metres, with this refiner.  [default: that of the model's folder]"),
        click.option("--refine-top", type=number(CANDIDATES), help="Candidates to refine.  [default: refine.top]"),
    )  # fmt: skip
    return with_options(command, options)


def with_options(command: Callable, options: Sequence[Callable]) -> Callable:
    """A command with further options, listed in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def _refiner(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value and Path(value).is_file():
        raise UsageError(f"--refine takes the folder of a refiner, not {value}: give --refine after the photos")
    return value


def refine_request(refine: str | None, refine_top: int | None) -> RefineRequest | None:
    """The options of `refine_options` as `jzi.workspace.models.locators.open_locator` takes them."""
    if refine is None:
        if refine_top is not None:
            raise UsageError("--refine-top goes with --refine: add it")
        return None
    from jzi.workspace.stages.refiner import RefineRequest

    return RefineRequest(Path(refine) if refine else None, refine_top)


def experts_option(text: str) -> Callable:
    """The option --experts, a tuple of names; empty by default.

    Args:
        text: help.
    """
    return click.option("--experts", callback=_names, metavar="NAME,...", help=text)


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    if value is None:
        return ()
    names = tuple(name.strip() for name in value.split(","))
    if "" in names or len(set(names)) < len(names):
        raise UsageError(f"--experts takes distinct names separated by commas, such as zoom,cells, not {value!r}")
    return names


ray_option = click.option(
    "--ray", metavar="ADDRESS", help="Encode on the nodes of a Ray cluster: auto for the one that this machine is a "
    "node of, or host:port of its head.",
)  # fmt: skip


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Callable[[FeatureCache, Callable[[Any], Work]], RunTasks | None]]:
    """Connect to the cluster of the option --ray, if it is given; a context manager.

    Its value takes a cache and a function, which makes what the nodes do from the module `jzi.cluster.encoding`, and
    returns what runs the tasks on the cluster; None without --ray.
    """
    if address is None:
        yield lambda cache, make_work: None
        return
    from jzi.cluster.connection import connected
    from jzi.encode.device import processes

    if processes().num_processes > 1:
        raise UsageError("--ray shares the work among the nodes of a cluster: run it without `accelerate launch`")
    with connected(address):
        from jzi.cluster import encoding  # imports ray, which `connected` reports if it is missing

        yield lambda cache, make_work: encoding.task_runner(cache, lambda: make_work(encoding))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")


def print_result(as_json: bool, values: Any, text: str) -> None:
    """Print a result: as one line of JSON, or as text.

    Args:
        as_json: which of the two.
        values: a dataclass or a dict, as `jzi.store.plain.plain` takes it.
        text: the same for people.
    """
    if as_json:
        from jzi.store.plain import plain

        text = json.dumps(plain(values), allow_nan=False)
    click.echo(text)


def list_rejected(rejected: tuple[Rejected, ...], what: str) -> None:
    """Print the number of rejected rows and, for each reason, the first five names.

    Args:
        rejected: the rows.
        what: what is counted, such as "photos left out".
    """
    if not rejected:
        return
    click.echo(f"{len(rejected)} {what}:", err=True)
    reasons: dict[str, list[str]] = {}
    for row in rejected:
        reasons.setdefault(row.reason, []).append(row.name)
    for reason, names in reasons.items():
        click.echo(f"  {reason}: {listed(names, 5)}", err=True)


def list_disagreements(table: PhotoTable) -> None:
    """Print the first ten photos whose published zoom sequence is not that of their position, and their number."""
    for row in table.disagreements[:10]:
        click.echo(f"  {row.name}: {row.reason}", err=True)
    if table.disagreements:
        click.echo(f"{len(table.disagreements)} photos have another zoom sequence than their position", err=True)


def gallery_text(path: Path, size: int, values: dict[str, Any]) -> str:
    """What is said of a written page of photos, which is added to the values for JSON."""
    values["gallery_html"] = {"path": str(path), "bytes": size}
    return f"\n\nthe worst and best photos: {path} ({size / 1e6:.1f} MB)"


def print_warnings(warnings: Iterable[str]) -> None:
    """Print warnings about data, which do not end the command."""
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def report_unreachable(photos: int) -> None:
    """Print the number of photos that were left out, if any."""
    if photos:
        click.echo(f"{photos} photos left out: the map has no imagery where they were taken", err=True)


def report_left_out(report: TrainReport) -> None:
    """Print which photos a training left out, and the consequences."""
    report_unreachable(report.unreachable)
    if report.epochs and not report.val:
        click.echo("there is no photo with split 'val': the weights of the last epoch are kept", err=True)
