"""Styles of districts of a synthetic town."""

from __future__ import annotations

from dataclasses import dataclass

from jzi.synth.shade import HALL, HOUSE, OFFICE, PLAIN, TERRACE, TOWER

Colour = tuple[int, int, int]

# A roof and the wall under it. A photo shows the wall and the map the roof, so a network can learn to match the two.
Pair = tuple[Colour, Colour]


@dataclass(frozen=True)
class Style:
    """Style of a district. Lengths in metres; a pair of numbers is a range to sample from."""

    name: str
    block: tuple[float, float]  # distance between its streets
    street: tuple[float, float]  # width of a carriageway
    pavement: float  # width of a sidewalk
    stagger: float  # largest offset of cross streets from strip to strip
    lot: float  # width of a lot along the block
    front: float  # setback from the sidewalk
    gap: float  # setback from each neighbour
    back: float  # open ground behind, as a share of the lot's depth
    floors: tuple[float, float]
    storey: float
    pitch: float  # rise of a roof per metre; 0 is flat
    facade: int
    pairs: tuple[Pair, ...]
    yard: Colour
    asphalt: Colour
    paving: Colour
    empty: float  # share of lots with no building
    square: float  # share of blocks that are a square, a pitch or a car park
    trees: float  # share of the 5 m cells of its open ground that hold a tree
    avenue_trees: float  # metres between trees along its streets; 0 for no trees


GRASS: Colour = (104, 132, 70)

OLD_TOWN = Style(
    name="old town", block=(44, 66), street=(5.0, 7.0), pavement=1.8, stagger=26, lot=10, front=0, gap=0, back=0.34,
    floors=(3, 5), storey=3.3, pitch=0.85, facade=TERRACE,
    pairs=(
        ((176, 78, 52), (226, 190, 130)), ((164, 66, 48), (214, 148, 112)), ((188, 96, 62), (238, 222, 184)),
        ((150, 60, 50), (172, 84, 66)), ((196, 112, 72), (206, 190, 120)), ((140, 82, 62), (148, 170, 150)),
    ),
    yard=(150, 138, 116), asphalt=(138, 124, 112), paving=(178, 162, 142),
    empty=0.04, square=0.10, trees=0.05, avenue_trees=0,
)  # fmt: skip
TERRACES = Style(
    name="terraces", block=(72, 104), street=(8.0, 11.0), pavement=3.2, stagger=0, lot=17, front=0, gap=0, back=0.45,
    floors=(4, 6), storey=3.4, pitch=0.55, facade=TERRACE,
    pairs=(
        ((92, 94, 104), (214, 206, 192)), ((120, 74, 64), (158, 82, 66)), ((84, 98, 92), (190, 200, 186)),
        ((132, 112, 92), (222, 196, 150)), ((74, 78, 92), (150, 158, 176)), ((140, 90, 82), (220, 168, 158)),
    ),
    yard=(112, 130, 82), asphalt=(96, 96, 100), paving=(168, 166, 160),
    empty=0.03, square=0.12, trees=0.12, avenue_trees=15,
)  # fmt: skip
DOWNTOWN = Style(
    name="downtown", block=(78, 112), street=(10.0, 14.0), pavement=4.5, stagger=0, lot=38, front=1.5, gap=2.5,
    back=0.05, floors=(5, 26), storey=3.5, pitch=0, facade=TOWER,
    pairs=(
        ((146, 150, 156), (156, 172, 188)), ((118, 130, 138), (92, 122, 146)), ((176, 168, 156), (198, 184, 164)),
        ((108, 104, 104), (96, 84, 80)), ((190, 194, 196), (222, 224, 222)), ((122, 146, 140), (94, 144, 138)),
    ),
    yard=(172, 170, 164), asphalt=(84, 86, 92), paving=(196, 190, 180),
    empty=0.06, square=0.14, trees=0.04, avenue_trees=18,
)  # fmt: skip
SUBURB = Style(
    name="suburb", block=(58, 96), street=(6.0, 7.5), pavement=2.2, stagger=40, lot=17, front=5, gap=2.6, back=0.36,
    floors=(1, 2), storey=2.9, pitch=0.7, facade=HOUSE,
    pairs=(
        ((150, 74, 56), (236, 228, 208)), ((84, 84, 90), (230, 232, 232)), ((112, 84, 64), (196, 168, 132)),
        ((70, 90, 108), (170, 194, 210)), ((96, 66, 60), (166, 92, 78)), ((124, 118, 92), (232, 214, 140)),
        ((66, 92, 78), (186, 206, 176)),
    ),
    yard=GRASS, asphalt=(110, 110, 112), paving=(176, 172, 166),
    empty=0.06, square=0.07, trees=0.11, avenue_trees=22,
)  # fmt: skip
INDUSTRY = Style(
    name="industry", block=(112, 160), street=(9.0, 12.0), pavement=2.0, stagger=0, lot=56, front=7, gap=5, back=0.2,
    floors=(1, 1.6), storey=7.0, pitch=0.18, facade=HALL,
    pairs=(
        ((170, 178, 184), (150, 160, 168)), ((92, 122, 156), (66, 104, 152)), ((150, 92, 72), (158, 84, 60)),
        ((196, 190, 172), (212, 198, 160)), ((104, 138, 112), (82, 128, 96)), ((214, 216, 214), (206, 206, 200)),
    ),
    yard=(150, 146, 138), asphalt=(120, 116, 110), paving=(154, 150, 142),
    empty=0.2, square=0.06, trees=0.02, avenue_trees=0,
)  # fmt: skip
ESTATE = Style(
    name="estate", block=(96, 136), street=(7.0, 9.0), pavement=2.8, stagger=0, lot=44, front=9, gap=5, back=0.42,
    floors=(6, 12), storey=2.9, pitch=0, facade=OFFICE,
    pairs=(
        ((178, 172, 160), (226, 216, 196)), ((150, 128, 112), (204, 138, 96)), ((140, 152, 166), (150, 180, 212)),
        ((166, 150, 150), (206, 150, 150)), ((150, 162, 142), (172, 200, 150)),
    ),
    yard=(116, 142, 80), asphalt=(104, 104, 104), paving=(186, 180, 172),
    empty=0.08, square=0.1, trees=0.13, avenue_trees=17,
)  # fmt: skip
PARK = Style(
    name="park", block=(900, 901), street=(5.0, 6.0), pavement=2.0, stagger=0, lot=900, front=5, gap=5, back=0.5,
    floors=(1, 2), storey=3.0, pitch=0.6, facade=PLAIN,
    pairs=(((110, 90, 70), (150, 130, 100)),),
    yard=(96, 134, 62), asphalt=(120, 116, 110), paving=(196, 180, 146),
    empty=1.0, square=0.0, trees=0.26, avenue_trees=14,
)  # fmt: skip

# Indices into STYLES from the middle of a town outwards, repeated for larger towns.
STYLES = (DOWNTOWN, OLD_TOWN, TERRACES, PARK, SUBURB, ESTATE, INDUSTRY)
OUTWARDS = (0, 1, 2, 2, 1, 3, 0, 5, 2, 4, 4, 6, 5, 4, 6, 4, 3, 4, 6, 4)
