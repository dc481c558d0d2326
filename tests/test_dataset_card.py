"""The data card: what it counts, that text of strangers cannot break it, and its pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jzi.curate.folder import DatasetFolder, DatasetInfo, FilterCount, Rejection, Source
from jzi.errors import DatasetError, ImageryError
from jzi.publish.card import front_matter, write_card
from jzi.publish.credits import read_imagery
from jzi.publish.facts import card_facts, extent
from jzi.publish.licences import is_non_commercial, is_share_alike, licence_id, licence_ids
from jzi.publish.markdown import escape, link, table
from jzi.publish.pictures import COLOURS, draw_map
from jzi.store.geometry.pyramid import Pyramid

MAPILLARY = Source(
    kind="photos", name="Mapillary", licence="CC BY-SA 4.0", attribution="Mapillary contributors",
    url="https://www.mapillary.com/terms", accessed=date(2024, 5, 1), count=40,
)  # fmt: skip
ORTHO = Source(kind="imagery", name="City", licence="CC BY 4.0", attribution="City of X", accessed=date(2024, 5, 2))


def dataset(folder: Path = Path("set"), count: int = 30, **columns: Any) -> DatasetFolder:
    """Photos on a road of 600 m to the east."""
    number = np.arange(count)
    frame = pd.DataFrame({"id": [f"p{n}" for n in number], "path": [f"images/{n}.jpg" for n in number]})
    frame = frame.assign(
        latitude=48.2, longitude=16.366 + 0.008 / 30 * number, split=np.where(number < 20, "train", "test"),
        heading=number * 12.0, hfov=70.0, panorama=number % 10 == 0, device=np.where(number % 3, "A x", "B y"),
        creator=[f"c{n % 4}" for n in number], captured_at=[f"20{20 + n % 3}-0{1 + n % 9}-03T10:10Z" for n in number],
        camera="perspective", width=1024, height=768, position_error_m=number / 10, source="Mapillary",
        licence="CC BY-SA 4.0",
    )  # fmt: skip
    filters = (FilterCount(name="position", setting="GPS at most 15 m from the SfM position", removed=10),)
    info = DatasetInfo(created=date(2024, 5, 3), sources=(MAPILLARY,), found=40, filters=filters, split="by block")
    return DatasetFolder(folder, frame.assign(**columns), info, (Rejection("x", "position", "31 m"),))


# What it counts


def test_the_facts_are_those_of_the_table() -> None:
    facts = card_facts(dataset(), "T", [ORTHO])
    assert (facts.photos, facts.panoramas, facts.found, facts.creators, facts.device_count) == (30, 3, 40, 4, 2)
    assert facts.devices == {"A x": 20, "B y": 10} and facts.sizes == {"1024 x 768": 30}
    assert facts.years == {2020: 10, 2021: 10, 2022: 10} and sum(facts.months.values()) == 30
    assert facts.hours[11] == 30  # 10:10 UTC at 16.4 degrees east
    assert sum(facts.headings.values()) == 30 and facts.headings[0] == 2  # 0 and 12 degrees
    assert facts.fields_of_view == {70: 27}
    assert facts.position_error_m[0.5] == pytest.approx(1.45) and facts.largest_creator == pytest.approx(8 / 30)
    assert [each.kind for each in facts.sources] == ["photos", "imagery"]
    assert facts.split is not None and facts.split.photos == {"train": 20, "val": 0, "test": 10}


def test_what_is_unknown_is_counted_as_unknown() -> None:
    bare = dataset().photos[["id", "path", "latitude", "longitude"]]
    facts = card_facts(DatasetFolder(Path("x"), bare, DatasetInfo()), "T")
    assert facts.without_time == facts.without_heading == facts.without_field_of_view == facts.without_creator == 30
    assert facts.split is None and facts.devices == {} and facts.years == {} and facts.licences == {"unknown": 30}


def test_the_area_is_that_on_the_ground_also_across_180_degrees() -> None:
    corners = pd.DataFrame({"latitude": [0.0, 0.01], "longitude": [10.0, 10.01]})
    assert extent(corners).km2 == pytest.approx(1.1132 * 1.1057, rel=1e-3)
    assert extent(corners).covered_km2 == pytest.approx(0.02)
    across = extent(corners.assign(longitude=[179.995, -179.995]))
    assert across.km2 == pytest.approx(1.1132 * 1.1057, rel=1e-3)
    assert across.west == pytest.approx(179.995) and across.east == pytest.approx(-179.995)


@pytest.mark.parametrize(
    ("name", "its_id"),
    [("CC BY-SA 4.0", "cc-by-sa-4.0"), ("cc by 4.0", "cc-by-4.0"), ("CC0", "cc0-1.0"), ("unknown", "unknown"),
     ("Public Domain", "pddl"), ("ODbL 1.0", "odbl"), ("CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0"), ("mine: x", "other")],
)  # fmt: skip
def test_licences_have_the_ids_of_hugging_face(name: str, its_id: str) -> None:
    assert licence_id(name) == its_id


def test_share_alike_and_non_commercial_licences_are_known() -> None:
    assert is_share_alike("CC BY-SA 4.0") and is_share_alike("ODbL") and is_share_alike("CC BY-NC-SA 4.0")
    assert not is_share_alike("CC BY 4.0") and not is_share_alike("visa")
    assert is_non_commercial("CC BY-NC 4.0") and not is_non_commercial("CC BY-SA 4.0")
    assert licence_ids([]) == ["unknown"] and licence_ids(["CC BY 4.0"] * 2) == ["cc-by-4.0"]


# The text


def test_the_card_says_what_a_reader_must_know(tmp_path: Path) -> None:
    write_card(dataset(tmp_path), "A town", imagery=[ORTHO])
    text = (tmp_path / "DATASET.md").read_text(encoding="utf-8")
    assert re.search(r"30 street-level photos, of them 3 panoramas, with 2 devices, by 4 creators.*2020 to 2022", text)
    for part in (
        "| position | GPS at most 15 m from the SfM position | 10 |", "| **kept** |  | **30** |", "| A x | 20 |",
        "| photos | Mapillary | CC BY-SA 4.0 | Mapillary contributors | <https://www.mapillary.com/terms> |",
        "| imagery | City | CC BY 4.0 | City of X |", "must name the creators and use the same licence",
        "Mapillary blurs faces", "off by a median of 1.4 m", "no photo is in val", "local mean solar time",
        "![Photos on the map](card/map.png)",
    ):  # fmt: skip
        assert part in text, part
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "cc-by-sa-4.0" and front["size_categories"] == ["n<1K"]
    assert front["pretty_name"] == "A town" and "street-view" in front["tags"]
    values = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert values["photos"] == 30 and values["sources"][1]["attribution"] == "City of X"
    assert {path.name for path in (tmp_path / "card").iterdir()} == {"map.png", "histograms.png"}


def test_photos_of_ones_own_are_not_said_to_be_blurred(tmp_path: Path) -> None:
    own = MAPILLARY.model_copy(update={"name": "my camera", "licence": "unknown"})
    data = dataset(tmp_path, licence="", split="")
    info = data.info.model_copy(update={"sources": (own,), "notes": ("taken in the rain",)})
    write_card(DatasetFolder(tmp_path, data.photos, info))
    text = (tmp_path / "DATASET.md").read_text(encoding="utf-8")
    assert "Photos of my camera were not blurred by jzi" in text and "Mapillary blurs" not in text
    assert "licence of some of it is unknown" in text and "The photos are not split." in text
    assert "- taken in the rain" in text and f"# {escape(tmp_path.name)}" in text


def test_imagery_that_is_published_counts_for_the_licence() -> None:
    facts = card_facts(dataset(), "T", [ORTHO, ORTHO.model_copy(update={"licence": "ask them"})])
    assert yaml.safe_load(front_matter(facts))["license"] == "cc-by-sa-4.0"
    whole = yaml.safe_load(front_matter(facts, with_imagery=True))
    assert whole["license"] == ["cc-by-sa-4.0", "cc-by-4.0", "other"] and whole["license_name"]


HOSTILE = "a|b](http://x.example) <script>alert(1)</script> ![i](j) **b** `c` @me $x$ www.x.example\n# h\n---\nx: y"


def test_text_of_strangers_makes_no_links_html_cells_or_headings(tmp_path: Path) -> None:
    source = Source(
        kind="photos", name=HOSTILE, licence=HOSTILE, attribution=HOSTILE, url="javascript:alert(1)",
        accessed=date(2024, 5, 1), details={HOSTILE: HOSTILE},
    )  # fmt: skip
    data = dataset(tmp_path, device=HOSTILE, camera=HOSTILE, source=HOSTILE, licence=HOSTILE, creator=HOSTILE)
    info = data.info.model_copy(
        update={
            "sources": (source,), "split": HOSTILE, "notes": (HOSTILE,),
            "filters": (FilterCount(name=HOSTILE[:90], setting=HOSTILE, removed=1),),
        }
    )  # fmt: skip
    write_card(DatasetFolder(tmp_path, data.photos, info), HOSTILE)
    text = (tmp_path / "DATASET.md").read_text(encoding="utf-8")
    front, body = text.split("---\n", 2)[1:]
    assert set(yaml.safe_load(front)) == {
        "pretty_name",
        "license",
        "license_name",
        "license_link",
        "size_categories",
        "tags",
    }
    for forbidden in ("<script", "](http", "![i]", "**b**", "`c`", "@me", "www.x", "\n# h", "$x$"):
        assert forbidden not in body, forbidden
    assert "<javascript" not in body and "javascript:alert" in body
    assert len(re.findall(r"^# ", body, re.MULTILINE)) == 1
    rows = [line for line in body.splitlines() if line.startswith("| photos |")]
    assert rows and all(line.count("|") == 9 for line in rows)


@settings(deadline=None)
@given(st.text())
def test_escaped_text_is_one_line_without_markup(text: str) -> None:
    shown = escape(text)
    assert not re.search(r"[\n\r|<>`*_\[\]~\\!$@{}]|://|&(?!#\d+;)|(?<!&)#", shown)
    assert shown.isprintable() or not shown.isascii()


def test_only_plain_addresses_become_links() -> None:
    assert link("https://a.example/x?y=1") == "<https://a.example/x?y=1>"
    for address in (
        "javascript:x",
        "https://a b",
        "https://a>b",
        "data:text/html,x",
        "https://a\nb",
        "//x",
        "https://[x",
    ):
        assert not link(address).startswith("<")
    assert table(("a", "b"), [("x", "1")], 1).splitlines() == ["| a | b |", "| --- | ---: |", "| x | 1 |"]


# Pictures


def picture(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def near(image: np.ndarray, colour: str) -> np.ndarray:
    """Where an image has a colour, (rows, cols)."""
    rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return (np.abs(image - rgb) < 12).all(-1)


def test_the_map_has_north_up_and_east_to_the_right(tmp_path: Path) -> None:
    frame = pd.DataFrame({"latitude": [48.2, 48.21], "longitude": [16.37, 16.385], "split": ["train", "test"]})
    draw_map(frame, tmp_path / "map.png", credit="c")
    image = picture(tmp_path / "map.png")
    image[:45] = 0  # the legend
    train, test = (np.argwhere(near(image, COLOURS[name])).mean(0) for name in ("train", "test"))
    assert train[0] > test[0] + 500 and train[1] < test[1] - 500


def test_the_map_is_drawn_on_the_imagery_where_there_is_some(
    tmp_path: Path, town_folder: Path, pyramid: Pyramid
) -> None:
    draw_map(dataset().photos, tmp_path / "map.png", [str(town_folder / "map.tif")])
    draw_map(dataset().photos, tmp_path / "plain.png")
    colours = [len(np.unique(picture(tmp_path / name).reshape(-1, 3), axis=0)) for name in ("map.png", "plain.png")]
    assert colours[0] > 2 * colours[1]
    with pytest.raises(ImageryError, match="does not overlap the area"):
        draw_map(dataset(latitude=10.0).photos, tmp_path / "other.png", [str(town_folder / "map.tif")])
    assert not (tmp_path / "other.png").exists()


# Bad input, and the command


def test_the_command_writes_the_card_and_names_imagery_by_its_description(
    jzi: Callable[..., Any], tmp_path: Path, town_raster: Path
) -> None:
    dataset(tmp_path / "set").write()
    (tmp_path / "map.json").write_text(ORTHO.model_dump_json())
    output = jzi("dataset card set --imagery map.json --title Town").stdout
    assert "30 photos" in output and "wrote DATASET.md, card.json, card/map.png, card/histograms.png" in output
    text = (tmp_path / "set" / "DATASET.md").read_text()
    assert "# Town" in text and "City of X" in text
    assert json.loads(jzi("dataset card set --imagery map.tif --json").stdout)["sources"][1]["name"] == "City"
    assert "no photos" not in output


def test_imagery_is_described_by_the_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"sources": [json.loads(ORTHO.model_dump_json())]}))
    with pytest.raises(DatasetError, match=r"there is no raster beside .*map.json, such as map.vrt"):
        read_imagery([str(tmp_path / "map.json")])
    (tmp_path / "map.tif").touch()
    assert read_imagery([str(tmp_path / "map.json")]) == ([str(tmp_path / "map.tif")], [ORTHO])
    assert read_imagery([str(tmp_path / "map.tif")]) == ([str(tmp_path / "map.tif")], [ORTHO])
    assert read_imagery(["https://x.example/map.tif"]) == (["https://x.example/map.tif"], [])
    for content in ("", "[1]", '{"sources": [{"kind": "imagery"}]}', "[" * 9999, "\x00"):
        (tmp_path / "map.json").write_text(content)
        with pytest.raises(DatasetError, match="describes no imagery"):
            read_imagery([str(tmp_path / "map.tif")])


def test_an_empty_data_set_and_an_endless_title_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no photos"):
        write_card(dataset(tmp_path, 0))
    with pytest.raises(DatasetError, match="the title has 500 characters"):
        write_card(dataset(tmp_path), "x" * 500)
    assert not list(tmp_path.iterdir())
