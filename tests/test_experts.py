"""The experts cells, levels and vpr: their posteriors, their files, and the loss that trains their heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

import jzi.retrieve.dense as dense
import jzi.retrieve.search as search
import jzi.retrieve.vpr as vpr
from jzi.decode.dataset import ZoomDataset
from jzi.errors import ConfigError, ModelError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.posterior import Posterior
from jzi.retrieve.cells import CellsExpert
from jzi.retrieve.dense import DenseExpert
from jzi.retrieve.heads import HeadsConfig, SimilarityHeads, cell_scales
from jzi.retrieve.levels import LevelsExpert, level_embeddings
from jzi.retrieve.vpr import REACH, VprConfig, VprExpert
from jzi.store.features.map_embeddings import ENCODED, NODATA, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.train.config.training import HeadsTrainingConfig
from jzi.train.heads import CellsTask, LevelsTask

WIDTH = 8
AREA = Pyramid.around(48.2, 16.37, 160.0, levels=2)  # 16 x 16 cells of 10 m
ENCODER = EncoderInfo("tiny", False, "e" * 64, WIDTH, 28, "halves")
OPTIONS = LocateOptions("map")


def make_map(nodata: bool = True) -> MapEmbeddings:
    """Random embeddings; the eastern three columns of cells and one tile have no imagery."""
    rng = np.random.default_rng(0)
    status = [np.full((4**level, 4**level), ENCODED, np.uint8) for level in range(3)]
    if nodata:
        status[2][:, 13:] = NODATA
        status[1][2, 1] = NODATA
        status[2][8:12, 4:8] = NODATA
    grids = [rng.normal(size=(*each.shape, WIDTH)).astype(np.float16) for each in status]
    for grid, each in zip(grids, status, strict=True):
        grid[each == NODATA] = np.nan
    return MapEmbeddings(AREA, tuple(grids[:2]), tuple(status), grids[2])


MAP = make_map()
MASK = MAP.status[-1] != NODATA


def make_data(features: MapEmbeddings = MAP, photos: int = 12, seed: int = 1) -> SimpleNamespace:
    """Training data without a cache: photos at random places with imagery."""
    rng, mask = np.random.default_rng(seed), features.status[-1] != NODATA
    row, col = (each[rng.integers(0, mask.sum(), photos)] for each in np.nonzero(mask))
    x, y = AREA.cell_centers(row, col)
    latitude, longitude = AREA.unproject(*(each + rng.uniform(-4.9, 4.9, photos) for each in (x, y)))
    actions = torch.from_numpy(AREA.cell_to_path(row, col))
    query = torch.from_numpy(rng.normal(size=(photos, 1, WIDTH))).half()
    photo_set = ZoomDataset(query, torch.zeros_like(actions), actions, latitude, longitude, 0)
    info = SimpleNamespace(pyramid=AREA, encoder=ENCODER)
    whole = {"map_embeddings": features, "whole_map": features, "train": photo_set, "dataset": photo_set}
    return SimpleNamespace(info=info, val=photo_set, **whole)


def make_task(kind: type, data: SimpleNamespace | None = None, **settings):
    torch.manual_seed(0)
    config = HeadsTrainingConfig(hidden=16, features=8, dropout=0.0, **settings)
    task = kind(Accelerator(cpu=True), data or make_data(), config, None, 0)
    task.begin_epoch(0)
    return task


def queries(count: int = 5) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(3)).half()


def check_grid(posterior: Posterior, expected: np.ndarray, **tolerance: float) -> None:
    """Compare with (photo, row, col) probabilities."""
    for photo, grid in enumerate(expected):
        np.testing.assert_allclose(posterior.grid(photo), grid, **{"atol": 1e-6, **tolerance})


# Heads


def test_codes_have_the_shapes_and_lengths_that_are_documented() -> None:
    heads = SimilarityHeads(HeadsConfig(WIDTH, scales=2, hidden=16, features=6, spaces=3)).eval()
    photos, places = heads(torch.randn(5, WIDTH), torch.randn(7, 2 * WIDTH))
    assert photos.shape == (5, 3, 6) and places.shape == (7, 6)
    assert torch.allclose(photos.norm(dim=-1), heads.scale.expand(5, 3)) and heads.scale.tolist() == pytest.approx(
        [20.0] * 3
    )
    assert torch.allclose(places.norm(dim=-1), torch.ones(7))
    with torch.no_grad():
        heads.log_scale.fill_(50.0)
    assert heads.scale.tolist() == [100.0] * 3


def test_a_cell_is_described_by_its_crop_and_its_ancestors_but_the_root() -> None:
    scales = cell_scales(MAP, np.array([5, 9]), np.array([2, 5]))
    assert scales.shape == (2, 2 * WIDTH)
    np.testing.assert_array_equal(scales[0].numpy(), np.concatenate([MAP.cells[5, 2], MAP.embedding[1][1, 0]]))
    assert (scales[1] == 0).all()  # no imagery


# Cells


def test_the_posterior_of_cells_is_the_softmax_over_all_cells_with_imagery() -> None:
    expert = make_task(CellsTask).expert()
    query = queries()
    with torch.inference_mode():
        photo = expert.heads.photo_codes(query.float())[:, 0].numpy()
        code = expert.heads.place_codes(cell_scales(MAP, *np.nonzero(MASK)).half().float()).numpy()
    weight = np.exp((photo @ code.T).astype(np.float64))
    expected = np.zeros((5, *AREA.shape))
    expected[:, MASK] = weight / weight.sum(1, keepdims=True)
    posterior = expert.posterior(query, OPTIONS)
    check_grid(posterior, expected)
    np.testing.assert_allclose(posterior.probability.sum(1) + posterior.residual, 1)
    assert (posterior.residual == 0).all()
    greedy = expert.posterior(query, LocateOptions("greedy"))
    assert greedy.row.shape == (5, 1) and (greedy.row == posterior.row[:, :1]).all()


@pytest.mark.parametrize("kind", [CellsTask, LevelsTask])
def test_probabilities_that_overflow_are_refused(kind: type) -> None:
    expert = make_task(kind).expert()
    with torch.no_grad():
        for parameter in expert.heads.parameters():
            parameter *= 1e25
    for estimate in ("greedy", "map"):
        with pytest.raises(ModelError, match=f"the expert {expert.name} computed probabilities that are not finite"):
            expert.posterior(queries(), LocateOptions(estimate))


def test_cells_beyond_the_maximum_number_are_the_residual(monkeypatch) -> None:
    monkeypatch.setattr(dense, "MAX_CELLS", 9)
    monkeypatch.setattr(dense, "ENTRIES", 500)  # photos in parts
    expert = make_task(CellsTask).expert()
    posterior = expert.posterior(queries(), OPTIONS)
    assert posterior.row.shape == (5, 9) and (posterior.residual > 0).all()
    np.testing.assert_allclose(posterior.probability.sum(1) + posterior.residual, 1)


@pytest.mark.parametrize("sampled", [6, 20, 150])
def test_a_sample_of_cells_has_the_nearest_and_stands_for_all_others(sampled: int) -> None:
    task = make_task(CellsTask, sampled=sampled, batch_size=4, label_smoothing=0.1)
    part = torch.arange(4)
    count, drawn = len(task.row), torch.zeros(len(task.row))
    distance = torch.cdist(task.position[part], task.centers)
    reach = max(4 * task.config.sigma, 1.0) * AREA.cell_size
    occupied = set(distance.argmin(1).tolist())
    near = torch.tensor([cell in occupied for cell in range(count)]) | (distance.amin(0) <= reach)
    most = min(max(sampled // 2, len(occupied)), sampled - 1)
    torch.manual_seed(0)
    for _ in range(300):
        cells, correction = task._sample(part)
        assert len(set(cells.tolist())) == sampled and occupied <= set(cells.tolist())
        labelled = int(min(near.sum(), most))
        assert near[cells[correction == 0]].all() and (correction == 0).sum() == labelled
        others = correction[correction != 0]
        torch.testing.assert_close(others, torch.full_like(others, np.log((count - labelled) / (sampled - labelled))))
        drawn[cells[correction != 0]] += 1
    assert drawn[~near].std() < 1.5 * drawn[~near].mean().sqrt()  # each as often as the others
    if sampled < 100:
        return  # the loss of so few is biased
    whole = make_task(CellsTask, label_smoothing=0.1)
    whole.network.load_state_dict(task.network.state_dict())
    with torch.inference_mode():
        mean = np.mean([float(task.batch_loss(task.network, part)) for _ in range(300)])
        assert mean == pytest.approx(float(whole.batch_loss(whole.network, part)), rel=0.05)


def test_a_sample_that_cannot_hold_the_cells_of_a_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"heads\.sampled is 12, but the 12 photos of a batch"):
        make_task(CellsTask, sampled=12)
    task = make_task(CellsTask, sampled=13)
    cells, _ = task._sample(torch.arange(12))
    assert set(torch.cdist(task.position, task.centers).argmin(1).tolist()) <= set(cells.tolist())
    make_task(CellsTask, data=make_data(photos=200), sampled=len(task.row), batch_size=200)  # all cells are in it


@pytest.mark.parametrize("sampled", [65_536, 100])
def test_prototypes_change_the_codes_and_are_saved_in_them(tmp_path: Path, sampled: int) -> None:
    task = make_task(CellsTask, prototypes=True, sampled=sampled)
    before = task.expert().codes
    task.network.train()
    task.batch_loss(task.network, torch.arange(4)).backward()
    gradient = task.network.prototypes.grad
    assert (gradient.abs().sum(1) > 0).any()
    with torch.no_grad():
        task.network.prototypes[7] += 1.0
    expert = task.expert()
    changed = (expert.codes != before).any(1)
    assert changed[7] and changed.sum() == 1
    check_reload(expert, tmp_path)


def check_reload(expert: DenseExpert | VprExpert, folder: Path, **tolerance: float) -> None:
    expert.save(folder / "expert.safetensors")
    mask = expert.cell_mask
    again = type(expert).load(folder / "expert.safetensors", expert.entries(), AREA, ENCODER, mask, "cpu")
    whole = expert.posterior(queries(), OPTIONS)
    check_grid(again.posterior(queries(), OPTIONS), np.stack([whole.grid(photo) for photo in range(5)]), rtol=0.05)


# Levels


def test_the_posterior_of_levels_is_the_product_of_softmaxes_among_siblings() -> None:
    expert, query = make_task(LevelsTask).expert(), queries()
    with torch.inference_mode():
        photo = expert.heads.photo_codes(query.float()).numpy().astype(np.float64)
    embeddings, masks = level_embeddings(MAP)
    expected = np.zeros((5, *AREA.shape))
    for number in range(5):
        for path in np.ndindex(16, 16):
            probability, row, col = 1.0, 0, 0
            for level, action in enumerate(path, 1):
                siblings = [(row * 4 + each // 4, col * 4 + each % 4) for each in range(16)]
                with torch.inference_mode():
                    index = [r * 4**level + c for r, c in siblings]
                    codes = expert.codes[level - 1][index].numpy()
                weight = np.exp(codes @ photo[number, level - 1]) * [masks[level - 1][each] for each in siblings]
                row, col = siblings[action]
                probability *= weight[action] / max(weight.sum(), 1e-300)
            expected[number, row, col] = probability
    assert len(embeddings) == 2 and (expected[:, ~MASK] == 0).all()
    posterior = expert.posterior(query, OPTIONS)
    check_grid(posterior, expected / expected.sum((1, 2), keepdims=True))
    np.testing.assert_allclose(expected.sum((1, 2)), 1)
    np.testing.assert_allclose(posterior.probability.sum(1) + posterior.residual, 1)


def test_the_loss_of_levels_is_that_of_the_true_path() -> None:
    data = make_data(make_map(nodata=False))
    task = make_task(LevelsTask, data)
    expert = task.expert()
    with torch.inference_mode():
        log = expert.log_probabilities(data.train.query[:, 0].float()).log_softmax(-1)
        loss = float(task.batch_loss(task.network, torch.arange(12)))
    row, col = AREA.path_to_tile(data.train.actions.numpy())
    expected = -log[torch.arange(12), torch.from_numpy(row * 16 + col)].mean() / AREA.levels
    assert loss == pytest.approx(float(expected), rel=1e-5)


# Files


@pytest.mark.parametrize("kind", [CellsTask, LevelsTask, VprExpert])
def test_an_expert_is_the_same_after_it_is_saved(tmp_path: Path, kind: type) -> None:
    check_reload(make_vpr() if kind is VprExpert else make_task(kind).expert(), tmp_path)


def without(name: str) -> Callable[[Path, dict], object]:
    def change(path: Path, entries: dict) -> None:
        save_file({key: value for key, value in load_file(path).items() if key != name}, path)

    return change


def shortened(name: str) -> Callable[[Path, dict], object]:
    def change(path: Path, entries: dict) -> None:
        save_file({key: value[:-1] if key == name else value for key, value in load_file(path).items()}, path)

    return change


DAMAGE: dict[str, Callable[[Path, dict], object]] = {
    "truncated": lambda path, entries: path.write_bytes(path.read_bytes()[:-100]),
    "garbage": lambda path, entries: path.write_bytes(b"no safetensors at all"),
    "empty": lambda path, entries: path.write_bytes(b""),
    "gone": lambda path, entries: path.unlink(),
    "unknown entry": lambda path, entries: entries.update(nonsense=1),
}
HEADS_DAMAGE: dict[str, Callable[[Path, dict], object]] = {
    **DAMAGE,
    "no width": lambda path, entries: entries.pop("width"),
    "other width": lambda path, entries: entries.update(width=9),
    "hidden of text": lambda path, entries: entries.update(hidden="many"),
    "huge hidden": lambda path, entries: entries.update(hidden=10**10),
    "huge features": lambda path, entries: entries.update(features=10**10),
    "huge spaces": lambda path, entries: entries.update(spaces=10**12),
    "huge scales": lambda path, entries: entries.update(scales=2**62),
    "negative hidden": lambda path, entries: entries.update(hidden=-1),
    "dropout of text": lambda path, entries: entries.update(dropout="a"),
    "dropout of 2": lambda path, entries: entries.update(dropout=2.0),
    "no scale": without("log_scale"),
}
VPR_DAMAGE: dict[str, Callable[[Path, dict], object]] = {
    **DAMAGE,
    "no positions": without("position"),
    "a position less": shortened("position"),
    "no photo": lambda path, entries: save_file({key: value[:0] for key, value in load_file(path).items()}, path),
    "temperature of text": lambda path, entries: entries.update(temperature="a"),
    "temperature of 0": lambda path, entries: entries.update(temperature=0.0),
    "huge width": lambda path, entries: entries.update(width_m=1e9),
}
CASES = [
    *((CellsTask, name) for name in [*HEADS_DAMAGE, "a code less"]),
    *((LevelsTask, name) for name in [*HEADS_DAMAGE, "no mask"]),
    *((VprExpert, name) for name in VPR_DAMAGE),
]


@pytest.mark.parametrize(("kind", "damage"), CASES, ids=[f"{kind.__name__}-{name}" for kind, name in CASES])
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(tmp_path: Path, kind: type, damage: str) -> None:
    """Sizes in config.json must not be allocated before they are compared with the file."""
    expert = make_vpr() if kind is VprExpert else make_task(kind).expert()
    path, entries = tmp_path / "expert.safetensors", expert.entries()
    expert.save(path)
    more = {"a code less": shortened("codes"), "no mask": without("imagery.2")}
    {**HEADS_DAMAGE, **VPR_DAMAGE, **more}[damage](path, entries)
    with pytest.raises(ModelError) as caught:
        type(expert).load(path, entries, AREA, ENCODER, MASK, "cpu")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [CellsTask, LevelsTask])
def test_loading_initialises_no_weights(tmp_path: Path, kind: type) -> None:
    """Weights of the sizes in config.json would be allocated and drawn at random before they are compared."""
    expert = make_task(kind).expert()
    expert.save(tmp_path / "expert.safetensors")
    before = torch.get_rng_state()
    type(expert).load(tmp_path / "expert.safetensors", expert.entries(), AREA, ENCODER, MASK, "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_codes_of_another_map_are_refused(tmp_path: Path) -> None:
    for kind in (CellsTask, LevelsTask):
        expert = make_task(kind).expert()
        expert.save(tmp_path / "expert.safetensors")
        mask = MASK.copy()
        mask[0, 0] = False
        with pytest.raises(ModelError, match=r"does not hold|has codes of shape"):
            type(expert).load(tmp_path / "expert.safetensors", expert.entries(), AREA, ENCODER, mask, "cpu")


def test_a_tile_without_imagery_whose_child_has_some_gives_probabilities(tmp_path: Path) -> None:
    expert = make_task(LevelsTask).expert()
    path = tmp_path / "expert.safetensors"
    expert.save(path)
    tensors = load_file(path)
    save_file({**tensors, "imagery.1": torch.zeros_like(tensors["imagery.1"])}, path)
    again = type(expert).load(path, expert.entries(), AREA, ENCODER, MASK, "cpu")
    posterior, expected = again.posterior(queries(), OPTIONS), expert.posterior(queries(), OPTIONS)
    assert (posterior.probability[:, :10] > 0).all()
    check_grid(posterior, np.stack([expected.grid(photo) for photo in range(5)]), rtol=0.05)


@pytest.mark.parametrize("kind", [CellsExpert, LevelsExpert])
def test_a_map_without_imagery_is_refused_in_a_sentence(kind: Any) -> None:
    empty = make_map()
    for status in empty.status:
        status[:] = NODATA
    heads = make_task(CellsTask if kind is CellsExpert else LevelsTask).network.eval()
    with pytest.raises(ModelError, match=f"the map has no imagery, which the expert {kind.name} needs"):
        kind.from_map(empty, ENCODER, heads)


# The loss over all cells, or over a sample of them


def test_the_loss_of_cells_is_the_cross_entropy_with_gaussian_labels() -> None:
    data = make_data()
    task = make_task(CellsTask, data, sigma=0.7, label_smoothing=0.1)
    with torch.inference_mode():
        log = task.expert().log_probabilities(data.train.query[:, 0].float()).log_softmax(-1).double().numpy()
        loss = float(task.batch_loss(task.network, torch.arange(12)))
    x, y = AREA.project(data.train.latitude, data.train.longitude)
    center_x, center_y = AREA.cell_centers(*np.nonzero(MASK))
    square = (x[:, None] - center_x) ** 2 + (y[:, None] - center_y) ** 2
    label = np.exp(-square / (2 * 7.0**2))
    label /= label.sum(1, keepdims=True)
    expected = -(0.9 * (label * log).sum(1) + 0.1 * log.mean(1)).mean()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_a_sample_as_large_as_the_map_is_the_whole_map() -> None:
    with torch.inference_mode():
        whole, sample = (
            make_task(CellsTask, sampled=count).batch_loss(make_task(CellsTask).network, torch.arange(12))
            for count in (10**6, int(MASK.sum()))
        )
    assert whole == sample


def test_the_sampled_partition_function_is_unbiased() -> None:
    task = make_task(CellsTask, sampled=40, sigma=0.3)
    part = torch.arange(2)
    with torch.inference_mode():
        photo = task.network.photo_codes(task.query(part))[:, 0]
        logits = photo @ task.expert().codes.T
        full = logits.exp().sum(1)
        estimates = []
        for _ in range(400):
            cells, correction = task._sample(part)
            assert len(cells) == 40 and len(cells.unique()) == 40
            estimates.append((logits[:, cells] + correction).exp().sum(1))
    values = torch.stack(estimates)
    error = values.std(0) / len(values) ** 0.5
    assert (error > 0).all()
    assert ((values.mean(0) - full).abs() < 4 * error).all()


@pytest.mark.parametrize(("sampled", "sigma"), [(13, 0.5), (20, 1.0), (60, 3.0), (150, 1.0)])
def test_a_sample_has_the_size_that_is_set_however_many_cells_are_near(sampled: int, sigma: float) -> None:
    task = make_task(CellsTask, sampled=sampled, sigma=sigma)
    cells, correction = task._sample(torch.arange(12))
    assert len(cells) == len(cells.unique()) == len(correction) == sampled
    row, col = AREA.path_to_tile(task.train.actions.numpy())
    index = np.cumsum(MASK.ravel()).reshape(MASK.shape) - 1
    assert set(index[row, col].tolist()) <= set(cells.tolist())
    assert float(correction.exp().sum()) == pytest.approx(int(MASK.sum()), rel=1e-4)  # all cells are stood for


def test_label_smoothing_is_unbiased_under_sampling() -> None:
    part = torch.arange(2)
    every, task = make_task(CellsTask, label_smoothing=0.9), make_task(CellsTask, label_smoothing=0.9, sampled=60)
    with torch.inference_mode():
        task.network.log_scale.zero_()  # similar logits, so that the logarithm of the estimated sum has little bias
        whole = float(every.batch_loss(task.network, part))
        losses = np.array([float(task.batch_loss(task.network, part)) for _ in range(400)])
    assert losses.mean() == pytest.approx(whole, abs=4 * losses.std() / 20 + 0.01)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0])
def test_a_sample_contains_the_cells_that_carry_the_labels(sigma: float) -> None:
    data = make_data()
    task = make_task(CellsTask, data, sampled=60, sigma=sigma)
    row, col = AREA.path_to_tile(data.train.actions.numpy())
    index = np.cumsum(MASK.ravel()).reshape(MASK.shape) - 1
    for photo in range(12):
        cells, _ = task._sample(torch.tensor([photo]))
        assert index[row[photo], col[photo]] in cells


# Visual place recognition


def make_vpr(photos: int = 30, width: float = 7.0, temperature: float = 0.05, seed: int = 5) -> VprExpert:
    """Random photos, some on the edges of the map and at its corners, some where there is no imagery."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-80, 80, (2, photos))
    x[: min(4, photos)] = [-80, 80, -80, 79.999][:photos]
    y[: min(4, photos)] = [80, -80, -79.999, 80][:photos]
    embedding = torch.from_numpy(rng.normal(size=(photos, WIDTH))).half()
    return VprExpert(AREA, ENCODER, MASK, embedding, x, y, VprConfig(width, temperature))


def density(expert: VprExpert, query: torch.Tensor) -> np.ndarray:
    """(photo, row, col) the kernel density by a loop over the photos and an entry for every cell."""
    unit = query.double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    weight = np.exp(unit @ expert.embedding.double().numpy().T / expert.config.temperature)
    weight /= weight.sum(1, keepdims=True)
    center_x, center_y = AREA.cell_centers(*np.indices(AREA.shape))
    total = np.zeros((len(query), *AREA.shape))
    for photo, (x, y) in enumerate(zip(expert.x, expert.y, strict=True)):
        square = (center_x - x) ** 2 + (center_y - y) ** 2
        kernel = (
            np.exp(-square / (2 * expert.config.width_m**2)) * MASK * (square <= (REACH * expert.config.width_m) ** 2)
        )
        if kernel.sum():
            total += weight[:, photo, None, None] * kernel / kernel.sum()
    return total


@pytest.mark.parametrize("photos", [1, 3, 30, 300])
@pytest.mark.parametrize("width", [2.5, 7.0, 20.0])
@pytest.mark.parametrize("dense_cells", [0, 4096])
def test_the_posterior_of_vpr_is_a_kernel_density_over_the_training_photos(
    photos: int, width: float, dense_cells: int, monkeypatch
) -> None:
    monkeypatch.setattr(vpr, "DENSE_CELLS", dense_cells)
    monkeypatch.setattr(vpr, "NEIGHBOURS", 300)
    monkeypatch.setattr(vpr, "BATCH", 3)
    expert = make_vpr(photos, width)
    posterior, expected = expert.posterior(queries(), OPTIONS), density(expert, queries())
    check_grid(posterior, expected, rtol=1e-4)
    np.testing.assert_allclose(posterior.probability.sum(1) + posterior.residual, 1)
    np.testing.assert_allclose(posterior.residual, 1 - expected.sum((1, 2)), atol=1e-5)


def test_a_training_photo_is_located_in_its_own_cell() -> None:
    expert = make_vpr(60, width=2.5, temperature=0.005)
    row, col = AREA.cells_at(*AREA.unproject(expert.x, expert.y))
    inside = (row >= 0) & MASK[row, col]
    greedy = expert.posterior(expert.embedding, LocateOptions("greedy"))
    assert inside.sum() > 30
    assert (greedy.row[inside, 0] == row[inside]).all() and (greedy.col[inside, 0] == col[inside]).all()


def test_a_graph_is_searched_above_the_number_for_exact_search(monkeypatch) -> None:
    pytest.importorskip("faiss")
    expert = make_vpr(200)
    exact = expert.posterior(queries(), OPTIONS)
    monkeypatch.setattr(vpr, "EXACT_PHOTOS", 199)
    built = []
    build = search.build_graph
    monkeypatch.setattr(search, "build_graph", lambda embedding: built.append(len(embedding)) or build(embedding))
    graph = make_vpr(200).posterior(queries(), OPTIONS)
    assert built == [200]
    check_grid(graph, np.stack([exact.grid(photo) for photo in range(5)]), rtol=1e-3)


def test_the_fit_finds_the_width_that_photos_scatter_by() -> None:
    rng = np.random.default_rng(0)
    expert = make_vpr(60)
    places = rng.integers(0, 60, 80)
    for spread, expected in ((1.0, (0.25, 0.35, 0.5)), (18.0, (1.4, 2.0))):
        x, y = expert.x[places] + rng.normal(0, spread, 80), expert.y[places] + rng.normal(0, spread, 80)
        row, col = AREA.cells_at(*AREA.unproject(x, y))
        kept = (row >= 0) & MASK[row, col]
        query = expert.embedding[places[kept]] + torch.from_numpy(rng.normal(0, 0.05, (kept.sum(), WIDTH))).float()
        fitted = expert.fit(query, row[kept], col[kept])
        assert fitted.config.width_m / AREA.cell_size in expected
        assert fitted.config.temperature in vpr.TEMPERATURES
        value = {
            config: log_likelihood(expert, config, query, row[kept], col[kept]) for config in others(fitted.config)
        }
        assert max(value, key=value.__getitem__) == fitted.config


def others(config: VprConfig) -> list[VprConfig]:
    """The fitted parameters and some others of those that were tried."""
    widths = [config.width_m, 0.25 * AREA.cell_size, 2.0 * AREA.cell_size]
    return [VprConfig(width, temperature) for width in widths for temperature in (config.temperature, 0.005, 0.1)]


def log_likelihood(expert: VprExpert, config: VprConfig, query, row, col) -> float:
    changed = VprExpert(AREA, ENCODER, MASK, expert.embedding, expert.x, expert.y, config)
    return float(np.log(changed.posterior(query, OPTIONS).at(row, col) * (1 - 1e-4) + 1e-4 / MASK.sum()).mean())
