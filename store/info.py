"""What a cache says of the encoder and the imagery that it was made with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class EncoderInfo:
    """Which encoder made the embeddings.

    Attributes:
        name: Hugging Face id, or the folder that it was loaded from.
        from_hub: which of the two.
        fingerprint: SHA-256 over weights, config and preprocessing, for the program.
        width: number of features.
        image_size: side of a tile as the encoder sees it, pixels.
        layout: how a photo becomes squares (`jzi.encode.encoder.LAYOUTS`).
    """

    name: str
    from_hub: bool
    fingerprint: str
    width: int
    image_size: int
    layout: str

    @property
    def label(self) -> str:
        """Name, input and the first digits of the fingerprint."""
        return f"{self.name} at {self.image_size} px, {self.fingerprint[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ImageryInfo:
    """Which imagery the tiles were cut from.

    Attributes:
        fingerprint: SHA-256 over the files' bytes and how their pixels are read.
        files: for each file name, size in bytes, modification time in ns and SHA-256, so that an unchanged file is
            not hashed again.
        description: how pixels become 8-bit RGB, for people.
    """

    fingerprint: str
    files: tuple[tuple[str, int, int, str], ...]
    description: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(tuple(file) for file in self.files))  # JSON has lists

    @property
    def label(self) -> str:
        """The files' names and the first digits of the fingerprint."""
        names = ", ".join(name for name, *_ in self.files[:3]) + (" ..." if len(self.files) > 3 else "")
        return f"{names}, {self.fingerprint[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
