"""Markdown that text of strangers cannot break: neither tables, nor links, images, HTML or mentions come of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from jzi.store.printable import printable

#: Most characters of a text of strangers on a card.
MAX_TEXT = 300

_SPECIAL = re.compile(r"[&<>|`*_\[\]#~\\!$@{}^]|://|(?<=\bwww)\.", re.IGNORECASE)
#: Direction marks turn what is around them, and invisible characters hide text.
_INVISIBLE = re.compile(r"[\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]")
_URL = re.compile(r"https?://[A-Za-z0-9.-]+(:\d+)?(/[A-Za-z0-9._~/%=&?+,;:-]*)?")


def escape(text: str) -> str:
    r"""Text that Markdown, in a paragraph or a cell of a table, shows as it is.

    Control characters become escapes, white space one blank, and characters that mean something to Markdown, HTML or
    GitHub's and Hugging Face's extensions (links that begin on their own, mentions, formulas) HTML entities. Longer
    texts than `MAX_TEXT` are cut.

    Example:
        >>> escape("a|b <script>"), escape("see https://x.org")
        ('a&#124;b &#60;script&#62;', 'see https&#58;//x.org')
    """
    text = printable(_INVISIBLE.sub("", " ".join(text.split())))
    text = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
    return _SPECIAL.sub(lambda match: "".join(f"&#{ord(match[0][0])};" + match[0][1:]), text)


def link(url: str) -> str:
    """A link to an address if it is a plain one of the web, else the address as text; empty for none."""
    return f"<{url}>" if len(url) <= MAX_TEXT and _URL.fullmatch(url) else escape(url)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A table.

    Args:
        header: of the columns.
        rows: cells, escaped already.
        numbers: how many columns, from the right, are aligned to the right.
    """
    align = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, align, *rows))
