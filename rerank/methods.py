"""Names of the ways to compare candidates; imports nothing, so that `jzi --help` starts fast."""

from __future__ import annotations

from typing import Literal

#: Pairs: "pairs" asks about all of them, "sliding" from the bottom up, "knockout", "swiss", "sorting", "adaptive" up to
#: a number of questions. One by one: "yesno", "score", "words", "describe". "list" shows all at once. "auto" is "pairs"
#: for up to five candidates, and "sliding" beyond.
Method = Literal[
    "auto",
    "pairs",
    "sliding",
    "knockout",
    "swiss",
    "sorting",
    "adaptive",
    "list",
    "yesno",
    "score",
    "words",
    "describe",
]

#: Most candidates: those of "list" have letters.
MAX_TOP = 26
