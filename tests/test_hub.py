"""Models on the Hugging Face hub: published, loaded, checked and refused, against a hub on 127.0.0.1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import jzi as package
from jzi.errors import HubError, JziError, ModelError
from jzi.locate.novelty import Novelty
from jzi.publish.hub.hub import RepoName
from jzi.publish.hub.hub_download import fetch_model
from jzi.publish.hub.hub_upload import HubTarget
from jzi.store.model_config import InsideConfig, read_config
from jzi.store.model_folder import NOVELTY, update_config, write_file
from jzi.tests.conftest import write_photo
from jzi.tests.mock_hub import TOKEN, Hub
from jzi.workspace.models.hub import local_folder
from jzi.workspace.push import PushRequest, prepare, push


@pytest.fixture
def model(zoom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoom model in the current directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(zoom_folder, tmp_path / "model"))


def publish(path: Path, name: str = "anna/town", licence: str = "cc-by-4.0", **options: Any) -> str:
    request = PushRequest(path, HubTarget(RepoName.of(name), **options), licence)
    return push(request, prepare(request))


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        each.relative_to(folder).as_posix(): each.read_bytes()
        for each in folder.rglob("*")
        if each.is_file() and "train" not in each.parts
    }


# Publishing and loading


def test_a_pushed_model_locates_as_the_one_it_was(hub: Hub, model: Path, tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "photo.jpg")
    before = package.load(model).locate(photo)
    publish(model)
    locator = package.load("anna/town")
    assert locator.name == "anna/town"
    assert locator.locate(photo).to_dict() == before.to_dict()


def test_the_measures_of_the_training_photos_are_pushed_and_loaded(hub: Hub, model: Path, tmp_path: Path) -> None:
    width = read_config(model).encoder.width
    novelty = Novelty.fit(torch.randn(200, width), torch.randn(100, width))
    assert novelty is not None
    write_file(model, NOVELTY, novelty.save)
    update_config(model, inside={"zoom": InsideConfig({"zoom": 1.0}, 0.0, 0.9, 100)}, novelty=novelty.config)
    publish(model)
    files = hub.files("anna/town")
    assert NOVELTY in files and "the covariance of the training photos" in files["README.md"].decode()
    locator = package.load("anna/town")
    assert locator.detector is not None and locator.detector.novelty is not None


def test_everything_that_locating_needs_is_pushed_and_nothing_else(hub: Hub, model: Path) -> None:
    (model / "train").mkdir(exist_ok=True)
    (model / "train" / "state.pt").write_bytes(b"pickle")
    (model / "notes.py").write_text("print()")
    publish(model)
    pushed = set(hub.files("anna/town"))
    assert pushed == {
        ".gitattributes", "README.md", "card/area.png", "config.json", "decoder.safetensors", "map.safetensors",
        "encoder/config.json", "encoder/model.safetensors",
    }  # fmt: skip


def test_the_command_pushes_and_locate_loads_by_name(hub: Hub, model: Path, jzi: Any, tmp_path: Path) -> None:
    write_photo(tmp_path / "photo.jpg")
    pushed = jzi("push model anna/town --license apache-2.0 --private --message First")
    assert "published: http://127.0.0.1" in pushed.stdout and "--model anna/town" in pushed.stdout
    assert hub.repos["model", "anna/town"].private
    located = jzi("locate photo.jpg --model anna/town --json")
    assert json.loads(located.stdout)["sure"] is True
    assert json.loads(jzi("info anna/town --json").stdout)["kind"] == "model"


def test_a_dry_run_lists_files_and_what_they_disclose_and_sends_nothing(hub: Hub, model: Path, jzi: Any) -> None:
    result = jzi("push model anna/town --license cc-by-4.0 --dry-run --card card.md")
    assert "jzi.load(" in Path("card.md").read_text()
    assert "map.safetensors" in result.stdout and "embedding of every tile" in result.stdout
    assert "nothing was sent" in result.stdout
    assert hub.requests == []


def test_a_branch_is_loaded_by_its_name_and_a_commit_by_its_digest(hub: Hub, model: Path, tmp_path: Path) -> None:
    publish(model)
    first = hub.repos["model", "anna/town"].branches["main"]
    publish(model, branch="v2")
    assert set(hub.repos["model", "anna/town"].branches) == {"main", "v2"}
    assert local_folder("anna/town@v2").name == hub.repos["model", "anna/town"].branches["v2"]
    assert local_folder(f"anna/town@{first}").name == first
    with pytest.raises(HubError, match="has no revision 'v3'"):
        local_folder("anna/town@v3")


def test_files_of_an_earlier_push_that_are_gone_are_deleted(hub: Hub, model: Path) -> None:
    hub.add("anna/town", {"config.json": b"{}", "vpr.safetensors": b"old", "LICENSE": b"mine"})
    publish(model)
    assert "vpr.safetensors" not in hub.files("anna/town")
    assert hub.files("anna/town")["LICENSE"] == b"mine"


def test_what_was_loaded_once_is_there_without_the_network(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(model)
    folder = local_folder("anna/town")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    count = len(hub.requests)
    assert local_folder("anna/town") == folder
    assert len(hub.requests) == count
    with pytest.raises(HubError, match="anna/other"):
        local_folder("anna/other")
    with pytest.raises(HubError, match="offline: unset HF_HUB_OFFLINE"):
        publish(model)


def test_a_hub_that_cannot_be_reached_is_named_and_the_cache_is_used(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(model)
    folder = local_folder("anna/town")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert local_folder("anna/town") == folder
    with pytest.raises(HubError, match=r"there is no folder anna/other, and anna/other cannot be downloaded"):
        local_folder("anna/other")


def test_paths_on_the_disk_are_never_names_of_the_hub(hub: Hub, model: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("model", "./model", str(model), "runs/model-7", "missing", "a/b/c", "anna/../town"):
        assert local_folder(name) == Path(name)
    assert hub.requests == []


# The card


def test_the_card_says_licence_area_figures_and_limits(hub: Hub, model: Path, tmp_path: Path) -> None:
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(
        json.dumps({"split": "test", "photos": 40, "recall@50m": interval, "experts": {"fused": {
            "recall@50m": interval, "median_error_m": {"value": 33.0, "low": 20.0, "high": 40.0},
            "calibration_error": 0.05}}})
    )  # fmt: skip
    request = PushRequest(model, HubTarget(RepoName.of("anna/town")), "cc-by-4.0", "My town", evaluation)
    text = next(each.source for each in prepare(request).files if each.name == "README.md")
    assert isinstance(text, bytes)
    front, body = text.decode().removeprefix("---\n").split("---\n", 1)
    values = yaml.safe_load(front)
    assert (values["license"], values["library_name"], values["metrics"]) == ("cc-by-4.0", "jzi", ["recall"])
    metric = values["model-index"][0]["results"][0]["metrics"][0]
    assert metric == {"type": "recall", "name": "Recall within 50 m", "value": 0.5}
    for part in ('jzi.load("anna/town")', "# My town", "48.2000, 16.3700", "50.0 %", "40.0 % to 60.0 %", "33.0 m",
                 "5.0 %", "## Limits", "bibtex", "card/area.png"):  # fmt: skip
        assert part in body, part


def test_text_of_a_stranger_does_not_break_the_card(hub: Hub, model: Path) -> None:
    licence = "mine | <script>alert(1)</script> [x](http://evil)"
    request = PushRequest(model, HubTarget(RepoName.of("anna/town")), licence, "a\n# b | <b>")
    text = next(each.source for each in prepare(request).files if each.name == "README.md")
    assert isinstance(text, bytes)
    assert "<script>" not in text.decode().split("---\n", 2)[2]
    assert yaml.safe_load(text.decode().split("---\n")[1])["license"] == "other"


@pytest.mark.parametrize("licence", ["", "unknown", "other"])
def test_a_licence_is_required_and_not_guessed(hub: Hub, model: Path, licence: str) -> None:
    with pytest.raises(HubError, match="is no licence"):
        publish(model, licence=licence)
    assert hub.requests == []


def test_a_misspelt_licence_is_refused(hub: Hub, model: Path) -> None:
    with pytest.raises(HubError, match=r"did you mean cc-by-4\.0"):
        publish(model, licence="cc-by-40")
    assert hub.requests == []


def test_a_broken_evaluation_is_refused(hub: Hub, model: Path, jzi: Any, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text("[1]")
    assert "e.json is no evaluation" in jzi("push model a/b --license mit --evaluation e.json", 2).stderr


# Refusals


def test_without_a_token_nothing_is_sent(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="without a token: log in with `hf auth login`"):
        publish(model)
    assert hub.requests == []


def test_a_wrong_token_is_refused_and_never_printed(
    hub: Hub, model: Path, jzi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrongsecret")
    result = jzi("push model anna/town --license mit", 2)
    assert "the hub refuses it (401)" in result.stderr
    assert "wrongsecret" not in result.output
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "the hub refuses it (403)" in jzi("push model bert/town --license mit", 2).stderr


def test_a_public_repository_does_not_get_what_is_to_be_private(hub: Hub, model: Path) -> None:
    publish(model)
    with pytest.raises(HubError, match="exists and is public"):
        publish(model, private=True)


def test_a_repository_of_something_else_is_left_alone(hub: Hub, model: Path) -> None:
    hub.add("anna/town", {"thesis.tex": b"text", "README.md": b"mine"})
    with pytest.raises(HubError, match=r"holds 'thesis.tex', which is not of jzi"):
        publish(model)
    assert hub.files("anna/town") == {"thesis.tex": b"text", "README.md": b"mine"}


def test_a_repository_that_does_not_exist_is_named(hub: Hub, jzi: Any, tmp_path: Path) -> None:
    write_photo(tmp_path / "photo.jpg")
    text = jzi("locate photo.jpg --model anna/nothing", 2).stderr
    assert "there is no folder anna/nothing, and the hub has no repository anna/nothing, or it is private" in text


@pytest.mark.parametrize(
    ("name", "data"),
    [("model.pkl", b"\x80\x04."), ("modeling.py", b"import os"), ("encoder/pytorch_model.bin", b"PK"),
     ("decoder.safetensors.exe", b"MZ"), ("hnsw.faiss", b"x"), ("encoder/a/b/c.json", b"{}")],
)  # fmt: skip
def test_a_repository_with_anything_but_data_is_refused_before_a_byte_is_downloaded(
    hub: Hub, model: Path, name: str, data: bytes
) -> None:
    hub.add("eve/model", {**files_of(model), name: data})
    with pytest.raises(HubError, match=r"which is no file of a model of jzi .* nothing of it is downloaded"):
        local_folder("eve/model")
    assert not [request for request in hub.requests if "/resolve/" in request]


@pytest.mark.parametrize("name", ["decoder.safetensors", "config.json"])
def test_a_repository_that_is_too_large_is_refused(hub: Hub, model: Path, name: str) -> None:
    hub.add("eve/model", files_of(model))
    hub.sizes[name] = 2**40
    with pytest.raises(HubError, match=r"has [\d,]+ bytes, more than"):
        local_folder("eve/model")
    assert not [request for request in hub.requests if "/resolve/" in request]


def test_a_repository_of_another_library_is_no_model(hub: Hub) -> None:
    hub.add("eve/bert", {"config.json": b'{"model_type": "bert"}', "README.md": b""})
    with pytest.raises(ModelError, match="is not a model folder of jzi"):
        local_folder("eve/bert")
    hub.add("eve/empty", {"README.md": b""})
    with pytest.raises(HubError, match=r"it has no config.json"):
        local_folder("eve/empty")


def test_a_file_that_its_config_does_not_describe_is_refused(hub: Hub, model: Path) -> None:
    files = files_of(model)
    hub.add("eve/model", {**files, "decoder.safetensors": files["decoder.safetensors"][::-1]})
    with pytest.raises(ModelError, match=r"decoder.safetensors of eve/model does not match its SHA-256"):
        local_folder("eve/model")


def test_a_file_that_is_missing_is_named(hub: Hub, model: Path) -> None:
    hub.add("eve/model", {name: data for name, data in files_of(model).items() if name != "map.safetensors"})
    with pytest.raises(HubError, match=r"lacks map.safetensors, which its config.json records"):
        local_folder("eve/model")


# Damage and interruptions


def test_a_file_damaged_on_the_disk_is_downloaded_again(hub: Hub, model: Path) -> None:
    publish(model)
    folder = local_folder("anna/town")
    damaged = (folder / "decoder.safetensors").resolve()
    whole = damaged.read_bytes()
    damaged.chmod(0o644)
    damaged.write_bytes(whole[:-1] + b"x")
    assert (local_folder("anna/town") / "decoder.safetensors").read_bytes() == whole


def test_a_damaged_cache_is_a_sentence_offline(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(model)
    damaged = (local_folder("anna/town") / "decoder.safetensors").resolve()
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="is damaged in the local cache"):
        local_folder("anna/town")


def test_a_download_whose_connection_breaks_goes_on(hub: Hub, model: Path) -> None:
    publish(model)
    hub.cut["decoder.safetensors"] = 1
    folder = fetch_model(RepoName("anna/town"))
    assert (folder / "decoder.safetensors").read_bytes() == (model / "decoder.safetensors").read_bytes()


def test_a_download_that_never_ends_is_a_sentence_and_goes_on_later(hub: Hub, model: Path) -> None:
    publish(model)
    hub.cut["decoder.safetensors"] = 10**6
    with pytest.raises(HubError, match=r"cannot be downloaded"):
        local_folder("anna/town")
    hub.cut.clear()
    assert (local_folder("anna/town") / "map.safetensors").is_file()


def test_an_upload_that_fails_leaves_no_trace_and_is_resumed(hub: Hub, model: Path) -> None:
    hub.refuse = 400
    with pytest.raises(HubError, match="nothing of it can be seen, run it again"):
        publish(model)
    assert set(hub.files("anna/town")) == {".gitattributes"}
    hub.refuse = 0
    publish(model)
    puts = [request for request in hub.requests if request.startswith("PUT")]
    publish(model, message="again")
    assert [request for request in hub.requests if request.startswith("PUT")] == puts  # nothing was sent twice
    assert "decoder.safetensors" in hub.files("anna/town")


def test_a_damaged_model_is_not_pushed(hub: Hub, model: Path) -> None:
    (model / "map.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="does not match its SHA-256"):
        publish(model)
    assert hub.requests == []


def test_something_that_is_nothing_of_jzi_is_not_pushed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(HubError, match="there is nothing to publish in"):
        publish(tmp_path / "photos")
    for name in ("anna", "anna/town@main", "a/b/c", "http://evil/x", "-a/b"):
        with pytest.raises(JziError):
            RepoName.of(name)


# Caches and data sets


def test_a_cache_is_pushed_as_a_data_set_and_is_sound_when_it_comes_back(hub: Hub, area: Any, tmp_path: Path) -> None:
    area("encode-map")
    area("encode-queries")
    result = area("push features.zarr anna/features --license cc-by-sa-4.0")
    assert "hf download anna/features --repo-type dataset" in result.stdout
    assert "exact position" in result.stderr
    files = hub.files("anna/features", "dataset")
    assert yaml.safe_load(files["README.md"].decode().split("---\n")[1])["license"] == "cc-by-sa-4.0"
    for name, data in files.items():
        (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / name).write_bytes(data)
    assert "sound" in area("cache verify back/features.zarr").stdout


def test_a_data_set_is_pushed_under_a_licence_that_its_photos_allow(hub: Hub, jzi: Any, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    (folder / "data").mkdir(parents=True)
    (folder / "publication.json").write_text("{}")
    (folder / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    (folder / "README.md").write_text("---\npretty_name: x\nlicense: cc-by-sa-4.0\n---\n\n# x\n")
    text = jzi("push published anna/photos --license mit", 2).stderr
    assert "under cc-by-sa-4.0, which does not allow 'mit'" in text
    jzi("push published anna/photos --license cc-by-sa-4.0")
    assert "data/train-00000-of-00001.parquet" in hub.files("anna/photos", "dataset")


def test_publishing_and_pushing_a_data_set_need_a_licence(jzi: Any) -> None:
    text = jzi("dataset publish folder --layout huggingface -o out --push a/b", 2).stderr
    assert "--license" in text
