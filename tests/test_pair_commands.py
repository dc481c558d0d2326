"""`init`, `train-refiner`, `evaluate` and `ablate` on data sets of pairs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from jzi.ablate.pairs import PairAblation
from jzi.ablate.variants import PAIR_SECTIONS, Variant, expand_grid, read_variants
from jzi.cli import main
from jzi.errors import ConfigError, PairsError
from jzi.workspace.pairs import evaluation_pairs, load_pairs, training_pairs
from tests import pair_trees as trees

ABLATIONS = sorted((Path(__file__).parent.parent / "benchmarks" / "ablations").glob("unifygeo-*.toml"))

#: A network and a training that take seconds.
TINY = (
    "refine.ground_height=32", "refine.ground_width=64", "refine.photo_width=64", "refine.aerial=64",
    "refine.widths=[8, 8, 16, 16]", "refine.depths=[1, 1, 1]", "refine.bins=4", "refine.layer_scale=1.0",
    "pairs.backbone=", "pairs.val_share=0.2", "pairs.batch_size=8", "refiner.epochs=2", "refiner.batch_size=4",
)  # fmt: skip
SET = [part for setting in TINY for part in ("--set", setting)]


def jzi(*arguments: Any, code: int = 0) -> Result:
    """Run a command, and check its exit code; errors are one sentence."""
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    if code:
        assert result.stderr.startswith("jzi: ")
        assert "Traceback" not in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    return result


@pytest.fixture(scope="module")
def vigor_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees") / "vigor"
    trees.write_vigor(folder, photos=12)
    return folder


@pytest.fixture
def config(vigor_tree: Path, tmp_path: Path) -> Path:
    """jzi.toml of a working directory for the tree."""
    jzi("init", tmp_path / "work", "--dataset", "vigor", "--data", vigor_tree)
    return tmp_path / "work" / "jzi.toml"


@pytest.mark.slow
def test_a_data_set_is_set_up_trained_on_and_evaluated(vigor_tree: Path, tmp_path: Path) -> None:
    tree = tmp_path / "vigor"
    shutil.copytree(vigor_tree, tree)
    photo = next((tree / "Chicago" / "panorama").iterdir())
    result = jzi("init", "--dataset", "vigor", tree)
    assert "24 of the test split among 36 aerial images" in result.stdout
    photo.unlink()
    config = tree / "jzi.toml"
    result = jzi("init", "--dataset", "vigor", tree, "--force", "--json")
    values = json.loads(result.stdout)
    assert values["rejected"] == 1
    assert values["train"] + values["held_out"] + values["test"] == 47
    assert photo.name in result.stderr

    result = jzi("train-refiner", "--config", config, *SET, "--json")
    trained = json.loads(result.stdout)
    assert trained["epochs"] == 2
    assert trained["val"] > 0
    assert (tree / "refiner" / "refiner.safetensors").exists()
    assert jzi("train-refiner", "--config", config, *SET).stdout.startswith("complete already")
    jzi("train-refiner", "--config", config, *SET, "--set", "refiner.seed=1", code=2)

    result = jzi("evaluate", "--config", config, "--gallery-html", tmp_path / "a.html", "--gallery-photos", "4")
    page = (tmp_path / "a.html").read_text()
    assert page.count("<article") == 4 and "Similarity" in page and "Zoom steps" not in page
    assert "low to high" not in page and "chosen part" not in page
    assert page.count('class="truth"') >= page.count("right image</b>") >= 4 and page.count('class="answer"') == 4
    for line in ("recall at 1, re-ranked", "recall at 1 %", "hit rate", "UnifyGeo, table III", "this model"):
        assert line in result.stdout
    plain = json.loads(jzi("evaluate", "--config", config, "--json", "--set", "pairs.rerank=false").stdout)
    ranked = json.loads(jzi("evaluate", "--config", config, "--json").stdout)
    for name in ("recall@5", "recall@10", "recall@1%", "hit_rate", "recall@1_before"):
        assert plain["retrieval"][name] == ranked["retrieval"][name]
    assert plain["retrieval"]["recall@1"] == plain["retrieval"]["recall@1_before"]
    assert plain["localized"] == ranked["localized"]
    assert len(ranked["published"]) == 20
    held = json.loads(jzi("evaluate", "--config", config, "--split", "val", "--json", *SET).stdout)
    assert held["published"] == []
    assert held["photos"] == trained["val"]
    assert "compares no headings" in jzi(
        "evaluate", "--config", config, "--set", "pairs.orientation=unknown", "--set", "refine.aligned=false", code=2
    ).stderr  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split", "extra"),
    [
        ("cvusa", "test", ()),
        ("cvact", "val", ("pairs.crop=0.75", "refiner.decoder=1.0", "refiner.matching=10.0", "refiner.rerank=1.0")),
        ("kitti", "test1", ()),
    ],
)
def test_the_other_data_sets_are_trained_on_and_evaluated(
    tmp_path: Path, name: str, split: str, extra: tuple[str, ...]
) -> None:
    getattr(trees, f"write_{name}")(tmp_path)
    jzi("init", "--dataset", name, tmp_path)
    more = [part for setting in extra for part in ("--set", setting)]
    jzi("train-refiner", "--config", tmp_path / "jzi.toml", *SET, *more)
    result = json.loads(jzi("evaluate", "--config", tmp_path / "jzi.toml", "--json", *more[:2]).stdout)
    assert result["split"] == split
    if name == "kitti":
        assert {"localized", "heading", "lateral", "longitudinal"} <= result.keys()
        other = json.loads(jzi("evaluate", "--config", tmp_path / "jzi.toml", "--json", "--split", "test2").stdout)
        assert other["split"] == "test2"
    else:
        assert "retrieval" in result
        assert "localized" not in result
        assert "centre" in result["notes"][0]


def test_what_init_cannot_use_is_refused_with_a_sentence(vigor_tree: Path, tmp_path: Path) -> None:
    assert "splits__corrected" in jzi("init", tmp_path / "a", "--dataset", "vigor", "--data", tmp_path, code=2).stderr
    assert "--area" in jzi("init", tmp_path / "a", "--dataset", "cvusa", "--area", "cross", code=2).stderr
    assert "--area" in jzi("init", tmp_path / "a", "--area", "cross", code=2).stderr
    assert "--size" in jzi("init", tmp_path / "a", "--dataset", "vigor", "--size", "100", code=2).stderr
    assert "vigor" in jzi("init", tmp_path / "a", "--dataset", "vigour", code=2).stderr
    for name in ("cvusa", "cvact", "kitti"):
        arguments = ("init", tmp_path / "a", "--dataset", name, "--data", vigor_tree)
        assert "give the folder of" in jzi(*arguments, code=2).stderr
    assert not (tmp_path / "a").exists()
    broken = tmp_path / "broken"
    shutil.copytree(vigor_tree, broken)
    for photo in (broken / "Chicago" / "panorama").iterdir():
        Image.new("RGB", (40, 30)).save(photo)
    assert "40 x 30 pixels" in jzi("init", broken, "--dataset", "vigor", code=2).stderr
    shutil.rmtree(broken / "Chicago" / "satellite")
    jzi("init", broken, "--dataset", "vigor")  # without Chicago, which is named


def test_metres_are_refused_on_the_original_labels(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path / "vigor", labels="splits", scale=0.976, photos=40)
    result = jzi("init", tmp_path / "work", "--dataset", "vigor", "--data", tmp_path / "vigor")
    assert "original" in result.stderr
    config = tmp_path / "work" / "jzi.toml"
    message = jzi("train-refiner", "--config", config, *SET, code=2).stderr
    assert "splits__corrected" in message
    assert "refiner.decoder" in message
    assert "pairs.crop" not in message  # which VIGOR refuses
    assert not (tmp_path / "work" / "refiner").exists()


def test_a_folder_without_a_network_is_refused(config: Path) -> None:
    assert "no refiner" in jzi("evaluate", "--config", config, code=2).stderr
    assert "--beams" in jzi("evaluate", "--config", config, "--beams", "4", code=2).stderr
    assert "no split" in jzi("evaluate", "--config", config, "--split", "test2", code=2).stderr


def test_commands_of_areas_say_that_the_folder_is_of_pairs(config: Path) -> None:
    for command in ("encode-map", "train-decoder", "train-retriever"):
        assert "a data set of pairs" in jzi(command, "--config", config, code=2).stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pairs.orientation=unknown", "refine.aligned"),
        ("pairs.crop=0.5", "CVUSA and CVACT"),
        ("pairs.dataset=kitti", "refine.aligned = false"),
        ("pairs.orientations=list.txt", "pairs.orientation"),
        ("pairs.arear=same", "does not know"),
        ("refine.binz=3", "does not know"),
        ("refine.bins=5", "multiple of 5"),
        ("refiner.sampling=hard", "sampling"),
        ("refiner.neighbours=300", "neighbour_range"),
        ("decoder.layers=3", "does not know"),
    ],
)
def test_invalid_settings_are_refused(config: Path, override: str, message: str) -> None:
    assert message in jzi("train-refiner", "--config", config, "--set", override, code=2).stderr


def test_validation_photos_keep_the_photos_of_an_aerial_image_together(config: Path) -> None:
    settings = load_pairs(config, ("pairs.val_share=0.4",))
    train, val = training_pairs(settings)
    assert len(train) + len(val) == 24
    assert not set(train.positive) & set(val.positive)
    again = evaluation_pairs(settings, "val")
    assert list(again.photos) == list(val.photos)
    with pytest.raises(PairsError, match="val_share"):
        evaluation_pairs(load_pairs(config, ("pairs.val_share=0.0",)), "val")


# Ablations


@pytest.mark.parametrize("file", ABLATIONS, ids=lambda file: file.stem)
def test_the_ablations_of_unifygeo_are_variants_that_there_can_be(config: Path, file: Path) -> None:
    shared, variants = read_variants(file, PAIR_SECTIONS)
    ablation = PairAblation(config, shared, variants, file.stem, False)
    trials = ablation.trials(1, None)
    assert list(trials) == [variant.name for variant in variants]
    networks = {name: group[0].network for name, group in trials.items()}
    pairs = [("UL + FA", "UL + FA + RR"), ("UL + FA + LR", "UL + FA + LR + RR")]
    for without, reranked in pairs if "UL + FA + RR" in networks else ():
        assert networks[without] == networks[reranked]
    everything = load_pairs(config)
    last = list(trials.values())[-1][0].settings
    assert last.refiner == everything.refiner
    assert last.refine == everything.refine


def test_ablations_of_pairs_vary_their_sections_only(config: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be varied"):
        expand_grid(["decoder.layers=1,2"], PAIR_SECTIONS)
    with pytest.raises(ConfigError, match="--seeds"):
        expand_grid(["refiner.seed=1,2"], PAIR_SECTIONS)
    with pytest.raises(ConfigError, match="variant wrong"):
        PairAblation(config, (), [Variant("wrong", ("refine.bins=5",))], "test", True)
    message = jzi("ablate", "refiner.epochs=1,2", "--config", config, "--split", "test2", code=2).stderr
    assert "no split 'test2'" in message


@pytest.mark.slow
def test_an_ablation_prints_its_variants_beside_the_published_ones(config: Path) -> None:
    shared, variants = read_variants(next(file for file in ABLATIONS if file.stem.endswith("5")), PAIR_SECTIONS)
    chosen = [each for each in variants if each.name in ("none", "UL + FA", "UL + FA + RR")]
    file, folder = config.parent / "some.toml", config.parent / "ablations" / "some"
    lines = [line for each in chosen for line in (f'[variants."{each.name}"]', *each.overrides)]
    file.write_text("\n".join([*shared, *lines]))
    tiny = [part for setting in (*TINY, "refiner.epochs=1") for part in ("--set", setting)]
    arguments = ("ablate", file, "--config", config, "--no-reference", *tiny)
    result = jzi(*arguments)
    assert result.stdout.startswith("24 photos of VIGOR, same-area, test")
    assert "[80.97]" in result.stdout
    rows = {row["variant"]: row for row in json.loads((folder / "table.json").read_text())}
    assert rows["UL + FA + RR"]["retrieval_recall@5"] == rows["UL + FA"]["retrieval_recall@5"]
    assert "localized_mean_m" not in rows["none"]
    assert not (folder / "UL + FA + RR-seed0" / "refiner.safetensors").exists()  # shared
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert jzi(*arguments).stdout == result.stdout
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
