"""The text of a data card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote

from jzi.curate.folder import Source
from jzi.curate.splits import WITHIN_M, SplitReport
from jzi.publish.facts import CardFacts
from jzi.publish.licences import is_non_commercial, is_share_alike
from jzi.publish.markdown import escape, link, table
from jzi.store.plain import share_text

#: A device or a creator with a larger share of the photos is named as a limit.
MOST = 0.5

#: A share of photos without a value that is named as a limit.
UNKNOWN_SHARE = 0.05

#: What the columns of the table of a data set hold.
COLUMNS = {
    "id": "id of the photo, of its source",
    "path": "file of the photo",
    "latitude, longitude": "best known position, degrees (WGS 84)",
    "gps_latitude, gps_longitude": "position that the camera recorded",
    "position_error_m": "distance between the two, metres",
    "heading": "compass direction of the middle column of the photo, degrees",
    "hfov": "horizontal field of view, degrees",
    "panorama": "whether it is an equirectangular panorama",
    "split": "train, val or test",
    "drive": "recording that the photo belongs to",
    "captured_at": "time (ISO 8601, UTC)",
    "device, camera": "make and model; kind of lens",
    "creator, source, licence": "who took it, where it is from, and on what terms",
    "width, height": "pixels",
}


def card_body(facts: CardFacts, map_file: str, histograms_file: str, columns: Mapping[str, str], rejected: bool) -> str:
    """The card below its front matter, in Markdown.

    Args:
        facts: what it says.
        map_file: path of the map, relative to the card.
        histograms_file: path of the histograms.
        columns: what there is of each photo, and what it is.
        rejected: whether there is a rejected.csv beside the card.
    """
    sections = [
        f"# {escape(facts.title)}\n\n{_summary(facts)}\n\n![Photos on the map]({quote(map_file)})",
        f"## Splits\n\n{_splits(facts.split)}",
        f"## Area\n\n{_area(facts)}",
        f"## Photos\n\n{_photos(facts)}\n\n![Histograms of the photos]({quote(histograms_file)})",
        f"## Filters\n\n{_filters(facts, rejected)}",
        f"## Sources and licences\n\n{_sources(facts)}",
        f"## Privacy\n\n{_privacy(facts)}",
        f"## Known limits\n\n{_list(_limits(facts))}",
        "## Columns\n\n" + table(("column", "what it holds"), [(f"`{name}`", what) for name, what in columns.items()]),
        f"## How to cite\n\n{_citation(facts)}",
    ]
    return "\n\n".join(sections) + "\n"


def columns_without(*names: str, **others: str) -> dict[str, str]:
    """`COLUMNS` of a published table: others first, and without some."""
    return {**others, **{name: what for name, what in COLUMNS.items() if name not in names}}


def number(value: int) -> str:
    """A number with thin groups of three digits, as 12 345."""
    return f"{value:,}".replace(",", " ")


def _count(value: int, noun: str) -> str:
    return f"{number(value)} {noun}{'' if value == 1 else 's'}"


def _summary(facts: CardFacts) -> str:
    years = list(facts.years)
    when = f", taken in {years[0]}" if years else ""
    when += f" to {years[-1]}" if len(years) > 1 else ""
    who = f", by {_count(facts.creators, 'creator')}" if facts.creators else ""
    what = f"with {_count(facts.device_count, 'device')}" if facts.device_count else "with unknown devices"
    panoramas = f", of them {_count(facts.panoramas, 'panorama')}" if facts.panoramas else ""
    return (
        f"{_count(facts.photos, 'street-level photo')}{panoramas}, {what}{who}{when}, for locating photos on overhead "
        f"imagery. Built by {facts.generator} on {facts.created}."
    )


def _splits(split: SplitReport | None) -> str:
    if split is None:
        return "The photos are not split."
    shares = [f"within {limit:g} m" for limit in WITHIN_M]
    nearest = {each.split: each for each in split.nearest}
    rows = []
    for name, photos in split.photos.items():
        cells = [name, number(photos)]
        if name in nearest:
            each = nearest[name]
            cells += [f"{each.median_m:.1f} m", *(f"{share_text(each.within[limit])}" for limit in WITHIN_M)]
        rows.append(cells + [""] * (3 + len(shares) - len(cells)))
    text = f"Split {escape(split.text)}." if split.text else "The source has the splits."
    about = "Distances are from photos of val and test to the nearest training photo: their median, and the share of "
    return "\n\n".join(
        [
            f"{text} {about}photos that have one so near.",
            table(("split", "photos", "median distance", *shares), rows, 2 + len(shares)),
            *(f"**Warning:** {escape(sentence)}." for sentence in split.warnings),
        ]
    )


def _area(facts: CardFacts) -> str:
    extent = facts.extent
    return (
        f"Latitude {extent.south:.5f} to {extent.north:.5f}, longitude {extent.west:.5f} to {extent.east:.5f} "
        f"(WGS 84): a rectangle of {km2(extent.km2)}, of which {km2(extent.covered_km2)} have photos (squares of "
        "100 m with one photo or more)."
    )


def km2(area: float) -> str:
    """An area in words; that of photos along one street has no width."""
    if area < 0.001:
        return "less than 0.001 km²"
    return f"{area:.3g} km²" if area < 1000 else f"{number(round(area))} km²"


def _photos(facts: CardFacts) -> str:
    parts = []
    for title, counts in (("device", facts.devices), ("camera", facts.cameras), ("size, pixels", facts.sizes)):
        if counts:
            parts.append(table((title, "photos"), [(escape(name), number(n)) for name, n in counts.items()], 1))
    unknown = [
        f"{what} of {_count(photos, 'photo')}"
        for what, photos in (
            ("the time", facts.without_time),
            ("the heading", facts.without_heading),
            ("the field of view", facts.without_field_of_view),
        )
        if photos
    ]
    if facts.device_count > len(facts.devices):
        parts.append(f"The table lists the most frequent of {number(facts.device_count)} devices.")
    if unknown:
        parts.append(f"Not known are {', '.join(unknown)}.")
    parts.append("Hours, days and years are those of local mean solar time, in which the sun is highest at about 12.")
    return "\n\n".join(parts)


def _filters(facts: CardFacts, rejected: bool) -> str:
    if not facts.filters:
        return f"No filter was used: all {_count(facts.photos, 'photo')} that were found are in the data set."
    rows = [(escape(each.name), escape(each.setting), number(each.removed)) for each in facts.filters]
    rows = [("found", "", number(facts.found)), *rows, ("**kept**", "", f"**{number(facts.photos)}**")]
    listed = "; rejected.csv lists each of them with the reason" if rejected else ""
    text = f"A photo counts for the first filter that removed it{listed}."
    return f"{text}\n\n{table(('filter', 'setting', 'photos'), rows, 1)}"


def _sources(facts: CardFacts) -> str:
    rows = [
        (
            each.kind, escape(each.name), escape(each.licence), escape(each.attribution), link(each.url),
            f"{each.accessed}", number(each.count) if each.count else "", escape(_details(each)),
        )
        for each in facts.sources
    ]  # fmt: skip
    header = ("kind", "source", "licence", "attribution", "address", "accessed", "number found", "details")
    parts = [table(header, rows) if rows else "No source is recorded."]
    if facts.licences:
        parts.append("Photos by licence: " + _listed(facts.licences) + ".")
    if len(facts.photos_by_source) > 1:
        parts.append("Photos by source: " + _listed(facts.photos_by_source) + ".")
    creators = f"The photos are by {_count(facts.creators, 'creator')}, named in the column `creator`"
    missing = f"; of {_count(facts.without_creator, 'photo')} the creator is not known" if facts.without_creator else ""
    parts.append(f"{creators}{missing}." if facts.creators else "The creators of the photos are not known.")
    licences = (*facts.photo_licences, *facts.imagery_licences)
    if shared := [each for each in dict.fromkeys(licences) if is_share_alike(each)]:
        parts.append(
            f"{escape(', '.join(shared))} requires attribution and share-alike: anyone who shares these works, or "
            "anything adapted from them, must name the creators and use the same licence."
        )
    if bound := [each for each in dict.fromkeys(licences) if is_non_commercial(each)]:
        parts.append(f"{escape(', '.join(bound))} forbids commercial use.")
    if not licences or "unknown" in licences:
        parts.append("The licence of some of it is unknown: ask its owners before you share it.")
    return "\n\n".join(parts)


def _details(source: Source) -> str:
    return ", ".join(f"{name}: {value}" for name, value in source.details.items())


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{escape(name)} {number(count)}" for name, count in counts.items())


def _privacy(facts: CardFacts) -> str:
    photos = [each.name for each in facts.sources if each.kind == "photos"]
    blurred = [name for name in photos if "mapillary" in name.lower()]
    others = [name for name in photos if name not in blurred]
    parts = []
    if blurred:
        parts.append(
            "Mapillary blurs faces and number plates before it publishes photos. It does so automatically and misses "
            "some: blur what you find, and report it there."
        )
    if others or not photos:
        whose = f" of {escape(', '.join(dict.fromkeys(others)))}" if others else ""
        parts.append(
            f"Photos{whose} were not blurred by jzi: faces, number plates and homes may be recognizable. Check what "
            "the law requires before you share them."
        )
    parts.append(
        "Names of creators, times and positions show who was where; they are here because licences ask for names."
    )
    return " ".join(parts)


def _limits(facts: CardFacts) -> Iterable[str]:
    if facts.position_error_m:
        median, most = facts.position_error_m[0.5], facts.position_error_m[0.95]
        yield (
            f"Positions are estimates: those that cameras recorded are off by a median of {median:.1f} m from the ones "
            f"given here, 95 % by at most {most:.1f} m."
        )
    else:
        yield "Positions are what cameras recorded: in streets they are off by several metres, at times by tens."
    for what, missing in (
        ("heading", facts.without_heading),
        ("field of view", facts.without_field_of_view),
        ("time", facts.without_time),
    ):
        if missing > UNKNOWN_SHARE * facts.photos:
            yield f"The {what} of {share_text(missing / facts.photos)} of the photos is unknown."
    timed = sum(facts.hours.values())
    night = sum(photos for hour, photos in facts.hours.items() if not 6 <= hour < 18)
    if timed and night < UNKNOWN_SHARE * timed:
        by_day = share_text(1 - night / timed)
        yield f"{by_day} of the photos with a time are from 6 to 18 h: there are hardly any by night."
    empty = sum(not photos for photos in facts.months.values())
    if timed and empty:
        yield f"{_count(empty, 'month')} of the year {'has' if empty == 1 else 'have'} no photo."
    years = list(facts.years)
    if len(years) > 1:
        yield f"Photos span {years[0]} to {years[-1]}: older ones may show what the imagery no longer does."
    if facts.devices and max(facts.devices.values()) > MOST * facts.photos:
        name = max(facts.devices, key=facts.devices.__getitem__)
        yield f"{share_text(facts.devices[name] / facts.photos)} of the photos are from one device, {escape(name)}."
    if facts.largest_creator > MOST:
        yield f"One creator took {share_text(facts.largest_creator)} of the photos."
    if facts.split is None:
        yield "There is no split: figures on parts of the data set cannot be compared."
    else:
        yield from (f"{escape(sentence[:1].upper() + sentence[1:])}." for sentence in facts.split.warnings)
    yield from (escape(note) for note in facts.notes)


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _citation(facts: CardFacts) -> str:
    sources = dict.fromkeys(f"{each.attribution or each.name} ({each.licence})" for each in facts.sources)
    text = f"{escape(facts.title)}, {facts.created.year}: {_count(facts.photos, 'street-level photo')}"
    text += f"; sources: {escape_each(sources)}" if sources else ""
    return f"Name the data set and its sources, for instance:\n\n> {text}. Built with {facts.generator}."


def escape_each(texts: Iterable[str]) -> str:
    """Several texts of strangers, separated by semicolons."""
    return "; ".join(map(escape, texts))
