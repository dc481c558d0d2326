"""What is known of GeoMoE's protocol."""

from __future__ import annotations

from jzi.datasets.geomoe import PROTOCOLS, compare, protocol_of
from jzi.evaluate.published import published_for
from jzi.store.geometry.pyramid import preset


def test_a_copy_compares_only_with_all_photos_of_the_protocol() -> None:
    protocol = protocol_of("vigor-m", "same")
    assert protocol is not None and (protocol.levels, protocol.split) == (3, "test")
    assert "62.4 % in the right cell, 77.8 % within 100 m" in compare(protocol, {"train": 37_895, "test": 37_789})
    partial = compare(protocol, {"train": 37_895, "test": 37_788})
    assert "37788 of the 37789 photos of test" in partial and "train" not in partial and "do not compare" in partial


def test_figures_are_shares_and_grow_with_the_radius() -> None:
    for protocol in PROTOCOLS:
        shares = [share for radius, share in sorted(protocol.figures.items()) if radius]
        assert shares == sorted(shares) and all(0 < share < 1 for share in shares)
    assert protocol_of("vigor-m") is None


def test_figures_of_just_zoom_in_are_those_that_evaluation_prints() -> None:
    protocol = protocol_of("just-zoom-in")
    assert protocol is not None
    area = preset("just-zoom-in-dc")
    (published,) = published_for(area, "occupied")
    assert published.recall == tuple(round(protocol.figures[radius], 4) for radius in (40, 50, 100))
    assert area.levels == protocol.levels
