"""Every number of a user has a range, and one outside of it is a sentence."""

from __future__ import annotations

from collections.abc import Callable

import click
import numpy as np
import pytest
import torch

from jzi.cli import main
from jzi.errors import ConfigError
from jzi.evaluate.calibration import Answers, Calibration
from jzi.evaluate.metrics import error_intervals
from jzi.evaluate.nearest import recall_by_distance
from jzi.export.picture import draw_zoom
from jzi.locate.priors.prior_weights import Prior
from jzi.retrieve.heads import HeadsConfig
from jzi.retrieve.search import probabilities
from jzi.retrieve.similarity import nearest
from jzi.retrieve.vpr import VprConfig

#: Parameters whose values `off_earth` and `Prior` check.
CHECKED_ELSEWHERE = {
    ("init", "center"),
    ("locate", "near"),
    ("locate", "within"),
    ("tile", "latitude"),
    ("tile", "longitude"),
}


def numeric_parameters() -> list[tuple[str, click.Parameter]]:
    return [
        (name, parameter)
        for name, command in main.commands.items()
        for parameter in command.params
        if isinstance(parameter.type, click.types.FloatParamType | click.types.IntParamType | click.Tuple)
        if (name, parameter.name) not in CHECKED_ELSEWHERE
    ]


@pytest.mark.parametrize(("command", "parameter"), numeric_parameters(), ids=lambda each: getattr(each, "name", each))
@pytest.mark.parametrize("value", ["nan", "inf", "1e300", "-1e300"])
def test_every_number_of_the_command_line_is_bounded(command: str, parameter: click.Parameter, value: str) -> None:
    assert None not in (getattr(parameter.type, "min", None), getattr(parameter.type, "max", None))
    with pytest.raises(click.BadParameter, match="is not"):
        parameter.type.convert(value, parameter, None)


CALIBRATION = Calibration(2, 50.0, {"mean": Answers(np.zeros(2), np.ones(2))}, None, 0.0)
ERROR = np.array([1.0, 2.0])
CALLS: dict[str, Callable[[], object]] = {
    "recall": lambda: CALIBRATION.recall("mean", np.inf),
    "abstaining": lambda: CALIBRATION.abstaining(np.nan),
    "covering": lambda: CALIBRATION.covering(1.5),
    "error_intervals radii": lambda: error_intervals(ERROR, [np.nan]),
    "error_intervals resamples": lambda: error_intervals(ERROR, resamples=10**12),
    "recall_by_distance": lambda: recall_by_distance(ERROR, ERROR, [-1.0]),
    "draw_zoom": lambda: draw_zoom(None, None, None, None, pixels=10**6),
    "nearest": lambda: nearest(torch.ones(2, 3), torch.ones(4, 3), 0),
    "probabilities": lambda: probabilities(np.ones((1, 2), np.float32), np.ones((1, 2), np.int64), 0.0),
    "within": lambda: Prior(near=(48.0, 16.0), within=1e300),
    "heads width": lambda: HeadsConfig(width=0),
    "heads dropout": lambda: HeadsConfig(width=8, dropout=1.0),
    "vpr width": lambda: VprConfig(np.inf),
    "vpr temperature": lambda: VprConfig(10.0, np.nan),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_numbers_of_python_functions_have_ranges(call: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match=r"must be a|no sensible value"):
        call()
