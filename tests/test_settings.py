"""`jzi settings`, the jzi.toml that `jzi init` writes, and suggestions for misspelt names."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from jzi.cli import main
from jzi.store.geometry.pyramid import Pyramid
from jzi.workspace.pairs import load_pairs, new_pair_settings, write_pair_settings
from jzi.workspace.setup.init import new_encoder_settings
from jzi.workspace.setup.settings import FILE, Settings
from jzi.workspace.setup.settings_file import load_settings, with_settings, write_settings
from jzi.workspace.setup.settings_info import SettingInfo, describe_settings


@pytest.fixture
def area(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The jzi.toml of an area of 320 m, in the current directory."""
    monkeypatch.chdir(tmp_path)
    settings = Settings(Pyramid.around(48.2, 16.37, 320.0, levels=2))
    settings.folder = tmp_path
    write_settings(settings)
    return Path(FILE)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def described(*arguments: str) -> dict[str, SettingInfo]:
    """The settings that the command lists, by name."""
    result = run("settings", *arguments, "--json")
    assert result.exit_code == 0, result.output
    settings = [SettingInfo(**json.loads(line)) for line in result.stdout.splitlines()]
    return {each.name: each for each in settings}


def test_every_setting_is_described_and_has_a_range(tmp_path: Path) -> None:
    sections = describe_settings(tmp_path / FILE)
    settings = [each for section in sections.values() for each in section.settings]
    assert {"pyramid", "region", "pairs", "refine", "rerank"} <= sections.keys() and len(settings) > 200
    assert not [each.name for each in settings if not each.description or not each.allowed]
    assert not [each.name for each in settings if "`Cached" in each.description or "jzi.train" in each.description]


def test_a_new_file_names_the_area_and_what_differs_from_the_defaults(area: Path) -> None:
    values = tomllib.loads(area.read_text())
    assert values.keys() == {"pyramid", "map", "queries", "encoder"}
    assert values["encoder"] == {"name": "facebook/dinov2-base", "image_size": 384}
    settings = with_settings(load_settings(area), ["train.epochs=3", "train.seed=0", "refine.rays.hidden=32"])
    write_settings(settings)
    values = tomllib.loads(area.read_text())
    assert values["train"] == {"epochs": 3} and values["refine"] == {"rays": {"hidden": 32}}
    again = load_settings(area)
    assert (again.train, again.refine, again.pyramid) == (settings.train, settings.refine, settings.pyramid)
    assert "`jzi settings` lists all" in area.read_text()


def test_values_are_marked_by_where_they_come_from(area: Path) -> None:
    area.write_text(area.read_text() + "\n[train]\nepochs = 7\n")
    train = described("train", "--set", "train.seed=5")
    assert (train["train.epochs"].value, train["train.epochs"].default, train["train.epochs"].source) == (7, 30, FILE)
    assert (train["train.seed"].value, train["train.seed"].source) == (5, "--set")
    assert train["train.clip"].source == "default" and train["train.label_smoothing"].allowed.endswith("below 1")
    text = run("settings", "train.epochs").stdout
    assert "* train.epochs = 7   (jzi.toml; default 30; whole number 1 to 1000000)" in text
    assert "Passes over the training photos." in text and "train.clip" not in text


def test_without_a_file_the_defaults_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert described("decoder.layers")["decoder.layers"].value == 6
    assert described("statewide")["statewide.lods_m"].default == [0.2, 0.4, 0.8, 1.6]
    assert "decoder.width" not in described("decoder")  # follows from the encoder
    assert "  map.crs = unset" in run("settings", "map").stdout


def test_settings_of_pairs_are_those_of_their_own_classes(tmp_path: Path) -> None:
    settings = new_pair_settings("cvusa", tmp_path, None, None)
    write_pair_settings(settings)
    assert load_pairs(tmp_path / FILE).refiner == settings.refiner
    assert tomllib.loads((tmp_path / FILE).read_text())["refine"] == {"ground_height": 140}
    refine = described("refine", "--config", str(tmp_path / FILE))
    assert refine["refine.ground_height"].value == 140 and "refine.kind" not in refine


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("decodr.layers=4", "did you mean decoder?"),
        ("decoder.layer=4", "did you mean decoder.layers?"),
        ("train.layers=4", "did you mean decoder.layers?"),
        ("refine.rays.hiden=4", "did you mean refine.rays.hidden?"),
        ("qqqq.layers=4", "`jzi settings` lists all of them"),
    ],
)
def test_a_misspelt_setting_is_answered_with_the_most_similar_one(area: Path, override: str, suggestion: str) -> None:
    result = run("train-decoder", "--set", override)
    assert result.exit_code == 2 and result.stderr.rstrip().endswith(suggestion)
    section, _, name = override.partition("=")[0].rpartition(".")
    area.write_text(area.read_text() + f"\n[{section}]\n{name} = 4\n")
    assert run("train-decoder").stderr.rstrip().endswith(suggestion)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.epochs=abc", "it must be a whole number"),
        ("train.epochs=0", "it must be greater than or equal to 1"),
        ("train.learning_rate=fast", "it must be a number"),
        ("encoder.layout=thirds", "it must be 'halves' or 'whole'"),
    ],
)
def test_a_value_of_another_type_is_told_in_plain_words(area: Path, override: str, reason: str) -> None:
    assert run("train-decoder", "--set", override).stderr.rstrip().endswith(f"has no sensible value: {reason}")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("lcoate a.jpg", "there is no command 'lcoate': did you mean `jzi locate`?"),
        ("cache verfy", "there is no command 'verfy': did you mean `jzi cache verify`?"),
        ("qqqq", "there is no command 'qqqq': `jzi -h` lists them"),
        ("settings decodr", "there is no section or setting 'decodr': did you mean decoder?"),
    ],
)
def test_a_misspelt_command_or_section_is_answered_with_the_most_similar_one(line: str, error: str) -> None:
    result = CliRunner().invoke(main, line.split(), prog_name="jzi")
    assert result.exit_code == 2 and result.stderr == f"jzi: {error}\n"


def test_an_encoder_in_a_folder_gets_the_side_that_it_was_trained_at(tmp_path: Path, encoder_folder: Path) -> None:
    own = json.loads((encoder_folder / "config.json").read_text())["image_size"]
    assert new_encoder_settings(tmp_path, str(encoder_folder), None).image_size == own < 384
    assert new_encoder_settings(tmp_path, str(encoder_folder), 42).image_size == 42
    assert new_encoder_settings(tmp_path, str(tmp_path), None).image_size == 384


def test_init_writes_further_settings_but_none_that_an_option_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = ("init", "--center", "48.2", "16.37", "--size", "320")
    assert "use the options of `jzi init`" in run(*where, "--set", "map.crs=EPSG:31256").stderr
    assert "did you mean train.epochs?" in run(*where, "--set", "train.epoch=3").stderr
    assert not Path(FILE).exists()
    assert run(*where, "--set", "train.epochs=3", "--set", "queries.seed=1").exit_code == 2
    assert run(*where, "--set", "train.epochs=3").exit_code == 0
    assert load_settings(Path(FILE)).train.epochs == 3
