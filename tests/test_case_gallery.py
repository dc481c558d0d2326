"""The page of the worst and best photos: true to the model, complete in one file, and safe with names of strangers."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder, rotary
from jzi.decode.search import zoom
from jzi.decode.tile_table import TileTable
from jzi.decode.trace import _attention_weights, patch_attention, trace_zoom
from jzi.evaluate.cases import Case, Cases, find_cases, worst_and_best
from jzi.evaluate.photos import LabelledPhotos
from jzi.export.gallery.page import write_gallery
from jzi.export.gallery.pool import ImagePool
from jzi.export.gallery.sources import Sources
from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.posterior import Posterior
from jzi.store.features.map_embeddings import ENCODED, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid

PYRAMID = Pyramid.around(48.2, 16.37, 640.0, levels=2)


def articles(page: str) -> list[str]:
    return re.findall(r"<article.*?</article>", page, re.S)


@pytest.fixture
def expert() -> SimpleNamespace:
    """A zoom with random weights and map, whose decoder reads 3 of the 9 patch tokens of a tile."""
    rng, sides = np.random.default_rng(0), [1, 4, 16]
    embedding = tuple(rng.normal(size=(n, n, 32)).astype(np.float16) for n in sides[:-1])
    status = tuple(np.full((n, n), ENCODED, np.uint8) for n in sides)
    tokens = torch.from_numpy(rng.normal(size=(17, 9, 32))).float()

    class Patches:
        count = 9

        def check(self, k: int) -> None:
            assert k <= 9

        def similarity(self, tile, query):
            return torch.nn.functional.cosine_similarity(tokens[tile], query[:, None], dim=-1)

        def nearest(self, tile, query, k):
            flat = tile.flatten()
            best = self.similarity(flat, query[:, None].expand(-1, tile.shape[1], -1).flatten(0, 1)).topk(k).indices
            return tokens[flat].gather(1, best[..., None].expand(-1, -1, 32)).view(*tile.shape, k, 32)

    table = TileTable(MapEmbeddings(PYRAMID, embedding, status), patches=Patches())
    torch.manual_seed(1)
    decoder = ZoomDecoder(DecoderConfig(width=32, layers=2, heads=2, patch_tokens=3)).eval()
    for parameter in decoder.parameters():
        parameter.data *= 3  # weights that attend to some tokens more than to others
    model = SimpleNamespace(decoder=decoder, temperature=torch.tensor([2.0, 0.5]))
    return SimpleNamespace(model=model, table=table, area=PYRAMID, tokens=tokens)


def test_the_traced_steps_are_those_of_greedy_search(expert) -> None:
    query = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    trace = trace_zoom(expert, query)
    expected = zoom(expert.model.decoder, expert.table, query, temperature=expert.model.temperature)
    assert (trace.paths == expected.paths[:, 0].numpy()).all()
    chosen = np.take_along_axis(trace.probability, trace.paths[..., None], 2)[..., 0]
    assert np.log(chosen) == pytest.approx(expected.log_probability[:, 0].numpy(), abs=1e-4)
    assert trace.probability.sum(-1) == pytest.approx(1)


def test_attention_is_the_decoders_and_of_the_patches_that_it_read(expert) -> None:
    query = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    trace = trace_zoom(expert, query)
    tiles = expert.table.tiles_along(trace.paths)
    read = expert.table.tokens(tiles, query, 3)[:, :, 1:]
    assert torch.equal(expert.tokens[tiles[..., None], torch.from_numpy(trace.patch)], read)
    attention = expert.model.decoder.blocks[0].self_attn
    x, cos_sin = torch.randn(2, 7, 32), rotary(7, 0, 16, "cpu")
    out, (_, value) = attention(x, None, cos_sin)
    weights = _attention_weights(attention, x, cos_sin)
    assert torch.allclose(attention.out_proj((weights @ value).transpose(1, 2).flatten(2)), out, atol=1e-4)
    assert (trace.attention > 0).all() and (trace.attention.sum(-1) < 1).all()
    expert.model.decoder.config = DecoderConfig(width=32, layers=2, heads=2)
    assert trace_zoom(expert, query).attention is None


def test_attention_is_of_the_steps_own_patches(expert) -> None:
    decoder, generator = expert.model.decoder, torch.Generator().manual_seed(3)
    query, actions = torch.randn(1, 32, generator=generator), torch.zeros(1, 2, dtype=torch.int64)
    tiles = torch.randn(1, 2, 4, 32, generator=generator)
    before = patch_attention(decoder, query, tiles, actions)
    changed = tiles.clone()
    changed[:, 1, 2] *= -1  # a patch of the second step, which the first one does not see
    after = patch_attention(decoder, query, changed, actions)
    difference = (after - before).abs()
    assert difference[:, 0].max() < 1e-6 and difference[0, 1].argmax() == 1 and difference[0, 1, 1] > 1e-3


def test_half_of_the_photos_are_the_worst_and_none_is_shown_twice() -> None:
    error = np.array([5.0, 90.0, 1.0, 300.0, 40.0, 7.0])
    worst, best = worst_and_best(error, 4)
    assert (worst.tolist(), best.tolist()) == ([3, 1], [0, 2])
    for count in range(1, 12):
        shown = np.concatenate(worst_and_best(error, count)).tolist()
        assert len(shown) == len(set(shown)) == min(count, 6) and shown[0] == 3
        assert error[shown].tolist() == sorted(error[shown].tolist(), reverse=True)


def cases(name: str, *, count: int = 1) -> Cases:
    posterior = Posterior.from_cells(PYRAMID, np.array([3, 9]), np.array([5, 2]), np.array([0.6, 0.3]))
    location = to_locations(posterior, LocateOptions(), [name])[0]
    shown = tuple(Case(index, index + 1, True, 48.2, 16.37, 120.0, location) for index in range(count))
    position, cell = np.zeros(count), np.zeros(count, int)
    photos = LabelledPhotos("test", torch.randn(count, 32), position, position, cell, cell, 0)
    return Cases(photos, np.full(count, 120.0), shown)


def test_names_of_strangers_are_text_and_what_is_missing_is_said(tmp_path) -> None:
    name = '"><script>alert(1)</script>\n.jpg'
    size = write_gallery(tmp_path / "a.html", cases(name), Sources(), title="</title><b>")
    page = (tmp_path / "a.html").read_text()
    assert size == len(page.encode())
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "</title><b>" not in page
    assert "no zoom decoder took part" in page and "no file of this photo" in page
    assert "Zoom steps</h3>" not in page and "Most similar training photos" not in page
    assert "</span> answer</li>" in page and "</span> true position</li>" in page  # the legend of a page without zoom


def test_attention_is_shown_and_called_so_where_the_decoder_reads_patches(tmp_path, expert) -> None:
    found = cases("a.jpg", count=2)
    write_gallery(tmp_path / "a.html", found, Sources(zoom=expert), title="model")
    page = (tmp_path / "a.html").read_text()
    assert "Attention 0." in page and "colours are its attention" in page and "no attention to show" not in page
    assert all(article.count('class="image i') == 1 + 2 * 2 for article in articles(page))  # map; tile, attention
    assert "</span> answer, chosen part</li>" in page and ": chosen part " in articles(page)[0]
    values = np.full((3, 3), np.nan)
    values[1, 1], values[0, 2] = 0.2, 0.7
    pool = ImagePool()
    assert pool.heat(values) == pool.heat(values.copy()) == "i0" and pool.rules().count("{") == 1


@pytest.fixture
def trained(area, trained_folder, tmp_path):
    shutil.copytree(trained_folder, tmp_path, dirs_exist_ok=True)
    return area


def test_the_page_shows_every_step_in_one_file(trained, tmp_path) -> None:
    command = "evaluate --split train --experts zoom,vpr --gallery-html failures.html --gallery-photos 5"
    shown = json.loads(trained(f"{command} --json").stdout)
    page = (tmp_path / "failures.html").read_text()
    assert shown["gallery_html"] == {"path": "failures.html", "bytes": len(page.encode())} and len(page) < 1e6
    found = articles(page)
    errors = [float(re.search(r'data-error="([\d.]+)"', each)[1]) for each in found]
    assert len(found) == 5 and errors == sorted(errors, reverse=True)
    assert [each.count('data-worst="1"') for each in found] == [1, 1, 1, 0, 0]
    for article in found:
        children = re.findall(r'<div class="children".*?</div>', article, re.S)
        assert len(children) == 3 and all(each.count("<span") == 16 for each in children)
        assert all(len(re.findall(r'class="chosen', each)) == 1 for each in children)
        assert article.count("What was matched on the tile") == article.count("What was matched on the photo") == 3
        assert "Most similar training photos" in article and article.count('class="crop') >= 2
    assert "so that there is no attention to show" in page  # of a decoder that reads embeddings
    assert not re.search(r"""(src|href)=["'](?!#)|url\((?!data:)|@import|https?://""", page)
    used = set(re.findall(r'class="[^"]*\b(i\d+)\b', page))
    assert used == set(re.findall(r"^\.(i\d+)\{", page, re.M))  # each image is there, and used


def test_photos_and_maps_that_are_gone_cost_only_themselves(trained, tmp_path) -> None:
    for photo in (tmp_path / "photos").rglob("*.jpg"):
        photo.write_bytes(b"no photo")
    (tmp_path / "map.tif").unlink()
    report = trained("evaluate --split train --gallery-html a.html --gallery-photos 2")
    assert "a.html" in report.stdout
    page = (tmp_path / "a.html").read_text()
    assert "The map is not shown" in page and "Some photos cannot be shown" in page and len(articles(page)) == 2
    assert "there is no folder" in trained("evaluate --gallery-html no/a.html", 2).stderr


def test_cases_are_located_as_evaluation_does(trained, tmp_path, monkeypatch) -> None:
    from jzi.evaluate.experts import evaluate_experts
    from jzi.workspace.models.evaluated import open_experts
    from jzi.workspace.setup.settings_file import load_settings

    model, cache = open_experts(load_settings(tmp_path / "jzi.toml", (), training=()))
    expert = model.fused(())
    photos = LabelledPhotos.load(cache, expert, "train")
    found = find_cases(expert, photos, 6)
    figures = evaluate_experts({"it": expert}, {}, photos)["it"]
    assert np.median(found.error) == pytest.approx(figures.median_error.value)
    assert [each.rank for each in found.shown[:3]] == [1, 2, 3]
    for case in found.shown:
        assert case.location.photo == photos.ids[case.index]
        assert case.error == pytest.approx(found.error[case.index])
