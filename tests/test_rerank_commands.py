"""`jzi rerank`, and `locate --rerank`: counts, cost, weights, judgments that are kept, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jzi as jzi_package
from jzi.rerank.config import RerankConfig
from jzi.rerank.fuse import Weights
from jzi.rerank.judges.scripted import ScriptedJudge
from jzi.rerank.weights_file import write_weights
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.trained_photos import TrainedPhotos, photo_keys
from jzi.tests.mock_endpoint import MockEndpoint
from jzi.workspace.stages.reranker import front_name, new_weights

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # from rasterio itself


@pytest.fixture
def town(trained_folder: Path, jzi: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A working directory with a model and a cache, with small crops."""
    shutil.copytree(trained_folder, tmp_path, dirs_exist_ok=True)
    settings = tmp_path / "jzi.toml"
    small = '[rerank]\ncrop_pixels = 32\nphoto_pixels = 64\nkey_env = "JZI_RERANK_KEY"\n'
    settings.write_text(f"{settings.read_text()}\n{small}")
    return jzi


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> ScriptedJudge:
    """A judge at random, whatever model is named."""
    made = ScriptedJudge({}, kind="random")
    monkeypatch.setattr("jzi.workspace.stages.reranker.open_judge", lambda *_: made)
    return made


@pytest.mark.slow
def test_locate_compares_candidates_and_asks_nothing_twice(town, judge: ScriptedJudge) -> None:
    dry = town("locate photos/day0 --rerank model-x --dry-run")
    assert judge.calls == 0
    first = town("locate photos/day0 --rerank model-x --json --geojson all.geojson --map all.html --csv all.csv")
    answers = [json.loads(line) for line in first.stdout.splitlines()]
    asked = judge.calls
    assert f"{asked} questions to ask" in dry.stderr
    assert f"{asked} questions asked, 0 answered before" in first.stderr
    assert "not calibrated" in first.stderr
    compared = [each for each in answers if each["estimate"] == "rerank"]
    assert compared
    for answer in compared:
        judged = [each["judged"] for each in answer["candidates"] if each["judged"]]
        assert sorted(each["rank"] for each in judged) == list(range(1, len(judged) + 1))
        assert all(len(each["against"]) == len(judged) - 1 for each in judged)
    assert '"comparisons": [{"rank": 1, "image": "data:image' in Path("all.html").read_text()
    points = [each["properties"] for each in json.loads(Path("all.geojson").read_text())["features"]]
    first = [each for each in points if each["kind"] == "answer" and each["photo"] == compared[0]["photo"]]
    assert first[0]["rank_before"] == compared[0]["candidates"][0]["judged"]["rank"]
    again = town("locate photos/day0 --rerank model-x --json")
    assert [json.loads(line) for line in again.stdout.splitlines()] == answers
    assert f"0 questions asked, {asked} answered before" in again.stderr
    assert judge.calls == asked
    town("locate photos/day0 --rerank model-x --design sliding --pure")
    assert judge.calls == asked, "another design asks nothing that is known"


def test_crops_can_be_made_before_and_used_without_the_map(town, judge: ScriptedJudge) -> None:
    made = town("locate photos/day0/000.jpg --rerank model-x --crops-only")
    assert judge.calls == 0
    assert "crops rendered for 1 photo," in made.stderr
    Path("map.tif").unlink()
    located = json.loads(town("locate photos/day0/000.jpg --rerank model-x --json").stdout)
    assert located["estimate"] == "rerank"
    for file in Path("rerank/crops").rglob("*.png"):
        file.unlink()
    refused = town("locate photos/day0/000.jpg --rerank model-x", code=2)
    assert "no imagery around cell" in refused.stderr


def test_a_spent_budget_leaves_the_rest_in_the_front_ends_order(town, judge: ScriptedJudge) -> None:
    plain = town("locate photos/day0 --json").stdout
    nothing = town("locate photos/day0 --rerank model-x --budget 0 --json")
    assert nothing.stdout == plain
    assert judge.calls == 0
    assert "the budget is spent" in nothing.stderr
    some = town("locate photos/day0 --rerank model-x --budget 25 --json")
    assert judge.calls == 25
    assert sum(json.loads(line)["estimate"] == "rerank" for line in some.stdout.splitlines()) == 1
    refused = town("locate photos/day0 --rerank model-x --budget much", code=2)
    assert "'much' is neither a number of questions" in refused.stderr


@pytest.mark.slow
def test_methods_are_compared_on_held_out_photos(town, judge: ScriptedJudge) -> None:
    methods = "yesno,score,words,describe,pairs,sliding,knockout,swiss,sorting,adaptive,list"
    evaluate = "rerank evaluate --judge x --split train --photos 4 --json --methods"
    plans = [json.loads(line) for line in town(f"{evaluate} {methods} --dry-run").stdout.splitlines()]
    rows = []
    for method in methods.split(","):
        for file in Path("rerank").glob("judgments.sqlite*"):
            file.unlink()
        (row,) = town(f"{evaluate} {method}").stdout.splitlines()
        rows.append(json.loads(row))
    for plan, row in zip(plans, rows, strict=True):
        if plan["exact"]:
            assert row["cost"]["asked"] == plan["asked"], row["method"]
        else:
            assert row["cost"]["asked"] <= plan["asked"], row["method"]
        top = row["top_one"]["within 50 m"]
        assert max(top["before"], top["after"]) <= top["bound"]
        assert row["ece_before"] >= 0
    by_name = {row["method"]: row for row in rows}
    assert by_name["pairs"]["consistency"] is not None
    assert by_name["yesno"]["consistency"] is None
    text = town("rerank evaluate --judge x --split train --photos 4 --methods pairs").stdout
    assert "first place right" in text and "bound" in text and "both orders agree on" in text


def test_a_judge_is_calibrated_only_on_enough_photos(town, judge: ScriptedJudge) -> None:
    calibrate = "rerank calibrate --judge x --split train --photos 4 --design sliding"
    assert "too few to fit weights" in town(calibrate).stdout
    assert not Path("rerank/rerank.json").exists()
    plan = json.loads(town(f"{calibrate} --orders one --dry-run --json").stdout)
    before = judge.calls
    fitted = json.loads(town(f"{calibrate} --orders one --json").stdout)
    assert (fitted["weights"]["calibrated"], fitted["weights"]["temperature"]) == (False, 1.0)
    assert judge.calls - before == fitted["cost"]["asked"] <= plan["asked"]
    assert "preference for A" in town("locate photos/day0/000.jpg --rerank x --orders one").stderr
    expert = jzi_package.load("model").expert
    config = RerankConfig(method="sliding", crop_pixels=32, photo_pixels=64)
    weights = Weights(judge=2.0, photos=200, calibrated=True)
    write_weights(Path("rerank/rerank.json"), new_weights(config, judge, front_name(expert), weights))
    assert "not calibrated" not in town("locate photos/day0/000.jpg --rerank x --design sliding").stderr
    assert "is not changed" in town(calibrate).stdout
    for change, what in (("--design pairs", "method"), ("--orders one --design sliding", "choice of orders")):
        assert f"is of another {what}" in town(f"locate photos/day0/000.jpg --rerank x {change}").stderr
    Path("rerank/rerank.json").write_text("{}")
    assert "rerank.json" in town("locate photos/day0/000.jpg --rerank x", code=2).stderr


def test_candidates_of_a_list_are_compared(town, judge: ScriptedJudge) -> None:
    ids = sorted(path.relative_to("photos").as_posix() for path in Path("photos").rglob("*.jpg"))
    with Path("list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["photo", "rank", "id", "score"])
        for name in ids:
            writer.writerows([[name, 1, "3_4", 0.9], [name, 2, "10_20", 0.5]])
    evaluate = "rerank evaluate --judge x --split train --candidates list.csv"
    row = json.loads(town(f"{evaluate} --photos 3 --methods pairs --json").stdout)
    assert (row["photos"], row["cost"]["asked"]) == (3, 6)
    Path("list.csv").write_text("photo,rank,id\n000.jpg,1,elsewhere\n")
    assert "not cells" in town(evaluate, code=2).stderr
    for bad in (
        "photo,rank,id\n0,1,3_4\n0,2,3_4\n",
        "photo,id\n000.jpg,3_4\n",
        "photo,rank,id\n000.jpg,first,3_4\n",
        "photo,rank,id\n0,1,3_4\n0,1,3_5\n",
        "",
    ):
        Path("list.csv").write_text(bad)
        town(evaluate, code=2)


def test_candidates_of_photos_that_the_front_end_saw_before_are_not_compared(town, judge: ScriptedJudge) -> None:
    frame = FeatureCache.open(Path("features.zarr")).queries.encoded()
    TrainedPhotos(model=photo_keys(frame[frame["split"] == "val"])).write(Path("model"))
    for line in ("rerank evaluate --judge x --split val", "rerank calibrate --judge x"):
        assert "photos of the val split, which were in another split then" in town(line, code=2).stderr
    assert judge.calls == 0
    town("rerank evaluate --judge x --split train --photos 1 --methods pairs")
    name = frame["id"][frame["split"] == "val"].iloc[0]
    Path("list.csv").write_text(f"photo,rank,id\n{name},1,3_4\n{name},2,10_20\n")
    town("rerank evaluate --judge x --split val --candidates list.csv --methods pairs")


def test_judgments_are_listed_exported_and_pruned(town, judge: ScriptedJudge) -> None:
    assert "no judgments are kept" in town("rerank ls", code=2).stderr
    assert not Path("rerank").exists()
    town("locate photos/day0/000.jpg --rerank x")
    asked = judge.calls
    assert f"{asked} answers" in town("rerank ls").stdout
    town("rerank export judgments.csv")
    with Path("judgments.csv").open() as file:
        assert len(list(csv.DictReader(file))) == asked
    assert "removed 0" in town("rerank prune --days 1").stdout
    assert "--days" in town("rerank prune", code=2).stderr
    assert "removed 0" in town("rerank prune --judge another").stdout
    assert f"removed {asked}" in town("rerank prune --days 0").stdout


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("locate photos/day0 --rerank x --together", "single photos"),
        ("locate photos/day0 --design pairs", "goes with --rerank"),
        ("locate photos/day0 --rerank x --top 1", "--top 2"),
        ("locate --rerank photos/day0/000.jpg photos/day0", "give --rerank after the photos"),
        ("locate photos/day0 --budget=", "goes with --rerank"),
        ("locate photos/day0/000.jpg --rerank x --budget=", "is neither a number of questions"),
        ("rerank evaluate --judge x --methods best", "there is no method 'best'"),
        ("rerank evaluate --judge x --split nowhere", "no photo with split nowhere"),
        ("locate photos/day0/000.jpg --rerank --config jzi.toml", "no vision-language model is named"),
    ],
)
def test_options_that_make_no_sense_are_refused(town, line: str, says: str) -> None:
    assert says in town(line, code=2).stderr


def test_an_endpoint_is_named_with_its_model(town) -> None:
    with MockEndpoint() as endpoint:
        result = town(f"locate photos/day0/000.jpg --rerank {endpoint.url}#some/model --design sliding")
        assert {request["model"] for request in endpoint.requests} == {"some/model"}
    assert "questions asked" in result.stderr
    assert "some/model" in town("rerank ls").stdout


def test_a_key_in_the_settings_is_refused_and_not_repeated(town) -> None:
    settings = Path("jzi.toml")
    text = settings.read_text()
    for entry in ('key = "sk-secret-123"', 'api_key = "sk-secret-123"'):
        settings.write_text(text.replace("[rerank]", f"[rerank]\n{entry}"))
        assert "sk-secret" not in town("locate photos/day0/000.jpg --rerank x", code=2).stderr
    assert "sk-secret" not in town("locate photos/day0/000.jpg --rerank x", code=2).stderr
    settings.write_text(text.replace('key_env = "JZI_RERANK_KEY"', 'key_env = ["sk-secret-123"]'))
    assert "sk-secret" not in town("locate photos/day0/000.jpg --rerank x", code=2).stderr
    settings.write_text(text.replace('key_env = "JZI_RERANK_KEY"', 'key_env = "sk-secret-123"'))
    assert "sk-secret" not in town("locate photos/day0/000.jpg --rerank x", code=2).stderr
