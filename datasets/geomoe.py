"""The protocol of GeoMoE (arXiv 2608.01060; Fan et al. 2026): what its published figures were measured on.

A photo is located among the tiles of the finest level that hold a photo of the evaluated split, which is
`jzi evaluate --gallery occupied`. Levels divide a tile into 4 x 4. Its gallery of VIGOR-M is that of all four cities
together; here each city is an area of its own, in which a photo has fewer tiles to be confused with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jzi.store.plain import share_text


@dataclass(frozen=True)
class Protocol:
    """A published evaluation.

    Attributes:
        dataset: name of the data set, as `jzi init --dataset` takes it.
        area: "same" or "cross"; empty for a data set of one area.
        photos: number of photos of each split.
        split: the evaluated one.
        levels: of the zoom.
        figures: published shares of photos, by radius in metres (0: the right cell); empty if none are published.
    """

    dataset: str
    area: str
    photos: Mapping[str, int] = field(hash=False)
    split: str
    levels: int
    figures: Mapping[int, float] = field(default_factory=dict, hash=False)


PROTOCOLS = (
    Protocol(
        "vigor-m", "same", {"train": 37_895, "test": 37_789}, "test", 3,
        {0: 0.623912, 100: 0.778163, 200: 0.843023, 300: 0.868639},
    ),
    Protocol("vigor-m", "cross", {"train": 42_595, "test": 33_089}, "test", 3),
    Protocol(
        "just-zoom-in", "", {"val": 30_956}, "val", 4, {0: 0.817063, 40: 0.957811, 50: 0.963238, 100: 0.976838}
    ),
)  # fmt: skip


def protocol_of(dataset: str, area: str = "") -> Protocol | None:
    """The protocol of a data set and area; None if there is none."""
    return next((each for each in PROTOCOLS if (each.dataset, each.area) == (dataset, area)), None)


def compare(protocol: Protocol, photos: Mapping[str, int]) -> str:
    """Whether a copy of a data set has the photos of a protocol, as a sentence.

    Args:
        protocol: the protocol.
        photos: number of photos of each split that can be used.
    """
    differing = [
        f"{photos.get(split, 0)} of the {count} photos of {split}"
        for split, count in protocol.photos.items()
        if photos.get(split, 0) != count
    ]
    if differing:
        return (
            f"this copy has {' and '.join(differing)} of GeoMoE's protocol: results do not compare with published ones"
        )
    figures = ", ".join(
        f"{share_text(share)} {f'within {radius} m' if radius else 'in the right cell'}"
        for radius, share in protocol.figures.items()
    )
    return f"the photos are those of GeoMoE's protocol{f' ({figures})' if figures else ''}"
