"""Text of strangers in messages and tables: without control characters, and never a formula."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

#: Control characters, and the surrogates that stand for bytes of a file name that are not UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

#: First characters by which spreadsheets recognize a formula, or skip to one.
FORMULA = ("=", "+", "-", "@", "\t", "\r")

#: The same, when they are `printable`.
_FORMULA = tuple(character.encode("unicode_escape").decode() for character in FORMULA)


def printable(name: str) -> str:
    r"""A name that every output can hold: control characters and bytes that are not UTF-8 are written as escapes.

    Example:
        >>> printable(b"caf\xe9.jpg".decode(errors="surrogateescape"))
        'caf\\udce9.jpg'
    """
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), name)


def listed(names: Sequence[Any], limit: int = 3) -> str:
    """The first names of many, `printable`, and the number of the others.

    Example:
        >>> listed(["a.jpg", "b.jpg", "c.jpg", "d.jpg"]), listed(["a.jpg"])
        ('a.jpg, b.jpg, c.jpg and 1 more', 'a.jpg')
    """
    shown = ", ".join(printable(str(name)) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def quote_formula(value: Any) -> Any:
    """A cell of a CSV file that no spreadsheet takes for a formula: such a text gets an apostrophe in front.

    So does a text that looks as if it had one, so that `unquote_formula` is the inverse. Texts become `printable`.
    Source: OWASP, "CSV Injection".

    Args:
        value: a cell; numbers are returned as they are.

    Example:
        >>> quote_formula("=1+1.jpg"), quote_formula("a.jpg"), quote_formula(-1.5)
        ("'=1+1.jpg", 'a.jpg', -1.5)
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def unquote_formula(value: Any) -> Any:
    r"""The printable text that `quote_formula` made a cell of.

    Args:
        value: a cell; what is no text is returned as it is.

    Example:
        >>> unquote_formula("'-Ab3"), unquote_formula("'t Hooft")
        ('-Ab3', "'t Hooft")
    """
    if not isinstance(value, str):
        return value
    return value[1:] if value.startswith("'") and value.lstrip("'").startswith(_FORMULA) else value
