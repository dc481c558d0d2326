"""Refiners in a folder: written, read again, and refused in one sentence when something is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jzi.errors import ConfigError, ModelError
from jzi.refine import CachedRefiner, CachedRefinerConfig, UnifyGeo, UnifyGeoConfig
from jzi.refine.config import TrunkConfig
from jzi.refine.info import INFO, WEIGHTS, RefinerInfo, read_refiner_info
from jzi.refine.networks import files as module
from jzi.refine.networks.files import load_refiner, save_refiner, update_refiner
from jzi.tests.children import run_python

TRUNK = TrunkConfig(widths=(4, 6), depths=(1, 1), kernel=3, features=8)
CACHED = CachedRefinerConfig(
    features=8, photo_features=8, rows=3, side=2, width=8, blocks=1, channels=(16, 8, 8, 8), bins=8
)
CONFIGS = {
    "cached": CACHED,
    "trained": replace(CACHED, source="trained", trunk=TRUNK, photo_trunk=TRUNK),
    "unifygeo": UnifyGeoConfig(
        ground_height=32, ground_width=64, photo_width=64, aerial=32, widths=(8, 8, 8, 16), depths=(1, 1, 1), bins=8
    ),
}


def info_of(name: str, **changes: Any) -> RefinerInfo:
    kind = "unifygeo" if name == "unifygeo" else "cached"
    return RefinerInfo(kind=kind, config=CONFIGS[name], window_m=80.0, encoder="abc", detail="def", **changes)


def network(name: str) -> CachedRefiner | UnifyGeo:
    return UnifyGeo(CONFIGS[name]) if name == "unifygeo" else CachedRefiner(CONFIGS[name])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_refiner(tmp_path / "refiner", network("cached"), info_of("cached"))
    return tmp_path / "refiner"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_refiner_is_the_same_after_loading(name: str, tmp_path: Path) -> None:
    refiner, info = network(name), info_of(name, temperature=1.5, fusion=(0.75, 0.5, 2.0))
    save_refiner(tmp_path / "refiner", refiner, info)
    loaded, read = load_refiner(tmp_path / "refiner")
    assert not loaded.training and replace(read, files={}) == info
    assert refiner.state_dict().keys() == loaded.state_dict().keys()
    assert all(torch.equal(weight, loaded.state_dict()[key]) for key, weight in refiner.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "refiner").iterdir()) == [INFO, WEIGHTS]


def test_entries_are_changed_alone(folder: Path) -> None:
    weights = (folder / WEIGHTS).read_bytes()
    update_refiner(folder, temperature=0.8, heading_temperature=0.2, fusion=(1.0, 0.25, 0.0))
    loaded = load_refiner(folder)[1]
    assert (loaded.temperature, loaded.heading_temperature, loaded.fusion) == (0.8, 0.2, (1.0, 0.25, 0.0))
    assert (folder / WEIGHTS).read_bytes() == weights
    with pytest.raises(ConfigError, match=r"refiner\.temperature"):
        update_refiner(folder, temperature=0.0)
    assert load_refiner(folder)[1] == loaded


@pytest.mark.parametrize("older", [1, 2])
def test_weights_of_older_formats_are_dropped_for_they_mean_something_else(folder: Path, older: int) -> None:
    rewrite(folder, lambda entries: entries.update(jzi_refiner=older, fusion=[1.0, 0.25], temperature=0.7))
    info = load_refiner(folder)[1]
    assert (info.fusion, info.temperature) == (None, 0.7)
    update_refiner(folder, fusion=(1.0, 0.5, 0.0))
    assert load_refiner(folder)[1].fusion == (1.0, 0.5, 0.0)


@pytest.mark.parametrize("call", [1, 2])
def test_a_killed_save_leaves_a_refiner_that_can_be_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Weights are replaced between the two times that refiner.json is written."""
    torch.manual_seed(1)
    calls, write = [0], module.write_refiner_info

    def killed(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        write(*arguments)

    before, other = load_refiner(folder)[0].state_dict(), network("cached")
    monkeypatch.setattr(module, "write_refiner_info", killed)
    with pytest.raises(KeyboardInterrupt):
        save_refiner(folder, other, info_of("cached"))
    monkeypatch.undo()
    expected = before if call == 1 else other.state_dict()
    assert torch.equal(load_refiner(folder)[0].state_dict()["aerial_out.weight"], expected["aerial_out.weight"])
    save_refiner(folder, other, info_of("cached"))
    assert read_refiner_info(folder).replacing == {}


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change refiner.json and give it a digest that is right."""
    entries = json.loads((folder / INFO).read_text())
    entries.pop("digest")
    change(entries)
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    (folder / INFO).write_text(json.dumps({**entries, "digest": digest}))


def reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the weights and record their digest."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    rewrite(folder, lambda entries: entries["files"].update({WEIGHTS: digest}))


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda entries: entries["config"].update(values))


def entry(**values: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda entries: entries.update(values))


def edit(folder: Path) -> None:
    text = (folder / INFO).read_text()
    (folder / INFO).write_text(text.replace('"window_m": 80.0', '"window_m": 81.0'))


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda folder: folder.rename(folder.with_name("gone")), "there is no refiner in"),
    "edited": (edit, "does not match its own digest"),
    "not JSON": (lambda folder: (folder / INFO).write_text("{"), "cannot be read"),
    "deep": (lambda folder: (folder / INFO).write_text("[" * 100_000), "cannot be read"),
    "huge": (lambda folder: (folder / INFO).write_text(" " * 2**21), "more than 1048576 bytes"),
    "other JSON": (lambda folder: (folder / INFO).write_text("[]"), "has no entry jzi_refiner"),
    "format": (entry(jzi_refiner=4), "is a refiner of format 4"),
    "kind": (entry(kind="magic"), "refiner of kind 'magic'"),
    "kind's type": (entry(kind=["cached"]), "refiner of kind"),
    "config of another kind": (entry(kind="unifygeo"), "invalid entry"),
    "unknown entry": (entry(extra=1), "cannot be used"),
    "missing entry": (lambda folder: rewrite(folder, lambda entries: entries.pop("window_m")), "cannot be used"),
    "temperature": (entry(temperature=-1.0), r"refiner\.temperature"),
    "not a number": (entry(temperature=float("nan")), r"refiner\.temperature"),
    "fusion": (entry(fusion=[1.0, 0.0]), r"refiner\.fusion"),
    "negative weight": (entry(fusion=[1.0, -1.0, 0.0]), r"refiner\.fusion"),
    "files": (entry(files={WEIGHTS: "x"}), r"refiner\.files"),
    "unknown setting": (config(colour="red"), "invalid entry"),
    "bins": (config(bins=7), "each must be a multiple of 7"),
    "text": (config(side="2"), "invalid entry"),
    "endless": (config(blocks=10**9), "invalid entry|has no sensible value"),
    "wide": (config(width=8192, channels=[8192] * 4), "not .* and F16 or F32"),
    "weights missing": (lambda folder: (folder / WEIGHTS).unlink(), "is missing"),
    "weights changed": (flip_a_bit, "does not match its SHA-256"),
    "weights truncated": (lambda folder: (folder / WEIGHTS).write_bytes(b"1234"), "does not match its SHA-256"),
    "tensor missing": (lambda folder: reweigh(folder, lambda each: each.pop("aerial_out.bias")), "lacks the tensor"),
    "tensor unknown": (lambda folder: reweigh(folder, lambda each: each.update(x=torch.ones(1))), "does not belong"),
    "not finite": (
        lambda folder: reweigh(folder, lambda each: each["aerial_out.bias"].fill_(float("nan"))),
        "are not finite",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_refiners_are_refused_in_one_sentence(folder: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_refiner(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be created"):
        save_refiner(tmp_path / "file" / "refiner", network("cached"), info_of("cached"))


def test_kind_and_config_must_fit() -> None:
    with pytest.raises(ConfigError, match="a refiner of kind 'unifygeo' has a UnifyGeoConfig"):
        RefinerInfo(kind="unifygeo", config=CACHED, window_m=80.0)


def test_reading_settings_and_info_loads_no_torch() -> None:
    code = (
        "import sys; from jzi.refine import CachedRefinerConfig; import jzi.refine.info; print('torch' in sys.modules)"
    )
    assert run_python(code).output == "False\n"
