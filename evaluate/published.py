"""Published results for the benchmark's area, for comparison.

Results compare only among the same cells of the same map: those of another gallery or of a smaller map are kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass

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
