"""Claims about what a judge is shown: texts, canvases, and labels in what it writes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from jzi.rerank.judges import prompts
from jzi.rerank.judges.compose import CANVAS, GRAY, canvas, squared
from jzi.rerank.question import LABELS, Kind, Picture, Question


def plain(rows: int, cols: int, value: int) -> Picture:
    return Picture(np.full((rows, cols, 3), value, np.uint8))


PHOTO = plain(40, 60, 10)
CROPS = tuple(plain(28, 28, 100 + 10 * i) for i in range(5))
KINDS: tuple[Kind, ...] = ("pair", "list", "yesno", "score", "words")


def question(kind: Kind, crops: tuple[Picture, ...] = CROPS) -> Question:
    return Question(kind, PHOTO, crops[: {"pair": 2, "list": 5}.get(kind, 1)])


# Texts


def test_an_edited_text_has_another_version() -> None:
    assert (prompts.VERSION, prompts.DIGEST[:16]) == ("1", "d3450f787ddd9f1f")


@pytest.mark.parametrize("kind", KINDS)
def test_questions_about_a_photo_begin_alike_and_show_crops_last(kind: Kind) -> None:
    one = prompts.parts(question(kind), "images", 0)
    other = prompts.parts(question(kind, CROPS[::-1]), "images", 0)
    assert [part for part in one if isinstance(part, Picture)] == [PHOTO, *question(kind).crops]
    assert one[:3] == other[:3]
    assert [part for part in one if isinstance(part, str)] == [part for part in other if isinstance(part, str)]
    assert all(type(a) is not type(b) for a, b in pairwise(one))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("composition", ["images", "canvas"])
def test_the_last_text_names_every_label(kind: Kind, composition: str) -> None:
    asked = question(kind)
    last = prompts.parts(asked, composition, 0)[-1]
    named = ("0", "10") if kind == "score" else asked.labels
    assert all(label in last.rpartition("Answer with")[2] for label in named)
    assert prompts.ANSWER not in last
    assert prompts.ANSWER in prompts.parts(asked, composition, 100)[-1]


def test_a_canvas_is_the_only_image_of_its_question() -> None:
    shown = prompts.parts(question("pair"), "canvas", 0)
    assert [type(part) for part in shown] == [Picture, str]
    assert shown[0].digest == canvas(question("pair")).digest


@pytest.mark.parametrize(
    ("text", "labels", "label"),
    [
        ("B", ("A", "B"), "B"),
        (" A.", ("A", "B"), "A"),
        ("The answer is (B), not A", ("A", "B"), "B"),
        ("About B", ("A", "B"), "B"),
        ("a road", ("A", "B"), None),
        ("Neither of them", ("A", "B"), None),
        ("", ("A", "B"), None),
        ("A has no trees. Answer: B", ("A", "B"), "B"),
        ("yes, it was", LABELS["yesno"], "Yes"),
        ("Nothing", LABELS["yesno"], None),
        ("10 of 10", LABELS["score"], "10"),
        ("100", LABELS["score"], None),
        ("Probably not.", LABELS["words"], "probably not"),
        ("certainly", LABELS["words"], "certainly"),
    ],
)
def test_the_first_label_that_stands_alone_is_the_answer(text: str, labels: tuple[str, ...], label: str | None) -> None:
    found = prompts.find_label(text, labels)
    assert (None if found is None else labels[found[0]]) == label


# Images


def test_a_pair_fills_the_quarters_of_its_canvas() -> None:
    photo, first, second = plain(300, 600, 10), plain(336, 336, 100), plain(168, 168, 200)
    drawn = canvas(Question("pair", photo, (first, second))).pixels
    half = CANVAS // 2
    assert drawn.shape == (CANVAS, CANVAS, 3)
    assert (drawn[:half] == 10).all()
    assert (drawn[half + 60 :, :half] == 100).all()
    assert (drawn[half + 60 :, half:] == 200).all()
    corners = drawn[half : half + 60, :60], drawn[half : half + 60, half : half + 60]
    assert all((corner == 0).any() and (corner == 255).any() for corner in corners)
    assert not np.array_equal(corners[0] > 220, corners[1] > 220)


def test_a_single_crop_has_no_letter() -> None:
    drawn = canvas(Question("yesno", plain(300, 600, 10), (plain(336, 336, 100),))).pixels
    assert (drawn[CANVAS // 2 :, : CANVAS // 2] == 100).all()
    assert (drawn[CANVAS // 2 :, CANVAS // 2 :] == GRAY).all()


@pytest.mark.parametrize(("rows", "cols"), [(600, 300), (100, 1000), (37, 41), (1, 400)])
def test_a_canvas_pads_a_photo_and_does_not_stretch_it(rows: int, cols: int) -> None:
    drawn = canvas(Question("yesno", plain(rows, cols, 10), (plain(28, 28, 100),))).pixels[: CANVAS // 2]
    shown = (drawn == 10).all(2)
    height, width = shown.any(1).sum(), shown.any(0).sum()
    assert shown.sum() == height * width
    assert (drawn[~shown] == GRAY).all()
    assert height == CANVAS // 2 or width == CANVAS
    assert abs(width / cols - height / rows) <= max(1 / cols, 1 / rows)


@pytest.mark.parametrize("count", range(2, 27))
def test_a_list_shows_every_crop_whole(count: int) -> None:
    colours = [(9 * i, 255 - 9 * i, 0) for i in range(count)]  # no gray, as letters are
    crops = tuple(Picture(np.full((64, 64, 3), colour, np.uint8)) for colour in colours)
    drawn = canvas(Question("list", PHOTO, crops)).pixels[CANVAS // 2 :]
    areas = [(drawn == colour).all(2) for colour in colours]
    sides = {(int(area.any(1).sum()), int(area.any(0).sum())) for area in areas}
    assert len(sides) == 1
    [(height, width)] = sides
    assert height == width >= CANVAS // 8


def test_a_squared_picture_keeps_its_pixels_in_the_middle() -> None:
    square = squared(plain(20, 60, 9)).pixels
    assert square.shape == (60, 60, 3)
    assert (square[20:40] == 9).all()
    assert (square[:20] == GRAY).all()
    assert (square[40:] == GRAY).all()
    assert squared(CROPS[0]) is CROPS[0]
