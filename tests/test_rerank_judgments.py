"""The file of judgments: nothing is lost or changed, and what is not such a file is refused in a sentence."""

from __future__ import annotations

import csv
import math
import os
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jzi.errors import RerankError
from jzi.rerank.judges.scripted import ScriptedJudge
from jzi.rerank.judgment_rows import COLUMNS, check, from_row, to_row
from jzi.rerank.judgments import Judgments, judgment_key
from jzi.rerank.question import LABELS, Kind, Picture, Question, Reading
from jzi.tests.children import Child, run_python

JUDGE = ScriptedJudge({})


def picture(seed: int) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8))


PHOTO, CROPS = picture(0), tuple(map(picture, range(1, 7)))
PAIR = Question("pair", PHOTO, CROPS[:2])
READING = Reading((-0.25, -math.inf), 0.75, "A", 900, 1, 0.5)


def keep(path: Path, *questions: Question) -> None:
    with Judgments.open(path) as judgments:
        for question in questions:
            (reading,) = JUDGE.answer([question])
            judgments.put(JUDGE, question, reading)


def key(question: Question) -> str:
    return judgment_key(question, JUDGE.fingerprint)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rerank" / "judgments.sqlite"


def test_what_is_put_is_there_after_the_file_was_opened_again(path: Path) -> None:
    with Judgments.open(path) as judgments:
        judgments.put(JUDGE, PAIR, READING)
        assert judgments.get([key(PAIR)]) == {key(PAIR): READING}
    with Judgments.open(path) as judgments:
        assert judgments.get(["other", key(PAIR)]) == {key(PAIR): READING}
        (row,) = judgments.rows()
    assert (row.photo, row.crops) == (PHOTO.digest, (CROPS[0].digest, CROPS[1].digest))
    assert (row.kind, row.judge, row.fingerprint) == ("pair", JUDGE.name, JUDGE.fingerprint)
    assert row.reading == READING


def test_the_first_answer_stays(path: Path) -> None:
    with Judgments.open(path) as judgments:
        judgments.put(JUDGE, PAIR, READING)
        judgments.put(JUDGE, PAIR, replace(READING, mass=0.5))
        assert judgments.get([key(PAIR)]) == {key(PAIR): READING}


def test_keys_differ_by_photo_crops_their_order_kind_and_judge() -> None:
    first, second, third = CROPS[:3]
    questions = [
        PAIR,
        Question("pair", PHOTO, (second, first)),
        Question("pair", PHOTO, (first, third)),
        Question("pair", third, (first, second)),
        Question("list", PHOTO, (first, second)),
        Question("yesno", PHOTO, (first,)),
        Question("score", PHOTO, (first,)),
    ]
    keys = {judgment_key(question, fingerprint) for question in questions for fingerprint in ("a", "b")}
    assert len(keys) == 2 * len(questions)
    assert judgment_key(Question("pair", picture(0), (picture(1), picture(2))), "a") in keys


def test_pictures_of_equal_bytes_and_other_sizes_have_other_keys() -> None:
    tall = Picture(np.zeros((2, 3, 3), np.uint8))
    wide = Picture(np.zeros((3, 2, 3), np.uint8))
    assert key(Question("yesno", PHOTO, (tall,))) != key(Question("yesno", PHOTO, (wide,)))


def test_many_keys_are_found_at_once(path: Path) -> None:
    questions = [Question("pair", PHOTO, (picture(i), picture(i + 1))) for i in range(10, 260)]
    keep(path, *questions)
    with Judgments.open(path) as judgments:
        keys = list(map(key, questions))
        assert list(judgments.get([*keys, "none"])) != []
        assert set(judgments.get(keys)) == set(keys)
        assert [row.key for row in judgments.rows()] == keys


KINDS: list[tuple[Kind, int]] = [("pair", 2), ("list", 5), ("yesno", 1), ("score", 1), ("words", 1), ("describe", 1)]


@settings(max_examples=50)
@given(st.data(), st.sampled_from(KINDS))
def test_a_row_holds_every_reading_exactly(data: st.DataObject, kind: tuple[Kind, int]) -> None:
    name, crops = kind
    labels = len(LABELS.get(name, range(crops))) or 1
    logarithm = st.floats(-1e9, 0) | st.just(-math.inf)
    reading = Reading(
        tuple(data.draw(st.lists(logarithm, min_size=labels, max_size=labels))),
        data.draw(st.floats(0, 1)),
        data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
        data.draw(st.integers(0, 2**40)),
        data.draw(st.integers(0, 2**40)),
        data.draw(st.floats(0, 1e6)),
        data.draw(st.booleans()),
    )
    with closing(Judgments.open(Path(":memory:"))) as judgments:
        question = Question(name, PHOTO, CROPS[:crops])
        judgments.put(JUDGE, question, reading)
        assert judgments.get([key(question)]) == {key(question): reading}


def test_text_that_no_file_can_hold_is_replaced(path: Path) -> None:
    with Judgments.open(path) as judgments:
        judgments.put(JUDGE, PAIR, replace(READING, text="a\ud800b"))
        assert judgments.get([key(PAIR)])[key(PAIR)].text == "a?b"


BAD_READINGS = [
    replace(READING, log_probabilities=(math.nan, -1.0)),
    replace(READING, log_probabilities=(math.inf, -1.0)),
    replace(READING, log_probabilities=(0.5, -1.0)),
    replace(READING, log_probabilities=(-1.0,)),
    replace(READING, log_probabilities=(-1.0,) * 3),
    replace(READING, mass=math.nan),
    replace(READING, mass=1.5),
    replace(READING, mass=-0.1),
    replace(READING, tokens_in=-1),
    replace(READING, tokens_out=2**63),
    replace(READING, seconds=math.inf),
    replace(READING, text="x" * 2**20),
]


@pytest.mark.parametrize("reading", BAD_READINGS)
def test_an_answer_that_is_none_is_not_kept(reading: Reading, path: Path) -> None:
    with Judgments.open(path) as judgments:
        with pytest.raises(RerankError, match="gave an unusable answer"):
            judgments.put(JUDGE, PAIR, reading)
        assert list(judgments.rows()) == []


def edit(column: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"UPDATE judgments SET {column} = ?", [value])

    return change


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("key", "0" * 64),
        ("photo", "other"),
        ("crops", "[]"),
        ("crops", "{}"),
        ("crops", "[1, 2]"),
        ("crops", "[" * 100_000),
        ("kind", "poem"),
        ("kind", b"pair"),
        ("fingerprint", "other"),
        ("log_probabilities", "[NaN, -1]"),
        ("log_probabilities", "[-Infinity, -1]"),
        ("log_probabilities", "[1e999, -1]"),
        ("log_probabilities", f"[-1{'0' * 400}, -1]"),
        ("log_probabilities", '["-1", -1]'),
        ("log_probabilities", "[true, -1]"),
        ("log_probabilities", "[-1]"),
        ("log_probabilities", "-1"),
        ("log_probabilities", ""),
        ("mass", "much"),
        ("mass", math.inf),
        ("tokens_in", -5),
        ("tokens_out", 1.5),
        ("seconds", b"\0"),
        ("abstained", 2),
        ("time", -1),
        ("time", 1e300),
        ("text", b"\xff"),
    ],
)
def test_a_damaged_row_is_reported_in_a_sentence(column: str, value: object, path: Path) -> None:
    keep(path, PAIR)
    edit(column, value)(path)
    with Judgments.open(path) as judgments:
        with pytest.raises(RerankError, match=r"are damaged, in row 1 \(.+\): remove the file") as caught:
            list(judgments.rows())
        assert len(str(caught.value)) < 400 + len(str(path))
        if column != "key":
            with pytest.raises(RerankError, match="damaged"):
                judgments.get([key(PAIR)])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("time", 1e300),
        ("time", -1e18),
        ("time", "soon"),
        ("time", b"1"),
        ("seconds", math.inf),
        ("tokens_in", 2**63 - 1),
        ("tokens_out", "many"),
        ("abstained", -5),
        ("judge", b"\x1b"),
        ("fingerprint", b"\xff"),
    ],
)
def test_a_summary_of_damaged_rows_is_refused_in_a_sentence(column: str, value: object, path: Path) -> None:
    keep(path, PAIR, Question("yesno", PHOTO, CROPS[:1]))
    edit(column, value)(path)
    with Judgments.open(path) as judgments, pytest.raises(RerankError, match="judgments") as error:
        judgments.summary()
    assert str(error.value).isprintable()


def test_names_and_texts_are_shown_without_control_characters(path: Path, tmp_path: Path) -> None:
    judge = ScriptedJudge({})
    judge.name = "\x1b[2Jme"
    with Judgments.open(path) as judgments:
        judgments.put(judge, PAIR, replace(READING, text="A\nred\x1b[31m"))
        assert [each.judge for each in judgments.summary()] == ["\\x1b[2Jme"]
        judgments.export(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["judge"], row["text"]) == ("\\x1b[2Jme", "A\nred\\x1b[31m")


def test_a_row_of_many_bytes_is_not_read(path: Path) -> None:
    keep(path, PAIR)
    edit("text", "x" * 2**23)(path)
    with Judgments.open(path) as judgments, pytest.raises(RerankError, match="a row that is too large"):
        list(judgments.rows())


def statements(*commands: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            for command in commands:
                connection.execute(command)
            connection.commit()

    return change


def foreign(path: Path) -> None:
    path.unlink()
    statements("CREATE TABLE judgments (key TEXT)")(path)


def cut(path: Path) -> None:
    keep(path, *(Question("pair", PHOTO, (picture(i), picture(i + 1))) for i in range(10, 60)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def scramble(path: Path) -> None:
    keep(path, *(Question("pair", PHOTO, (picture(i), picture(i + 1))) for i in range(10, 60)))
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"log: " * 1000), "no SQLite file"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "damaged"),
        (foreign, "another SQLite file: give another path"),
        (statements("PRAGMA user_version = 2"), "format version 2, and this jzi reads 1"),
        (statements("PRAGMA application_id = 7"), "another SQLite file"),
        (statements("CREATE TRIGGER t AFTER INSERT ON judgments BEGIN DELETE FROM judgments; END"), "other tables"),
        (statements("ALTER TABLE judgments ADD COLUMN more"), "other tables"),
        (statements("DROP TABLE judgments", "CREATE VIEW judgments AS SELECT 1 AS key"), "other tables"),
        (cut, "damaged"),
        (scramble, "damaged"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b" photo TEXT", b" ph\xb0to TEXT")), "damaged"),
        (folder, "which is no file"),
        (pipe, "which is no file"),
    ],
)
def test_what_is_no_file_of_judgments_is_refused_and_left_alone(
    spoil: Callable[[Path], None], message: str, path: Path
) -> None:
    keep(path, PAIR)
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(RerankError, match=message) as caught, Judgments.open(path) as judgments:
        list(judgments.rows())
    assert str(path) in str(caught.value)
    assert before is None or path.read_bytes() == before


def test_a_file_that_is_only_read_is_not_created(path: Path) -> None:
    with pytest.raises(RerankError, match=r"no judgments are kept in .+ yet"):
        Judgments.open(path, create=False)
    assert not path.parent.exists()
    keep(path, PAIR)
    with Judgments.open(path, create=False) as judgments:
        assert len(list(judgments.rows())) == 1


def test_an_empty_file_becomes_one_of_judgments(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    keep(path, PAIR)
    with Judgments.open(path) as judgments:
        assert len(list(judgments.rows())) == 1


READ_ONLY = """
import os, sys
from pathlib import Path
from jzi.errors import RerankError
from jzi.rerank.judgments import Judgments
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
try:
    Judgments.open(Path(sys.argv[1]))
except RerankError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_that_cannot_be_written_is_reported(what: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # one that another user may enter, unlike those of pytest
        path = Path(folder) / "judgments.sqlite"
        if what == "file":
            keep(path, PAIR)
            path.chmod(0o444)
        Path(folder).chmod(0o555)
        child = run_python(READ_ONLY, path)
        Path(folder).chmod(0o755)
    assert f"the judgments {path} cannot be used, which" in child.output
    assert "allow writing" in child.output


def test_a_closed_file_is_reported(path: Path) -> None:
    judgments = Judgments.open(path)
    judgments.close()
    with pytest.raises(RerankError, match="closed"):
        judgments.get(["a"])


# Several processes

WRITER = """
import sys
from pathlib import Path
import numpy as np
from jzi.rerank.judgments import Judgments
from jzi.rerank.question import Picture, Question
from jzi.rerank.judges.scripted import ScriptedJudge
path, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
judge = ScriptedJudge({})
photo = Picture(np.zeros((1, 1, 3), np.uint8))
with Judgments.open(path) as judgments:
    for number in range(first, first + count):
        crop = Picture(np.full((1, 1, 3), number, np.uint8))
        question = Question("yesno", photo, (crop,))
        judgments.put(judge, question, next(iter(judge.answer([question]))))
        print(number, flush=True)
"""


def test_processes_that_start_and_write_at_once_lose_nothing(path: Path) -> None:
    children = [Child([sys.executable, "-c", WRITER, path, first, 60]) for first in (0, 40, 80)]
    for child in children:
        child.wait(0)
    with Judgments.open(path) as judgments:
        assert len({row.key for row in judgments.rows()}) == 140
        assert len(list(judgments.rows())) == 140


def test_a_killed_process_loses_none_of_what_it_has_kept(path: Path) -> None:
    with Child([sys.executable, "-c", WRITER, path, 0, 200]) as child:
        child.wait_until(lambda: child.output.count("\n") >= 20)
        child.end()
    written = child.output.count("\n")
    with Judgments.open(path) as judgments:
        assert written <= len(list(judgments.rows())) <= written + 1


# Export and prune


def test_an_export_has_all_rows(path: Path, tmp_path: Path) -> None:
    questions = [Question("pair", PHOTO, (a, b)) for a in CROPS for b in CROPS if a is not b]
    keep(path, *questions)
    with Judgments.open(path) as judgments:
        judgments.put(JUDGE, Question("list", PHOTO, CROPS[:2]), replace(READING, text='a "quoted"\nline, and more'))
        assert judgments.export(tmp_path / "out.csv") == 31
        rows = list(judgments.rows())
    with (tmp_path / "out.csv").open(newline="") as file:
        exported = list(csv.DictReader(file))
    assert tuple(exported[0]) == COLUMNS
    assert [row["key"] for row in exported] == [row.key for row in rows]
    assert exported[0]["crops"].split() == [CROPS[0].digest, CROPS[1].digest]
    assert tuple(map(float, exported[0]["log_probabilities"].split())) == rows[0].reading.log_probabilities
    assert exported[-1]["log_probabilities"] == "-0.25 -inf"
    assert exported[-1]["text"] == 'a "quoted"\nline, and more'
    assert exported[0]["time"].endswith("+00:00")


def test_an_export_that_cannot_be_written_leaves_what_was_there(path: Path, tmp_path: Path) -> None:
    keep(path, PAIR)
    edit("mass", 5)(path)
    (tmp_path / "out.csv").write_text("before")
    with Judgments.open(path) as judgments:
        with pytest.raises(RerankError, match="damaged"):
            judgments.export(tmp_path / "out.csv")
        with pytest.raises(RerankError, match="cannot be written to"):
            judgments.export(tmp_path / "none" / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "before"


def test_pruning_removes_what_matches_all_conditions(path: Path) -> None:
    other = ScriptedJudge({}, kind="random")
    questions = [Question("yesno", PHOTO, (crop,)) for crop in CROPS[:4]]
    with Judgments.open(path) as judgments:
        for judge, question in zip([JUDGE, JUDGE, other, other], questions, strict=True):
            judgments.put(judge, question, next(iter(judge.answer([question]))))
        statements("UPDATE judgments SET time = id")(path)
        assert judgments.prune(before=3.0, judge=other.name) == 0
        assert judgments.prune(before=2.0) == 1
        assert judgments.prune(judge=other.name, before=4.0) == 1
        assert [row.time for row in judgments.rows()] == [2, 4]
        assert judgments.prune(judge=JUDGE.name) == 1
        assert judgments.prune() == 1
        assert list(judgments.rows()) == []


def test_rows_can_be_read_while_others_are_pruned(path: Path) -> None:
    keep(path, *(Question("yesno", PHOTO, (picture(i),)) for i in range(250)))
    with Judgments.open(path) as judgments, Judgments.open(path) as other:
        rows = judgments.rows()
        first = next(rows)
        assert other.prune(before=first.time + 1e6) == 250
        assert len(list(rows)) < 250


def test_a_row_becomes_a_judgment_and_a_row_again(path: Path) -> None:
    keep(path, PAIR)
    with Judgments.open(path) as judgments:
        (judgment,) = judgments.rows()
    check(judgment)
    assert from_row(to_row(judgment)) == judgment
