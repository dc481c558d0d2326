"""Published results for the benchmark's area, for comparison (paper, table 1)."""

from __future__ import annotations

from dataclasses import dataclass

from jzi.store.pyramid import PRESETS, Pyramid


@dataclass(frozen=True)
class Published:
    """A row of the paper's table: method, and recall at 40, 50 and 100 m, 0..1."""

    method: str
    recall: tuple[float, ...]


#: Radii of the table, metres.
RADII = (40.0, 50.0, 100.0)

_WASHINGTON = (
    Published("SAIG-D", (0.3936, 0.4752, 0.6417)),
    Published("TransGeo", (0.4597, 0.5455, 0.6761)),
    Published("Sample4Geo", (0.5285, 0.6081, 0.7130)),
    Published("Just Zoom In, batch 32", (0.5108, 0.6149, 0.7743)),
    Published("Just Zoom In, batch 64", (0.5410, 0.6474, 0.7974)),
    Published("Just Zoom In, batch 128", (0.5574, 0.6631, 0.8093)),
)


def published_for(pyramid: Pyramid) -> tuple[Published, ...]:
    """The published results for an area; empty if there are none."""
    return _WASHINGTON if pyramid == PRESETS["just-zoom-in-dc"] else ()
