"""Readers of data sets of pairs: layouts, labels, positions, and what they leave out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jzi.datasets import cvact, cvusa, kitti, vigor
from jzi.datasets.kitti import RESOLUTION as KITTI_RESOLUTION
from jzi.datasets.matlab import read_matlab
from jzi.datasets.orientations import read_orientations
from jzi.datasets.pairs import check_panoramas
from jzi.encode.photo.pair_images import PairImages
from jzi.errors import PairsError
from jzi.store.geometry.pyramid import WGS84
from jzi.store.photos.pairs import from_view, to_view
from tests import pair_trees as trees

#: A corrected label of Chicago: panorama, positive, row and column, pixels of 640.
CHICAGO = (
    "L-1poX8YZAmBZVLMqBu-4w,41.877949,-87.689396,.jpg",
    "satellite_41.877971796211014_-87.68943505304125.png",
    23.0,
    -29.0,
)


def offsets_of_names(panorama: np.ndarray, satellite: np.ndarray) -> np.ndarray:
    """Metres east and north from aerial images to panoramas, by the positions in their names."""
    azimuth, _, distance = WGS84.inv(satellite[:, 1], satellite[:, 0], panorama[:, 1], panorama[:, 0])
    return np.stack([distance * np.sin(np.radians(azimuth)), distance * np.cos(np.radians(azimuth))], -1)


def test_a_label_of_chicago_puts_the_camera_where_the_name_of_the_panorama_says(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path, cities=("Chicago",), photos=0)
    panorama, satellite, row, col = CHICAGO
    city, labels = tmp_path / "Chicago", tmp_path / "splits__corrected" / "Chicago"
    Image.new("RGB", (64, 32)).save(city / "panorama" / panorama)
    Image.new("RGB", (32, 32)).save(city / "satellite" / satellite)
    with (labels / "satellite_list.txt").open("a") as file:
        file.write(f"{satellite}\n")
    line = f"{panorama} " + " ".join([f"{satellite} {row} {col}"] * 4)
    (labels / "same_area_balanced_test__corrected.txt").write_text(f"{line}\r\n")
    dataset = vigor.read(tmp_path, "same", "test")
    resolution = vigor.RESOLUTION["Chicago"]
    np.testing.assert_allclose(dataset.offset, [[29 * resolution, -23 * resolution]])
    expected = offsets_of_names(np.array([[41.877949, -87.689396]]), dataset.position[dataset.positive])
    assert np.abs(dataset.offset - expected).max() < 0.6 * resolution
    np.testing.assert_allclose(dataset.side_m, 640 * resolution)


@pytest.mark.parametrize("labels", ["splits__corrected", "splits_new", "splits"])
@pytest.mark.parametrize("by_city", [True, False])
def test_all_layouts_of_vigor_give_the_same_pairs(tmp_path: Path, labels: str, by_city: bool) -> None:
    trees.write_vigor(tmp_path, labels=labels, by_city=by_city)
    dataset = vigor.read(tmp_path, "same", "test")
    assert dataset.name == "VIGOR, same-area"
    assert (len(dataset), len(dataset.references)) == (12, 36)
    assert not dataset.rejected
    positions = np.array([[float(each) for each in Path(path).name.split(",")[1:3]] for path in dataset.photos])
    for column in range(4):
        index = dataset.positive if column == 0 else dataset.semi[:, column - 1]
        offset = dataset.offset if column == 0 else dataset.semi_offset[:, column - 1]
        expected = offsets_of_names(positions, dataset.position[index])
        assert (np.abs(offset - expected) < 0.6 * dataset.side_m[index][:, None] / 640).all()


def test_each_city_has_its_own_resolution(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path, photos=2)
    dataset = vigor.read(tmp_path, "same", "test")
    sides = {Path(str(path)).parts[-3]: side for path, side in zip(dataset.references, dataset.side_m, strict=True)}
    assert {city: round(side, 1) for city, side in sides.items()} == {
        "Chicago": 71.2,
        "NewYork": 72.5,
        "SanFrancisco": 75.6,
        "Seattle": 64.5,
    }


def test_original_labels_are_not_metric(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path, labels="splits", scale=0.1112 / 0.114, photos=40)
    dataset = vigor.read(tmp_path, "same", "train")
    assert "original" in dataset.not_metric


def test_original_labels_among_the_corrected_ones_are_refused(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path, labels="splits_new", scale=0.1008 / 0.114, photos=40)
    with pytest.raises(PairsError, match="not of the corrected labels"):
        vigor.read(tmp_path, "same", "train")


def test_across_areas_other_cities_are_tested_than_trained_on(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path)
    train, test = (vigor.read(tmp_path, "cross", split) for split in ("train", "test"))
    cities = [{Path(str(path)).parts[-3] for path in dataset.references} for dataset in (train, test)]
    assert cities == [{"NewYork", "Seattle"}, {"Chicago", "SanFrancisco"}]
    assert (len(train), len(test), len(test.references)) == (12, 12, 18)


def test_missing_files_and_duplicates_of_vigor_are_left_out_and_named(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path, cities=("Chicago", "Seattle"))
    whole = vigor.read(tmp_path, "same", "test")
    gone = [int(whole.positive[0]), int(whole.semi[1, 0])]
    gone[1] = gone[1] if gone[1] not in whole.positive else -1
    for index in gone:
        if index >= 0:
            Path(str(whole.references[index])).unlink()
    Path(str(whole.photos[2])).unlink()
    labels = tmp_path / "splits__corrected" / "Chicago"
    test_file = labels / "same_area_balanced_test__corrected.txt"
    lines = test_file.read_text().splitlines()
    test_file.write_text("\n".join([*lines, lines[1]]) + "\n")
    names = (labels / "satellite_list.txt").read_text().splitlines()
    (labels / "satellite_list.txt").write_text("\n".join([*names, names[3]]) + "\n")
    dataset = vigor.read(tmp_path, "same", "test")
    reasons = {each.reason for each in dataset.rejected}
    assert {
        "aerial image is listed but not on disk",
        "the aerial image of the panorama is not on disk or not listed",
        "panorama is labelled but not on disk",
        "panorama labelled twice",
        "aerial image listed twice",
        f"has no images or no labels in {tmp_path}",
    } == reasons
    assert "only Chicago, Seattle" in dataset.name
    assert all(Path(str(path)).exists() for path in (*dataset.references, *dataset.photos))
    kept = {Path(str(path)).name for path in dataset.photos}
    assert Path(str(whole.photos[0])).name not in kept
    assert Path(str(whole.photos[2])).name not in kept
    missing = dataset.semi < 0  # of a photo whose semi-positive is gone
    assert missing.any() == (gone[1] >= 0 or (whole.semi == gone[0]).any())
    np.testing.assert_array_equal(dataset.references[dataset.positive], whole.references[whole.positive][
        [Path(str(path)).name in kept for path in whole.photos]
    ])  # fmt: skip


def test_places_in_semi_positives_beyond_their_edge_are_no_places_in_them(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path, cities=("Chicago",), photos=20, grid=5)
    labels = tmp_path / "splits__corrected" / "Chicago" / "same_area_balanced_test__corrected.txt"
    lines = labels.read_text().splitlines()
    values = lines[0].split()
    names = (labels.parent / "satellite_list.txt").read_text().splitlines()
    values[4:7] = [next(name for name in names if name not in values), "-330.0", "10.0"]  # beyond 320
    lines[0] = " ".join(values)
    labels.write_text("\n".join(lines) + "\n")
    dataset = vigor.read(tmp_path, "same", "test")
    place = dataset.places(np.array([0]), dataset.semi[:1, 0])[0, 0]
    np.testing.assert_allclose(place, np.array([-10, 330]) * vigor.RESOLUTION["Chicago"])
    assert np.abs(place).max() > dataset.side_m[0] / 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg satellite_1_2.png 3 4", "4 values where 13 belong"),
        ("a.jpg " + "s.png 3 x " * 4, "where a number belongs"),
        ("a.jpg " + "s.png 3 inf " * 4, "where a number belongs"),
    ],
)
def test_labels_of_another_layout_are_refused(tmp_path: Path, line: str, message: str) -> None:
    trees.write_vigor(tmp_path, cities=("Chicago",))
    (tmp_path / "splits__corrected" / "Chicago" / "same_area_balanced_train__corrected.txt").write_text(f"{line}\n")
    with pytest.raises(PairsError, match=message):
        vigor.read(tmp_path, "same", "train")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="splits__corrected"):
        vigor.read(tmp_path, "same", "train")
    (tmp_path / "splits").mkdir()
    with pytest.raises(PairsError, match="no images and labels of Chicago"):
        vigor.read(tmp_path, "same", "train")
    for read in (lambda: cvusa.read(tmp_path, "train"), lambda: cvact.read(tmp_path, "val"),
                 lambda: cvact.read(tmp_path, "test"), lambda: kitti.read(tmp_path, "train")):  # fmt: skip
        with pytest.raises(PairsError, match="give the folder of"):
            read()


def test_photos_that_are_no_panoramas_are_refused_as_a_data_set_and_named_one_by_one(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path, cities=("Chicago",))
    dataset = vigor.read(tmp_path, "same", "test")
    check_panoramas(dataset)
    Image.new("RGB", (40, 30)).save(str(dataset.photos[1]))
    with pytest.raises(PairsError, match="40 x 30 pixels"):
        check_panoramas(dataset)
    images = PairImages(dataset, (32, 64), 64, 32)
    assert images.photo(0) is not None
    assert images.photo(1) is None
    Path(str(dataset.photos[2])).write_bytes(b"no image")
    assert images.photo(2) is None
    assert set(images.unreadable) == {dataset.photos[1], dataset.photos[2]}


def test_cvusa_has_pairs_with_the_camera_in_the_centre(tmp_path: Path) -> None:
    trees.write_cvusa(tmp_path)
    (tmp_path / "streetview" / "panos" / "0000002.jpg").unlink()
    (tmp_path / "bingmap" / "19" / "0000003.jpg").unlink()
    file = tmp_path / "splits" / "train-19zl.csv"
    file.write_text(file.read_text() + "../outside.jpg,x.jpg,y.png\n")
    train, test = cvusa.read(tmp_path, "train"), cvusa.read(tmp_path, "test")
    assert (len(train), len(test)) == (2, 3)
    assert {each.reason for each in train.rejected} == {
        "panorama is listed but not on disk",
        "the aerial image of the panorama is not on disk",
        "path leads out of the folder",
    }
    assert not train.offset.any()
    assert "centre" in train.not_metric
    np.testing.assert_array_equal(test.position[:, 0], [45, 46, 47])


@pytest.mark.parametrize("compressed", [True, False])
def test_cvact_reads_the_numbers_of_its_splits_from_one(tmp_path: Path, compressed: bool) -> None:
    trees.write_cvact(tmp_path, compressed=compressed)
    (tmp_path / "ANU_data_small" / "streetview" / f"pano{1:018d}_grdView.jpg").unlink()
    (tmp_path / "ANU_data_test" / "satview_polish" / f"pano{6:018d}_satView_polish.jpg").unlink()
    train, val, test = (cvact.read(tmp_path, split) for split in ("train", "val", "test"))
    names = [[Path(str(path)).name[4:22].lstrip("0") for path in each.photos] for each in (train, val, test)]
    assert names == [["", "2", "3"], ["4", "5"], ["7"]]
    assert [len(each.rejected) for each in (train, val, test)] == [1, 0, 1]
    np.testing.assert_allclose(train.position[0], (-35.288, 149.089), atol=1e-2)


def test_the_numbers_of_a_split_of_cvact_must_be_those_of_panoramas(tmp_path: Path) -> None:
    trees.write_cvact(tmp_path)
    variables = [
        trees.cell_matrix("panoIds", [trees.char_matrix("", ["abc"])]),
        trees.struct_matrix(
            "trainSet", {"a": trees.number_matrix("", np.ones((1, 1))), "b": trees.number_matrix("", np.array([[2.0]]))}
        ),
    ]
    trees.write_mat(tmp_path / "ACT_data.mat", variables, compressed=True)
    with pytest.raises(PairsError, match="from 2 to 2 for 1 panoramas"):
        cvact.read(tmp_path, "train")
    trees.write_mat(tmp_path / "ACT_data.mat", variables[:1], compressed=False)
    with pytest.raises(PairsError, match="lacks panoIds or the numbers in trainSet"):
        cvact.read(tmp_path, "train")


def test_matlab_files_hold_numbers_texts_cells_and_structures(tmp_path: Path) -> None:
    values = np.arange(6.0).reshape(2, 3)
    variables = [
        trees.number_matrix("numbers", values),
        trees.char_matrix("texts", ["abc", "déf"]),
        trees.cell_matrix("cells", [trees.char_matrix("", ["x"]), trees.number_matrix("", values)]),
        trees.struct_matrix("record", {"first": trees.number_matrix("", values), "second": trees.char_matrix("", "y")}),
        trees.number_matrix("unwanted", values),
    ]
    trees.write_mat(tmp_path / "a.mat", variables, compressed=True)
    read = read_matlab(tmp_path / "a.mat", ("numbers", "texts", "cells", "record", "absent"))
    assert set(read) == {"numbers", "texts", "cells", "record"}
    np.testing.assert_array_equal(read["numbers"], values)
    assert read["texts"] == ["abc", "déf"]
    assert read["cells"][0] == ["x"]
    assert list(read["record"]) == ["first", "second"]


def test_damaged_matlab_files_are_refused_with_a_sentence(tmp_path: Path) -> None:
    good = tmp_path / "good.mat"
    trees.write_mat(good, [trees.number_matrix("x", np.zeros((50, 2))), trees.char_matrix("y", ["abc"])],
                    compressed=True)  # fmt: skip
    content = good.read_bytes()
    bad = tmp_path / "bad.mat"
    rng = np.random.default_rng(0)
    for number in range(300):
        data = bytearray(content)
        if number % 3 == 0:
            data = data[: rng.integers(0, len(data))]
        else:
            for _ in range(number % 5 + 1):
                data[rng.integers(0, len(data))] = rng.integers(0, 256)
        bad.write_bytes(data)
        try:
            read_matlab(bad, ("x", "y"))
        except PairsError as error:
            assert "MATLAB" in str(error)
    bad.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM")
    with pytest.raises(PairsError, match="not of version 5"):
        read_matlab(bad, ("x",))


def test_kitti_places_the_camera_in_the_view_that_a_test_fixes(tmp_path: Path) -> None:
    shares = trees.write_kitti(tmp_path, photos=5)
    dataset = kitti.read(tmp_path, "test1")
    place, heading = dataset.in_view()
    turn = np.radians(10 * shares[:, 2])
    expected = 20 * np.stack([shares[:, 0] * np.cos(turn) - shares[:, 1] * np.sin(turn),
                              shares[:, 0] * np.sin(turn) + shares[:, 1] * np.cos(turn)], -1)  # fmt: skip
    np.testing.assert_allclose(place, expected, atol=1e-9)
    np.testing.assert_allclose(heading, 90 - 10 * shares[:, 2])
    np.testing.assert_allclose(dataset.hfov_deg, 81.4, atol=0.1)
    images = PairImages(dataset, (64, 128), 96, 512)
    for index in range(5):  # the tree marks the camera with a white square
        view = images.view(index, dataset.view[index])
        rows, cols = np.nonzero(view[..., 0] > 64)
        found = np.array([cols.mean() + 0.5 - 256, 256 - rows.mean() - 0.5]) * KITTI_RESOLUTION
        assert np.abs(found - place[index]).max() < 0.5
        assert images.photo(index).shape == (64, 96, 3)


def test_the_frame_of_a_view_and_of_its_image_convert_both_ways() -> None:
    rng = np.random.default_rng(0)
    offset, view = rng.normal(0, 20, (10, 2)), rng.uniform(-180, 180, (10, 3))
    np.testing.assert_allclose(from_view(to_view(offset, np.zeros(10), view)[0], view), offset)


def test_lines_of_another_split_of_kitti_are_refused(tmp_path: Path) -> None:
    trees.write_kitti(tmp_path)
    (tmp_path / "test1_files.txt").write_text((tmp_path / "train_files.txt").read_text())
    with pytest.raises(PairsError, match="shift_x, shift_y and theta"):
        kitti.read(tmp_path, "test1")
    (tmp_path / "test1_files.txt").write_text("a/b/../../c.png 0 0 0\n")
    with pytest.raises(PairsError, match="not <date>/<drive>/<frame>"):
        kitti.read(tmp_path, "test1")


def test_orientations_are_read_from_both_published_lists(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path)
    dataset = vigor.read(tmp_path, "same", "test")
    names = [Path(str(path)).name for path in dataset.photos]
    order = vigor.label_order(tmp_path, "same", "test")
    assert sorted(order) == sorted(names)
    assert order[0].startswith("Ne")  # CCVPE begins with New York
    clockwise = np.arange(len(order)) * 25.0
    text, array = tmp_path / "list.txt", tmp_path / "list.npy"
    lines = [f"City/panorama/{name} {degrees}" for name, degrees in zip(order, clockwise, strict=True)]
    text.write_text("\n".join(lines))
    np.save(array, -clockwise)  # counter-clockwise
    expected = np.array([clockwise[order.index(name)] for name in names])
    for file in (text, array):
        np.testing.assert_allclose(read_orientations(file, names, order), expected)
    np.save(array, clockwise[:-1])
    with pytest.raises(PairsError, match="11 orientations for 12"):
        read_orientations(array, names, order)
    np.save(array, np.array([object()]), allow_pickle=True)
    with pytest.raises(PairsError, match="not a list of orientations"):
        read_orientations(array, names, order)
    np.save(array, clockwise)
    array.write_bytes(array.read_bytes().replace(b"}", b"("))  # numpy parses the header as Python
    with pytest.raises(PairsError, match="not a list of orientations"):
        read_orientations(array, names, order)
