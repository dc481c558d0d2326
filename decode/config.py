"""Settings of the decoder, without torch, so that commands that only read settings start fast."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from jzi.store.info import MAX_WIDTH
from jzi.store.setting_checks import check_settings

#: Of the weights and products of search.
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class DecoderConfig:
    """Architecture of the decoder. Defaults are the paper's.

    Attributes:
        width: number of features d, that of the encoder's embeddings.
        actions: number of children of a tile, g * g.
        layers: number of blocks.
        heads: number of attention heads.
        dropout: probability of dropout on tokens, attention, residuals and feed-forward layers, below 1.
        patch_tokens: number k of patch tokens per tile that the decoder reads in addition to the tile's embedding,
            those most similar to the photo; the cache must hold them (`jzi encode-map --tokens`).

    Raises:
        ConfigError: the type or the range of a value is wrong.
    """

    width: Annotated[int, Field(ge=1, le=MAX_WIDTH)] = 768
    actions: Annotated[int, Field(ge=1, le=256)] = 16
    layers: Annotated[int, Field(ge=1, le=256)] = 6
    heads: Annotated[int, Field(ge=1, le=1024)] = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    patch_tokens: Annotated[int, Field(ge=0, le=65_536)] = 0

    def __post_init__(self) -> None:
        check_settings("decoder", self)

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layers: int(2d/3) rounded up to a multiple of 256, as in the reference."""
        return -(-int(2 * self.width / 3) // 256) * 256

    def batch(self, plain: int) -> int:
        """Scale a batch size to the memory use with patch tokens.

        Args:
            plain: number of photos per batch without patch tokens.

        Returns:
            Number of photos that need as much memory with patch tokens, at least one.
        """
        return max(1, 2 * plain // (2 + self.patch_tokens))

    def to_dict(self) -> dict[str, Any]:
        """Return the entries for config.json and run fingerprints; options that are off are left out."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("patch_tokens", 0)}
