"""Re-ranking by a made judge: questions, top-1 and consistency of each design over noise, bias and k.

    python -m benchmarks.rerank
    python -m benchmarks.rerank --k 5 --noise 0.75 --noise 3 --bias 0 --photos 20000 --seeds 3

A photo's true candidate has the front end's rank r with a probability that halves with each rank after the first. Its
quality is `GAP`, that of others 0, both with a standard deviation of `QUALITY_SD`. A question about a pair is answered
with the difference of the two qualities, plus the bias, plus noise; one about a single candidate with its quality plus
the noise `ABSOLUTE_NOISE`: the judge compares well, and rates badly. It orders the designs, and says nothing about real
vision-language models. `QUALITY_SD`, `ALL` and the ranks' halving were chosen so that the figures of the design
document (noise 1.5, k = 5 and 10), which does not give them, come out within 2 points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import click
import numpy as np
from numpy.typing import NDArray

from jzi.rerank.config import Orders
from jzi.rerank.designs.aggregate import answers, consistent, debiased, prp_wins, scores
from jzi.rerank.designs.schedule import rounds
from jzi.rerank.fuse import Weights

#: Share of photos whose true candidate is the front end's first, among its first five, and among all k > 5.
FIRST, FIVE, ALL = 0.6, 0.9, 0.9

#: In log-odds.
GAP, QUALITY_SD, ABSOLUTE_NOISE = 2.0, 0.5, 3.0

#: Log-odds of theta and half of the prior's: the weights that the design document's figure is of.
HALF_PRIOR = Weights(prior=0.5, judge=1.0)


@dataclass(frozen=True)
class Made:
    """Photos and the answers that a made judge gives about them.

    Attributes:
        prior: (k,) the front end's probabilities by rank.
        truth: (photo,) rank of the true candidate; k if it is not among them.
        logits: (photo, k, k) log-odds of A, with candidate i as A and j as B.
        points: (photo, k) absolute judgments.
        lists: (photo, k, k) logits of each candidate in each rotation of a list.
    """

    prior: NDArray[np.float64]
    truth: NDArray[np.int64]
    logits: NDArray[np.float64]
    points: NDArray[np.float64]
    lists: NDArray[np.float64]

    def top1(self, values: NDArray[np.float64]) -> float:
        """Share of photos whose true candidate has the greatest value, of equal ones the first."""
        return float((values.argmax(-1) == self.truth).mean())

    def first_is_a(self) -> Made:
        """With the answers of one order, in which A is the candidate that the front end prefers."""
        upper = np.triu(np.ones(self.logits.shape[1:], bool), 1)
        return replace(self, logits=np.where(upper, self.logits, -np.swapaxes(self.logits, -1, -2)))


def prior_of(k: int) -> NDArray[np.float64]:
    """(k,) probability of each rank of the true candidate."""
    halving = 0.5 ** np.arange(min(k, 5) - 1)
    near = np.array([FIRST, *(FIVE - FIRST) * halving / halving.sum()])
    further = np.full(max(k - 5, 0), (ALL - FIVE) / max(k - 5, 1))
    return np.concatenate([near, np.maximum(further, 1e-4)])


def make(photos: int, k: int, noise: float, bias: float, seed: int, gap: float = GAP) -> Made:
    """Draw photos and all answers about them."""
    rng = np.random.default_rng([seed, k])
    prior = prior_of(k)
    truth = rng.choice(k + 1, photos, p=[*prior, 1 - prior.sum()])
    quality = rng.normal(0, QUALITY_SD, (photos, k + 1))
    quality[np.arange(photos), truth] += gap
    quality = quality[:, :k]
    first = np.eye(k) * bias  # (rotation, candidate): who has the first letter
    return Made(
        prior,
        truth,
        quality[:, :, None] - quality[:, None] + bias + rng.normal(0, noise, (photos, k, k)),
        quality + rng.normal(0, ABSOLUTE_NOISE, quality.shape),
        quality[:, None] + first + rng.normal(0, noise, (photos, k, k)),
    )


def play(made: Made, design: str, orders: Orders, bias: float = 0.0, questions: int = 20) -> NDArray[np.float64]:
    """(photo, k, k) the answers that a design asks for; nan elsewhere."""
    asked = np.full(made.logits.shape, np.nan)
    k = len(made.prior)
    for number, logits in enumerate(made.logits):
        names = [f"{number}.{candidate}" for candidate in range(k)]
        running = rounds(design, k, orders, names, questions=questions, bias=bias)
        pairs = next(running, None)
        while pairs:
            known = {pair: float(logits[pair]) for pair in pairs}
            for pair, logit in known.items():
                asked[number][pair] = logit
            try:
                pairs = running.send(known)
            except StopIteration:
                break
    return asked


@dataclass(frozen=True)
class Row:
    """A line of the table: mean number of questions, shares of photos, and share of consistent pairs."""

    name: str
    questions: float
    top1: float
    fused: float
    consistency: float = float("nan")


def row(name: str, made: Made, design: str, orders: Orders, bias: float = 0.0) -> Row:
    """The figures of a design."""
    asked = play(made, design, orders, bias)
    theta = scores(debiased(asked, bias), answers(asked), design).theta
    pairs = consistent(asked)
    consistency = float(np.nanmean(pairs)) if not np.isnan(pairs).all() else float("nan")
    questions = float((~np.isnan(asked)).sum() / len(asked))
    return Row(name, questions, made.top1(theta), made.top1(fused(made, theta)), consistency)


def fused(made: Made, theta: NDArray[np.float64]) -> NDArray[np.float64]:
    """(photo, k) logits of theta with half of the prior."""
    return HALF_PRIOR.prior * np.log(made.prior) + HALF_PRIOR.judge * theta


def rows(made: Made, bias: float) -> Iterator[Row]:
    """The lines of all designs."""
    k = len(made.prior)
    yield Row("one at a time", k, made.top1(made.points), made.top1(fused(made, made.points)))
    yield row("all pairs", made, "pairs", "both")
    wins = prp_wins(made.logits)
    yield Row("all pairs, wins", k * (k - 1), made.top1(wins), made.top1(fused(made, wins)))
    yield row("all pairs, one order", made, "pairs", "one")
    yield row("sliding", made, "sliding", "both")
    yield row("sliding, one order", made, "sliding", "one")
    if bias:
        yield row("sliding, one order, bias subtracted", made, "sliding", "one", bias)
        yield row("sliding, one order, A is the front end's", made.first_is_a(), "sliding", "one")
    yield row("knock-out", made, "knockout", "both")
    yield row("Swiss", made, "swiss", "both")
    yield row("sorting", made, "sorting", "both")
    yield row("adaptive, at most 20", made, "adaptive", "both")
    photo = np.arange(len(made.truth))
    once = made.lists[photo, photo % k]  # shuffled: the first letter is anyone's
    yield Row("list", 1, made.top1(once), made.top1(fused(made, once)))
    mean = made.lists.mean(1)
    yield Row("list, all rotations", k, made.top1(mean), made.top1(fused(made, mean)))


def percent(values: list[float]) -> str:
    """Mean of the seeds, and their standard deviation if there are several."""
    if np.isnan(values).all():
        return ""
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


@click.command()
@click.option("--k", "sizes", multiple=True, type=click.IntRange(2, 26), default=(5, 10), show_default=True,
              help="Number of candidates; may be repeated.")  # fmt: skip
@click.option("--noise", "noises", multiple=True, default=(0.75, 1.5, 3.0), show_default=True,
              help="Noise of a pair's log-odds; may be repeated.")  # fmt: skip
@click.option("--bias", "biases", multiple=True, default=(0.0, 2.0), show_default=True,
              help="Preference for A; may be repeated.")  # fmt: skip
@click.option("--photos", default=2000, show_default=True, type=click.IntRange(1), help="Number of photos per seed.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Number of seeds, from 0 on.")
def main(sizes: tuple[int, ...], noises: tuple[float, ...], biases: tuple[float, ...], photos: int, seeds: int) -> None:
    """Print a table of the designs."""
    click.echo(
        f"A made judge (gap {GAP:g}, noise of single candidates {ABSOLUTE_NOISE:g}), no vision-language model; "
        f"{photos} made photos for each of {seeds} seeds. Percent; before: the front end's top-1.\n"
    )
    click.echo("| k | noise | bias | design | questions | before | top-1 | with half the prior | consistent |")
    click.echo("|---" * 9 + "|")
    for k in sizes:
        for noise in noises:
            for bias in biases:
                many = [make(photos, k, noise, bias, seed) for seed in range(seeds)]
                before = percent([float((made.truth == 0).mean()) for made in many])
                for lines in zip(*(rows(made, bias) for made in many), strict=True):
                    figures = [[getattr(line, name) for line in lines] for name in ("top1", "fused", "consistency")]
                    top1, both, consistency = map(percent, figures)
                    questions = np.mean([line.questions for line in lines])
                    click.echo(
                        f"| {k} | {noise:g} | {bias:g} | {lines[0].name} | {questions:.1f} | {before} | {top1} | "
                        f"{both} | {consistency} |"
                    )


if __name__ == "__main__":
    main()
