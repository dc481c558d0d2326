"""Figures on pairs: ranks as published code counts them, re-ranking, and metres of the final place."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jzi.datasets import vigor
from jzi.evaluate.cross_view import (
    CrossViewEvaluation,
    Errors,
    Retrieval,
    along_and_across,
    final_errors,
    heading_error,
    rank_references,
)
from jzi.evaluate.published import CROSS, CVACT_TEST, PAIRS, SAME, published_pairs
from jzi.refine.rerank import rerank_scores
from jzi.store.photos.pairs import moved
from tests import pair_trees as trees


def sample4geo_scores(similarity: np.ndarray, labels: np.ndarray) -> tuple[list[float], float]:
    """`calculate_scores` of Sample4Geo for VIGOR, restated: recall at 1, 5, 10 and 1 %, and the hit rate."""
    photos, references = similarity.shape
    topk = [1, 5, 10, references // 100]
    results, hits = [0.0] * len(topk), 0.0
    for photo in range(photos):
        higher = similarity[photo] > similarity[photo, labels[photo][0]]
        ranking = higher.sum()
        for place, k in enumerate(topk):
            if ranking < k:
                results[place] += 1
        mask = np.ones(references)
        for near in labels[photo][1:]:
            mask[near] = 0
        if (higher * mask).sum() < 1:
            hits += 1
    return [result / photos for result in results], hits / photos


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("references", [7, 250, 999])
def test_recall_and_hit_rate_are_those_of_sample4geo(seed: int, references: int) -> None:
    rng = np.random.default_rng(seed)
    photos, width = 700, 4
    # few distinct values, so that many similarities are equal
    query = rng.integers(-2, 3, (photos, width)).astype(np.float32)
    reference = rng.integers(-2, 3, (references, width)).astype(np.float32)
    labels = np.stack([rng.permutation(references)[:4] for _ in range(photos)])
    closest = (query @ reference.T).argmax(1)
    labels[::2, 0] = closest[::2]  # the positive is often right
    ranking = rank_references(torch.from_numpy(query), torch.from_numpy(reference), labels[:, 0], labels[:, 1:], 5)
    figures = Retrieval.of(ranking).figures()
    recall, hit_rate = sample4geo_scores(query @ reference.T, labels)
    names = ["recall@1", "recall@5", "recall@10", "recall@1%"]
    assert [figures[name].value for name in names] == recall
    assert figures["hit_rate"].value == hit_rate
    assert ranking.top.shape == (photos, 5)
    np.testing.assert_allclose(ranking.similarity[:, 0], (query @ reference.T).max(1))


def test_missing_semi_positives_change_no_hit() -> None:
    similarity = torch.tensor([[0.9, 0.5, 0.1]])
    kwargs = {"positive": np.array([1]), "top": 2}
    query = torch.eye(3)[:1] * 0 + similarity
    assert not rank_references(query, torch.eye(3), semi=np.array([[-1, 2]]), **kwargs).hit[0]
    assert rank_references(query, torch.eye(3), semi=np.array([[0, -1]]), **kwargs).hit[0]


def test_one_per_cent_is_a_whole_number_of_all_references() -> None:
    rank = np.array([0, 1, 2, 3])
    for references, share in ((99, 0.0), (199, 0.25), (200, 0.5), (399, 0.75)):
        ranking = replace(_ranking(rank), references=references)
        assert Retrieval.of(ranking).one_percent.value == share


def test_reranking_follows_equation_4_and_changes_recall_at_1_alone() -> None:
    similarity = torch.tensor([[0.80, 0.75, 0.70], [0.9, 0.2, 0.1]])
    match = torch.tensor([[0.10, 0.40, 0.44], [0.5, 0.6, 0.7]])
    assert rerank_scores(similarity, match).argmax(1).tolist() == [1, 0]  # 0.90, 1.15, 1.14 and 1.4, 0.8, 0.8
    ranking = _ranking(np.array([1, 0, 7]))
    before, after = Retrieval.of(ranking), Retrieval.of(ranking, np.array([True, True, False]))
    assert before.first.value == pytest.approx(1 / 3)
    assert after.first.value == pytest.approx(2 / 3)
    assert after.figures()["recall@1_before"].value == before.first.value
    for name in ("recall@5", "recall@10", "recall@1%", "hit_rate"):
        assert after.figures()[name] == before.figures()[name]


def _ranking(rank: np.ndarray):
    empty = np.zeros((len(rank), 1))
    query = torch.zeros(len(rank), 1)
    whole = rank_references(query, torch.zeros(300, 1), np.zeros(len(rank), int), empty.astype(int)[:, :0], 1)
    return replace(whole, rank=rank)


def test_the_final_place_is_measured_in_whatever_image_was_chosen(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path)
    dataset = vigor.read(tmp_path, "same", "test")
    count = len(dataset)
    error = final_errors(dataset, dataset.positive, dataset.offset + np.array([3, 4]))
    np.testing.assert_allclose(error, 5)
    semi = final_errors(dataset, dataset.semi[:, 0], dataset.semi_offset[:, 0])
    np.testing.assert_allclose(semi, 0, atol=1e-9)
    camera = dataset.camera()
    other = (dataset.positive + 9) % len(dataset.references)  # of another city
    assert (final_errors(dataset, other, np.zeros((count, 2))) > 1e5).all()
    far = np.setdiff1d(np.arange(9), [dataset.positive[0], *dataset.semi[0]])[0]
    place = dataset.places(np.array([0]), np.array([far]))[0]
    known = final_errors(dataset.take([0]), np.array([far]), place)
    assert known[0] < 0.5
    there = moved(*dataset.position[[far]].T, *place.T)
    assert np.abs(there - camera[0]).max() < 1e-5


def test_a_place_is_nowhere_in_images_without_a_position(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path, cities=("Chicago",))
    dataset = vigor.read(tmp_path, "same", "test")
    dataset = replace(dataset, position=np.full_like(dataset.position, np.nan))
    chosen = np.setdiff1d(np.arange(9), [dataset.positive[0], *dataset.semi[0]])[:1]
    assert math.isinf(final_errors(dataset.take([0]), chosen, np.zeros((1, 2)))[0])
    evaluation = CrossViewEvaluation("VIGOR", "test", 1, final=Errors.of(np.array([np.inf, 1.0]), (1.0, 3.0)))
    assert evaluation.to_dict()["final"]["mean_m"]["value"] is None
    assert evaluation.to_dict()["final"]["recall@1m"]["value"] == 0.5
    one = Errors.of(np.array([2.0]), (1.0, 3.0))
    assert (one.median.low, one.median.high) == (one.mean.low, one.mean.high) == (0.0, math.inf)


def test_errors_along_and_across_the_heading() -> None:
    along, across = along_and_across(np.array([[3.0, 4.0], [3.0, 4.0]]), np.array([0.0, 90.0]))
    np.testing.assert_allclose(along, [4, 3])
    np.testing.assert_allclose(across, [3, 4])
    np.testing.assert_allclose(heading_error(np.array([359.0, 10.0]), np.array([1.0, 200.0])), [2, 170])


def test_published_tables_are_those_of_the_paper() -> None:
    assert {each.table for each in PAIRS} == {"I", "II", "III", "IV", "V", "VI", "VII"}
    own = {(each.table, each.area): each.figures for each in PAIRS if each.method == "UnifyGeo"}
    assert own["I", SAME] == {"recall@1m": 0.3964, "recall@10m": 0.8137}
    assert own["II", CROSS]["recall@1"] == 0.6758
    assert own["III", CROSS] == {"mean_m": 3.05, "median_m": 1.39}
    assert own["IV", CVACT_TEST]["recall@1"] == 0.7342
    everything = [each for each in PAIRS if each.method == "UL + FA + LR + RR"]
    for each in everything:
        table = {"V": "II", "VII": "I"}[each.table]
        assert own[table, each.area] == each.figures
    # re-ranking changes recall at 1 alone (table V)
    rows = {(each.method, each.area): each.figures for each in PAIRS if each.table == "V"}
    for area in (SAME, CROSS):
        before, after = dict(rows["UL + FA", area]), dict(rows["UL + FA + RR", area])
        assert before.pop("recall@1") < after.pop("recall@1")
        assert before == after


def test_only_complete_data_sets_compare_with_published_figures(tmp_path: Path) -> None:
    assert len(published_pairs(SAME)) == 20
    trees.write_vigor(tmp_path, cities=("Chicago", "Seattle"))
    partial = vigor.read(tmp_path, "same", "test")
    assert not CrossViewEvaluation(partial.name, "test", 1).published
    assert CrossViewEvaluation("VIGOR, same-area", "test", 1).published
    assert not CrossViewEvaluation("VIGOR, same-area", "val", 1).published
    assert CrossViewEvaluation("CVACT", "val", 1).published
