"""Write the report of single photos as one self-contained HTML page that works offline."""

from __future__ import annotations

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
    if any(each["photo"] is None for each in cards):
        sources.notes.append("Some photos cannot be shown; their place says why.")
    text = render(
        title=title,
        cards=cards,
        matched="attention" if attention else "similarity",
        radius=cases.shown[0].location.extent if cases.shown else "",
        photos=len(cases.error),
        median=float(np.median(cases.error)),
        credit=sources.imagery.attribution if sources.imagery else "",
        notes=list(dict.fromkeys(printable(each) for each in sources.notes)),
        images=Markup(pool.rules()),
    )
    write_file(path, lambda file: file.write_text(text, encoding="utf-8"))
    return len(text.encode())


def render(**values: Any) -> str:
    """The page, with its style sheet and script embedded."""
    embedded = {name: Markup((WEB / f"gallery.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    template = (WEB / "gallery.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(version=__version__, **embedded, **values)
