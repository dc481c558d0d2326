"""Settings of the decoder. Free of torch, so that commands which only read settings start at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from jzi.store.setting_checks import check_settings


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

    Raises:
        ConfigError: the type or the range of a value is wrong.
    """

    width: Annotated[int, Field(ge=1)] = 768
    actions: Annotated[int, Field(ge=1)] = 16
    layers: Annotated[int, Field(ge=1)] = 6
    heads: Annotated[int, Field(ge=1)] = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    patch_tokens: Annotated[int, Field(ge=0)] = 0
    look_ahead: Literal["none", "children", "cells"] = "none"

    def __post_init__(self) -> None:
        check_settings("decoder", self)

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward: int(2d/3) rounded up to a multiple of 256, as in the reference."""
        return -(-int(2 * self.width / 3) // 256) * 256

    def batch(self, plain: int) -> int:
        """How many photos take as much memory as `plain` ones do without patch tokens; at least one."""
        return max(1, 2 * plain // (2 + self.patch_tokens))

    def to_dict(self) -> dict[str, Any]:
        """Return the entries for config.json and run fingerprints; options that are off are left out."""
        off = (("patch_tokens", 0), ("look_ahead", "none"))
        return {name: value for name, value in asdict(self).items() if (name, value) not in off}
