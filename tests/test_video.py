"""Frames of a video along its GPX track."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jzi.curate.folder import DatasetFolder
from jzi.errors import DatasetError
from jzi.recordings.mp4 import EPOCH_1904_S, check_video, recording_time
from jzi.recordings.track import iso_time
from jzi.store.geometry.pyramid import geodesic_distance
from jzi.store.photos.photo_table import read_photo_table
from jzi.tests.test_trajectories import METRE, START, run, write_gpx

cv2 = pytest.importorskip("cv2")

#: Frames a second, and seconds.
RATE, SECONDS = 10, 12


def points(stop: range = range(4, 7)):
    """Northwards at 10 m a second, but for a stop, in which the receiver wanders by 0.3 m a second."""
    north = 0.0
    for second in range(SECONDS + 1):
        wander = 0.3 if second in stop and (second - stop[0]) % 2 else 0.0
        yield START + second, 48.2 + (north + wander) * METRE, 16.37
        north += 0 if second in stop else 10


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey level for each frame: twice its number."""
    file = tmp_path_factory.mktemp("video") / "drive.mp4"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), RATE, (64, 48))
    for index in range(RATE * SECONDS):
        writer.write(np.full((48, 64, 3), 2 * index, np.uint8))
    writer.release()
    return file


@pytest.fixture
def track(tmp_path: Path) -> Path:
    return write_gpx(tmp_path / "track.gpx", points())


def recorded_at(video: Path, file: Path, time: float) -> Path:
    """The same video with a recording time in its header."""
    content = bytearray(video.read_bytes())
    at = content.index(b"mvhd") + 4
    content[at + 4 : at + 8] = struct.pack(">I", int(time) + EPOCH_1904_S)
    file.write_bytes(content)
    return file


def test_frames_are_a_distance_apart_at_the_places_of_their_times(video, track, tmp_path) -> None:
    file = recorded_at(video, tmp_path / "ride.mp4", START)
    assert recording_time(file) == START and recording_time(video) is None
    command = f"dataset import video {file} --gpx {track} -o {tmp_path / 'out'} --every 20 --direction 90 --hfov 120"
    output = run(f"{command} --json")
    assert json.loads(output.stdout)["photos"] == 5 == json.loads(output.stdout)["headings"]
    photos = DatasetFolder.read(tmp_path / "out").photos
    seconds = [0, 2, 4 + 3, 6 + 3, 8 + 3]  # none while it stands
    assert photos["captured_at"].tolist()[:2] == [iso_time(START), iso_time(START + 2)]
    assert photos["captured_at"].tolist()[3:] == [iso_time(START + second) for second in seconds[3:]]
    distance = geodesic_distance(48.2, 16.37, photos["latitude"], photos["longitude"])
    assert distance == pytest.approx([0, 20, 40, 60, 80], abs=0.1)
    assert photos["heading"].tolist() == pytest.approx([90] * 5) and set(photos["hfov"]) == {120}
    for row, second in zip(photos.itertuples(), seconds, strict=True):
        grey = np.asarray(Image.open(tmp_path / "out" / row.path)).mean()
        assert grey == pytest.approx(2 * RATE * second, abs=10), row.id
    assert len(read_photo_table(tmp_path / "out" / "photos.csv")) == 5


def test_a_video_without_a_recording_time_needs_one(video, track, tmp_path) -> None:
    command = f"dataset import video {video} --gpx {track} -o {tmp_path / 'out'}"
    output = run(command, 2).output
    assert "does not say when it was recorded: give --start TIME" in output and "2024-05-01T12:00:00Z" in output
    first = json.loads(run(f"{command} --start 2024-05-01T14:00:01+02:00 --json").stdout)
    assert first["start_s"] == START + 1 and first["after_s"] == pytest.approx(1)
    second = json.loads(run(f"{command}2 --offset 1 --json").stdout)
    assert second["photos"] == first["photos"]
    assert "not 'noon'" in run(f"{command}3 --start noon", 2).output


def test_a_video_longer_than_its_track_says_so(video, tmp_path) -> None:
    track = write_gpx(tmp_path / "short.gpx", [*points()][:4])
    output = run(f"dataset import video {video} --gpx {track} -o {tmp_path / 'out'} --offset -2").stdout
    assert "longer than the track: 2 s before the track begins and 7 s after the track ends were left out" in output
    notes = DatasetFolder.read(tmp_path / "out").info.notes
    assert any("longer than the track" in note for note in notes)


def test_clocks_that_are_off_get_a_sentence_with_a_remedy(video, track, tmp_path) -> None:
    local = recorded_at(video, tmp_path / "local.mp4", START + 7200)
    output = run(f"dataset import video {local} --gpx {track} -o {tmp_path / 'out'}", 2).output
    assert "runs from 2024-05-01T14:00:00Z" in output and "try --offset -7200" in output
    year = recorded_at(video, tmp_path / "year.mp4", START + 365 * 86_400)
    output = run(f"dataset import video {year} --gpx {track} -o {tmp_path / 'out'}", 2).output
    assert "from 2025-05-01T12:00:00Z to 2025-05-01T12:00:12Z" in output and "try" not in output
    assert run(f"dataset import video {local} --gpx {track} -o {tmp_path / 'out'} --offset -7200").exit_code == 0


def test_a_track_that_stands_still_or_has_gaps_gives_nothing(video, tmp_path) -> None:
    command = f"dataset import video {video} --offset 0 -o {tmp_path / 'out'} --gpx"
    still = write_gpx(tmp_path / "still.gpx", points(range(100)))
    assert "does not move faster than 2 km/h" in run(f"{command} {still}", 2).output
    sparse = write_gpx(tmp_path / "sparse.gpx", [*points()][::12])
    assert "raise --max-gap beyond 10 s" in run(f"{command} {sparse}", 2).output
    assert not (tmp_path / "out").exists()
    run(f"{command} {sparse} --max-gap 12")


@pytest.mark.parametrize(
    "content", [b"", b"no video at all", b"#EXTM3U\nhttp://127.0.0.1/x.ts\n", b"ffconcat version 1.0\nfile x.mp4\n",
                b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", b"\0\0\0\x01moov" + b"\xff" * 100, b"RIFF\0\0\0\0AVI LIST"],
)  # fmt: skip
def test_what_is_no_video_is_one_sentence(content, track, tmp_path) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    if content[4:8] not in (b"ftyp", b"moov") and not content.startswith(b"RIFF"):  # nothing that names other files
        with pytest.raises(DatasetError, match="is no video"):
            check_video(tmp_path / "x.mp4")
    assert recording_time(tmp_path / "x.mp4") is None
    output = run(f"dataset import video {tmp_path / 'x.mp4'} --gpx {track} --offset 0 -o {tmp_path / 'out'}", 2).output
    assert "is no video" in output or "has no frames that can be read" in output
    assert not (tmp_path / "out").exists()


def test_a_video_that_is_cut_off_gives_the_frames_that_it_has(video, track, tmp_path) -> None:
    content = video.read_bytes()
    moov = content.index(b"moov") - 4
    (tmp_path / "cut.mp4").write_bytes(content[: moov - 2000] + bytes(2000) + content[moov:])
    run(f"dataset import video {tmp_path / 'cut.mp4'} --gpx {track} --offset 0 -o {tmp_path / 'out'}")
    assert 3 <= len(DatasetFolder.read(tmp_path / "out").photos) <= 18


def test_an_import_that_was_killed_is_continued_to_the_same_bytes(video, track, tmp_path, monkeypatch) -> None:
    from jzi.recordings import video as module

    command = f"dataset import video {video} --gpx {track} --offset 0 -o"
    run(f"{command} {tmp_path / 'whole'}")
    write, written = module._write, []

    def dying(file: Path, content: bytes) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(file)
        write(file, content)

    monkeypatch.setattr(module, "_write", dying)
    assert "run the same command again to resume" in run(f"{command} {tmp_path / 'out'}", 130).output
    assert "unfinished import" in run(f"{command} {tmp_path / 'out'} --every 3", 2).output
    monkeypatch.setattr(module, "_write", write)
    kept = written[0].stat().st_mtime_ns
    run(f"{command} {tmp_path / 'out'}")
    assert written[0].stat().st_mtime_ns == kept
    names = sorted(each.relative_to(tmp_path / "whole") for each in (tmp_path / "whole").rglob("*") if each.is_file())
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert len(names) == len([each for each in (tmp_path / "out").rglob("*") if each.is_file()])


def test_a_panorama_is_one_of_360_degrees(video, track, tmp_path) -> None:
    run(f"dataset import video {video} --gpx {track} --offset 0 --hfov 360 --every 30 -o {tmp_path / 'out'}")
    photos = DatasetFolder.read(tmp_path / "out").photos
    assert photos["panorama"].all() and set(photos["camera"]) == {"spherical"}
