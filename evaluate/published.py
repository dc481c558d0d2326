"""Published results for the benchmarks' areas, for comparison.

Results compare only among the same cells of the same map: those of another gallery or of a smaller map are kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jzi.store.pyramid import PRESETS, Pyramid


@dataclass(frozen=True)
class Published:
    """A published result.

    Attributes:
        method: name of the method.
        recall: recall at 40, 50 and 100 m, 0..1.
        gallery: "all" cells of the map, or "occupied": only those that hold a photo of the evaluated split.
        note: the gallery in words, and the map if it is another one.
        same_map: whether the map is the whole area.
    """

    method: str
    recall: tuple[float, ...]
    gallery: str = "all"
    note: str = "all 65 536 cells"
    same_map: bool = True


#: Radii of the table, metres.
RADII = (40.0, 50.0, 100.0)

_OCCUPIED = "only the 12 029 cells of levels 3 and 4 that hold a validation photo"
_SMALLER_MAP = "a smaller map, the paper's ablation of patch tokens (Table 4)"

_WASHINGTON = (
    # Just Zoom In, table 1
    Published("SAIG-D", (0.3936, 0.4752, 0.6417)),
    Published("TransGeo", (0.4597, 0.5455, 0.6761)),
    Published("Sample4Geo", (0.5285, 0.6081, 0.7130)),
    Published("Just Zoom In, batch 32", (0.5108, 0.6149, 0.7743)),
    Published("Just Zoom In, batch 64", (0.5410, 0.6474, 0.7974)),
    Published("Just Zoom In, batch 128", (0.5574, 0.6631, 0.8093)),
    # arXiv 2608.01060
    Published("GeoMoE", (0.9578, 0.9632, 0.9768), "occupied", _OCCUPIED),
    # Just Zoom In, table 4
    Published("Just Zoom In, no patch tokens", (0.6698, 0.7225, 0.8308), "all", _SMALLER_MAP, False),
    Published("Just Zoom In, 8 patch tokens", (0.6531, 0.7076, 0.8212), "all", _SMALLER_MAP, False),
    Published("Just Zoom In, 16 patch tokens", (0.6531, 0.716, 0.8260), "all", _SMALLER_MAP, False),
    Published("Just Zoom In, 32 patch tokens", (0.6580, 0.7210, 0.8302), "all", _SMALLER_MAP, False),
    Published("Just Zoom In, 64 patch tokens", (0.6460, 0.7010, 0.8070), "all", _SMALLER_MAP, False),
    Published("Just Zoom In, 256 patch tokens", (0.6338, 0.6825, 0.7983), "all", _SMALLER_MAP, False),
)


def published_for(pyramid: Pyramid, gallery: str = "all") -> tuple[Published, ...]:
    """The published results for an area and a gallery; empty if there are none."""
    return tuple(each for each in _for_area(pyramid) if each.same_map and each.gallery == gallery)


def published_apart(pyramid: Pyramid, gallery: str = "all") -> tuple[Published, ...]:
    """The published results for an area that do not compare: of another gallery or of a part of its map."""
    return tuple(each for each in _for_area(pyramid) if not (each.same_map and each.gallery == gallery))


def _for_area(pyramid: Pyramid) -> tuple[Published, ...]:
    return _WASHINGTON if pyramid == PRESETS["just-zoom-in-dc"] else ()


@dataclass(frozen=True)
class PublishedRetrieval:
    """A published result of state-wide retrieval, Fervers et al. 2024; it holds under its conditions only.

    Attributes:
        method: name of the method or of the variant.
        recall: radius in metres (0: the photo's own cell) to k to recall, 0..1.
        conditions: what was searched, with what photos.
        source: the table or figure.
    """

    method: str
    recall: dict[float, dict[int, float]] = field(hash=False)
    conditions: str
    source: str


_STATE = "Massachusetts, 22 922 km2 in cells of 30 m, distances on the sphere"
_README = f"{_STATE}; retrained weights, every 100th photo"
_ABLATION = "100 km2 of Boston, ConvNeXt-S, photos of 320 x 240, mining among 4096 photos"


def _at_50(*values: float) -> dict[float, dict[int, float]]:
    return {50.0: dict(zip((1, 10, 100), (value / 100 for value in values), strict=False))}


def _by_k(*values: float) -> dict[int, float]:
    return dict(zip((1, 5, 10, 50, 100), values, strict=True))


#: Published results of state-wide retrieval.
STATEWIDE = (
    PublishedRetrieval("SAFA", _at_50(0.5, 2.7, 10.7), _STATE, "table 2"),
    PublishedRetrieval("TransGeo", _at_50(2.8, 10.8, 28.3), _STATE, "table 2"),
    PublishedRetrieval("Sample4Geo", _at_50(12.8, 32.2, 55.8), _STATE, "table 2"),
    PublishedRetrieval("Fervers et al. 2024", _at_50(60.6, 75.5, 84.1), _STATE, "table 2"),
    PublishedRetrieval(
        "Fervers et al. 2024, retrained",
        {
            0.0: _by_k(0.2880, 0.5007, 0.5516, 0.6432, 0.6771),
            25.0: _by_k(0.4683, 0.6495, 0.6914, 0.7659, 0.7915),
            50.0: _by_k(0.6105, 0.7229, 0.7578, 0.8216, 0.8430),
            100.0: _by_k(0.6297, 0.7385, 0.7732, 0.8369, 0.8583),
        },
        _README,
        "README of the authors' code",
    ),
    PublishedRetrieval("0.2 m a pixel, 512 pixels", _at_50(38.9), _ABLATION, "table 3"),
    PublishedRetrieval("0.4 m a pixel, 512 pixels", _at_50(40.6), _ABLATION, "table 3"),
    PublishedRetrieval("0.2, 0.4, 0.8 and 1.6 m a pixel, 256 pixels each", _at_50(48.3), _ABLATION, "table 3"),
    PublishedRetrieval("0.3, 0.6, 1.2 and 2.4 m a pixel, 256 pixels each", _at_50(46.8), _ABLATION, "table 3"),
    PublishedRetrieval("0.4, 0.8, 1.6 and 3.2 m a pixel, 256 pixels each", _at_50(46.1), _ABLATION, "table 3"),
    PublishedRetrieval("attention, four levels of detail", _at_50(48.3), _ABLATION, "table 4"),
    PublishedRetrieval("attention, one level of detail", _at_50(38.9), _ABLATION, "table 4"),
    PublishedRetrieval("mean, four levels of detail", _at_50(38.7), _ABLATION, "table 4"),
    PublishedRetrieval("mean, one level of detail", _at_50(29.3), _ABLATION, "table 4"),
    PublishedRetrieval("SAFA's pooling, one level of detail", _at_50(31.5), _ABLATION, "table 4"),
    PublishedRetrieval("SMD, one level of detail", _at_50(32.2), _ABLATION, "table 4"),
    PublishedRetrieval("512 features", _at_50(45.7), _ABLATION, "table 5"),
    PublishedRetrieval("1024 features", _at_50(48.3), _ABLATION, "table 5"),
    PublishedRetrieval("2048 features", _at_50(50.0), _ABLATION, "table 5"),
    PublishedRetrieval("4096 features", _at_50(50.4), _ABLATION, "table 5"),
    PublishedRetrieval("photos of 2015", _at_50(45.7), _STATE, "figure 6"),
    PublishedRetrieval("photos taken from 6 to 18 h", _at_50(62.2), _STATE, "figure 6"),
    PublishedRetrieval("photos taken from 18 to 6 h", _at_50(46.6), _STATE, "figure 6"),
)
