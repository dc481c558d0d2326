"""Flat retrieval: its losses equal the papers', its batches hold neighbours, and it gives locations like the zoom."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file

from jzi.encode.encoders.encoder import Encoder
from jzi.encode.rasters.cells import CellImages
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import ConfigError, ModelError
from jzi.locate.posterior import Posterior
from jzi.rerank.judges.scripted import ScriptedJudge
from jzi.retrieve.expert import RetrievalExpert
from jzi.retrieve.retriever import Retriever
from jzi.retrieve.search import CellIndex, build_graph, normalise_rows, save_graph
from jzi.retrieve.similarity import fit_temperature, ranks
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.model_config import ZoomModelConfig
from jzi.store.model_folder import create_model
from jzi.store.photos.photo_table import read_photo_table
from jzi.train.config.encoders import RetrieverConfig
from jzi.train.encoders.retriever import train_retriever
from jzi.train.encoders.sampling import nearest_on_map, neighbour_batches
from jzi.train.loop import TrainingLoop
from jzi.train.losses import soft_margin_triplet, symmetric_infonce
from jzi.workspace.models.locators import load

QUICK = RetrieverConfig(epochs=4, batch_size=8, blocks=1, learning_rate=1e-3, mine_every=2, precision="no")


def unit_rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# Losses


def test_infonce_is_torch_cross_entropy_both_ways_where_all_cells_differ() -> None:
    query, reference, scale = unit_rows(6, 5, seed=1), unit_rows(6, 5, seed=2), torch.tensor(9.0)
    logits, own = scale * query @ reference.T, torch.arange(6)
    plain = F.cross_entropy(logits, own, label_smoothing=0.1) + F.cross_entropy(logits.T, own, label_smoothing=0.1)
    torch.testing.assert_close(symmetric_infonce(query, reference, own, scale, 0.1), plain / 2)


def test_triplets_are_the_mean_of_soft_margins_over_all_negatives() -> None:
    query, reference = unit_rows(4, 5, seed=1), unit_rows(4, 5, seed=2)
    similarity, total = query @ reference.T, 0.0
    for i in range(4):
        for j in range(4):
            if i != j:
                total += float(torch.log1p(torch.exp(20 * (similarity[i, j] - similarity[i, i]))))
                total += float(torch.log1p(torch.exp(20 * (similarity[j, i] - similarity[i, i]))))
    found = soft_margin_triplet(query, reference, torch.arange(4), torch.tensor(20.0), 0.0)
    assert float(found) == pytest.approx(total / 24, rel=1e-5)


def test_photos_of_one_cell_are_no_negatives_of_each_other() -> None:
    query, reference, own = unit_rows(4, 5, seed=1), unit_rows(4, 5, seed=2), torch.arange(4)
    reference[3] = reference[2]
    cells, scale = torch.tensor([0, 1, 2, 2]), torch.tensor(10.0)
    similarity = query @ reference.T
    logits = scale * similarity
    logits[2, 3] = logits[3, 2] = -torch.inf
    plain = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(symmetric_infonce(query, reference, cells, scale, 0.0), plain)
    pairs = [(i, j) for i in range(4) for j in range(4) if cells[i] != cells[j]]
    margins = [similarity[i, j] - similarity[i, i] for i, j in pairs] + [
        similarity[j, i] - similarity[i, i] for i, j in pairs
    ]
    triplets = F.softplus(scale * torch.stack(margins)).mean()
    torch.testing.assert_close(soft_margin_triplet(query, reference, cells, scale, 0.0), triplets)


@pytest.mark.parametrize("loss", [symmetric_infonce, soft_margin_triplet])
def test_empty_places_of_a_batch_change_nothing(loss) -> None:
    query, reference, scale = unit_rows(5, 5, seed=1), unit_rows(5, 5, seed=2), torch.tensor(10.0)
    cells = torch.tensor([4, 5, 6, 7, -1])
    query[4] = reference[4] = 0
    query.requires_grad_()
    whole = loss(query[:4], reference[:4], cells[:4], scale, 0.1)
    padded = loss(query, reference, cells, scale, 0.1)
    torch.testing.assert_close(whole, padded)
    padded.backward()
    assert torch.isfinite(query.grad).all() and (query.grad[4] == 0).all()


# Batches


def test_batches_of_neighbours_hold_each_photo_once_and_no_place_twice() -> None:
    rng = np.random.default_rng(0)
    place = rng.integers(0, 60, 200)
    where = torch.stack([torch.arange(60) // 8, torch.arange(60) % 8], -1).float()
    near = nearest_on_map(where, 16)
    order = neighbour_batches(rng.permutation(200), place, near[place], 16, 8, rng)
    assert sorted(order) == list(range(200))
    whole = [order[start : start + 16] for start in range(0, 96, 16)]  # the last batches may repeat cells
    assert all(len(set(place[batch])) == 16 for batch in whole)

    def spread(batch: np.ndarray) -> float:
        return float(where[place[batch]].std(0).mean())

    shuffled = rng.permutation(200)
    assert np.mean([spread(batch) for batch in whole]) < 0.9 * np.mean(
        [spread(shuffled[start : start + 16]) for start in range(0, 96, 16)]
    )


def test_the_nearest_on_the_map_come_first_and_leave_the_place_itself_out() -> None:
    where = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 3.0], [0.0, 7.0]])
    assert nearest_on_map(where, 9).tolist() == [[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0]]


# Cells


def test_a_cell_is_the_middle_of_its_image(write_raster, pyramid, tmp_path) -> None:
    side = pyramid.tiles_per_side(pyramid.levels)  # 64 cells of 12.5 m
    data = np.full((3, 800, 800), 40, np.uint8)
    data[:, 125:138, 250:263] = 230  # approximately the cell (10, 20)
    raster = write_raster(data, pyramid.bounds, pyramid.crs)
    with Imagery([raster], pyramid) as imagery:
        images = CellImages(imagery, 28, 4.0, device=torch.device("cpu"), folder=tmp_path, progress=False)
    assert len(images) == side**2 and images.has_imagery.all()
    own, corner = images[torch.tensor([10 * side + 20, 0])].float().mean(-1)
    bright = (own > 150).nonzero().float()
    assert bright.mean(0).sub(13.5).abs().max() < 1 and 5 <= len(bright) ** 0.5 <= 9
    assert own[0, 0] < 60 and corner[14, 14] < 60
    assert 100 < corner[0, 0] < 130  # outside of the map is the background


def test_a_cell_has_the_same_image_in_every_rectangle(write_raster, tmp_path) -> None:
    area = Pyramid.around(48.2, 16.37, 800.0, grid=3, levels=3)  # 27 x 27 cells, rendered in blocks of 9 x 9
    noise = np.random.default_rng(0).integers(0, 256, (3, 500, 500), dtype=np.uint8)
    raster = write_raster(noise, area.bounds, area.crs)
    with Imagery([raster], area) as imagery:

        def render(**options) -> CellImages:
            return CellImages(imagery, 14, 5.0, device=torch.device("cpu"), folder=tmp_path, progress=False, **options)

        whole, numbers = render(), torch.arange(27 * 27).reshape(27, 27)
        for window in ((slice(0, 8), slice(8, 16)), (slice(16, 24), slice(10, 27))):
            part = render(window=window)
            assert part.has_imagery.shape == whole.has_imagery[window].shape
            assert len(part.mosaic) < len(whole.mosaic)
            assert torch.equal(part[torch.arange(len(part))], whole[numbers[window].flatten()])


# Training, indexing, answering


@pytest.fixture(scope="module")
def train(town_folder: Path, encoder_folder: Path):
    """Train a retriever on the tiny town, whose area has 256 cells to encode for every validation."""
    area = Pyramid.around(48.2, 16.37, 800.0, levels=2)

    def run(folder: Path, config: RetrieverConfig = QUICK):
        encoder = Encoder.load(encoder_folder, image_size=28, device="cpu")
        table = read_photo_table(town_folder / "photos").inside(area)
        with Imagery([town_folder / "map.tif"], area) as imagery:
            return train_retriever(imagery, table, encoder, folder, config)

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retriever whose training nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "retriever"
    train(folder)
    return folder


@pytest.mark.parametrize("method", ["sample4geo", "infonce", "transgeo"])
def test_a_retriever_learns_its_training_photos(train, tmp_path, capsys, method) -> None:
    config = replace(QUICK, method=method, epochs=6, augment=False)
    report = train(tmp_path / "retriever", config)
    shown = capsys.readouterr().err
    assert "retriever: " in shown and "epoch 6 of 6" in shown and "fine-tuning" not in shown
    lines = [json.loads(line) for line in (tmp_path / "retriever/train/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert report.epochs == 6 and {"recall@1", "recall@5", "recall@10", "recall@40m"} <= set(report.best)
    assert Retriever.load(tmp_path / "retriever").method == method
    assert train(tmp_path / "retriever", config).epochs == 0  # a complete run is not trained again


class Killed(BaseException):
    """Stands for a kill signal."""


@pytest.mark.parametrize("steps", [2, 5, 8])
def test_a_killed_training_goes_on_as_if_it_had_not_been(train, whole, tmp_path, monkeypatch, steps) -> None:
    config = replace(QUICK, save_every_s=1e-9)
    step, done = TrainingLoop.step, []

    def killed(*args):
        if len(done) == steps:
            raise Killed
        done.append(1)
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "step", killed)
        with pytest.raises(Killed):
            train(tmp_path / "killed", config)
    train(tmp_path / "killed", config)
    expected, resumed = (load_file(folder / "encoder/model.safetensors") for folder in (whole, tmp_path / "killed"))
    for name, value in expected.items():
        torch.testing.assert_close(value, resumed[name], rtol=0, atol=0, msg=name)


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in ({"method": "netvlad"}, {"blocks": 0}, {"context": 0.5}, {"neighbours": 200}):
        with pytest.raises(ConfigError):
            RetrieverConfig(**wrong)


def test_ranks_count_what_is_more_similar() -> None:
    reference = torch.eye(4)
    query = F.normalize(torch.tensor([[1.0, 0.5, 0, 0], [0, 0.1, 0.7, 0.9]]), dim=-1)
    assert ranks(query, reference, torch.tensor([0, 1])).tolist() == [0, 2]


def test_the_temperature_makes_similarities_as_sure_as_they_are_right() -> None:
    rng = torch.Generator().manual_seed(0)
    reference = unit_rows(50, 16)
    truth = torch.randint(50, (400,), generator=rng)
    sure = F.normalize(reference[truth] + 0.1 * torch.randn(400, 16, generator=rng), dim=-1)
    unsure = F.normalize(reference[truth] + 1.5 * torch.randn(400, 16, generator=rng), dim=-1)
    assert fit_temperature(sure, reference, truth) < fit_temperature(unsure, reference, truth)


def test_the_graph_finds_nearly_what_exact_search_finds() -> None:
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(3000, 16)).astype(np.float16)
    row, col = np.divmod(np.arange(3000), 60)
    query = rng.normal(size=(50, 16))
    exact = CellIndex(row, col, embedding)
    similarity, cells = exact.search(query, 5)
    best = normalise_rows(query) @ normalise_rows(embedding).T
    assert (cells[:, 0] == best.argmax(1)).all()
    np.testing.assert_allclose(similarity[:, 0], best.max(1), atol=1e-5)
    graph = CellIndex(row, col, embedding, build_graph(embedding))
    assert np.mean(graph.search(query, 5)[1] == cells) > 0.95
    assert graph.bytes > exact.bytes == 3000 * 16 * 4


RETRIEVER = "--set retriever.epochs=2 --set retriever.blocks=1 --set retriever.batch_size=8"


@pytest.fixture(scope="module")
def retrieved_folder(prepare, area_folder) -> Path:
    commands = (f"train-retriever {RETRIEVER}", "index --hnsw", "encode-queries --retriever retriever")
    return prepare(area_folder, "retrieved", *commands)


@pytest.fixture
def retrieved(area, retrieved_folder, tmp_path):
    """A working directory with a trained retriever, its index and its photos."""
    shutil.copytree(retrieved_folder, tmp_path, dirs_exist_ok=True)
    return area


def test_commands_lead_from_a_map_to_places(retrieved, tmp_path, photo_folder) -> None:
    jzi = retrieved
    found = json.loads(jzi("evaluate --retriever retriever --json").stdout)
    assert {"recall@40m", "recall@50m", "recall@100m", "recall@1", "recall@5", "recall@10"} <= set(found)
    assert "cell among first   10" in jzi("evaluate --retriever retriever").stdout
    assert json.loads(jzi("evaluate --retriever retriever --approximate --json").stdout)["photos"] == found["photos"]
    photo = next(photo_folder.rglob("*.jpg"))
    place = json.loads(jzi(f"locate {photo} --retriever retriever --json --geojson place.geojson").stdout)
    assert len(place["candidates"]) == 5 and place["candidates"][0]["source"] == "mean"
    assert (tmp_path / "place.geojson").exists()
    greedy = json.loads(jzi(f"locate {photo} --retriever retriever --estimate greedy --json").stdout)
    exact = json.loads(jzi(f"locate {photo} --retriever retriever --estimate map --json").stdout)
    assert greedy["path"] == exact["path"]
    output = json.loads(jzi("info retriever --json").stdout)
    assert output["kind"] == "retriever" and round(output["footprint_m"]) == 50 and output["graph"] == "there"
    assert json.loads(jzi("info retriever/index.zarr --json").stdout)["cells"]["encoded"] == 4096
    again = jzi("index").stdout
    assert again.startswith("0 cells encoded, 4096 reused")


def test_a_damaged_chunk_is_encoded_anew(retrieved, tmp_path) -> None:
    cells = tmp_path / "retriever/index.zarr/cells/embedding/c/0/1/0"
    before = cells.read_bytes()
    cells.write_bytes(before[:-9] + bytes(9))
    assert "jzi index" in retrieved("evaluate --retriever retriever", code=2).stderr
    assert retrieved("index").stdout.startswith("1024 cells encoded, 3072 reused")
    assert cells.read_bytes() == before


def test_indices_are_cared_for_as_caches(retrieved, tmp_path) -> None:
    jzi = retrieved
    assert "4096 cells, 30 photos" in jzi("cache ls").stdout
    listed = [json.loads(line) for line in jzi("cache ls retriever --json").stdout.splitlines()]
    described, retriever = (
        json.loads(line) for line in jzi("info retriever/index.zarr retriever --json").stdout.splitlines()[:2]
    )
    assert [each["complete"] for each in listed] == [described["complete"]] == [True]
    assert described["cells"]["encoded"] == 4096 and "tiles" not in described and described["photos"] == 30
    assert retriever["kind"] == "retriever" and retriever["index"] == "there"
    assert "retriever" in jzi("cache rm retriever/index.zarr --yes", code=2).stderr  # it needs its index
    assert jzi("cache verify retriever/index.zarr").stdout.startswith("retriever/index.zarr: sound")
    shutil.copytree(tmp_path / "retriever/index.zarr", tmp_path / "copy.zarr")
    jzi("cache rm copy.zarr --yes")  # as the retriever has its own
    shutil.copytree(tmp_path / "retriever/index.zarr", tmp_path / "partial.zarr")
    shutil.rmtree(tmp_path / "partial.zarr/cells/status/c/1")
    assert "2048 cells" in jzi("cache verify partial.zarr", code=1).stdout
    assert "2048 cells" in jzi("cache merge retriever/index.zarr partial.zarr").stdout
    assert jzi("cache verify partial.zarr").exit_code == 0


def test_what_does_not_belong_together_is_refused(retrieved, tmp_path, photo_folder) -> None:
    jzi, photo = retrieved, next(photo_folder.rglob("*.jpg"))
    assert "retriever" in jzi("evaluate --set model.path=retriever", code=2).stderr
    assert "--approximate" in jzi(f"locate {photo} --approximate --model retriever", code=2).stderr
    assert "--model" in jzi(f"locate {photo} --retriever retriever --model m", code=2).stderr
    assert "--beams" in jzi(f"locate {photo} --retriever retriever --beams 3", code=2).stderr
    assert "context" not in jzi("train-retriever --set retriever.method=best", code=2).stderr
    (tmp_path / "retriever/hnsw.faiss").unlink()
    assert "--hnsw" in jzi("evaluate --retriever retriever --approximate", code=2).stderr
    assert "train-retriever" in jzi("index --retriever nowhere", code=2).stderr
    assert "-o" in jzi(f"train-retriever {RETRIEVER} --method infonce", code=2).stderr
    with pytest.raises(ModelError, match="no retriever"):
        mine = Retriever.load(tmp_path / "retriever")
        zoom = ZoomModelConfig(pyramid=mine.pyramid, encoder=mine.encoder, imagery=None, decoder={"layers": 1})
        create_model(tmp_path / "other", zoom)
        Retriever.load(tmp_path / "other")


def test_probabilities_of_retrieval_are_those_of_its_similarities(retrieved, tmp_path, photo_folder) -> None:
    locator = load(tmp_path / "retriever", "cpu")
    assert isinstance(locator.expert, RetrievalExpert)
    retriever = locator.expert.retriever
    _, query = locator.encode(sorted(photo_folder.rglob("*.jpg"))[:3])
    posterior: Posterior = locator.posterior(query)
    cache = retriever.open_cache()
    row, col, embedding = cache.cells.read()
    similarity = normalise_rows(query.numpy()) @ normalise_rows(embedding).T / retriever.temperature
    expected = torch.from_numpy(similarity).softmax(-1).numpy()
    for photo in range(3):
        grid = np.zeros((64, 64))
        grid[row, col] = expected[photo]
        np.testing.assert_allclose(posterior.grid(photo), grid, atol=1e-6)


def test_candidates_of_a_retriever_are_compared(retrieved, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ScriptedJudge({}, kind="random")
    monkeypatch.setattr("jzi.workspace.stages.reranker.open_judge", lambda *_: judge)
    line = "rerank evaluate --judge x --retriever retriever --split train --photos 3 --methods pairs --json"
    row = json.loads(retrieved(line).stdout)
    assert row["photos"] == 3
    assert row["cost"]["asked"] == judge.calls > 0


def test_a_graph_that_fills_the_disk_is_one_short_sentence(tmp_path: Path, monkeypatch) -> None:
    graph = build_graph(np.random.default_rng(0).normal(size=(500, 64)))
    write = faiss.write_index
    monkeypatch.setattr(faiss, "write_index", lambda index, _: write(index, "/dev/full"))
    with pytest.raises(ModelError) as error:
        save_graph(graph, tmp_path / "hnsw.faiss")
    assert str(error.value) == f"{tmp_path / 'hnsw.faiss'} cannot be written: No space left on device"
    assert not list(tmp_path.iterdir())
