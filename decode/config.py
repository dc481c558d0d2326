"""Settings of the decoder. Free of torch, so that commands which only read settings start at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from jzi.errors import ConfigError

#: What the decoder may see of what lies below a tile.
LOOK_AHEAD = ("none", "children", "cells")


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder's architecture. Defaults are the paper's.

    Attributes:
        width: d, that of the encoder's embeddings.
        actions: g*g.
        layers: number of blocks.
        heads: attention heads.
        dropout: on embeddings, attention, residual and feed-forward.
        patch_tokens: k, how many patch tokens of a tile the decoder reads beside its embedding: those that are most
            similar to the photo. The cache must hold them (`jzi encode-map --tokens`).
        look_ahead: "none", the paper's; "children" scores each child by its own embedding too; "cells" does so in the
            last step too, whose children are the terminal cells: the cache must hold them.
    """

    width: int = 768
    actions: int = 16
    layers: int = 6
    heads: int = 8
    dropout: float = 0.1
    patch_tokens: int = 0
    look_ahead: str = "none"

    def __post_init__(self) -> None:
        if self.patch_tokens < 0:
            raise ConfigError(f"decoder.patch_tokens is {self.patch_tokens}: it must be 0 or more")
        if self.look_ahead not in LOOK_AHEAD:
            raise ConfigError(f"decoder.look_ahead {self.look_ahead!r} is none of {', '.join(LOOK_AHEAD)}")
        if self.layers < 1 or self.heads < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                "decoder.layers and decoder.heads must be at least 1 and decoder.dropout in 0..1, not "
                f"{self.layers}, {self.heads} and {self.dropout}"
            )

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward: int(2d/3) rounded up to a multiple of 256, as in the reference."""
        return -(-int(2 * self.width / 3) // 256) * 256

    def batch(self, plain: int) -> int:
        """How many photos take as much memory as `plain` ones do without patch tokens; at least one."""
        return max(1, 2 * plain // (2 + self.patch_tokens))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; what is off is left out, so that a decoder without it is known as it always was."""
        off = (("patch_tokens", 0), ("look_ahead", "none"))
        return {name: value for name, value in asdict(self).items() if (name, value) not in off}
