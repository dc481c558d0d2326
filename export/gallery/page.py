"""Write the report of single photos as one self-contained HTML page that works offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from tqdm import tqdm

from jzi.evaluate.cases import Cases
from jzi.export.files import write_file
from jzi.export.gallery.cards import card
from jzi.export.gallery.pool import ImagePool
from jzi.export.gallery.sources import Sources
from jzi.export.gallery.steps import trace_steps
from jzi.store.printable import printable
from jzi.version import __version__

WEB = Path(__file__).parent.parent / "web"


def write_gallery(path: Path, cases: Cases, sources: Sources, *, title: str) -> int:
    """Write the report.

    Args:
        path: file to write.
        cases: the photos that are shown.
        sources: what is shown of them; notes are added for what cannot be read.
        title: what was evaluated, such as the model and the split.

    Returns:
        The size of the file, bytes: 0.1 MB for each photo, about.

    Raises:
        ExportError: the file cannot be written.
        ImageryError: the imagery cannot be read.
        CacheError: the decoder reads patch tokens that cannot be read.
    """
    pool, steps = ImagePool(), trace_steps(cases, sources)
    if steps is None:
        sources.notes.append(
            "There are no zoom steps, and nothing that was matched in them: no zoom decoder took part."
        )
    cards = [
        card(case, number, cases, steps, sources, pool)
        for number, case in enumerate(tqdm(cases.shown, unit="photo", desc="gallery"))
    ]
    attention = any(step["attention"] for each in cards for step in each["steps"])
    values = {
        "matched": "attention" if attention else "similarity",
        "refined": any(each["panels"] for each in cards),
        "photos": len(cases.error),
        "median": f"{np.median(cases.error):,.1f} m",
        "credit": sources.imagery.attribution if sources.imagery else "",
    }
    return write_cards(path, cards, pool, sources.notes, title=title, **values)


def write_cards(
    path: Path, cards: Sequence[dict[str, Any]], pool: ImagePool, notes: Sequence[str], *, title: str, **values: Any
) -> int:
    """Write the page of some cards; returns its size, bytes.

    Args:
        path: file to write.
        cards: what is shown of each photo.
        pool: their images.
        notes: sentences about what is not shown.
        title: title of the page.
        values: what else the template names; errors are in metres, and photos have confidences, by default.

    Raises:
        ExportError: the file cannot be written.
    """
    if any(each["photo"] is None for each in cards):
        notes = [*notes, "Some photos cannot be shown; their place says why."]
    shown = list(dict.fromkeys(printable(each) for each in notes))
    values = {"unit": "m", "sure": "Confidence", "credit": ""} | values
    text = render(title=title, cards=cards, notes=shown, images=Markup(pool.rules()), **values)
    write_file(path, lambda file: file.write_text(text, encoding="utf-8"))
    return len(text.encode())


def render(**values: Any) -> str:
    """The page, with its style sheet and script embedded."""
    embedded = {name: Markup((WEB / f"gallery.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    template = (WEB / "gallery.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(version=__version__, **embedded, **values)
