"""Hard-example mining: when the stream is scanned, what is grouped, and that the state resumes exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from jzi.store.geometry.bands import haversine, move
from jzi.train.losses import decoupled_contrast
from jzi.train.statewide import mining
from jzi.train.statewide.mining import MiningSchedule, cluster

B = 30


def run(schedule: MiningSchedule, steps: int, shuffle: bool = False) -> tuple[dict[int, int], list[np.ndarray]]:
    """Scans by step with their number of batches, and the batches; embeddings are not needed."""
    scans, batches = {}, []
    for step in range(steps):
        if schedule.is_due():
            numbers = schedule.begin_scan()
            scans[step] = len(numbers) // schedule.batch_size
            schedule.finish_scan(np.random.default_rng(step).permutation(numbers) if shuffle else numbers)
        batches.append(schedule.take())
    return scans, batches


def doublings(scans: dict[int, int]) -> dict[int, int]:
    """Steps at which the pool became larger."""
    largest, steps = 1, {}
    for step, batches in scans.items():
        if batches > largest:
            largest = steps[step] = batches
    return steps


def test_scans_double_as_published() -> None:
    first = {166: 2, 334: 4, 502: 8, 670: 16, 846: 32, 1038: 64, 1230: 128, 1486: 256, 1742: 512}
    scans, _ = run(MiningSchedule(B, 5000, 491_520), 20_000)
    assert doublings(scans) == {**first, 2254: 1024, 3278: 2048, 5326: 4096, 9422: 8192, 17_614: 16_384}
    scans, _ = run(MiningSchedule(B, 5000, 16_384), 20_000)
    assert doublings(scans) == {**first, 2254: 546}
    assert all(batches == 546 for step, batches in scans.items() if step >= 2254)


@pytest.mark.parametrize("pool_max, expected", [(491_520, 187), (16_384, 534)])
def test_a_whole_run_has_as_many_scans_as_published(pool_max, expected) -> None:
    schedule, scans = MiningSchedule(B, 5000, pool_max), 0
    for _ in range(200_000):
        if schedule.is_due():
            schedule.finish_scan(schedule.begin_scan())
            scans += 1
        schedule.take()
    assert scans == expected
    assert schedule.position - B * sum(1 for _ in schedule.upcoming()) == 200_000 * B


def test_every_sample_of_the_stream_is_used_once_and_in_order_until_the_first_scan() -> None:
    schedule = MiningSchedule(8, 40, 64)
    _, batches = run(schedule, 60, shuffle=True)
    assert (np.concatenate(batches[:4]) == np.arange(32)).all()
    left = list(schedule.upcoming())
    assert sorted(np.concatenate([*batches, *left])) == list(range(schedule.position))
    _, plain = run(MiningSchedule(8, 40, 64, mining=False), 60)
    assert (np.concatenate(plain) == np.arange(480)).all()


@pytest.mark.parametrize("mines", [True, False])
def test_upcoming_batches_are_those_that_come(mines) -> None:
    schedule = MiningSchedule(8, 40, 64, mining=mines)
    for _ in range(30):
        if schedule.is_due():
            schedule.finish_scan(schedule.begin_scan()[::-1].copy())
        before = schedule.state()
        expected = [batch for batch, _ in zip(schedule.upcoming(), range(3), strict=False)]
        assert str(schedule.state()) == str(before)  # looking ahead changes nothing
        assert expected  # until a scan there is a batch
        for batch in expected:
            assert not schedule.is_due()
            np.testing.assert_array_equal(schedule.take(), batch)


@pytest.mark.parametrize("step", [0, 3, 4, 5, 11, 37])
def test_a_restored_schedule_continues_as_it_would_have(step) -> None:
    whole = run(MiningSchedule(8, 40, 64), 60, shuffle=True)[1]
    schedule = MiningSchedule(8, 40, 64)
    scans, batches = {}, []
    for number in range(60):
        if number == step:
            state = schedule.state()
            schedule = MiningSchedule(8, 40, 64)
            schedule.load(state)
        if schedule.is_due():
            numbers = schedule.begin_scan()
            scans[number] = numbers
            schedule.finish_scan(np.random.default_rng(number).permutation(numbers))
        batches.append(schedule.take())
    np.testing.assert_array_equal(np.array(batches), np.array(whole))


# Groups


def pool(n: int, kinds: int, features: int = 32, seed: int = 0, reach_m: float = 50_000.0) -> Any:
    """Embeddings of samples of some kinds, photos and cells, which are at most 10 m apart."""
    rng = torch.Generator().manual_seed(seed)
    centers = F.normalize(torch.randn(kinds, features, generator=rng), dim=-1)
    kind = torch.randint(kinds, (n,), generator=rng)
    own = centers[kind] + 0.08 * torch.randn(n, features, generator=rng)
    query, reference = (F.normalize(own + 0.05 * torch.randn(n, features, generator=rng), dim=-1) for _ in range(2))
    draws = np.random.default_rng(seed).random((4, n))
    photos = move(42.36, -71.06, reach_m * np.sqrt(draws[0]), 360 * draws[1])
    cells = move(*photos, 10 * draws[2], 360 * draws[3])
    return query, reference, photos, cells


def slow_cluster(query, reference, photos, cells, size, distance_m) -> list[int]:
    """The definition, one sample at a time."""
    similarity = (query.double() @ reference.double().T).numpy()
    free, order = list(range(len(query))), []
    while free:
        group = [free.pop(0)]
        while len(group) < size:
            far = [
                each
                for each in free
                if all(
                    haversine(photos[0][g], photos[1][g], cells[0][each], cells[1][each]) > distance_m for g in group
                )
            ]
            each = max(far, key=lambda j: similarity[group, j].sum()) if far else free[0]
            free.remove(each)
            group.append(each)
        order += group
    return order


@pytest.mark.parametrize("reach_m", [60.0, 300.0, 50_000.0])
def test_groups_are_those_of_the_definition(reach_m) -> None:
    samples = pool(96, 6, reach_m=reach_m)
    assert cluster(*samples, size=8, distance_m=30.0).tolist() == slow_cluster(*samples, size=8, distance_m=30.0)
    assert cluster(*samples, size=2, distance_m=30.0).tolist() == slow_cluster(*samples, size=2, distance_m=30.0)


def test_pools_too_large_for_all_pairs_at_once_give_the_same_groups(monkeypatch) -> None:
    samples = pool(256, 8, reach_m=500.0)
    expected = cluster(*samples, size=16, distance_m=30.0)
    monkeypatch.setattr(mining, "ALL_PAIRS", 100)
    np.testing.assert_array_equal(cluster(*samples, size=16, distance_m=30.0), expected)


def test_groups_are_hard_and_hold_every_sample_once() -> None:
    n, size = 4096, 32
    query, reference, photos, cells = pool(n, 64, features=128)
    order = cluster(query, reference, photos, cells, size, 30.0)
    assert sorted(order) == list(range(n))
    random = np.random.default_rng(0).permutation(n)

    def negatives(batches: np.ndarray) -> float:
        rows = torch.from_numpy(batches)
        similarity = query[rows] @ reference[rows].transpose(1, 2)
        return float((similarity.sum() - similarity.diagonal(dim1=1, dim2=2).sum()) / (len(rows) * size * (size - 1)))

    mined, drawn = order.reshape(-1, size), random.reshape(-1, size)
    assert negatives(mined) > 5 * abs(negatives(drawn)) and negatives(mined) > 0.3

    def losses(batches: np.ndarray) -> np.ndarray:
        pairs = torch.ones(size, size, dtype=torch.bool)
        rows = map(torch.from_numpy, batches)
        return np.array([float(decoupled_contrast(36 * query[r] @ reference[r].T, pairs, 0.1)) for r in rows])

    half = len(mined) // 2
    assert (losses(mined)[:half] > losses(drawn)[:half]).mean() >= 0.95


def test_neighbours_share_a_group_only_when_only_neighbours_are_left() -> None:
    query, reference, photos, cells = pool(600, 5, reach_m=250.0)
    groups = cluster(query, reference, photos, cells, 10, 30.0).reshape(-1, 10)
    used: set[int] = set()
    forced = 0
    for group in groups:
        for place in range(1, 10):
            earlier = group[:place]
            left = [each for each in range(600) if each not in used and each not in earlier]
            near = haversine(
                photos[0][earlier][:, None], photos[1][earlier][:, None], cells[0][left][None], cells[1][left][None]
            )
            allowed = (near > 30).all(0)
            if allowed.any():
                assert allowed[left.index(group[place])]
            else:
                forced += 1
        used.update(group.tolist())
    assert forced < 100  # near the end of the pool
