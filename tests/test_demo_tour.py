"""`jzi demo` on a town small enough for a test."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from jzi import demo
from jzi.cli import main
from jzi.decode.model import ZoomModel
from jzi.demo.tour import REFINER, _training_note
from jzi.refine.networks.files import load_refiner
from jzi.store.model_config import read_config
from jzi.workspace.setup.settings_file import load_settings


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo") / "town"
    how = ["--photos", "40", "--epochs", "1", "--size", "320", "--encoder", "random"]
    result = CliRunner().invoke(main, ["demo", str(folder), *how])
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def test_the_demo_runs_every_command_and_shows_it(tour) -> None:
    _, output = tour
    for command in ("init", "encode-map", "encode-queries", "train-decoder", "evaluate", "locate"):
        assert f"$ jzi {command}" in output
    assert "recall within   50 m" in output and "confidence" in output and "the most within 50 m" in output


def test_the_demo_says_that_the_town_is_made_and_its_encoder_untrained(tour) -> None:
    _, output = tour
    assert "This town is synthetic" in output and "random weights" in output


def test_the_demo_draws_the_photo_the_zoom_and_the_answer(tour) -> None:
    picture = np.asarray(Image.open(tour[0] / "zoom.png").convert("RGB")).astype(int)
    pink = (abs(picture - (255, 45, 120)).max(-1) < 30).sum()
    assert picture.shape[1] > picture.shape[0] and pink > 500


def test_the_demo_leaves_an_area_that_the_commands_work_on(tour, monkeypatch) -> None:
    folder, _ = tour
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(main, ["encode-map"])
    assert result.stdout.startswith("0 tiles encoded") and result.exit_code == 0
    assert read_config(folder / "model").pyramid.size >= 320


@pytest.mark.slow
def test_a_demo_that_is_interrupted_in_one_of_its_commands_stops_and_can_be_resumed(tour, monkeypatch) -> None:
    folder, _ = tour
    shutil.rmtree(folder / "features.zarr")
    how = ["demo", str(folder), "--photos", "40", "--epochs", "1", "--size", "320", "--encoder", "random"]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jzi.encode.encoders.encoder.Encoder.encode_tiles", interrupted)
        result = CliRunner().invoke(main, how)
    assert result.exit_code == 130 and result.stdout.rstrip().endswith("$ jzi encode-map --cells")
    assert result.stderr.count("jzi: interrupted; finished work is kept, run the same command again to resume") == 1
    result = CliRunner().invoke(main, how)
    assert result.exit_code == 0 and "This town is synthetic" in result.stdout


def test_the_demo_imports_nothing_that_runs_commands() -> None:
    for file in Path(demo.__file__).parent.glob("*.py"):
        assert not re.search(r"jzi\.(cli|commands)|from jzi import cli", file.read_text())


@pytest.mark.parametrize("encoder", ["trained", "random"])
def test_an_encoder_whose_copy_was_interrupted_is_copied_again(tmp_path, monkeypatch, encoder: str) -> None:
    how = ["demo", str(tmp_path / "town"), "--photos", "20", "--size", "320", "--only-town", "--encoder", encoder]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        assert CliRunner().invoke(main, how).exit_code == 130
    result = CliRunner().invoke(main, how)
    assert result.exit_code == 0, result.output
    assert not list((tmp_path / "town").glob("*.partial")) and not list((tmp_path / "town").glob(".*.partial"))


def test_another_demo_in_the_same_folder_is_refused(tour) -> None:
    result = CliRunner().invoke(main, ["demo", str(tour[0]), "--photos", "40", "--size", "320", "--seed", "5"])
    assert result.exit_code == 2 and "holds another town" in result.stderr
    result = CliRunner().invoke(main, ["demo", str(tour[0]), "--photos", "40", "--size", "320"])
    assert result.exit_code == 2 and "holds a demo with the encoder random-encoder" in result.stderr


def test_the_encoder_that_comes_along_is_used_and_its_town_named(tmp_path) -> None:
    how = ["--photos", "40", "--size", "320", "--only-town"]
    result = CliRunner().invoke(main, ["demo", str(tmp_path / "town"), *how])
    assert result.exit_code == 0, result.output
    assert "encode-map" not in result.stdout.replace("next: jzi encode-map", "")
    model = ZoomModel.load(tmp_path / "town" / "finetuned")
    encoder = model.load_encoder("cpu")  # its fingerprint is the one that the decoder was trained with
    assert (encoder.width, encoder.image_size) == (128, 84)
    assert load_settings(tmp_path / "town" / "jzi.toml").encoder.name == "finetuned/encoder"
    assert "not on the held-out ones" in _training_note(True) and "never seen" in _training_note(False)


def test_the_refiner_that_comes_along_was_a_gain_and_is_stored_in_half_precision() -> None:
    refiner, info = load_refiner(REFINER)
    assert info.kind == "rays" and info.fusion is not None and min(info.fusion) > 0
    assert all(torch.equal(weight, weight.half().float()) for weight in refiner.state_dict().values())


@pytest.mark.slow
def test_the_toy_judge_compares_the_candidates_of_the_photo_that_the_demo_names(tour, monkeypatch) -> None:
    folder, output = tour
    command = re.search(r"jzi (locate .* --rerank judge --map compared\.html)", output)
    assert command
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(main, command[1].split())
    assert result.exit_code == 0, result.output
    assert "questions asked" in result.stderr or "not compared" in result.stderr
    assert Path("compared.html").stat().st_size > 100_000
