"""Locations and evaluations as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jzi.locate.answer.location import DEFAULT, Candidate, Location
from jzi.locate.answer.wording import known_radii, unsearched
from jzi.store.plain import percent, share_text

if TYPE_CHECKING:
    from jzi.evaluate.calibration import Calibration
    from jzi.evaluate.experts import ExpertFigures
    from jzi.evaluate.metrics import Evaluation, Interval
    from jzi.evaluate.nearest import RecallByDistance
    from jzi.evaluate.published import Published, PublishedRetrieval
    from jzi.evaluate.retrieval import RetrievalEvaluation


def location_text(location: Location) -> str:
    """A line for the location, one to metres if it is refined, one for each other candidate, the residual and notes.

    Of an answer that is not sure there is a line without its position, and the notes.
    """
    best = location.best
    confidence = f"{percent(location.confidence)} {_extent(best, location.cell_m, 'this point')}"
    if not location.sure:
        confidence = confidence.replace("this point", "the best answer")
        first = f"{location.photo}: not sure (confidence {confidence}, below {percent(location.abstain)})"
        return "\n".join([first, *(f"    note: {note}" for note in location.notes)])
    known = known_radii(location)
    facts = [confidence, *known] if location.inside is None else [confidence]
    position = f"{location.latitude:.6f}, {location.longitude:.6f}"
    lines = [f"{location.photo}: {position}  (confidence {', '.join(facts)})"]
    if location.inside is not None:
        given = ", ".join([f"{percent(best.probability)} {_extent(best, location.cell_m, 'it')}", *known])
        lines.append(f"    {location.doubt}{percent(location.inside)} that it was taken in this area; if so, {given}")
    if left := unsearched(location):
        lines.append(f"    {left}")
    lines += [f"    {location.fix.text}"] if location.fix else []
    lines += [f"    {judged_text(best, location)}"] if best.judged else []
    for each in location.candidates[1:]:
        share = percent(location.overall(each.probability))
        probability = f"{share} {_extent(each, location.cell_m, 'that point')}"
        judged = f"; {judged_text(each, location)}" if each.judged else ""
        lines.append(f"    or {each.latitude:.6f}, {each.longitude:.6f}  ({probability}{judged})")
    lines += [f"    note: {note}" for note in location.notes]
    return "\n".join(lines)


def _extent(candidate: Candidate, cell_m: float, point: str) -> str:
    """What the probability of a candidate refers to."""
    radius = candidate.radius_m
    return f"within {radius:g} m of {point}" if radius else f"in the cell of {cell_m:.0f} m around {point}"


def judged_text(candidate: Candidate, location: Location) -> str:
    """Where a re-ranked candidate was before, and how much it was preferred."""
    judged = candidate.judged
    if judged is None:
        return ""
    score = "not shown, for lack of imagery" if judged.score is None else f"score {judged.score:+.2f}"
    if judged.score is not None and judged.sd is not None:
        score += f" ± {judged.sd:.2f}"
    return f"before the comparison number {judged.rank} with {percent(location.overall(judged.probability))}; {score}"


def in_brackets(photos: int, effective: float) -> str:
    """What the brackets of a table are, and how many independent photos they are of, if that is clearly fewer."""
    alike = f", as of {effective:.0f} independent photos (those near one another are alike)"
    return f"in brackets 95 % intervals{alike if effective < 0.9 * photos else ''}"


def evaluation_table(evaluation: Evaluation, title: str) -> str:
    """The figures, one to a line, recall by distance to training photos, and published results of the same area.

    Published results of another gallery or map are in blocks of their own.
    """
    from jzi.evaluate.published import RADII as PUBLISHED_RADII

    lines = [f"{title}; {in_brackets(evaluation.photos, evaluation.effective_photos)}"]
    lines += [
        f"  recall within {radius:>4g} m   {share_with_interval(each)}" for radius, each in evaluation.recall.items()
    ]
    lines += [f"  cell among first {k:>4}   {share_with_interval(each)}" for k, each in evaluation.recall_at.items()]
    median = evaluation.median_error
    lines.append(f"  median error          {median.value:>6.1f} m   ({interval_text(median)})")
    lines.append(f"  whole sequence right  {share_with_interval(evaluation.sequence_accuracy)}")
    for step, prefix in enumerate(evaluation.prefix_accuracy, 1):
        if evaluation.step_accuracy:
            single = evaluation.step_accuracy[step - 1]
            all_right = f"(steps 1..{step} all right: {share_text(prefix)})"
            lines.append(f"  step {step} right          {share_text(single):>8}   {all_right}")
        else:
            lines.append(f"  level {step} right         {share_text(prefix):>8}")
    if evaluation.by_training_distance:
        lines += ["", *_distance_lines(evaluation.by_training_distance)]
    radii = [radius for radius in evaluation.recall if radius in PUBLISHED_RADII]
    if evaluation.published:
        lines += ["", *_published_lines("recall within (others as published)", evaluation.published, radii)]
        lines.append(_row("this model", [evaluation.recall[radius].value for radius in radii]))
    for note in dict.fromkeys(each.note for each in evaluation.published_apart):
        rows = [each for each in evaluation.published_apart if each.note == note]
        lines += ["", f"  not comparable with the above, published for {note}:"]
        lines += _published_lines("recall within", rows, radii)
    return "\n".join(lines)


def share_with_interval(share: Interval) -> str:
    """A share and its interval, 8 characters wide before the brackets: "  83.0 %   (78.9 .. 86.6 %)"."""
    return f"{share_text(share.value):>8}   ({share_range(share)})"


def share_range(share: Interval) -> str:
    """The interval of a share: "78.9 .. 86.6 %"."""
    return f"{100 * share.low:.1f} .. {share_text(share.high)}"


def interval_text(metres: Interval) -> str:
    """The interval of a median in metres; "unknown" if there were too few photos for one."""
    if not math.isfinite(metres.high):
        return "interval unknown: too few photos"
    return f"{metres.low:.1f} .. {metres.high:.1f} m"


def _short_interval(metres: Interval) -> str:
    return f"{metres.low:.1f}..{metres.high:.1f} m" if math.isfinite(metres.high) else "unknown"


def _published_lines(title: str, results: Sequence[Published], radii: list[float]) -> list[str]:
    from jzi.evaluate.published import RADII as PUBLISHED_RADII

    header = "".join(f"{f'{radius:g} m':>9}" for radius in radii)
    rows = [_row(each.method, [each.recall[PUBLISHED_RADII.index(radius)] for radius in radii]) for each in results]
    return [f"  {title:<36}{header}", *rows]


def _row(name: str, shares: list[float]) -> str:
    return f"  {name:<36}" + "".join(f"{share_text(share):>9}" for share in shares)


def _distance_lines(by_distance: RecallByDistance) -> list[str]:
    """Nonempty bins only."""
    bins = [each for each in by_distance.bins if each.photos]
    header = "".join(f"{f'{radius:g} m':>9}" for radius in bins[0].recall)
    lines = [
        f"  nearest training photo: {by_distance.median:.1f} m (median)",
        f"  {'recall by that distance, within':<36}{header}   photos",
    ]
    for each in bins:
        name = f"under {each.high:g} m" if not each.low else f"{each.low:g} to {each.high:g} m"
        name = name if each.high != float("inf") else f"{each.low:g} m or more"
        lines.append(_row(name, list(each.recall.values())) + f"{each.photos:>9}")
    return lines


def retrieval_table(evaluation: RetrievalEvaluation, title: str, published: Sequence[PublishedRetrieval] = ()) -> str:
    """Recall at k within radii, by year and hour, the photos left out, and published results with their conditions."""
    tops = list(next(iter(evaluation.recall.values())))
    lines = [f"{title}; {in_brackets(evaluation.photos, evaluation.effective_photos)}"]
    lines.append(f"  {'recall':<16}" + "".join(f"{f'among {k}':>27}" for k in tops) + "   median rank")
    for radius, by_k in evaluation.recall.items():
        name = f"within {radius:g} m" if radius else "own cell"
        shares = "".join(f"{f'{share_text(each.value)} ({share_range(each)})':>27}" for each in by_k.values())
        lines.append(f"  {name:<16}{shares}   {evaluation.median_rank[radius]:11.0f}")
    lines += [f"  {count} photos left out: {reason}" for reason, count in evaluation.left_out.items() if count]
    for by, groups in evaluation.by.items():
        radius = 50.0 if 50.0 in evaluation.recall else next(iter(evaluation.recall))
        within = f"within {radius:g} m" if radius else "in the own cell"
        lines += ["", f"  by {by}: photos, recall among 1 {within}"]
        for group in groups:
            share = f"{share_text(group.recall[radius][tops[0]]):>8}" if group.recall else "too few photos"
            lines.append(f"  {group.name:<10} {group.photos:>8}   {share}")
    for conditions in dict.fromkeys(each.conditions for each in published):
        lines += ["", f"published, {conditions}: recall within 50 m"]
        for each in published:
            if each.conditions == conditions and 50.0 in each.recall:
                shares = ", ".join(f"{share_text(value)} among {k}" for k, value in each.recall[50.0].items())
                lines.append(f"  {each.method:<32} {shares}")
    return "\n".join(lines)


def experts_table(figures: dict[str, ExpertFigures], radii: tuple[float, ...], radius: float) -> str:
    """A row for each expert and fusion: recall, median error, negative log-likelihood and calibration error."""
    names = {
        "fused_cross_view": "fused, without vpr",
        "fused": "fused, all" if "fused_cross_view" in figures else "fused",
    }
    header = "".join(f"{f'{each:g} m':>9}" for each in radii)
    lines = [
        f"  the default answer, the mean within {radius:g} m of the point with the most probability there, by expert",
        f"  {'recall within':<20}{header}{'median':>10}{'NLL':>7}{'calibration':>13}",
    ]
    for name, row in figures.items():
        recall = "".join(f"{share_text(row.recall[each].value):>9}" for each in radii)
        lines.append(
            f"  {names.get(name, name):<20}{recall}{row.median_error.value:8.1f} m{row.nll:7.2f}"
            f"{share_text(row.calibration_error):>10} off"
        )
    lines.append(by_chance(next(reversed(figures.values())).error_by_chance))
    if "vpr" in figures:
        lines.append("  vpr compares with the training photos: its rows are not cross-view")
    return "\n".join(lines)


def experts_values(figures: dict[str, ExpertFigures]) -> dict[str, Any]:
    """The same for JSON."""
    return {
        name: {
            **{f"recall@{radius:g}m": asdict(interval) for radius, interval in row.recall.items()},
            "median_error_m": asdict(row.median_error),
            "nll": row.nll,
            "calibration_error": row.calibration_error,
            "calibration_error_by_chance": asdict(row.error_by_chance),
        }
        for name, row in figures.items()
    }


def by_chance(error: Interval) -> str:
    """What a calibration error is to be compared with."""
    off = share_text(error.value)
    return f"  exact confidences of as many photos would be {off} off by chance ({share_range(error)})"


def calibration_table(calibration: Calibration, radii: tuple[float, ...]) -> str:
    """Recall and median error of each estimate with intervals, calibration error, and recall by coverage."""
    from jzi.evaluate.calibration import COVERAGES

    names = {
        "greedy": "greedy search's cell",
        "map": "the most probable cell",
        "radius": f"the most within {calibration.radius:g} m",
        "mean": f"the mean within {calibration.radius:g} m",
    }
    estimates = calibration.estimates(radii)
    columns = [f"{radius:g} m" for radius in next(iter(estimates.values())).recall]
    lines = [f"  {'recall within, by estimate':<32}" + "".join(f"{each:>15}" for each in [*columns, "median error"])]
    for estimate, figures in estimates.items():
        recall, median = figures.recall.values(), figures.median_error
        shares = "".join(f"{share_text(each.value):>15}" for each in recall)
        default = " (default)" if estimate == DEFAULT.estimate else ""
        lines.append(f"  {names[estimate] + default:<32}{shares}{median.value:>13.1f} m")
        between = "".join(f"{share_range(each).replace(' .. ', '..'):>15}" for each in recall)
        lines.append(f"  {'':<32}{between}{_short_interval(median):>15}")
    before = "" if calibration.error_before is None else f" ({share_text(calibration.error_before)} before calibration)"
    lines.append(
        f"  confidence is {share_text(calibration.error_after)} off on average{before}; "
        f"search left out {share_text(calibration.residual)} of the probability"
    )
    lines.append(by_chance(calibration.error_by_chance))
    lines.append("  all of these photos are from this area: `inside`, by which `jzi locate` multiplies, is left out")
    lines.append(f"  {'of the most confident':<28}" + "".join(f"{share_text(share, 0):>9}" for share in COVERAGES))
    kept = "".join(f"{share_text(calibration.covering(share)[1]):>9}" for share in COVERAGES)
    lines.append(f"  {f'are within {calibration.radius:g} m':<28}" + kept)
    return "\n".join(lines)
