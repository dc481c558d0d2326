"""The files of `locate`: whatever the answer and the name of the photo, and whichever of them cannot be written."""

from __future__ import annotations

import csv
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from click.testing import CliRunner, Result
from PIL import ExifTags, Image
from tqdm import tqdm

from jzi.cli import main
from jzi.commands.shared.common import UsageError
from jzi.commands.shared.outputs import Outputs
from jzi.commands.shared.tables import location_text
from jzi.errors import ExportError
from jzi.export.files import write_csv, write_geojson
from jzi.export.heatmap import write_heatmap
from jzi.export.page import write_page
from jzi.export.picture import draw_zoom
from jzi.locate.answer.location import LocateOptions, Location, NotLocated, to_locations
from jzi.locate.posterior import Posterior
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.printable import quote_formula
from jzi.tests.children import run

FORMATS = ["geojson", "tif", "png", "html", "csv"]


@pytest.fixture
def location(pyramid: Pyramid) -> Location:
    """An answer of which search reached too little for a radius of 68 %."""
    posterior = Posterior.from_cells(pyramid, np.array([3, 9]), np.array([5, 40]), np.array([0.3, 0.1]))
    (answer,) = to_locations(posterior, LocateOptions(), ["photo.jpg"])
    assert np.isinf([answer.radius_68, answer.radius_95]).all()
    return answer


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    """Every output, into the folder `out`."""
    folder = tmp_path / "out"
    folder.mkdir()
    return Outputs(*(folder / f"a.{suffix}" for suffix in FORMATS), copies=folder)


@contextmanager
def full_disk() -> Iterator[None]:
    """Let every write beyond the first 500 bytes of a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def gps_of(photo: Path) -> dict[int, object]:
    with Image.open(photo) as image:
        return dict(image.getexif().get_ifd(ExifTags.IFD.GPSInfo))


def test_an_unknown_radius_is_left_out_of_every_output(location, outputs, tmp_path, take_photo) -> None:
    outputs.add(take_photo(tmp_path / "photo.jpg"), location)
    outputs.write(None)
    assert outputs.errors == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*(f"a.{suffix}" for suffix in FORMATS), "photo.jpg"]
    )
    gps = gps_of(tmp_path / "out" / "photo.jpg")
    assert ExifTags.GPS.GPSLatitude in gps and ExifTags.GPS.GPSHPositioningError not in gps
    table = pd.read_csv(tmp_path / "out" / "a.csv")
    assert table["radius_68_m"].isna().all() and table["confidence"].notna().all()
    assert outputs.written[0].startswith("1 copy into") and len(outputs.written) == 1 + len(FORMATS)


def test_confidence_and_warnings_are_in_every_table(location, outputs, tmp_path, take_photo) -> None:
    doubtful = replace(location, inside=0.04, notes=("nearly uniform", "an aerial view"))
    for answer in (doubtful, replace(doubtful, abstain=0.5)):
        outputs.add(take_photo(tmp_path / "photo.jpg"), answer)
        assert "note: an aerial view" in location_text(answer)
    outputs.write(None)
    table = pd.read_csv(tmp_path / "out" / "a.csv")
    assert table["inside"].tolist() == [0.04, 0.04] and set(table["notes"]) == {"nearly uniform; an aerial view"}
    features = json.loads((tmp_path / "out" / "a.geojson").read_text())["features"]
    found = [each["properties"] for each in features if each["properties"]["kind"] == "answer"]
    assert [each["confidence"] for each in found] == pytest.approx([0.3 * 0.04] * 2, rel=1e-3)
    assert [each["inside"] for each in found] == [0.04, 0.04]
    assert table["elsewhere"].all() and all(each["elsewhere"] for each in found)
    assert [each["notes"] for each in found] == [["nearly uniform", "an aerial view"]] * 2
    assert "radius_68_m" in found[0] and found[0]["estimate"] == table["estimate"][0]
    assert "probably not from this area: 4.0 % that" in location_text(doubtful)
    assert "probably not" not in location_text(replace(location, inside=0.6))


def test_an_answer_that_is_not_sure_has_no_position_in_any_output(location, outputs, tmp_path, take_photo) -> None:
    outputs.add(take_photo(tmp_path / "photo.jpg"), replace(location, abstain=1.0))
    outputs.write(None)
    folder = tmp_path / "out"
    assert outputs.errors == [] and [note.rpartition("/")[2] for note in outputs.notes] == [
        "photo.jpg has an answer that is not sure: no copy was written",
        "a.png is not drawn: its answer is not sure",
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["a.csv", "a.geojson", "a.html", "a.tif"]
    row = pd.read_csv(folder / "a.csv").iloc[0]
    assert not row["sure"] and np.isnan(row["latitude"]) and np.isnan(row["longitude"]) and row["confidence"] < 1
    (feature,) = json.loads((folder / "a.geojson").read_text())["features"]
    assert feature["geometry"] is None and feature["properties"]["sure"] is False
    with rasterio.open(folder / "a.tif") as raster:
        assert raster.descriptions == ("photo.jpg (not sure)",) and np.isnan(raster.read()).all()
    for path in folder.iterdir():
        assert f"{location.latitude:.5f}" not in path.read_bytes().decode("latin-1")


def test_a_photo_that_is_more_probably_from_elsewhere_gets_no_copy(location, outputs, tmp_path, take_photo) -> None:
    inside = {"none": None, "here": 0.51, "away": 0.49, "far": 0.01}
    photos = {name: take_photo(tmp_path / f"{name}.jpg") for name in inside}
    for name, photo in photos.items():
        outputs.add(photo, replace(location, inside=inside[name]))
    outputs.add(take_photo(tmp_path / "asked.jpg"), replace(location, inside=0.49, abstain=0.1))
    outputs.write(None)
    assert {path.name for path in outputs.copies.glob("*.jpg")} == {"none.jpg", "here.jpg", "asked.jpg"}
    assert outputs.written[0].startswith("3 copies") and outputs.notes == [
        f"{photos['away']}, {photos['far']} are more probably from elsewhere than from this area: no copy was "
        "written; --elsewhere 0 says that all photos are from this area"
    ]


def test_a_folder_for_copies_is_made_only_if_there_is_a_copy(location, tmp_path, take_photo) -> None:
    photo, folder = take_photo(tmp_path / "photo.jpg"), tmp_path / "new" / "copies"
    for abstain in (1.0, 0.0):
        outputs = Outputs(None, None, None, None, None, copies=folder)
        outputs.prepare_copies([photo])
        assert not folder.parent.exists()
        outputs.add(photo, replace(location, abstain=abstain))
        outputs.write(None)
        assert folder.exists() == (not abstain) and not outputs.errors
    with pytest.raises(UsageError, match=r"photo\.jpg: give another folder"):
        Outputs(None, None, None, None, None, copies=photo / "copies").prepare_copies([photo])


@pytest.mark.parametrize("suffix", [*FORMATS, "jpg"])
def test_an_output_that_fails_costs_no_other(suffix, location, outputs, tmp_path, take_photo, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("of a library\nwith details")

    function = {
        "geojson": "jzi.export.files.write_geojson",
        "tif": "jzi.export.heatmap.write_heatmap",
        "png": "jzi.export.picture.draw_zoom",
        "html": "jzi.export.page.write_page",
        "csv": "jzi.export.files.write_csv",
        "jpg": "jzi.store.photos.exif.write_position",
    }
    monkeypatch.setattr(function[suffix], fail)
    outputs.add(take_photo(tmp_path / "photo.jpg"), location)
    outputs.write(None)
    (sentence,) = outputs.errors
    assert sentence.endswith(f".{suffix} cannot be written: of a library")
    written = {path.suffix[1:] for path in (tmp_path / "out").iterdir()}
    assert written == {*FORMATS, "jpg"} - {suffix}


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"=1+1 $\\frac$.jpg", b"\xff\n</script>.jpg"])
def test_a_name_of_any_bytes_loses_no_output(name, location, outputs, tmp_path, take_photo) -> None:
    photo = take_photo(tmp_path / "photo.jpg").rename(tmp_path / os.fsdecode(name).replace("/", ""))
    outputs.add(photo, replace(location, photo=photo.name))
    outputs.add(photo, NotLocated(photo.name, f"{photo.name} cannot be read"))
    outputs.write(None)
    assert outputs.errors == [] and len(list((tmp_path / "out").iterdir())) == 6
    with rasterio.open(tmp_path / "out" / "a.tif") as raster:
        assert raster.descriptions[0].endswith(".jpg")
    first, second = (tmp_path / "out" / "a.csv").read_text("utf-8").splitlines()[1:]
    assert ".jpg" in first and "cannot be read" in second


def test_a_full_disk_is_a_sentence_for_each_file_and_leaves_no_part_of_it(location, tmp_path, take_photo) -> None:
    photo = take_photo(tmp_path / "photo.jpg")
    for path, write in (
        (tmp_path / "a.tif", lambda file: write_heatmap(file, [location])),
        (tmp_path / "a.geojson", lambda file: write_geojson(file, [location])),
        (tmp_path / "a.csv", lambda file: write_csv(file, [location.to_dict()] * 9)),
        (tmp_path / "a.html", lambda file: write_page(file, [(photo, location, None)], None)),
        (tmp_path / "a.png", lambda file: draw_zoom(location, photo, None, file)),
    ):
        with full_disk(), pytest.raises(ExportError, match=rf"{path.name} cannot be written: File too large"):
            write(path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_cells_that_spreadsheets_take_for_formulas_are_quoted_and_numbers_are_not(location, tmp_path) -> None:
    names = ["=1+1", "+1", "-1", "@sum", "\t=1", "\r=1", "a=1", "-"]
    answers = [location.to_dict() | {"photo": name} for name in names]
    answers.append({"photo": "=x", "error": "=cmd cannot be read"})
    answers[0]["latitude"] = -48.5
    write_csv(tmp_path / "a.csv", answers)
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
    assert [row["photo"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@sum", r"'\t=1", r"'\r=1", "a=1", "'-", "'=x"]
    assert rows[0]["latitude"] == "-48.5" and rows[-1]["error"] == "'=cmd cannot be read"
    assert [quote_formula(value) for value in (-1, -0.5, None)] == [-1, -0.5, None]


# The command


@pytest.fixture(scope="module")
def located_folder(prepare, encoded_folder) -> Path:
    training = "train-decoder --set decoder.layers=1 --set decoder.heads=2 --set train.epochs=1 --experts zoom"
    return prepare(encoded_folder, "outputs", training)


@pytest.fixture
def locate(located_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    """Runs `jzi locate` on one photo with options."""
    monkeypatch.chdir(located_folder)
    return lambda options: CliRunner().invoke(main, f"locate photos/day0/000.jpg {options}".split())


def test_a_beam_that_leaves_the_radius_open_writes_exif(locate, located_folder) -> None:
    result = locate("--beams 1 --write-exif copies --overwrite-gps --csv beam.csv")
    assert result.exit_code == 0, result.output
    assert ExifTags.GPS.GPSHPositioningError not in gps_of(located_folder / "copies" / "000.jpg")
    assert Path("beam.csv").exists()


def test_a_failed_output_ends_the_command_with_2_after_the_others(locate, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise ExportError("a.tif cannot be written: no memory")

    monkeypatch.setattr("jzi.export.heatmap.write_heatmap", fail)
    result = locate("--heatmap a.tif --csv after.csv --map after.html")
    assert result.exit_code == 2 and result.stdout.count("within 50 m of this point") == 1
    assert result.stderr == "wrote after.csv\nwrote after.html\njzi: a.tif cannot be written: no memory\n"
    assert Path("after.csv").exists() and Path("after.html").exists() and not Path("a.tif").exists()


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [(KeyboardInterrupt(), 130, "jzi: interrupted\n"), (MemoryError("full"), 2, "jzi: out of memory (full): ")],
)
def test_a_command_that_is_stopped_writes_what_it_has_located(locate, monkeypatch, error, code, last) -> None:
    def stop_at_the_second(answer: Location, *_: object) -> None:
        if answer.photo.endswith("002.jpg"):
            raise error

    monkeypatch.setattr("jzi.commands.locate._print_answer", stop_at_the_second)
    others = "photos/day0/002.jpg photos/day0/004.jpg"
    files = "--csv o.csv --geojson o.geojson --heatmap o.tif --map o.html"
    result = locate(f"{others} --write-exif copies{code} --overwrite-gps {files}")
    stopped = "stopped: 2 of 3 photos were located; writing their files (Ctrl-C again to stop)"
    wrote = [
        f"wrote 2 copies into copies{code}",
        *(f"wrote o.{suffix}" for suffix in ("csv", "geojson", "tif", "html")),
    ]
    assert result.exit_code == code and result.stderr.startswith("\n".join([stopped, *wrote, last]))
    assert pd.read_csv("o.csv")["photo"].tolist() == ["photos/day0/000.jpg", "photos/day0/002.jpg"]
    features = json.loads(Path("o.geojson").read_text())["features"]
    assert [each["properties"]["kind"] for each in features].count("answer") == 2
    with rasterio.open("o.tif") as raster:
        assert raster.count == 2


@pytest.mark.parametrize("times", [1, 2])
def test_an_interruption_of_writing_costs_no_file_and_a_second_one_those_that_are_left(
    locate, monkeypatch, times
) -> None:
    interruptions = [KeyboardInterrupt()] * times

    def write_page(path: Path, *_: object) -> None:
        if interruptions:
            raise interruptions.pop()
        path.touch()

    monkeypatch.setattr("jzi.export.page.write_page", write_page)
    result = locate(f"--csv w{times}.csv --map w{times}.html")
    files = [f"wrote w{times}.csv", *([f"wrote w{times}.html"] if times == 1 else [])]
    stopped = "stopped: 1 of 1 photos were located; writing their files (Ctrl-C again to stop)"
    assert result.exit_code == 130 and result.stderr.splitlines() == [stopped, *files, "jzi: interrupted"]
    assert Path(f"w{times}.csv").exists() and Path(f"w{times}.html").exists() == (times == 1)


def test_a_command_that_is_stopped_before_the_first_answer_replaces_no_file(locate, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jzi.locate.locator.Locator._locate", interrupt)
    Path("before.csv").write_text("of an earlier run\n")
    result = locate("--csv before.csv")
    assert result.exit_code == 130 and result.stderr == "stopped: 0 of 1 photos were located\njzi: interrupted\n"
    assert Path("before.csv").read_text() == "of an earlier run\n"


def test_a_page_of_many_photos_shows_its_progress(location, tmp_path, take_photo, capsys, monkeypatch) -> None:
    monkeypatch.setattr("jzi.export.page.tqdm", lambda photos, **options: tqdm(photos, **{**options, "delay": 0}))
    write_page(tmp_path / "a.html", [(take_photo(tmp_path / "photo.jpg"), location, None)] * 2, None)
    assert "page: " in capsys.readouterr().err


def test_messages_about_a_photo_on_standard_input_name_no_temporary_file(located_folder, monkeypatch) -> None:
    monkeypatch.chdir(located_folder)
    photo = Path("photos/day0/000.jpg").read_bytes()
    result = CliRunner().invoke(main, ["locate", "-", "--write-exif", "copies"], input=photo)
    assert result.exit_code == 0 and result.stderr.startswith("jzi: standard input has a position in the EXIF")


@pytest.mark.parametrize("radius", ["1e6", "inf", "nan", "0", "802", "-5"])
def test_a_radius_beyond_the_area_is_refused_before_anything_is_encoded(locate, radius, monkeypatch) -> None:
    monkeypatch.setattr("jzi.locate.locator.Locator.encoder", None)
    result = locate(f"--radius {radius}")
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert "radius" in result.stderr and ("side of 801 m" in result.stderr or "20037508" in result.stderr)


@pytest.mark.slow
def test_a_reader_that_stops_reading_loses_no_file(located_folder) -> None:
    command = f"{sys.executable} -m jzi locate photos/day0 --json --csv all.csv 2>/dev/null | head -c 1"
    run(["sh", "-c", command], cwd=located_folder)
    assert len(pd.read_csv(located_folder / "all.csv")) == 15
