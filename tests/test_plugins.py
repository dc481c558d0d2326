"""Encoder families and experts of other packages: loaded when the user names them, and never because a file does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import jzi as package
from jzi.encode.encoders.encoder import Encoder
from jzi.errors import ConfigError, EncoderError, ModelError
from jzi.tests.conftest import write_photo

EXAMPLE = Path(package.__file__).parent / "examples" / "plugin"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a distribution with entry points, and modules, on the path of imports, as pip would."""
    monkeypatch.delenv("JZI_PLUGINS", raising=False)

    def make(name: str, entries: str, **modules: str) -> None:
        folder = tmp_path / f"site-{name}"
        info = folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(entries)
        for module, text in modules.items():
            (folder / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(str(folder))

    return make


@pytest.fixture
def toy(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example package, with the entry points of its pyproject.toml."""
    import tomllib

    groups = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    text = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in groups.items()
    )
    monkeypatch.syspath_prepend(str(EXAMPLE))
    install("jzi-toy", text)
    yield
    forget()


def forget() -> None:
    """Forget the modules of the example package."""
    for name in [name for name in sys.modules if name.startswith("jzi_toy")]:
        del sys.modules[name]


@pytest.fixture
def toy_encoder(toy: None, tmp_path: Path) -> Path:
    """A folder with an encoder of the example's family."""
    import torch
    from jzi_toy.encoder import ToyConfig, ToyModel  # type: ignore[import-not-found]

    torch.manual_seed(0)
    ToyModel(ToyConfig(hidden_size=32, blocks=2)).save_pretrained(tmp_path / "toy-encoder")
    return tmp_path / "toy-encoder"


# Encoder families


def test_a_family_of_another_package_encodes_when_it_is_named(
    toy_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JZI_PLUGINS", "other, toy")
    encoder = Encoder.load(toy_encoder, image_size=56, device="cpu")
    tiles = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)
    embedding, patches = encoder.encode_tiles_and_patches(tiles)
    assert embedding.shape == (2, 32) and patches.shape == (2, 16, 32)
    assert Encoder.load(toy_encoder, image_size=56, device="cpu").fingerprint == encoder.fingerprint


def test_a_folder_that_asks_for_an_installed_family_does_not_get_it_unless_the_user_names_it(
    toy_encoder: Path,
) -> None:
    forget()
    with pytest.raises(EncoderError, match=r"is a 'toy' model, for which .* JZI_PLUGINS=toy"):
        Encoder.load(toy_encoder, image_size=56)
    assert "jzi_toy.encoder" not in sys.modules


def test_numbers_of_a_config_are_the_family_s_to_check(toy_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JZI_PLUGINS", "toy")
    config = json.loads((toy_encoder / "config.json").read_text())
    (toy_encoder / "config.json").write_text(json.dumps({**config, "blocks": 10**6}))
    with pytest.raises(EncoderError, match="out of range"):
        Encoder.load(toy_encoder, image_size=56)


def test_an_area_is_encoded_and_trained_with_a_family_of_another_package(
    area: Callable, toy_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JZI_PLUGINS", "toy")
    override = f"--set encoder.name={toy_encoder} --set encoder.image_size=28"
    area(f"encode-map {override}")
    area(f"encode-queries {override}")
    area(f"train-decoder --set train.epochs=1 --set decoder.layers=1 {override}")
    result = area("locate photos/day0/000.jpg --json --experts zoom")
    assert json.loads(result.stdout)["sure"]


# Experts


def test_an_expert_of_another_package_locates_alone_and_fused(
    toy: None, locator: package.Locator, tmp_path: Path
) -> None:
    photo = write_photo(tmp_path / "photo.jpg")
    alone = package.load(tmp_path / "model", experts=["similar-tiles"]).locate(photo)
    fused = package.load(tmp_path / "model", experts=["zoom", "similar-tiles"]).locate(photo)
    zoom = locator.locate(photo)
    assert alone.residual == pytest.approx(0)
    assert alone != zoom and fused != zoom and fused != alone


def test_experts_of_other_packages_are_evaluated_beside_the_model_s(toy: None, area: Callable, tmp_path: Path) -> None:
    area("encode-map")
    area("encode-queries")
    area("train-decoder --set train.epochs=1 --set decoder.layers=1")
    values = json.loads(area("evaluate --json --experts zoom,similar-tiles").stdout)
    assert {"zoom", "similar-tiles", "fused"} <= set(values["experts"])


def test_no_expert_is_loaded_that_is_not_named(install: Callable, locator: package.Locator, tmp_path: Path) -> None:
    install("jzi-loud", "[jzi.experts]\nloud = loud:load\n", loud="raise SystemError('was imported')")
    package.load(tmp_path / "model").locate(write_photo(tmp_path / "photo.jpg"))
    assert "loud" not in sys.modules
    with pytest.raises(ModelError, match=r"the expert 'loud' of jzi-loud 0.1.0 cannot be imported \(SystemError: was"):
        package.load(tmp_path / "model", experts=["loud"])


def test_a_model_folder_cannot_name_an_expert(install: Callable, locator: package.Locator, tmp_path: Path) -> None:
    from jzi.store.model_folder import update_config

    install("jzi-loud", "[jzi.experts]\nloud = loud:load\n", loud="raise SystemError('was imported')")
    update_config(tmp_path / "model", experts={"loud": {"width": 3}})
    with pytest.raises(ModelError, match="has an expert 'loud', which this version of jzi does not know"):
        package.load(tmp_path / "model")
    assert "loud" not in sys.modules


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import nothing_like_this", r"cannot be imported \(ModuleNotFoundError"),
        ("x = 1", r"cannot be imported \(AttributeError"),
        ("load = {}", "is a dict: it must be a function of an ExpertContext"),
        ("def load(context): raise KeyError('weights')", r"cannot be made \(KeyError: 'weights'\)"),
        ("def load(context): return object()", "lacks 'name', which jzi.Expert describes"),
    ],
)
def test_a_broken_expert_is_a_sentence_that_names_its_package(
    install: Callable, locator: package.Locator, tmp_path: Path, code: str, sentence: str
) -> None:
    module = f"broken_{abs(hash(code))}"
    install("jzi-broken", f"[jzi.experts]\nbroken = {module}:load\n", **{module: code})
    with pytest.raises(ModelError, match=rf"the expert 'broken' of jzi-broken 0.1.0 {sentence}"):
        package.load(tmp_path / "model", experts=["broken"])


WRONG = """
import numpy as np, jzi
class Wrong:
    name, rules_out, weight = "wrong", False, {weight}
    def __init__(self, context):
        self.area, self.encoder, self.cell_mask = context.area, context.encoder, context.cell_mask
    def posterior(self, query, options):
        row, col = np.nonzero(self.cell_mask)
        probability, residual = np.full((len(query), len(row)), 1 / len(row)), np.zeros(len(query))
        {change}
        row, col = (np.broadcast_to(each, probability.shape) for each in (row, col))
        return jzi.Posterior(self.area, row, col, probability, residual)
    def uncalibrated(self): return None
load = Wrong
"""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("probability[-1, 3] = np.nan", "no probabilities for photo 2 of 2: they lie between nan and nan"),
        ("probability[:] = np.log(probability)", "no probabilities for photo 1 of 2: they lie between -"),
        ("probability[:, 0] = np.inf", "no probabilities for photo 1"),
        ("probability *= 2", r"no probabilities for photo 1 of 2: .* are 2 in total"),
        ("residual[1] = np.nan", "no probabilities for photo 2"),
        ("probability = probability[:1]", "probabilities of shape"),
        ("residual = residual[:, None]", r"residuals of shape \(2, 1\) for 2 photos"),
        ("row = row + 10_000", "cells that are not in the area"),
    ],
)
def test_posteriors_that_are_none_are_refused_alone_and_fused(
    install: Callable, locator: package.Locator, tmp_path: Path, change: str, sentence: str
) -> None:
    module = f"wrong_{abs(hash(change))}"
    code = WRONG.format(weight=1, change=change)
    install("jzi-wrong", f"[jzi.experts]\nwrong = {module}:load\n", **{module: code})
    photo = write_photo(tmp_path / "photo.jpg")
    for names in (["wrong"], ["zoom", "wrong"]):
        with pytest.raises(ModelError, match=rf"the expert 'wrong' of jzi-wrong 0.1.0 returned {sentence}"):
            package.load(tmp_path / "model", experts=names).locate([photo, photo])


@pytest.mark.parametrize("weight", ["float('nan')", "float('inf')", "-1", "'much'"])
def test_a_weight_that_is_none_is_refused(
    install: Callable, locator: package.Locator, tmp_path: Path, weight: str
) -> None:
    module = f"weighty_{abs(hash(weight))}"
    code = WRONG.format(weight=weight, change="")
    install("jzi-wrong", f"[jzi.experts]\nwrong = {module}:load\n", **{module: code})
    with pytest.raises(ModelError, match=r"has weight .*: it must be a finite number, 0 or more"):
        package.load(tmp_path / "model", experts=["zoom", "wrong"])


def test_an_expert_that_knows_nothing_changes_nothing(
    install: Callable, locator: package.Locator, tmp_path: Path
) -> None:
    code = WRONG.format(weight=1, change="probability[:] = 0.0")  # logarithms are -inf
    install("jzi-wrong", "[jzi.experts]\nwrong = silent_expert:load\n", silent_expert=code)
    photo = write_photo(tmp_path / "photo.jpg")
    answer = package.load(tmp_path / "model", experts=["zoom", "wrong"]).locate(photo)
    alone = package.load(tmp_path / "model", experts=["zoom"]).locate(photo)
    assert (answer.latitude, answer.longitude) == pytest.approx((alone.latitude, alone.longitude), abs=1e-5)
    assert answer.confidence == pytest.approx(alone.confidence, abs=1e-2)


def test_a_broken_family_is_a_sentence(install: Callable, toy_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((toy_encoder / "config.json").read_text())
    (toy_encoder / "config.json").write_text(json.dumps({**config, "model_type": "odd"}))
    monkeypatch.setenv("JZI_PLUGINS", "odd")
    with pytest.raises(EncoderError, match="no installed package offers the encoder family 'odd'"):
        Encoder.load(toy_encoder, image_size=56)
    install("jzi-odd", "[jzi.encoders]\nodd = odd_family:FAMILY\n", odd_family="FAMILY = 3")
    with pytest.raises(EncoderError, match=r"the encoder family 'odd' of jzi-odd 0.1.0 is a int, not a jzi.Family"):
        Encoder.load(toy_encoder, image_size=56)


def test_two_packages_with_one_name_are_both_named(install: Callable, locator: package.Locator, tmp_path: Path) -> None:
    install("jzi-one", "[jzi.experts]\nsame = one:load\n", one="")
    install("jzi-two", "[jzi.experts]\nsame = two:load\n", two="")
    with pytest.raises(ModelError, match=r"several packages .* jzi-one 0.1.0 and jzi-two 0.1.0: uninstall one"):
        package.load(tmp_path / "model", experts=["same"])


def test_a_name_that_nobody_offers_is_refused(locator: package.Locator, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model has no expert 'nothing'"):
        package.load(tmp_path / "model", experts=["nothing"])
