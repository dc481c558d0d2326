"""Published results for the benchmarks' areas, for comparison.

Results compare only among the same cells of the same map: those of another gallery or of a smaller map are kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jzi.store.geometry.pyramid import PRESETS, Pyramid


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


#: Areas of the tables of UnifyGeo: VIGOR's two protocols, and the test sets of CVUSA and CVACT.
SAME, CROSS = "VIGOR, same-area", "VIGOR, cross-area"
CVUSA, CVACT_VAL, CVACT_TEST = "CVUSA, test", "CVACT, val", "CVACT, test"

#: Figures of the tables in the order of their columns; recalls are shares, errors are metres.
LOCATED = ("recall@1m", "recall@10m")
RETRIEVED = ("recall@1", "recall@5", "recall@10", "recall@1%", "hit_rate")
LOCALIZED = ("mean_m", "median_m")


@dataclass(frozen=True)
class PublishedPairs:
    """A published result on pairs of photos and aerial images.

    Attributes:
        table: number of the table of UnifyGeo (arXiv 2505.07622).
        method: name of the method, or for tables V to VII the parts of it that are on.
        area: data set and protocol.
        figures: name of a figure to its value; figures that the table leaves out are not in it.
    """

    table: str
    method: str
    area: str
    figures: dict[str, float] = field(hash=False)


def _shares(names: tuple[str, ...], values: tuple[float | None, ...]) -> dict[str, float]:
    """Figures from percentages; None is a dash."""
    return {name: round(value / 100, 6) for name, value in zip(names, values, strict=False) if value is not None}


def _two_areas(
    table: str, names: tuple[str, ...], rows: dict[str, tuple[tuple[float | None, ...], tuple[float | None, ...]]]
) -> tuple[PublishedPairs, ...]:
    return tuple(
        PublishedPairs(table, method, area, _shares(names, values))
        for method, areas in rows.items()
        for area, values in zip((SAME, CROSS), areas, strict=True)
    )


def _metres(table: str, rows: dict[str, tuple[float, float, float, float]]) -> tuple[PublishedPairs, ...]:
    return tuple(
        PublishedPairs(table, method, area, dict(zip(LOCALIZED, values[start : start + 2], strict=True)))
        for method, values in rows.items()
        for area, start in ((SAME, 0), (CROSS, 2))
    )


#: The tables of UnifyGeo. In table II, R@1 is after re-ranking, the others before; table III is of aligned panoramas
#: and their positives. UL: joint training; FA: its aggregator instead of average pooling; RR: re-ranking; LR: loss L_R.
PAIRS = (
    *_two_areas("I", LOCATED, {
        "VIGOR": ((0.55, 25.50), (0.06, 6.20)),
        "PaSS-KD": ((1.53, 46.50), (0.43, 16.20)),
        "Sample4Geo": ((0.24, 20.84), (0.23, 17.81)),
        "Sample4Geo + CCVPE": ((29.90, 73.10), (18.61, 56.71)),
        "Sample4Geo + HC-Net": ((35.92, 74.91), (19.28, 59.23)),
        "UnifyGeo": ((39.64, 81.37), (25.58, 66.24)),
    }),
    *_two_areas("II", RETRIEVED, {
        "SAFA": ((33.93, 58.42, 68.12, 98.24, 36.87), (8.20, 19.59, 26.36, 77.61, 8.85)),
        "VIGOR": ((41.07, 65.81, 74.05, 98.37, 44.71), (11.00, 23.56, 30.76, 80.22, 11.64)),
        "TransGeo": ((61.48, 87.54, 91.88, 99.56, 73.09), (18.99, 38.24, 46.91, 88.94, 21.21)),
        "PaSS-KD": ((52.90, 76.60, None, None, 57.00), (21.00, 39.70, None, None, 22.20)),
        "GeoDTR": ((56.51, 80.37, 86.21, 99.25, 61.76), (30.02, 52.67, 61.45, 94.40, 30.19)),
        "Sample4Geo": ((77.86, 95.66, 97.21, 99.61, 89.82), (61.70, 83.50, 88.00, 98.17, 69.87)),
        "UnifyGeo": ((82.80, 94.92, 96.57, 99.47, 88.72), (67.58, 81.60, 86.02, 97.26, 68.24)),
    }),
    *_metres("III", {
        "CVR": (8.99, 7.81, 8.89, 7.73),
        "MCC": (6.94, 3.64, 9.05, 5.14),
        "SliceMatch": (5.18, 2.58, 5.53, 2.55),
        "GGCVT": (4.12, 1.34, 5.16, 1.40),
        "CCVPE": (3.60, 1.36, 4.97, 1.68),
        "HC-Net": (2.65, 1.17, 3.36, 1.59),
        "UnifyGeo": (2.26, 1.13, 3.05, 1.39),
    }),
    *(
        PublishedPairs("IV", method, area, _shares(RETRIEVED, values))
        for method, areas in {
            "SAFA + polar": ((89.84, 96.93, 98.14, 99.64), (81.03, 92.80, 94.84, 98.17), (55.50, 79.94, 85.08, 94.49)),
            "SEH + polar": ((95.11, 98.45, 99.00, 99.78), (84.75, 93.97, 95.46, 98.11)),
            "TransGeo": ((94.08, 98.36, 99.04, 99.77), (84.95, 94.14, 95.78, 98.37)),
            "PaSS-KD": ((94.09, 98.42, 99.13, 99.77), (87.20, 94.30, 95.67, 97.85), (66.81, 88.03, 90.87, 98.02)),
            "GeoDTR + polar": (
                (95.43, 98.86, 99.34, 99.86),
                (86.21, 95.44, 96.72, 98.77),
                (64.52, 88.59, 91.96, 98.74),
            ),
            "Sample4Geo": ((98.68, 99.68, 99.78, 99.87), (90.81, 96.74, 97.48, 98.77), (71.51, 92.42, 94.45, 98.70)),
            "UnifyGeo": ((98.91, 99.62, 99.72, 99.84), (91.38, 96.27, 97.04, 98.45), (73.42, 92.46, 94.27, 98.43)),
        }.items()
        for area, values in zip((CVUSA, CVACT_VAL, CVACT_TEST), areas, strict=False)
    ),
    *_two_areas("V", RETRIEVED, {
        "none": ((74.12, 93.44, 95.62, 99.48, 85.43), (51.73, 74.63, 80.74, 96.80, 58.10)),
        "UL": ((75.54, 94.08, 96.15, 99.51, 86.53), (53.99, 76.31, 82.26, 96.98, 60.57)),
        "FA": ((77.19, 94.31, 96.20, 99.45, 87.68), (58.83, 80.10, 85.01, 97.28, 65.90)),
        "UL + FA": ((78.01, 94.80, 96.48, 99.49, 88.48), (60.21, 81.13, 85.69, 97.38, 67.53)),
        "UL + FA + LR": ((78.44, 94.92, 96.57, 99.47, 88.72), (61.18, 81.60, 86.02, 97.26, 68.24)),
        "UL + FA + RR": ((80.97, 94.80, 96.48, 99.49, 88.48), (64.57, 81.13, 85.69, 97.38, 67.53)),
        "UL + FA + LR + RR": ((82.80, 94.92, 96.57, 99.47, 88.72), (67.58, 81.60, 86.02, 97.26, 68.24)),
    }),
    *_metres("VI", {
        "none": (2.59, 1.00, 4.30, 1.50),
        "UL": (2.63, 1.18, 4.22, 1.43),
        "UL + FA": (2.41, 1.12, 3.31, 1.42),
        "UL + FA + LR": (2.26, 1.13, 3.05, 1.39),
    }),
    *_two_areas("VII", LOCATED, {
        "none": ((0.24, 20.16), (0.21, 15.26)),
        "FA": ((0.24, 20.58), (0.22, 16.99)),
        "UL": ((34.64, 73.51), (19.48, 52.24)),
        "UL + FA": ((36.63, 76.07), (21.88, 58.46)),
        "UL + FA + LR": ((37.37, 76.74), (22.81, 59.63)),
        "UL + FA + RR": ((38.48, 79.47), (23.98, 63.17)),
        "UL + FA + LR + RR": ((39.64, 81.37), (25.58, 66.24)),
    }),
)  # fmt: skip


def published_pairs(area: str, tables: tuple[str, ...] = ("I", "II", "III", "IV")) -> tuple[PublishedPairs, ...]:
    """The published results for a data set and protocol, such as `SAME`; empty if there are none."""
    return tuple(each for each in PAIRS if each.area == area and each.table in tables)
