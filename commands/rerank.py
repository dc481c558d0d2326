"""`rerank`: evaluate and calibrate a judge, and look after what it said; the options of `locate --rerank`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from jzi.commands.shared.common import (
    Suggesting,
    UsageError,
    experts_option,
    json_option,
    number,
    print_result,
    settings_options,
    with_options,
)
from jzi.locate.ranges import RANKS
from jzi.rerank.methods import MAX_TOP, Method

if TYPE_CHECKING:
    from jzi.evaluate.stages.reranking import MethodFigures, RerankCase
    from jzi.rerank.config import RerankConfig
    from jzi.rerank.cost import Cost
    from jzi.rerank.designs.plan import Plan
    from jzi.rerank.stage import RerankStage
    from jzi.workspace.stages.reranker import RerankRequest

#: Methods that `evaluate` compares by default.
COMPARED = "yesno,score,words,pairs,sliding,list"

_METHODS = get_args(Method)

_shared = (
    click.option("--rerank-top", type=click.IntRange(2, MAX_TOP), help="Candidates to compare.  [default: rerank.top]"),
    click.option("--orders", type=click.Choice(["both", "one"]), help="Ask about each pair in both orders or in one.  "
                 "[default: rerank.orders]"),
    click.option("--send-photos", is_flag=True, help="Allow photos to be sent to an endpoint on another machine."),
    click.option("--budget", metavar="CALLS|TIME|MONEY", help="The most to spend, such as 200, 90s or 5.00eur; what is "
                 "left keeps its order."),
    click.option("--crops-only", is_flag=True, help="Render what would be shown of the map, and ask nothing."),
    click.option("--dry-run", is_flag=True, help="Count the questions and tokens to come, and ask nothing."),
)  # fmt: skip


def rerank_options(command: Callable) -> Callable:
    """Add the options about re-ranking, which the command takes as `rerank`, a `RerankRequest`, or None."""

    @wraps(command)
    def run(
        *,
        rerank: str | None,
        design: str | None,
        pure: bool,
        rerank_top: int | None,
        orders: str | None,
        send_photos: bool,
        budget: str | None,
        crops_only: bool,
        dry_run: bool,
        **others: Any,
    ) -> Any:
        if rerank is None:
            given = {"--design": design, "--pure": pure, "--rerank-top": rerank_top, "--orders": orders,
                     "--send-photos": send_photos, "--budget": budget, "--crops-only": crops_only,
                     "--dry-run": dry_run}  # fmt: skip
            if names := [name for name, value in given.items() if value not in (None, False)]:
                raise UsageError(f"{', '.join(names)} goes with --rerank: add it")
            return command(rerank=None, **others)
        from jzi.workspace.stages.reranker import RerankRequest

        settings = {"method": design, "top": rerank_top, "orders": orders}
        request = RerankRequest(rerank, settings, send_photos, pure, budget, crops_only, dry_run)
        return command(rerank=request, **others)

    options = (
        click.option("--rerank", is_flag=False, flag_value="", metavar="[MODEL|URL]", callback=_judge,
                     help="Compare candidates by a vision-language model: a Hugging Face id, a folder, or the URL of "
                     "an OpenAI-compatible endpoint, such as URL#MODEL.  [default: rerank.judge]"),
        click.option("--design", type=click.Choice(_METHODS), help="How they are compared.  [default: rerank.method]"),
        click.option("--pure", is_flag=True, help="Order them by the model alone, as in the paper."),
        *_shared,
    )  # fmt: skip
    return with_options(run, options)


def _judge(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value and Path(value).is_file():
        raise UsageError(f"--rerank takes a model's folder, id or URL, not {value}: give --rerank after the photos")
    return value


def rerank_summary(stage: RerankStage) -> str:
    """What re-ranking photos has cost, or would cost, and the notes about it."""
    lines = []
    if stage.asker is None:
        lines.append(f"{stage.crops.rendered} crops rendered for {_photos(stage.photos)}, in {stage.crops.folder}")
    elif stage.dry_run:
        lines.append(plan_text(stage.planned, stage.photos))
    else:
        lines.append(f"re-ranking {_photos(stage.photos)}: {cost_text(stage.asker.cost)}")
        if stage.asker.exhausted:
            lines.append("the budget is spent: the other candidates keep their order")
    if stage.skipped:
        lines.append(f"{_photos(stage.skipped)} not compared: the front end was sure, or its order is kept")
    notes = [stage.note, *(stage.asker.judge.notes if stage.asker else ())]
    return "\n".join([*lines, *(note for note in notes if note)])


def _photos(count: int) -> str:
    return f"{count} photo{'' if count == 1 else 's'}"


def cost_text(cost: Cost) -> str:
    """Questions, tokens, seconds and price in words."""
    text = f"{cost.asked} questions asked, {cost.cached} answered before"
    if cost.abstained:
        text += f", {cost.abstained} without an answer"
    text += f"; {cost.tokens_in:,} tokens in, {cost.tokens_out:,} out, {cost.seconds:.1f} s"
    return text + (f", price {cost.price:.4g}" if cost.price else "")


def plan_text(plan: Plan, photos: int) -> str:
    """What a dry run has found."""
    cost, most = plan.cost, "" if plan.exact else "at most "
    text = f"{_photos(photos)}: {most}{cost.asked} questions to ask, {cost.cached} answered before; about "
    return (
        text
        + f"{cost.tokens_in:,} tokens in, {cost.tokens_out:,} out"
        + (f", price {cost.price:.4g}" if cost.price else "")
    )


# The group


@click.group("rerank", cls=Suggesting, short_help="Compare candidates by a vision-language model.")
def rerank_group() -> None:
    """Compare candidates by a vision-language model: measure it, calibrate it, and keep what it said."""


@dataclass(frozen=True)
class _Front:
    """The options of `_front_options`: whose candidates are compared, and how."""

    request: RerankRequest
    retriever: Path | None
    experts: tuple[str, ...]
    candidates: Path | None
    count: int


def _front_options(command: Callable) -> Callable:
    """Add the options about front end and judge, which the command takes as `front`."""

    @wraps(command)
    def run(
        *,
        judge: str,
        retriever: Path | None,
        experts: tuple[str, ...],
        candidates: Path | None,
        count: int,
        rerank_top: int | None,
        orders: str | None,
        send_photos: bool,
        budget: str | None,
        crops_only: bool,
        dry_run: bool,
        **others: Any,
    ) -> Any:
        from jzi.workspace.stages.reranker import RerankRequest

        settings = {"top": rerank_top, "orders": orders}
        request = RerankRequest(judge, settings, send_photos, False, budget, crops_only, dry_run)
        return command(front=_Front(request, retriever, experts, candidates, count), **others)

    return with_options(
        run,
        (
            click.option("--judge", default="", metavar="MODEL|URL", help="A Hugging Face id, a folder, or the URL of "
                         "an OpenAI-compatible endpoint.  [default: rerank.judge]"),
            click.option("--retriever", type=click.Path(path_type=Path), metavar="FOLDER", help="Take the candidates "
                         "of this retriever, not of the area's model."),
            experts_option("Experts of the model whose fusion gives the candidates.  [default: all]"),
            click.option("--candidates", type=click.Path(path_type=Path, dir_okay=False), metavar="CSV",
                         help="Candidates of a list instead: photo, rank, id, score. Ids are cells such as 12_34; in a "
                         "data set of pairs, file names of aerial images."),
            click.option("--photos", "count", type=number(RANKS), default=500, show_default=True,
                         help="Most photos, evenly spaced."),
            *_shared,
        ),
    )  # fmt: skip


@rerank_group.command("evaluate", short_help="Measure what comparing changes.")
@settings_options
@_front_options
@click.option("--methods", default=COMPARED, show_default=True, metavar="NAME,...",
              help=f"Methods to compare: {', '.join(_METHODS[1:])}.")  # fmt: skip
@click.option("--split", help="Photos to evaluate on: val or test, or a split of the data set of pairs.  [default: "
              "test, or val if there is none]")  # fmt: skip
@click.option("--pure", is_flag=True, help="Order candidates by the model alone, as in the paper.")
@json_option
def evaluate_command(
    config_file: Path,
    overrides: tuple[str, ...],
    front: _Front,
    methods: str,
    split: str | None,
    pure: bool,
    as_json: bool,
) -> None:
    """Measure what comparing candidates changes on held-out photos, by several methods, and what it costs.

    Each row is a method: questions and tokens a photo, the share of photos whose first candidate is right before and
    after, the gain with a paired 95 % bootstrap interval, McNemar's p, photos put right and put wrong, and the bound
    that no order of these candidates exceeds. Weights that `jzi rerank calibrate` fitted are used where they fit.
    """
    from jzi.evaluate.stages.reranking import evaluate_method, plan_cases
    from jzi.rerank.fuse import PURE, Weights
    from jzi.workspace.stages.reranker import open_asker, open_weights

    names = [name.strip() for name in methods.split(",")]
    if unknown := [name for name in names if name not in _METHODS]:
        raise UsageError(f"there is no method {unknown[0]!r}: give some of {', '.join(_METHODS[1:])}")
    request = replace(front.request, pure=pure)
    folder, name_of_front, config, cases = _cases(config_file, overrides, request, front, split)
    if request.crops_only:
        _fill_crops(cases, as_json)
        return
    asker = open_asker(config, request, folder)
    for name in names:
        chosen = replace(config, method=cast("Method", name))
        if request.dry_run:
            plan = plan_cases(cases, asker, chosen, PURE if pure else Weights())
            print_result(as_json, {"method": name, "photos": len(cases), **_plan_values(plan)},
                         f"{name}: {plan_text(plan, len(cases))}")  # fmt: skip
            continue
        fitted = open_weights(chosen, request, asker.judge, name_of_front, folder)
        figures = evaluate_method(cases, asker, chosen, fitted.weights, bias=fitted.bias, progress=not as_json)
        if as_json:
            print_result(True, figures.to_dict(), "")
        else:
            click.echo(method_text(figures, fitted.note))
    if asker.exhausted:
        click.echo("the budget is spent: the other candidates keep their order", err=True)
    for note in asker.judge.notes:
        click.echo(note, err=True)


@rerank_group.command("calibrate", short_help="Fit how much a judge counts.")
@settings_options
@_front_options
@click.option("--design", type=click.Choice(_METHODS), help="How candidates are compared.  [default: rerank.method]")
@click.option("--split", default="val", show_default=True, help="Photos to fit the weights on.")
@json_option
def calibrate_command(
    config_file: Path,
    overrides: tuple[str, ...],
    front: _Front,
    design: str | None,
    split: str,
    as_json: bool,
) -> None:
    """Fit how much a judge counts beside the front end, on validation photos.

    At least 100 photos with the right place among their candidates are needed. A judge that is no clear gain there gets
    no weight: `locate --rerank` then asks nothing and leaves the order as it is. With --orders one, its preference for
    the first crop is measured on pairs of equal crops.
    """
    from jzi.evaluate.stages.reranking import fit_weights, plan_cases
    from jzi.rerank.designs.compare import CONTENT_FREE_PAIRS, content_free_bias
    from jzi.rerank.designs.plan import Plan
    from jzi.rerank.designs.schedule import PAIR_DESIGNS
    from jzi.rerank.fuse import Weights
    from jzi.rerank.question import Question
    from jzi.rerank.weights_file import write_weights
    from jzi.workspace.stages.reranker import WEIGHTS, kept, new_weights, open_asker

    request = replace(front.request, settings={**(front.request.settings or {}), "method": design})
    folder, name_of_front, config, cases = _cases(config_file, overrides, request, front, split)
    if request.crops_only:
        _fill_crops(cases, as_json)
        return
    asker = open_asker(config, request, folder)
    biased = config.orders == "one" and config.design in PAIR_DESIGNS
    shown = ((case.photo(), crop) for case in cases for crop in case.crops()[:1] if crop is not None)
    equal = islice(shown, CONTENT_FREE_PAIRS if biased else 0)
    if request.dry_run:
        free = asker.estimate([Question("pair", photo, (crop, crop)) for photo, crop in equal])
        plan = plan_cases(cases, asker, replace(config, gate=1.0), Weights()) + Plan(free)
        print_result(as_json, {"photos": len(cases), **_plan_values(plan)}, plan_text(plan, len(cases)))
        return
    bias = content_free_bias(asker, equal) if biased else 0.0
    weights = fit_weights(cases, asker, config, bias=bias, progress=not as_json)
    if asker.exhausted:
        raise UsageError("the budget was spent before all photos were compared: what was asked is kept, run this again")
    path = kept(config, folder) / WEIGHTS
    entry = new_weights(config, asker.judge, name_of_front, weights, bias)
    if weights.calibrated:
        write_weights(path, entry)
    low, high = weights.gain[1:]
    if not weights.calibrated:
        text = f"{_photos(weights.photos)} with the right place among their candidates, too few to fit weights"
    elif weights.judge:
        text = f"weights on {weights.photos} photos: front end {weights.prior:.2f}, judge {weights.judge:.2f}"
    else:
        text = f"no clear gain on {weights.photos} photos: the judge gets no weight"
    text += f" (gain {weights.gain[0]:+.3f} nats, {low:+.3f} .. {high:+.3f})" if weights.calibrated else ""
    from jzi.store.plain import plain

    written = f"wrote {path}" if weights.calibrated else f"{path} is not changed"
    values = {**plain(entry), "file": str(path) if weights.calibrated else None, "cost": plain(asker.cost)}
    print_result(as_json, values, f"{text}\n{cost_text(asker.cost)}\n{written}")


def _cases(
    config_file: Path,
    overrides: tuple[str, ...],
    request: RerankRequest,
    front: _Front,
    split: str | None,
) -> tuple[Path, str, RerankConfig, list[RerankCase]]:
    """Folder of the jzi.toml, name of the front end, the section [rerank], and the photos with their candidates."""
    from functools import partial

    from jzi.workspace.setup.settings_file import is_pairs, load_area
    from jzi.workspace.stages.rerank_cases import area_cases, open_front, pair_cases
    from jzi.workspace.stages.reranker import front_name, imagery_around, open_crops

    if is_pairs(config_file):
        from jzi.workspace.pairs import load_pairs

        if front.retriever or front.experts:
            raise UsageError("--retriever and --experts do not apply to a data set of pairs: leave them out")
        pairs = load_pairs(config_file, overrides)
        config = request.config(pairs.rerank)
        name = "a list" if front.candidates else f"the network of {pairs.pairs.dataset}"
        cases = pair_cases(pairs, split, config, count=front.count, listed=front.candidates)
        return pairs.folder, name, config, cases
    settings = load_area(config_file, overrides, training=("queries",))
    config = request.config(settings.rerank)
    expert, cache, model = open_front(settings, front.retriever, front.experts)
    imagery = partial(imagery_around, expert.area, (), settings)
    crops = open_crops(expert.area, config, settings.folder, imagery)
    cases = area_cases(
        settings, expert, cache, crops, config, model=model, split=split, count=front.count, listed=front.candidates
    )
    return settings.folder, "a list" if front.candidates else front_name(expert), config, cases


def _fill_crops(cases: list[RerankCase], as_json: bool) -> None:
    from tqdm import tqdm

    shown = sum(sum(crop is not None for crop in case.crops()) for case in tqdm(cases, desc="crops", unit="photo"))
    values = {"photos": len(cases), "crops": shown}
    print_result(as_json, values, f"{shown} crops of the candidates of {len(cases)} photos are there")


def _plan_values(plan: Plan) -> dict[str, Any]:
    from jzi.store.plain import plain

    return {**plain(plan.cost), "exact": plan.exact}


def method_text(figures: MethodFigures, note: str = "") -> str:
    """The figures of a method for a terminal."""
    from jzi.store.plain import share_text

    cost, photos = figures.cost, max(1, figures.photos)
    abstained = f", {cost.abstained} of all without an answer" if cost.abstained else ""
    lines = [
        f"{figures.method} on {_photos(figures.photos)}: {cost_text(figures.spent)}",
        f"  a photo: {cost.asked / photos:.1f} questions, {cost.tokens_in / photos:,.0f} tokens in, "
        f"{cost.tokens_out / photos:,.0f} out, {cost.seconds / photos:.2f} s{abstained}",
        f"  {'first place right':<22}{'before':>9}{'after':>9}{'bound':>9}   {'gain':<26}{'fixed':>6}{'broken':>8}"
        f"{'p':>9}",
    ]
    for name, each in figures.top_one.items():
        gain = f"{100 * each.gain.value:+.1f} ({100 * each.gain.low:+.1f} .. {100 * each.gain.high:+.1f}) points"
        lines.append(
            f"  {name:<22}"
            + "".join(f"{share_text(share):>9}" for share in (each.before, each.after, each.bound))
            + f"   {gain:<26}{each.fixed:>6}"
            f"{each.broken:>8}{each.p:>9.3g}"
        )
    details = []
    if figures.consistency is not None and figures.mean_bias is not None and figures.sd_bias is not None:
        details.append(f"both orders agree on {share_text(figures.consistency)} of the pairs")
        details.append(f"preference for A {figures.mean_bias:+.2f} ± {figures.sd_bias:.2f} log-odds")
    if figures.auroc is not None:
        details.append(f"AUROC of pairs {figures.auroc:.3f}")
    details.append(f"calibration error {share_text(figures.ece_before)} before, {share_text(figures.ece_after)} after")
    lines.append("  " + "; ".join(details))
    if figures.skipped:
        lines.append(f"  {_photos(figures.skipped)} not compared: the front end was sure")
    if figures.unfinished:
        lines.append(f"  {_photos(figures.unfinished)} in the front end's order: the budget was spent")
    return "\n".join([*lines, *([f"  {note}"] if note else [])])


# What was said


@rerank_group.command("ls", short_help="List the judges whose answers are kept.")
@settings_options
@json_option
def list_command(config_file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """List the judges whose answers are kept, with their number and cost."""
    judgments = _judgments(config_file, overrides)
    found = judgments.summary()
    if as_json:
        for each in found:
            print_result(True, each, "")
        return
    for each in found:
        click.echo(
            f"{each.judge}  {each.fingerprint[:12]}  {each.answers} answers ({each.abstained} abstentions), "
            f"{each.tokens_in:,} tokens in, {each.tokens_out:,} out, {each.seconds:.1f} s, {each.first} .. {each.last}"
        )


@rerank_group.command("export")
@settings_options
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@json_option
def export_command(config_file: Path, overrides: tuple[str, ...], output: Path, as_json: bool) -> None:
    """Write all judgments to a CSV."""
    rows = _judgments(config_file, overrides).export(output)
    print_result(as_json, {"file": str(output), "rows": rows}, f"wrote {rows} judgments to {output}")


@rerank_group.command("prune")
@settings_options
@click.option("--judge", metavar="NAME", help="Only those of the judge of this name.")
@click.option("--days", type=click.FloatRange(0, 100_000), help="Only those that are older than so many days.")
@json_option
def prune_command(
    config_file: Path, overrides: tuple[str, ...], judge: str | None, days: float | None, as_json: bool
) -> None:
    """Remove judgments; those that are needed again are asked anew."""
    if not judge and days is None:
        raise UsageError("all judgments would be removed: give --judge or --days, or --days 0 for all")
    before = None if days is None else time.time() - 86_400 * days
    removed = _judgments(config_file, overrides).prune(before=before, judge=judge)
    print_result(as_json, {"removed": removed}, f"removed {removed} judgments")


def _judgments(config_file: Path, overrides: tuple[str, ...]) -> Any:
    from jzi.rerank.judgments import Judgments
    from jzi.workspace.setup.settings_file import is_pairs, load_area
    from jzi.workspace.stages.reranker import JUDGMENTS, kept

    if is_pairs(config_file):
        from jzi.workspace.pairs import load_pairs

        pairs = load_pairs(config_file, overrides)
        return Judgments.open(kept(pairs.rerank, pairs.folder) / JUDGMENTS, create=False)
    settings = load_area(config_file, overrides, training=())
    return Judgments.open(kept(settings.rerank, settings.folder) / JUDGMENTS, create=False)
