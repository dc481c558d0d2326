"""Several areas located as one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from jzi.cli import main
from jzi.errors import ConfigError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.joint.forest import ForestLocator
from jzi.locate.locator import Locator
from jzi.locate.posterior import Posterior
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo

ENCODER = EncoderInfo("made", False, "1" * 64, 4, 14, "whole")
#: Two areas in different UTM zones, the second one of four times as many cells.
WEST = Pyramid("EPSG:32633", 500_000.0, 5_400_000.0, 640.0, levels=2)
EAST = Pyramid("EPSG:32634", 300_000.0, 5_400_000.0, 1280.0, grid=2, levels=5)


class OneCell:
    """An expert that is sure of one cell but for a residual."""

    name, rules_out, encoder = "made", False, ENCODER

    def __init__(self, area: Pyramid, cells: list[tuple[int, int]], probability: list[float]) -> None:
        self.area, self.cells, self.probability = area, cells, probability
        self.cell_mask = np.ones(area.shape, bool)

    def posterior(self, query: torch.Tensor, options: LocateOptions) -> Posterior:
        row, col = np.array(self.cells).T
        probability = np.repeat(np.array([self.probability]), len(query), 0)
        return Posterior.from_cells(self.area, row, col, probability)

    def uncalibrated(self) -> None:
        return None


def tree(name: str, area: Pyramid, cells: list[tuple[int, int]], probability: list[float], odds: float | None = None):
    detector = None if odds is None else SimpleNamespace(log_odds=lambda query: np.full(len(query), odds))
    return Locator(OneCell(area, cells, probability), lambda: None, name=name, detector=detector)


def forest(west_odds: float | None = None, east_odds: float | None = None) -> ForestLocator:
    west = tree("west", WEST, [(3, 4), (9, 9)], [0.6, 0.3], west_odds)
    return ForestLocator([west, tree("east", EAST, [(0, 0), (20, 20)], [0.8, 0.1], east_odds)])


def locate(located: ForestLocator, **options: float | str) -> tuple:
    how = LocateOptions(**{"estimate": "map", "elsewhere": 0.0, **options})  # type: ignore[arg-type]
    return tuple(located.locate_embeddings(torch.zeros(2, 4), how, ["a.jpg", "b.jpg"]))


def test_areas_without_detectors_count_by_their_cells() -> None:
    located = forest(east_odds=5.0)  # only one of them has any
    assert located.roots(torch.zeros(3, 4)) == pytest.approx(np.repeat([[0.2, 0.8]], 3, 0))
    answer = locate(located)[0]
    assert answer.best.probability == pytest.approx(0.8 * 0.8)
    assert "by their sizes alone: west 20.0 %, east 80.0 %" in answer.notes[0]


def test_areas_count_by_how_well_a_photo_fits_them() -> None:
    located = forest(np.log(12.0), np.log(1.0))  # 0.2 * 12 to 0.8 * 1
    assert located.roots(torch.zeros(1, 4)) == pytest.approx(np.array([[0.75, 0.25]]))
    answer = locate(located)[0]
    assert answer.best.probability == pytest.approx(0.75 * 0.6)
    assert (answer.latitude, answer.longitude) == pytest.approx(np.ravel(WEST.unproject(*WEST.cell_centers(3, 4))))
    assert "in the area of west; probabilities of the areas, by how well the photo fits each" in answer.notes[0]


def test_the_posterior_of_all_areas_sums_to_one() -> None:
    located = forest(np.log(12.0), np.log(1.0))
    answer = locate(located, top=10)[0]
    assert answer.posterior.probability.sum() + answer.residual == pytest.approx(1.0)
    assert answer.posterior.probability.sum() == pytest.approx(0.75 * 0.9)
    assert sum(each.probability for each in answer.candidates) == pytest.approx(0.9)


def test_candidates_of_all_areas_are_ranked_together() -> None:
    candidates = locate(forest(np.log(12.0), np.log(1.0)), top=3)[1].candidates
    assert [each.probability for each in candidates] == pytest.approx([0.45, 0.225, 0.2])
    other = candidates[2]
    assert (other.latitude, other.longitude) == pytest.approx(np.ravel(EAST.unproject(*EAST.cell_centers(0, 0))))
    assert (other.x, other.y) == pytest.approx(np.ravel(WEST.project(other.latitude, other.longitude)))
    assert other.path == ()


def test_the_photo_may_be_from_none_of_the_areas() -> None:
    answer = locate(forest(np.log(12.0), np.log(1.0)), elsewhere=0.5)[0]
    assert answer.inside == pytest.approx((0.2 * 12 + 0.8) / (0.2 * 12 + 0.8 + 1))


def test_models_of_different_encoders_are_refused() -> None:
    west, east = forest().trees
    east.expert.encoder = EncoderInfo("other", False, "2" * 64, 4, 14, "whole")
    with pytest.raises(ConfigError, match="east has another encoder than west"):
        ForestLocator([west, east])


def test_what_needs_one_area_is_refused() -> None:
    with pytest.raises(ConfigError, match="name one model"):
        forest().locate_together([Path("a.jpg")])
    with pytest.raises(ConfigError, match="name one model"):
        forest().with_prior(np.ones((16, 16)))


def test_a_heat_map_of_several_areas_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    options = ["--model", "west", "--model", "east", "--heatmap", str(tmp_path / "heat.tif")]
    result = CliRunner().invoke(main, ["locate", str(tmp_path / "a.jpg"), *options])
    assert result.exit_code == 2
    assert "--heatmap is for one area, but 2 models are named" in result.output
