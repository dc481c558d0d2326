"""Figures of re-ranking: gains, their tests, calibration, and photos of a data set of pairs."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jzi.evaluate.stages.reranking import RerankCase, TopOne, evaluate_method, fit_weights, mcnemar, plan_cases
from jzi.rerank.ask import Asker
from jzi.rerank.config import RerankConfig
from jzi.rerank.fuse import PURE, Weights
from jzi.rerank.judges.scripted import ScriptedJudge
from jzi.rerank.question import Picture
from jzi.tests.children import Child
from jzi.tests.mock_endpoint import MockEndpoint, completion
from jzi.tests.pair_trees import write_vigor
from jzi.workspace.pairs import evaluation_pairs, load_pairs

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # from rasterio itself

CONFIG = RerankConfig(method="pairs")


def made(seed: int, k: int = 5, first: float = 0.5) -> tuple[RerankCase, dict[str, str]]:
    """A photo with k candidates, of which the first is right with some probability, and one of the others else."""
    rng = np.random.default_rng(seed)
    pictures = [Picture(rng.integers(256, size=(4, 4, 3)).astype(np.uint8)) for _ in range(k + 1)]
    probability = np.sort(rng.dirichlet(np.ones(k)))[::-1] * 0.9
    right = 0 if rng.random() < first else int(rng.integers(1, k))
    correct = {"within 50 m": np.arange(k) == right}
    photo, crops = pictures[0], pictures[1:]
    return RerankCase(str(seed), lambda: photo, lambda: crops, probability, correct), {
        photo.digest: crops[right].digest
    }


def town(count: int, **options: float) -> tuple[list[RerankCase], dict[str, str]]:
    cases, truth = zip(*(made(seed, **options) for seed in range(count)), strict=True)
    return list(cases), {photo: crop for each in truth for photo, crop in each.items()}


def test_what_a_judge_puts_right_and_wrong_is_counted() -> None:
    cases, truth = town(60)
    exact = Asker(ScriptedJudge(truth, gap=6.0, noise=0.0, bias=3.0), None, CONFIG)
    figures = evaluate_method(cases, exact, CONFIG, PURE)
    top = figures.top_one["within 50 m"]
    wrong = sum(not case.correct["within 50 m"][0] for case in cases)
    assert (top.after, top.bound, top.fixed, top.broken) == (1.0, 1.0, wrong, 0)
    assert top.gain.value == pytest.approx(wrong / 60)
    assert top.gain.low < top.gain.value < top.gain.high
    assert (figures.auroc, figures.mean_bias) == (1.0, pytest.approx(3.0))
    assert figures.cost.asked == 60 * 20
    always = Asker(ScriptedJudge(truth, kind="always-first"), None, CONFIG)
    same = evaluate_method(cases, always, CONFIG, Weights())
    assert same.top_one["within 50 m"].after == same.top_one["within 50 m"].before
    assert same.consistency == 0


def test_the_gate_spares_photos_of_which_the_front_end_is_sure() -> None:
    cases, truth = town(40)
    config = RerankConfig(method="pairs", gate=0.4)
    sure = sum(case.probability[0] > 0.4 for case in cases)
    figures = evaluate_method(cases, Asker(ScriptedJudge(truth), None, config), config, Weights())
    assert 0 < sure == figures.skipped
    assert figures.cost.asked == (40 - sure) * 20
    assert (
        plan_cases(cases, Asker(ScriptedJudge(truth), None, config), config, Weights()).cost.asked == (40 - sure) * 20
    )


@pytest.mark.parametrize(("kind", "helps"), [("noisy", True), ("random", False)])
def test_a_judge_has_a_weight_only_if_it_helps(kind: Any, helps: bool) -> None:
    cases, truth = town(150)
    weights = fit_weights(cases, Asker(ScriptedJudge(truth, kind=kind), None, CONFIG), CONFIG)
    assert weights.calibrated
    assert (weights.judge > 0) == helps
    assert (weights.gain[1] > 0) == helps


def test_mcnemar_is_the_binomial_test_of_changed_photos() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar(1, 8) == mcnemar(8, 1)
    assert mcnemar(600, 400) == pytest.approx(math.erfc(200 / math.sqrt(2 * 1000)), rel=0.1)


def test_the_interval_of_a_gain_is_paired() -> None:
    before = np.arange(400) % 2 == 0
    after = before.copy()
    after[1] = True
    gain = TopOne.of(before, after, 1.0, 1000, 0).gain
    assert gain.high - gain.low < 0.02, "as wide as that of one photo, not as that of two shares"
    few = TopOne.of(before[:2], ~before[:2], 1.0, 1000, 0).gain
    assert (few.value, few.low, few.high) == (0.0, -1.0, 1.0)


# A data set of pairs


@pytest.fixture
def vigor(tmp_path: Path, jzi: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A working directory with VIGOR, and a judge that knows the positives."""
    write_vigor(tmp_path / "vigor", photos=6)
    jzi("init --dataset vigor --data vigor .")
    text = Path("jzi.toml").read_text() + "\n[rerank]\ncrop_pixels = 32\n"
    Path("jzi.toml").write_text(text)
    return jzi


def write_list(file: Path, wrong_first: bool) -> int:
    """A list of three candidates of each test photo, the positive second or first; the number of photos."""
    dataset = evaluation_pairs(load_pairs(Path("jzi.toml")), None)
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["photo", "rank", "id", "score"])
        for photo, positive in enumerate(dataset.positive):
            near = {positive, *dataset.semi[photo]}
            others = [each for each in range(len(dataset.references)) if each not in near][:2]
            order = [others[0], positive, others[1]] if wrong_first else [positive, *others]
            names = [Path(str(dataset.references[each])).name for each in order]
            name = Path(str(dataset.photos[photo])).name
            writer.writerows([name, rank, each, 1 - rank / 10] for rank, each in enumerate(names, 1))
    return len(dataset)


def test_a_published_list_of_vigor_is_re_ranked(vigor, monkeypatch: pytest.MonkeyPatch) -> None:
    from jzi.workspace.stages import rerank_cases

    count = write_list(Path("list.csv"), wrong_first=True)
    truth: dict[str, str] = {}
    cases = rerank_cases.pair_cases(
        load_pairs(Path("jzi.toml")), None, RerankConfig(crop_pixels=32), listed=Path("list.csv")
    )
    for case in cases:
        crop = case.crops()[1]
        assert crop
        assert crop.pixels.shape == (32, 32, 3)
        truth[case.photo().digest] = crop.digest
    judge = ScriptedJudge(truth, gap=8.0, noise=0.0)
    monkeypatch.setattr("jzi.workspace.stages.reranker.open_judge", lambda *_: judge)
    row = json.loads(vigor("rerank evaluate --judge x --candidates list.csv --methods pairs --pure --json").stdout)
    assert row["photos"] == count
    assert row["cost"]["asked"] == 6 * count
    positive, hit = row["top_one"]["the positive"], row["top_one"]["hit"]
    assert (positive["before"], positive["after"], positive["fixed"]) == (0.0, 1.0, count)
    assert (hit["before"], hit["after"]) == (0.0, 1.0)
    Path("list.csv").write_text("photo,rank,id\nnobody.jpg,1,nowhere.png\n")
    assert "names no photo" in vigor("rerank evaluate --judge x --candidates list.csv", code=2).stderr
    assert "do not apply" in vigor("rerank evaluate --judge x --experts zoom", code=2).stderr


@pytest.mark.slow
def test_without_a_list_candidates_are_those_of_the_trained_network(vigor, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (
        "refine.ground_height=32 refine.ground_width=64 refine.photo_width=64 refine.aerial=64 refine.bins=4 "
        "refine.widths=[8,8,16,16] refine.depths=[1,1,1] pairs.backbone= refiner.epochs=1 refiner.batch_size=4"
    )
    vigor(" ".join(["train-refiner", *(f"--set {each}" for each in settings.split())]))
    judge = ScriptedJudge({}, kind="random")
    monkeypatch.setattr("jzi.workspace.stages.reranker.open_judge", lambda *_: judge)
    row = json.loads(vigor("rerank evaluate --judge x --methods pairs --rerank-top 3 --json").stdout)
    before = json.loads(vigor("evaluate --json --set pairs.rerank=false").stdout)["retrieval"]
    assert row["cost"]["asked"] == row["photos"] * 6
    assert row["top_one"]["the positive"]["before"] == pytest.approx(before["recall@1"]["value"])


# Killed and resumed


@pytest.mark.slow
def test_a_killed_evaluation_asks_only_what_lacks(vigor, start: Callable[..., Child]) -> None:
    write_list(Path("list.csv"), wrong_first=False)
    asked: Counter[str] = Counter()

    def respond(request: dict[str, Any]) -> Any:
        asked[json.dumps(request["messages"])] += 1
        return completion("A", [{"A": -0.2, "B": -1.7}])

    with MockEndpoint(respond) as endpoint:
        line = (
            f"rerank evaluate --judge {endpoint.url} --set rerank.model=m --candidates list.csv --methods pairs --json"
        )
        child = start([sys.executable, "-m", "jzi", *line.split()])
        child.wait_until(lambda: sum(asked.values()) >= 8)
        child.end()
        between = sum(asked.values())
        row = json.loads(vigor(line).stdout)
        total = row["cost"]["asked"]
        assert row["spent"]["cached"] > 0
        assert row["spent"]["asked"] + row["spent"]["cached"] == total
        repeated = sum(count - 1 for count in asked.values())
        assert repeated <= RerankConfig().batch_size, "more than the batch in flight was asked twice"
        assert len(asked) == total
        assert between < total
        once = json.loads(vigor(line).stdout)
    assert (once["spent"]["asked"], once["cost"]["asked"]) == (0, total)
    assert {name: once[name] for name in ("top_one", "consistency", "auroc")} == {
        name: row[name] for name in ("top_one", "consistency", "auroc")
    }
