"""The judge that the package includes sees: pictures go in, and the right answers come out of the real path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import jzi
from jzi.benchmarks.tiny_judge import (
    HALF,
    SIDE,
    Accuracy,
    Canvases,
    made_crop,
    made_photo,
    made_question,
    measure,
    shrunk,
)
from jzi.rerank.config import RerankConfig
from jzi.rerank.judges.compose import canvas
from jzi.rerank.judges.local import LocalJudge
from jzi.rerank.question import Question

FOLDER = Path(jzi.__file__).parent / "demo" / "judge"


@pytest.fixture(scope="module")
def judge() -> LocalJudge:
    return LocalJudge.load(FOLDER, RerankConfig(batch_size=2), "cpu")


@pytest.fixture(scope="module")
def accuracy(judge: LocalJudge) -> Accuracy:
    rng = np.random.default_rng(31)  # another seed than that of the training
    return measure(judge, [made_question(rng) for _ in range(60)])


def test_the_judge_finds_the_crop_of_the_photos_colour_in_pairs_it_has_not_seen(accuracy: Accuracy) -> None:
    assert accuracy.single >= 0.95
    assert accuracy.both >= 0.95


def test_its_answers_in_both_orders_agree_and_its_preference_for_a_is_small(accuracy: Accuracy) -> None:
    assert accuracy.consistent >= 0.95
    assert abs(accuracy.bias) < 1


def test_it_answers_in_the_requested_format(accuracy: Accuracy, judge: LocalJudge) -> None:
    assert accuracy.mass > 0.95
    assert not judge.notes


def test_another_photo_of_the_same_crops_has_another_answer(judge: LocalJudge) -> None:
    rng = np.random.default_rng(7)
    crops = (made_crop(rng, 0.0), made_crop(rng, 0.6))  # red, blue
    red, blue = (next(iter(judge.answer([Question("pair", made_photo(rng, hue), crops)]))) for hue in (0.0, 0.6))
    assert red.log_probabilities[0] > red.log_probabilities[1]
    assert blue.log_probabilities[1] > blue.log_probabilities[0]


def test_it_says_yes_to_a_crop_of_the_photos_colour_rather_than_to_another(judge: LocalJudge) -> None:
    rng, right = np.random.default_rng(8), []
    for _ in range(40):
        pair, index = made_question(rng)
        singles = [replace(pair, kind="yesno", crops=(crop,)) for crop in pair.crops]
        yes = [reading.log_probabilities[0] - reading.log_probabilities[1] for reading in judge.answer(singles)]
        right.append(np.argmax(yes) == index)
    assert np.mean(right) >= 0.9


def test_the_folder_is_small_and_holds_no_code_and_no_pickle() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    assert {file.suffix for file in files} <= {".json", ".jinja", ".safetensors"}


def test_training_shows_what_the_judge_sees() -> None:
    question, _ = made_question(np.random.default_rng(3))
    photo = shrunk(question.photo.pixels, HALF, SIDE)[None]
    a, b = (shrunk(crop.pixels, HALF, HALF)[None] for crop in question.crops)
    seen = shrunk(canvas(question).pixels, SIDE, SIDE)
    difference = np.abs(Canvases().pair(photo, a, b)[0].astype(int) - seen)
    assert difference.mean() < 2
