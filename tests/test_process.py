"""What a command sets for its process, and a library leaves alone: how threads wait, warnings, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from PIL import Image

import jzi
from jzi.cli import main
from jzi.commands.shared.process import Termination, handled_warnings_ignored
from jzi.datasets.tiled_layout import TiledLayout
from jzi.encode.photo.photos import open_photo
from jzi.encode.rasters.raster import Raster
from jzi.errors import ImageryError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.photos.photo_table import read_photo_table
from jzi.tests.children import Child, run

ROOT = Path(jzi.__file__).parent


# Warnings


def test_only_the_entry_point_changes_warning_filters() -> None:
    installed = (path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name not in ("tests", "benchmarks"))
    files = [*ROOT.glob("*.py"), *(file for package in installed for file in package.rglob("*.py"))]
    changing = re.compile(r"simplefilter|filterwarnings|catch_warnings|resetwarnings|warnings\.filters")
    assert {path.relative_to(ROOT).as_posix() for path in files if changing.search(path.read_text())} == {
        "commands/shared/process.py",
        "curate/folder.py",  # while it reads a table
    }


def test_threads_that_use_the_library_leave_the_warning_filters_alone(
    tmp_path: Path, pyramid, info, write_raster: Callable, take_photo: Callable, pattern: Callable
) -> None:
    placed = write_raster(pattern(40, 40), pyramid.bounds, pyramid.crs, "placed.tif")
    photo = take_photo(tmp_path / "photos" / "a.jpg", 48.2, 16.37)
    (tmp_path / "layout.yaml").write_text("preset: XYZ\nmax_zoom: 1\n")
    (tmp_path / "1" / "0").mkdir(parents=True)
    Image.new("RGB", (256, 256)).save(tmp_path / "1" / "0" / "0.jpg")

    def use(number: int) -> None:
        open_photo(photo)
        Raster(placed)
        with pytest.raises(ImageryError, match="not georeferenced"):
            Raster(photo)
        read_photo_table(tmp_path / "photos")
        folder = tmp_path / f"use{number}"
        folder.mkdir()
        TiledLayout.read(tmp_path / "layout.yaml").write_vrt(folder / "map.vrt")
        FeatureCache.create(folder / "a.zarr", pyramid, info).consolidate()

    use(100)  # what is imported late may change them
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(8)))
    assert list(warnings.filters) == before


def test_the_first_tile_of_a_layout_is_read_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "layout.yaml").write_text("preset: XYZ\nmax_zoom: 0\n")
    (tmp_path / "0" / "0").mkdir(parents=True)
    Image.new("L", (256, 256)).save(tmp_path / "0" / "0" / "0.png")
    layout = TiledLayout.read(tmp_path / "layout.yaml")
    (tmp_path / "0" / "0" / "0.jpg").write_bytes((tmp_path / "0" / "0" / "0.png").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layout.write_vrt(tmp_path / "map.vrt") == 1
    (tmp_path / "0" / "0" / "0.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageryError, match=r"0\.jpg is not a photo"):
        layout.write_vrt(tmp_path / "map.vrt")


def test_a_command_shows_no_warning_of_what_is_handled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recwarn: pytest.WarningsRecorder, write_raster: Callable, pyramid
) -> None:
    write_raster(np.zeros((3, 4, 4), np.uint8), pyramid.bounds, pyramid.crs)
    plain = tmp_path / "plain.png"
    Image.new("RGB", (20, 10)).save(plain)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    with handled_warnings_ignored():
        open_photo(plain)
        with pytest.raises(ImageryError):
            Raster(plain)
    assert not [each for each in recwarn if "Image size" in str(each.message) or "geotransform" in str(each.message)]
    with pytest.warns(Image.DecompressionBombWarning):
        open_photo(plain)


# Threads that wait


def openmp_spins(tmp_path: Path, *command: str, **environment: str) -> list[str]:
    """GOMP_SPINCOUNT in every libgomp that a process loads, as libgomp displays it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment = {**clean, "OMP_DISPLAY_ENV": "verbose", **environment}
    return re.findall(
        r"GOMP_SPINCOUNT = '(\d+)'", run([sys.executable, *command], code=None, cwd=tmp_path, env=environment).errors
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="torch waits by libgomp on Linux alone")
def test_every_command_bounds_the_spinning_of_threads_before_torch_is_loaded(tmp_path: Path) -> None:
    module, script = ("-m", "jzi"), ("-c", "from jzi.cli import main; main()")
    serve = ("serve",)  # loads torch, then fails because the folder has no model
    assert openmp_spins(tmp_path, *module, *serve) == ["200000"]
    assert openmp_spins(tmp_path, *script, *serve, OMP_WAIT_POLICY="passive") == ["0"]
    library = "import os, jzi, jzi.cli, torch, jzi.encode.encoders.encoder; assert 'GOMP_SPINCOUNT' not in os.environ"
    spins = openmp_spins(tmp_path, "-c", library)
    assert spins and "200000" not in spins


# Signals


@pytest.fixture
def default_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_is_handled_by_whatever_handles_ctrl_c(default_sigterm) -> None:
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        with Termination() as termination:
            assert termination.exit_code == 130
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
    assert asked == [signal.SIGINT] and termination.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_interrupts_a_background_job_that_ignores_ctrl_c(default_sigterm) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Termination(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_of_sigterm_that_is_there_already_is_kept(default_sigterm) -> None:
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    with Termination():
        signal.raise_signal(signal.SIGTERM)
    assert asked == [signal.SIGTERM]


SLOW = """
import sys
import time
import jzi.encode.encode_map, jzi.encode.encode_queries
from jzi.encode.encoders.encoder import Encoder
def slowly(encode):
    return lambda *given: (print("a batch", flush=True), time.sleep(0.2), encode(*given))[-1]
for module in (jzi.encode.encode_map, jzi.encode.encode_queries):
    module.WRITE_EVERY_S = 0
Encoder.encode_tiles, Encoder.encode_photos = slowly(Encoder.encode_tiles), slowly(Encoder.encode_photos)
from jzi.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        ("encode-map", signal.SIGINT, 130),
        ("encode-queries", signal.SIGTERM, 143),
    ],
)
def test_a_command_that_is_stopped_says_how_to_resume_and_keeps_what_was_done(
    area, tmp_path: Path, start: Callable[..., Child], command: str, number: int, code: int
) -> None:
    arguments = [command, "--set", "encoder.batch_size=8"]
    child = start([sys.executable, "-c", SLOW, *arguments], cwd=tmp_path)
    child.wait_until(lambda: child.output.count("a batch\n") >= 3)  # the first is written by now
    child.process.send_signal(number)
    child.wait(code)
    last = child.errors.splitlines()[-1]
    assert last == "jzi: interrupted; finished work is kept, run the same command again to resume"
    assert "Traceback" not in child.errors
    report = json.loads(area(f"{command} --json").stdout)
    assert report["encoded"] > 0 and report["reused"] > 0


def test_the_service_ends_by_sigterm_as_uvicorn_has_it(monkeypatch: pytest.MonkeyPatch, default_sigterm) -> None:
    handlers = []
    locator = SimpleNamespace(expert=SimpleNamespace(area=None), encoder=None)
    monkeypatch.setattr("jzi.workspace.service.open_service", lambda *_, **__: (locator, None, ""))
    monkeypatch.setattr("jzi.serve.app.make_app", lambda *_: FastAPI())
    monkeypatch.setattr(
        "jzi.serve.server.Server.run", lambda *_, **__: handlers.append(signal.getsignal(signal.SIGTERM))
    )
    assert CliRunner().invoke(main, ["serve", "--port", "0"]).exit_code == 0
    assert handlers == [signal.SIG_DFL]
