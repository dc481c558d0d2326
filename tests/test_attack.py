"""The benchmark that attacks jzi sees the faults that it looks for, and its files are good before they are damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jzi.errors import JziError
from jzi.tests.attacks import files, readers, scene
from tests import hostile

EXAMPLE = hostile.Hostile("x", 1, "a.txt", {"a.txt": b"x"})


def refuse(path: Path) -> None:
    raise JziError(f"{path.name} is refused")


def fail(path: Path) -> None:
    raise KeyError(path.name)


def ramble(path: Path) -> None:
    raise JziError("two\nlines")


def test_errors_of_other_kinds_and_of_several_lines_are_faults() -> None:
    assert files._read(EXAMPLE, lambda path: path.read_bytes()) == ("", False)
    assert files._read(EXAMPLE, refuse) == ("", True)
    assert "KeyError" in files._read(EXAMPLE, fail)[0]
    assert files._read(EXAMPLE, ramble)[0]


@pytest.mark.parametrize(
    ("ran", "fault"),
    [
        (scene.Ran(0, "{}", ""), ""),
        (scene.Ran(2, "", "jzi: a.tif cannot be read"), ""),
        (scene.Ran(2, "", "Usage: jzi"), "no sentence"),
        (scene.Ran(1, "", "Traceback (most recent call last)"), "traceback"),
        (scene.Ran(2, "", "jzi: unexpected error (KeyError: 'x'): this is a defect of jzi"), "unexpected"),
        (scene.Ran(-9, "", ""), "exit code -9"),
    ],
)
def test_a_command_refuses_in_a_sentence_or_there_is_a_fault(ran: scene.Ran, fault: str) -> None:
    assert fault in scene.fault_of(ran) and bool(fault) == bool(scene.fault_of(ran))


def test_folders_are_compared_byte_by_byte_but_for_durations(tmp_path: Path) -> None:
    for name, seconds, data in (("one", 1.5, b"a"), ("two", 2.5, b"a"), ("three", 1.5, b"b")):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "metrics.jsonl").write_text(f'{{"loss": 0.5, "seconds": {seconds}}}')
        (tmp_path / name / "model" / "weights").write_bytes(data)
        (tmp_path / name / "model" / "a.partial").write_bytes(name.encode())
    one, two, three = (scene.contents(tmp_path / name, "model") for name in ("one", "two", "three"))
    assert scene.differences(one, two) == []
    assert scene.differences(one, three) == ["model/weights"]
    assert scene.differences(one, {}) == ["model/metrics.jsonl", "model/weights"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "read"),
    [
        (readers._write_settings, readers._read_settings),
        (readers._write_judgments, readers._read_judgments),
        (readers._write_weights, lambda folder: readers.read_weights(folder / "rerank.json")),
        (readers._write_lists, readers._read_lists),
        (readers._write_encoder, readers.load_model),
        (readers._write_towers, readers.read_towers_config),
        (readers._write_refiner, readers.load_refiner),
        (readers._write_statewide, readers._import_statewide),
    ],
)
def test_files_are_read_before_they_are_damaged(write: Callable, read: Callable, tmp_path: Path) -> None:
    write(tmp_path)
    read(tmp_path)


def test_a_kind_and_a_seed_make_the_same_file_again() -> None:
    for attack in readers.ATTACKS.values():
        assert attack.make(5).files == attack.make(5).files
