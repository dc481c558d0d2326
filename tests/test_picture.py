"""Pictures of located photos: true scale bars, a posterior that can be seen, a legend of what is drawn, the credit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from jzi.encode.rasters.imagery import Imagery
from jzi.export import picture
from jzi.export.picture import draw_zoom
from jzi.export.posterior_picture import all_squares, coloured, posterior_view, squares_of
from jzi.export.scale_bar import draw_scale_bar
from jzi.locate.answer.location import LocateOptions, Location, to_locations
from jzi.locate.posterior import Posterior
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.cell_grid import Bounds, CellGrid
from jzi.store.geometry.lengths import in_readable_unit, length_text, round_length
from jzi.store.geometry.pyramid import Pyramid, geodesic_distance
from jzi.store.geometry.scale import ground_metres

STATE = BandGrid.covering(16.0, 48.0, 17.0, 48.5, 30.0)
CITY = Pyramid.around(48.2, 16.37, 10_240.0)  # 256 x 256 cells of 40 m


def located(area: CellGrid, cells: dict[tuple[int, int], float]) -> Location:
    row, col = (np.array(each) for each in zip(*cells, strict=True))
    posterior = Posterior.from_cells(area, row, col, np.array(list(cells.values())))
    return to_locations(posterior, LocateOptions(), ["photo.jpg"])[0]


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    drawn: list[Figure] = []
    monkeypatch.setattr(picture, "_save", lambda figure, _: drawn.append(figure))
    return drawn


def texts(figure: Figure) -> list[str]:
    legend = [each.get_text() for each in figure.legends[0].get_texts()]
    return [*legend, *(each.get_text() for each in figure.texts), *(axis.get_title("left") for axis in figure.axes)]


@pytest.mark.parametrize("limit", [0.013, 0.99, 1.0, 4.9, 5.0, 19.0, 87.0, 999.0, 123_456.0])
def test_scale_bars_have_round_lengths_that_fit(limit) -> None:
    length = round_length(limit)
    assert 0.39 * limit < length <= limit
    assert f"{length:e}"[0] in "125" and float(f"{length:.0e}") == length
    assert (in_readable_unit(9_999.0), in_readable_unit(3e6)) == ((1.0, "m"), (0.001, "km"))
    assert (length_text(500.0), length_text(2000.0)) == ("500 m", "2 km")


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:31256"])
def test_scale_bars_are_metres_on_the_ground(crs) -> None:
    area = replace(Pyramid.around(60.0, 16.37, 4000.0), crs=crs)
    x, y = (float(each) for each in area.project(60.0, 16.37))
    bounds = Bounds(x - 500, y - 500, x + 500, y + 500)
    axis = Figure().subplots()
    draw_scale_bar(axis, area, bounds)
    ends = [area.unproject(*at) for at in zip(*axis.lines[0].get_data(), strict=True)]
    metres = float(axis.texts[0].get_text().removesuffix(" m"))
    assert float(geodesic_distance(*ends[0], *ends[1])) == pytest.approx(metres, rel=2e-3)
    assert ground_metres(area, bounds) == pytest.approx(0.5 if crs == "EPSG:3857" else 1.0, abs=0.02)


def test_a_sure_answer_in_a_large_city_is_shown_from_near_and_what_is_not_shown_is_stated(
    figures, tmp_path, take_photo
) -> None:
    location = located(CITY, {(100, 120): 0.96, (10, 240): 0.03})
    squares = all_squares(location)
    assert squares.side == CITY.cell_size and squares.probability.max() == pytest.approx(0.96)
    assert squares.probability.shape[0] <= 20  # a cell has a 20th of the panel's side, at least
    assert squares.outside == pytest.approx(0.03)
    draw_zoom(location, take_photo(tmp_path / "photo.jpg"), None, tmp_path / "a.png")
    assert any("3.0 % not shown" in each for each in texts(figures[0]))


def test_a_diffuse_posterior_is_shown_whole_in_squares_that_sum_to_it() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(256 * 256, 0.3))
    row, col = np.unravel_index(np.arange(256 * 256), (256, 256))
    location = located(CITY, dict(zip(zip(row.tolist(), col.tolist(), strict=True), shares, strict=True)))
    squares = all_squares(location)
    assert squares.probability.sum() == pytest.approx(1) and squares.outside == 0
    assert max(squares.probability.shape) <= 96 and squares.side == 3 * CITY.cell_size
    block = location.posterior.grid()[30:33, 60:63].sum()
    assert squares.probability[10, 20] == pytest.approx(block)


def test_a_sure_answer_in_a_state_is_shown_from_near(figures, tmp_path, take_photo) -> None:
    location = located(STATE, {(900, 1200): 0.8, (901, 1201): 0.16, (10, 40): 0.03})
    squares = all_squares(location)
    rows, cols = squares.probability.shape
    assert squares.bounds.east - squares.bounds.west < 1000 and squares.side == 30.0
    x, y = (float(each) for each in STATE.cell_centers(901, 1201))
    row = int((squares.bounds.north - y) / (squares.bounds.north - squares.bounds.south) * rows)
    col = int((x - squares.bounds.west) / (squares.bounds.east - squares.bounds.west) * cols)
    assert squares.probability[row, col] == pytest.approx(0.16) and squares.outside == pytest.approx(0.03)
    draw_zoom(location, take_photo(tmp_path / "photo.jpg"), None, tmp_path / "a.png")
    assert any("3.0 % not shown" in each for each in texts(figures[0]))


def test_a_diffuse_posterior_of_a_state_is_shown_whole_without_reading_all_of_its_imagery(
    tmp_path, take_photo, town_raster, monkeypatch
) -> None:
    rng = np.random.default_rng(0)
    keys = rng.choice(1_000_000, 2000, replace=False)
    shares = rng.dirichlet(np.full(len(keys), 5.0))
    cells = {(500 + int(key) // 1000, 500 + int(key) % 1000): share for key, share in zip(keys, shares, strict=True)}
    location = located(STATE, cells)
    squares = all_squares(location)
    assert squares.probability.sum() + squares.outside == pytest.approx(1) and squares.outside < 0.01
    assert max(squares.probability.shape) <= 96 and squares.side > 300
    monkeypatch.setattr("jzi.export.overlay.READ_PIXELS", 100 * 100)
    with Imagery([town_raster], STATE) as imagery:
        read, render = [], imagery.render
        monkeypatch.setattr(imagery, "render", lambda bounds, *more: read.append(bounds) or render(bounds, *more))
        draw_zoom(location, take_photo(tmp_path / "photo.jpg"), imagery, tmp_path / "a.png")
    assert read and all(bounds.east - bounds.west < 1000 for bounds in read)


@pytest.mark.parametrize("truth", [(0.0, 0.0), (4000.0, -3000.0)])
def test_the_view_of_the_posterior_holds_the_answer_and_the_true_position(truth) -> None:
    location = located(CITY, {(100, 120): 0.99})
    view = posterior_view(location, truth)
    for x, y in (truth, (location.best.x, location.best.y)):
        assert view.west <= x <= view.east and view.south <= y <= view.north
    assert squares_of(location, view).probability.sum() == pytest.approx(0.99)


def test_more_probable_cells_are_lighter_and_less_transparent() -> None:
    colours = coloured(np.array([[0.009, *np.geomspace(0.0101, 1.0, 50)]]), 1.0)[0]
    lightness = colours[:, :3] @ np.array([0.2126, 0.7152, 0.0722])
    assert colours[0, 3] == 0  # below a hundredth of the greatest
    drawn = colours[:, 3] > 0
    assert drawn[1:].all() and (np.diff(lightness[drawn]) > -1e-3).all() and (np.diff(colours[:, 3]) >= 0).all()
    assert colours[1, 3] > 0.5 and lightness[-1] - lightness[1] > 0.6


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_what_has_no_probability_at_all_is_transparent(kind: type) -> None:
    assert coloured(np.zeros((1, 1), kind), 1.0)[0, 0, 3] == 0


def test_the_legend_names_what_is_drawn_and_nothing_else(figures, tmp_path, take_photo) -> None:
    location, photo = located(CITY, {(100, 120): 0.96, (100, 123): 0.03}), take_photo(tmp_path / "photo.jpg")
    draw_zoom(location, photo, None, tmp_path / "a.png", truth=(location.latitude, location.longitude))
    alone = replace(location, candidates=location.candidates[:1], inside=0.125)
    draw_zoom(alone, photo, None, tmp_path / "a.png")
    with_truth, without = (texts(each) for each in figures)
    both = {"chosen part of the tile", "answer", "within 50 m of the answer", "68 % of the probability"}
    other = {"position that the photo records", "other candidates"}
    assert {*both, *other} <= set(with_truth) and both <= set(without) and not other & set(without)
    assert any("0 m from the position that the photo records" in each for each in with_truth)
    assert any("12.5 % that it was taken in this area" in each for each in without)
    assert "this area" not in " ".join(with_truth)


def test_the_credit_line_of_the_imagery_is_shown(figures, tmp_path, take_photo, town_raster, pyramid: Pyramid) -> None:
    photo, location = take_photo(tmp_path / "photo.jpg"), located(pyramid, {(3, 5): 0.9})
    with Imagery([town_raster], pyramid, attribution="© $City$ 2024 " + 40 * "and others ") as imagery:
        draw_zoom(location, photo, imagery, tmp_path / "a.png")
    draw_zoom(location, photo, None, tmp_path / "a.png")
    with_credit, without = (" ".join(texts(each)) for each in figures)
    assert "Imagery: © $City$ 2024" in with_credit and "Imagery" not in without


@pytest.mark.parametrize("size", [(300, 700), (1600, 400), (40, 30)])
def test_photos_of_any_shape_are_drawn_with_their_own(figures, tmp_path, take_photo, size) -> None:
    from PIL import Image

    path = tmp_path / "photo.jpg"
    Image.new("RGB", size, (90, 120, 60)).save(path)
    draw_zoom(located(CITY, {(100, 120): 0.96}), path, None, tmp_path / "a.png")
    axis: Any = figures[0].axes[0]
    axis.apply_aspect()
    box, inches = axis.get_position(), figures[0].get_size_inches()
    width, height = box.width * inches[0], box.height * inches[1]
    assert width / height == pytest.approx(size[0] / size[1], rel=0.02) and height <= 3.71
