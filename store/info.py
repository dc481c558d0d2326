"""Encoder and imagery of a cache, as its attributes record them."""

from __future__ import annotations

from dataclasses import dataclass

from jzi.errors import ConfigError

#: Largest side of an encoder's input, pixels, and largest number of its features.
MAX_IMAGE_SIZE, MAX_WIDTH = 4096, 8192

#: Longest credit line of imagery, characters: two lines below a map.
MAX_ATTRIBUTION = 300


@dataclass(frozen=True)
class EncoderInfo:
    """The encoder of a cache's embeddings.

    Attributes:
        name: Hugging Face id, or the folder that it was loaded from.
        from_hub: whether the name is a Hugging Face id.
        fingerprint: SHA-256 of weights, config and preprocessing.
        width: number of features.
        image_size: side of the encoder's input, pixels.
        layout: how photos are cut into squares (`jzi.encode.encoders.encoder.LAYOUTS`), or "fit" if they keep their
            aspect ratio (`jzi.encode.encoders.towers.Towers`).
        resampling: how photos are resized (`jzi.encode.photo.photos.RESAMPLINGS`).

    Raises:
        ConfigError: a number is out of range.
    """

    name: str
    from_hub: bool
    fingerprint: str
    width: int
    image_size: int
    layout: str
    resampling: str = "antialias"  # of caches and models that do not record it

    def __post_init__(self) -> None:
        if not (1 <= self.width <= MAX_WIDTH and 1 <= self.image_size <= MAX_IMAGE_SIZE):
            raise ConfigError(
                f"an encoder has {self.width} features and an input of {self.image_size} pixels: they must lie between "
                f"1 and {MAX_WIDTH}, and 1 and {MAX_IMAGE_SIZE}"
            )

    @property
    def label(self) -> str:
        """Name, input size, resampling if not the default, and the first digits of the fingerprint, for messages."""
        resampling = "" if self.resampling == "antialias" else f", {self.resampling} resampling"
        return f"{self.name} at {self.image_size} px{resampling}, {self.fingerprint[:8]}"


@dataclass(frozen=True)
class ImageryInfo:
    """The imagery of a map.

    Attributes:
        fingerprint: SHA-256 of the files' bytes and of how their pixels are read.
        files: name, size in bytes, modification time in ns and SHA-256 of each file; size and time show whether a file
            must be hashed again.
        description: how pixels are converted to 8-bit RGB, for people.
    """

    fingerprint: str
    files: tuple[tuple[str, int, int, str], ...]
    description: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(tuple(file) for file in self.files))  # JSON has lists

    @property
    def label(self) -> str:
        """File names and the first digits of the fingerprint, for messages."""
        names = ", ".join(name for name, *_ in self.files[:3]) + (" ..." if len(self.files) > 3 else "")
        return f"{names}, {self.fingerprint[:8]}"
