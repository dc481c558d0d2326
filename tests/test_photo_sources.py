"""The photos that arguments of `jzi locate` name: files, folders, URLs and standard input."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from matplotlib.figure import Figure
from PIL import Image
from rasterio.transform import from_origin

from jzi.cli import main
from jzi.errors import ConfigError, PhotoError
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.georeference import is_georeferenced
from jzi.store.photos.photo_file import WHOLE_BYTES
from jzi.store.photos.photo_table import read_photo_table
from jzi.workspace.photo_sources import PhotoSources
from jzi.workspace.setup.settings import FILE, MapSettings, Settings
from jzi.workspace.setup.settings_file import write_settings


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (90, 120, 60)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def server() -> Iterator[str]:
    """A server on this machine with a photo, one that is too large, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            body = jpeg() if path == "/a%20b.jpg" else b""
            self.send_response(200 if path in ("/a%20b.jpg", "/big.jpg") else 404)
            self.send_header("Content-Length", str(WHOLE_BYTES + 1 if path == "/big.jpg" else len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def geotiff(path: Path, count: int = 3, dtype: str = "uint8", **options: str) -> Path:
    with rasterio.open(path, "w", driver="GTiff", width=8, height=8, count=count, dtype=dtype, crs="EPSG:32633",
                       transform=from_origin(500_000, 5_000_000, 1, 1), **options) as raster:  # fmt: skip
        raster.write(np.full((count, 8, 8), 99, dtype))
    return path


def test_rasters_that_pillow_does_not_open_are_no_photos_either(tmp_path: Path, capfd) -> None:
    heat = [
        geotiff(tmp_path / "heat.tif", 102, "float32"),
        geotiff(tmp_path / "big.tif", 2, "float32", BIGTIFF="YES"),
        geotiff(tmp_path / "motorola.tif", 1, "uint16", ENDIANNESS="BIG"),
    ]
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.tif")
    for path in heat:
        assert is_georeferenced(path) and is_georeferenced(path.read_bytes())
        for size in range(0, 40):
            is_georeferenced(path.read_bytes()[:size])
    assert not is_georeferenced(tmp_path / "plain.tif")
    with PhotoSources(Path("gone.toml")) as sources:
        assert [each.path.name for each in sources.find([str(tmp_path)])] == ["plain.tif"]
    assert capfd.readouterr() == ("", "")


def test_a_folder_stands_for_its_photos_but_not_for_rasters_and_drawings(tmp_path: Path) -> None:
    for name in ("b.jpg", "sub/a.JPG", "map.jpg", "world.png", ".hidden/x.jpg", "features.zarr/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.tif")
    (tmp_path / "world.pgw").write_text("1\n0\n0\n-1\n0\n0\n")
    geotiff(tmp_path / "ortho.tif")
    Figure().savefig(tmp_path / "zoom.png")
    settings = Settings(Pyramid.around(48.2, 16.37, 320.0, levels=2), map=MapSettings(rasters=["map.jpg"]))
    settings.folder = tmp_path
    write_settings(settings)
    with PhotoSources(Path("gone.toml")) as sources:
        names = [each.path.relative_to(tmp_path).as_posix() for each in sources.find([str(tmp_path)])]
        assert names == ["b.jpg", "plain.tif", "sub/a.JPG"]
        assert [path.name for path in sources.left_out] == ["map.jpg", "ortho.tif", "world.png", "zoom.png"]
        named = sources.find([str(tmp_path / "ortho.tif")])  # who names a file means it
        assert [each.path.name for each in named] == ["ortho.tif"]
    for name in ("b.jpg", "plain.tif", "sub/a.JPG"):
        (tmp_path / name).unlink()
    with PhotoSources(tmp_path / FILE) as sources, pytest.raises(PhotoError, match=r"no photo in .*map.jpg, ortho.tif"):
        sources.find([str(tmp_path)])


def test_photos_in_a_format_that_is_not_read_are_not_left_out_silently(tmp_path: Path, photo_folder) -> None:
    (photo_folder / "IMG_1.AVIF").write_bytes(b"\0\0\0\x18ftypavif")
    with PhotoSources(tmp_path / FILE) as sources:
        assert photo_folder / "IMG_1.AVIF" in [each.path for each in sources.find([str(photo_folder)])]
    (rejected,) = (each for each in read_photo_table(photo_folder).rejected if each.name == "IMG_1.AVIF")
    assert "convert it to JPEG" in rejected.reason


def test_standard_input_holds_one_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(jpeg())))
    with PhotoSources(Path("gone.toml")) as sources:
        (source,) = sources.find(["-"])
        assert source.name == "standard input" and source.path.read_bytes() == jpeg()
        assert sources.named(f"{source.path} is dark") == "standard input is dark"
        with pytest.raises(PhotoError, match="standard input is empty"):
            sources.find(["-"])
        with pytest.raises(ConfigError, match="give it once"):
            sources.find(["-", "-"])
    assert not source.path.exists()


def test_more_than_a_photo_on_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(isatty=lambda: False, read=lambda size: bytes(size))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))
    with PhotoSources(Path("gone.toml")) as sources, pytest.raises(PhotoError, match="more than 64 MiB"):
        sources.find(["-"])


def test_photos_are_fetched_and_failures_are_sentences_of_single_photos(server: str) -> None:
    with PhotoSources(Path("gone.toml")) as sources:
        photo, gone, big = sources.find([f"{server}/a%20b.jpg?sig=1", f"{server}/gone.jpg?sig=2", f"{server}/big.jpg"])
        assert photo.path.name == "a b.jpg" and photo.path.read_bytes() == jpeg() and not photo.error
        assert gone.error.startswith(f"{server}/gone.jpg cannot be fetched: ") and "404" in gone.error
        assert "sig=2" not in gone.error and not gone.path.exists()
        assert "more than 64 MiB" in big.error


def test_a_host_whose_name_is_unknown_is_told_from_one_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr("jzi.web.client.time.sleep", lambda _: None)
    with PhotoSources(Path("gone.toml")) as sources:
        (source,) = sources.find(["https://town.example/a.jpg"])
    assert "there is no town.example in the network: check the name" in source.error


def test_photos_that_are_not_there_need_no_model(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["locate", "gone.jpg", str(tmp_path / "b.jpg"), "--model", "gone"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == ["jzi: there is no photo gone.jpg", f"jzi: there is no photo {tmp_path}/b.jpg"]


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://example.org/a.jpg", "would be fetched unencrypted"),
        ("file:///etc/passwd", "not a URL of http or https"),
        ("https://me:secret@example.org/a.jpg", "holds a user or a password"),
    ],
)
def test_other_urls_are_refused_before_anything_is_sent(url: str, error: str) -> None:
    with PhotoSources(Path("gone.toml")) as sources, pytest.raises(ConfigError, match=error) as raised:
        sources.find([url])
    assert "secret" not in str(raised.value)
