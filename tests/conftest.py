"""What the tests are made of: a tiny random encoder, small rasters and photos, and a town's worth of nothing else."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

# Before anything imports huggingface_hub: no test may ask the network, or wait for it.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import rasterio
import torch
from PIL import ExifTags, Image
from rasterio.transform import from_bounds

from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.store.geometry.pyramid import Pyramid
from jzi.tests.children import Child
from jzi.tests.fault_proxy import FaultProxy

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the files with the most slow tests first where several processes share the tests."""
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_heard() -> None:
    """Handle Ctrl-C, which a process that a script starts in the background ignores, and so do its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real test data that lies beside the repository; a user's clone has none."""
    if not SHARED.is_dir():
        pytest.skip("the real test data is not here")
    return SHARED


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2 with random weights, as `save_pretrained` writes it: 32 features, patches of 14 pixels."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14
    )
    folder = tmp_path_factory.mktemp("encoder")
    Dinov2Model(config).save_pretrained(folder)
    return folder


#: 800 m, three levels of 4 x 4 and cells of 12.5 m.
AREA = Pyramid.around(48.2, 16.37, 800.0, levels=3)


@pytest.fixture(scope="session")
def pyramid() -> Pyramid:
    """`AREA`."""
    return AREA


def decided_decoder(config: DecoderConfig) -> ZoomDecoder:
    """A decoder far from its initialisation, so that probabilities differ."""
    torch.manual_seed(0)
    decoder = ZoomDecoder(config).eval()
    for parameter in decoder.parameters():
        parameter.data = parameter.data * 4
    return decoder


def checkerboard(rows: int, cols: int, square: int = 16, seed: int = 0) -> np.ndarray:
    """(3, rows, cols) uint8: squares of random colours, so that every place looks different."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(30, 226, (3, -(-rows // square), -(-cols // square)), dtype=np.uint8)
    return np.repeat(np.repeat(colors, square, axis=1), square, axis=2)[:, :rows, :cols]


def write_geotiff(path: Path, data: np.ndarray, bounds: tuple[float, ...], crs: str | None, **profile) -> Path:
    """Write (band, rows, cols) as a GeoTIFF over `bounds` (west, south, east, north) of a CRS."""
    bands, rows, cols = data.shape
    transform = from_bounds(*bounds, cols, rows)
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=rows, width=cols, dtype=data.dtype, crs=crs,
        transform=transform, **profile,
    ) as file:  # fmt: skip
        file.write(data)
    return path


@pytest.fixture
def write_raster(tmp_path: Path) -> Callable[..., Path]:
    """`write_geotiff` into the test's folder."""

    def write(data: np.ndarray, bounds: tuple[float, ...], crs: str | None, name: str = "map.tif", **profile) -> Path:
        return write_geotiff(tmp_path / name, data, bounds, crs, **profile)

    return write


@pytest.fixture(scope="session")
def town_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to copy, with map.tif, which fills `AREA` at 1 m a pixel in its own CRS, and photos/, 30 photos at
    random places of it in two sub-folders.
    """
    folder = tmp_path_factory.mktemp("town")
    write_geotiff(folder / "map.tif", checkerboard(800, 800), AREA.bounds, AREA.crs)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(AREA.bounds.west, AREA.bounds.east, 30), rng.uniform(AREA.bounds.south, AREA.bounds.north, 30)
    for index, (latitude, longitude) in enumerate(zip(*AREA.unproject(x, y), strict=True)):
        write_photo(folder / "photos" / f"day{index % 2}" / f"{index:03}.jpg", latitude, longitude, index * 12.0, index)
    return folder


@pytest.fixture
def town_raster(town_folder: Path, tmp_path: Path) -> Path:
    """A copy of the map of `town_folder`."""
    return Path(shutil.copy2(town_folder / "map.tif", tmp_path))


def write_photo(
    path: Path,
    latitude: float | None = None,
    longitude: float | None = None,
    heading: float | None = None,
    seed: int = 0,
) -> Path:
    """A small JPEG of random colours with a GPS position in its EXIF, if one is given."""
    pixels = np.moveaxis(checkerboard(48, 96, 8, seed), 0, -1)
    exif = Image.Exif()
    if latitude is not None and longitude is not None:
        gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
        gps[ExifTags.GPS.GPSLatitudeRef] = "N" if latitude >= 0 else "S"
        gps[ExifTags.GPS.GPSLatitude] = _dms(latitude)
        gps[ExifTags.GPS.GPSLongitudeRef] = "E" if longitude >= 0 else "W"
        gps[ExifTags.GPS.GPSLongitude] = _dms(longitude)
        if heading is not None:
            gps[ExifTags.GPS.GPSImgDirection] = heading
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif, quality=90)
    return path


def _dms(degrees: float) -> tuple[float, float, float]:
    degrees = abs(degrees)
    minutes = degrees % 1 * 60
    return float(int(degrees)), float(int(minutes)), round(minutes % 1 * 60, 6)


@pytest.fixture
def photo_folder(town_folder: Path, tmp_path: Path) -> Path:
    """A copy of the photos of `town_folder`."""
    return Path(shutil.copytree(town_folder / "photos", tmp_path / "photos", dirs_exist_ok=True))


@pytest.fixture(scope="session")
def encoder(encoder_folder: Path):
    """That tiny encoder, seeing 28 x 28 pixels."""
    from jzi.encode.encoders.encoder import Encoder

    return Encoder.load(encoder_folder, image_size=28, device="cpu")


@pytest.fixture(scope="session")
def info():
    """What a cache keeps of some encoder with 8 features; no model is needed."""
    from jzi.store.info import EncoderInfo

    return EncoderInfo("tiny", False, "e" * 64, width=8, image_size=28, layout="halves")


@pytest.fixture(scope="session")
def pattern() -> Callable[..., np.ndarray]:
    """`checkerboard`, for tests that need a raster of their own."""
    return checkerboard


@pytest.fixture(scope="session")
def take_photo() -> Callable[..., Path]:
    """`write_photo`, for tests that need photos of their own."""
    return write_photo


@pytest.fixture
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """Every byte below a folder, by relative path; what a killed write left half-done is not part of a cache."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".partial"))
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    """Starts processes, which end with the test: the arguments are those of `Child`."""
    with contextlib.ExitStack() as stack:
        yield lambda *command, **options: stack.enter_context(Child(*command, **options))


@pytest.fixture
def in_two_processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list]:
    """Runs a function twice at once, each run believing that it is one of two processes of `accelerate launch`.

    Takes the module that asks accelerate, and the function; gives both results.
    """
    barrier = threading.Barrier(2, timeout=60)
    gathered: dict[int, list] = {}
    index = threading.local()

    class State:
        num_processes = 2
        process_index = property(lambda _: index.value)
        is_main_process = property(lambda _: index.value == 0)

        def wait_for_everyone(self) -> None:
            barrier.wait()

    def gather(values: list) -> list:
        gathered[index.value] = values
        barrier.wait()
        return gathered[0] + gathered[1]

    def run(module: ModuleType, function: Callable) -> list:
        def one(number: int) -> object:
            index.value = number
            try:
                return function()
            except BaseException:
                barrier.abort()  # the other one does not wait in vain
                raise

        with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
            patch.setattr(module, "processes", State)
            patch.setattr(module, "gather_object", gather)
            runs = [pool.submit(one, number) for number in range(2)]
            errors = [error for run in runs if (error := run.exception()) is not None]
            for error in sorted(errors, key=lambda each: isinstance(each, threading.BrokenBarrierError)):
                raise error  # the cause, rather than that of the one that waited
            return [run.result() for run in runs]

    return run


def run_command(line: str, code: int = 0) -> Any:
    """Run a command line in the current directory, and check its exit code."""
    from click.testing import CliRunner

    from jzi.cli import main

    result = CliRunner().invoke(main, line.split())
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    if code == 2:
        assert result.stdout == ""
        assert [line.startswith("jzi: ") for line in result.stderr.strip().splitlines()][-1], result.stderr
    return result


@pytest.fixture
def jzi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a command line in a fresh directory."""
    monkeypatch.chdir(tmp_path)
    return run_command


@pytest.fixture(scope="session")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Copies a folder and runs command lines in the copy, once for all tests that copy the result in turn."""

    def run(source: Path, name: str, *lines: str) -> Path:
        folder = Path(shutil.copytree(source, tmp_path_factory.mktemp("prepared") / name))
        with contextlib.chdir(folder):
            for line in lines:
                run_command(line)
        return folder

    return run


@pytest.fixture(scope="session")
def area_folder(prepare: Callable[..., Path], town_folder: Path, encoder_folder: Path) -> Path:
    """A folder to copy: `town_folder` with an encoder and a jzi.toml."""
    folder = prepare(town_folder, "area")
    shutil.copytree(encoder_folder, folder / "encoder")
    return prepare(folder, "area", "init --map map.tif --queries photos --encoder encoder --image-size 56")


@pytest.fixture(scope="session")
def encoded_folder(prepare: Callable[..., Path], area_folder: Path) -> Path:
    """A folder to copy: `area_folder` with a cache of the map and of the photos."""
    return prepare(area_folder, "encoded", "encode-map", "encode-queries")


@pytest.fixture(scope="session")
def trained_folder(prepare: Callable[..., Path], encoded_folder: Path) -> Path:
    """A folder to copy: `encoded_folder` with a model of all experts."""
    how = ("train.epochs=2", "decoder.layers=1", "decoder.heads=2")
    return prepare(encoded_folder, "trained", "train-decoder " + " ".join(f"--set {each}" for each in how))


@pytest.fixture
def area(jzi: Callable[..., Any], area_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """A working directory with a jzi.toml, a map and 30 photos."""
    shutil.copytree(area_folder, tmp_path, dirs_exist_ok=True)
    return jzi


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of a real S3-compatible server."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("obstore")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


#: What must appear neither in a message nor in a cache.
CREDENTIALS = "AKIDEXAMPLE", "wJalrXUtnFEMI"


@pytest.fixture
def proxy(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of that server, without faults yet, which the environment names as the endpoint."""
    from jzi.store.disk import object_store

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with FaultProxy(s3_server, late_s=1.0) as proxy:
        values = zip(("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"), CREDENTIALS, strict=True)
        for name, value in {**dict(values), "REGION": "us-east-1", "ENDPOINT_URL": proxy.url}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        for name, seconds in {"REQUEST_S": 0.8, "RETRY_S": 20.0, "OPEN_REQUEST_S": 0.8, "OPEN_RETRY_S": 10.0}.items():
            monkeypatch.setattr(object_store, name, seconds)
        yield proxy


@pytest.fixture
def bucket(proxy: FaultProxy, s3_server: str) -> str:
    """URL of a new bucket."""
    name = f"jzi-{uuid.uuid4().hex}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{name}", method="PUT"))
    return f"s3://{name}"


@pytest.fixture
def objects_of() -> Callable[[str], dict[str, bytes]]:
    """Every byte below a URL but the writer's lock, by relative path, as the server of this process has them."""

    def read(url: str) -> dict[str, bytes]:
        from moto.s3.models import s3_backends

        name, _, prefix = url.removeprefix("s3://").partition("/")
        (bucket,) = (
            backend.buckets[name]
            for account in s3_backends.values()
            for backend in account.values()
            if name in backend.buckets
        )
        start = f"{prefix}/"
        values = {key.removeprefix(start): bucket.keys[key].value for key in bucket.keys if key.startswith(start)}
        return {key: value for key, value in values.items() if key != "writer.lock"}

    return read


def save_zoom(folder: Path, pyramid: Pyramid, encoder_folder: Path) -> None:
    """Write a zoom model with random weights and map."""
    import torch

    from jzi.decode.config import DecoderConfig
    from jzi.decode.decoder import ZoomDecoder
    from jzi.decode.model import create_folder, save_weights
    from jzi.encode.encoders.encoder import Encoder
    from jzi.store.features.map_embeddings import ENCODED, MapEmbeddings
    from jzi.store.model_folder import MAP, write_file

    rng = np.random.default_rng(0)
    sides = [pyramid.tiles_per_side(level) for level in range(pyramid.levels + 1)]
    embedding = tuple(rng.normal(size=(n, n, 32)).astype(np.float16) for n in sides[:-1])
    config = DecoderConfig(width=32, layers=1, heads=2)
    info = Encoder.load(encoder_folder, image_size=28).info
    create_folder(folder, config, pyramid, info, encoder_folder)
    status = tuple(np.full((n, n), ENCODED, np.uint8) for n in sides)
    write_file(folder, MAP, MapEmbeddings(pyramid, embedding, status).save)
    torch.manual_seed(0)
    save_weights(folder, ZoomDecoder(config))


@pytest.fixture(scope="session")
def zoom_folder(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path, pyramid: Pyramid) -> Path:
    """A zoom model of `AREA` with random weights and map, to copy."""
    folder = tmp_path_factory.mktemp("zoom") / "model"
    save_zoom(folder, pyramid, encoder_folder)
    return folder


@pytest.fixture
def locator(tmp_path: Path, zoom_folder: Path):
    """A copy of that model, in the folder "model"."""
    import jzi

    return jzi.load(shutil.copytree(zoom_folder, tmp_path / "model"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty hub, which the environment names, a token, and a local cache of the test's own."""
    from huggingface_hub import constants

    from jzi.tests.mock_hub import TOKEN, mock_hub

    with mock_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by HTTP, as without hf_xet
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between two tries
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield running
