"""Training of state-wide retrieval: settings, validation, resumption, and that the model learns."""

from __future__ import annotations

import math

import pytest

from jzi.errors import ConfigError
from jzi.train.config import StatewideConfig
from jzi.train.loop import learning_rate_factor

# Settings


def test_settings_follow_the_method_unless_they_are_given() -> None:
    assert (StatewideConfig().steps, StatewideConfig().batch_size, StatewideConfig().learning_rate) == (
        200_000,
        30,
        1e-4,
    )
    baseline = StatewideConfig(method="sample4geo")
    assert (baseline.steps, baseline.batch_size, baseline.learning_rate) == (66_000, 90, 3e-4)
    assert baseline.pooling == "sample4geo" and not baseline.decoupled and baseline.mining
    assert baseline.lods(30.0) == (60 / 384,) and StatewideConfig().lods(30.0) == (0.2, 0.4, 0.8, 1.6)
    safa, transgeo = (StatewideConfig(method=method, scale=10.0) for method in ("safa", "transgeo"))
    assert safa.triplets and not safa.mining and safa.factor == 20
    assert transgeo.triplets and transgeo.mining and transgeo.factor == 10
    assert (safa.cluster_size, transgeo.cluster_size) == (30, 2)
    assert StatewideConfig(method="safa", mining=True, steps=7).steps == 7


@pytest.mark.parametrize(
    "name, value",
    [
        ("method", "netvlad"), ("batch_size", 1), ("lods_m", (0.0,)), ("lods_m", (0.2,) * 9), ("image_size", 0),
        ("photo_size", (640, 5000)), ("width", 0), ("pooling", "max"), ("heads", 0), ("scale", 0.0),
        ("negative_distance_m", -1.0), ("offset_margin_m", math.nan), ("bucket_m", 0.0), ("first_scan", 0),
        ("pool_max", 59), ("steps", 0), ("warmup_steps", -1), ("final_lr_share", 1.1), ("validate_every", 0),
        ("val_photos", 0), ("val_cells", 0), ("learning_rate", math.inf), ("label_smoothing", 1.0), ("seed", -1),
        ("epochs", 3), ("warmup", 0.1),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name, value) -> None:
    with pytest.raises(ConfigError, match=f"statewide.{name}"):
        StatewideConfig(**{name: value})


def test_settings_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size is 31: give a multiple of 2"):
        StatewideConfig(method="transgeo", batch_size=31)
    with pytest.raises(ConfigError, match="decoupled has no effect"):
        StatewideConfig(method="safa", decoupled=True)


def test_the_learning_rate_is_that_of_the_published_schedule() -> None:
    warm, final = StatewideConfig().schedule(200_000)

    def factor(step: int) -> float:
        return learning_rate_factor(step, 200_000, warm, final)

    assert factor(0) == 1 / 1000 and factor(499) == 0.5 and factor(999) == factor(1000) == 1
    assert factor(100_500) == pytest.approx(0.55) and factor(200_000) == pytest.approx(0.1)
    assert factor(50_000) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 49 / 199)) / 2)
