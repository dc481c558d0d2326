"""The data card of a data set: DATASET.md for people and Hugging Face, card.json for programs, and two pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jzi.curate.folder import CARD, DatasetFolder, Source, cannot_write
from jzi.errors import DatasetError
from jzi.publish.card_text import COLUMNS, card_body
from jzi.publish.facts import CardFacts, card_facts
from jzi.publish.licences import licence_ids
from jzi.publish.pictures import draw_histograms, draw_map
from jzi.store.disk.files import write_whole
from jzi.store.plain import plain
from jzi.store.printable import printable

#: The card for programs, and the folder of the pictures.
CARD_JSON, PICTURES = "card.json", "card"
MAP, HISTOGRAMS = f"{PICTURES}/map.png", f"{PICTURES}/histograms.png"

#: Hugging Face's classes of sizes: photos below which a data set is of a class.
_SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
)  # fmt: skip

TAGS = ("geolocalization", "visual-localization", "street-view", "remote-sensing", "geospatial")

#: Longest title, characters.
MAX_TITLE = 200


@dataclass(frozen=True)
class Card:
    """A data card that was written.

    Attributes:
        facts: what it says.
        files: the files, relative to the folder.
    """

    facts: CardFacts
    files: tuple[str, ...]


def write_card(
    folder: DatasetFolder,
    title: str = "",
    rasters: Sequence[str] = (),
    imagery: Sequence[Source] = (),
    *,
    output: Path | None = None,
    name: str = CARD,
    configs: Sequence[dict[str, Any]] = (),
    with_imagery: bool = False,
    columns: Mapping[str, str] = COLUMNS,
    remote: bool = False,
) -> Card:
    """Write the card of a data set, each file atomically, and the text last.

    Args:
        folder: the data set.
        title: its title; by default the name of its folder.
        rasters: imagery to draw the photos on.
        imagery: sources of imagery beside those that the data set records.
        output: where to write; by default the data set's folder.
        name: of the text.
        configs: of the front matter: where Hugging Face finds the splits.
        with_imagery: whether imagery is published with the photos, so that its licences are among those of the card.
        columns: what there is of each photo, and what it is.
        remote: whether rasters may be URLs, or name files elsewhere.

    Raises:
        DatasetError: there is no photo, the title is too long, or a file cannot be written.
        ImageryError: the imagery cannot be read, or is somewhere else.
    """
    if not len(folder.photos):
        raise DatasetError(f"{folder.path} has no photos: there is nothing to describe")
    title = printable(" ".join((title or folder.path.resolve().name).split())) or "photos"
    if len(title) > MAX_TITLE:
        raise DatasetError(f"the title has {len(title)} characters: give one of at most {MAX_TITLE}")
    facts = card_facts(folder, title, imagery)
    output = output or folder.path
    try:
        (output / PICTURES).mkdir(parents=True, exist_ok=True)
        draw_map(folder.photos, output / MAP, rasters, credit_line(facts, bool(rasters)), remote)
        draw_histograms(facts, output / HISTOGRAMS)
        values = json.dumps(plain(to_json(facts)), indent=2, ensure_ascii=False, allow_nan=False)
        body = card_body(facts, MAP, HISTOGRAMS, columns, rejected=output == folder.path)
        text = f"---\n{front_matter(facts, configs, with_imagery)}---\n\n{body}"
        write_whole(output / CARD_JSON, lambda file: file.write_text(values + "\n", encoding="utf-8"))
        write_whole(output / name, lambda file: file.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise DatasetError(cannot_write(output, error)) from error
    return Card(facts, (name, CARD_JSON, MAP, HISTOGRAMS))


def front_matter(facts: CardFacts, configs: Sequence[dict[str, Any]] = (), with_imagery: bool = False) -> str:
    """The YAML that Hugging Face reads from the top of a card.

    Args:
        facts: what the card says.
        configs: where it finds the splits.
        with_imagery: whether the data set holds imagery, whose licences count too.

    https://github.com/huggingface/hub-docs/blob/main/datasetcard.md
    """
    licences = licence_ids([*facts.photo_licences, *(facts.imagery_licences if with_imagery else ())])
    values: dict[str, Any] = {"pretty_name": facts.title, "license": licences if len(licences) > 1 else licences[0]}
    if "other" in licences:
        values |= {"license_name": "licences-of-the-sources", "license_link": "#sources-and-licences"}
    size = next((name for limit, name in _SIZES if facts.photos < limit), "100M<n<1B")
    values |= {"size_categories": [size], "tags": list(TAGS)}
    if configs:
        values["configs"] = list(configs)
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000))


def credit_line(facts: CardFacts, with_imagery: bool) -> str:
    """The credit of the sources of photos, and of imagery, for a picture."""
    lines = {"photos": "", "imagery": ""}
    for kind in lines:
        credits = [f"{each.attribution or each.name} ({each.licence})" for each in facts.sources if each.kind == kind]
        lines[kind] = ", ".join(dict.fromkeys(credits))
    shown = ["imagery", "photos"] if with_imagery else ["photos"]
    return "; ".join(f"{kind}: {lines[kind]}" for kind in shown if lines[kind])


def to_json(facts: CardFacts) -> dict[str, Any]:
    """The facts, with the models of dataset.json as plain values."""
    values = dict(vars(facts))
    values["created"] = facts.created.isoformat()
    for name in ("sources", "filters"):
        values[name] = [each.model_dump(mode="json") for each in values[name]]
    return values
