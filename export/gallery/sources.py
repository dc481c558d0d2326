"""What a report of single photos reads besides the answers: images, an encoder, and the experts that explain them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from numpy.typing import NDArray

from jzi.decode.expert import ZoomExpert
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.encoders.photo_encoder import PhotoEncoder
from jzi.encode.photo.photo_tokens import encode_photos_and_tokens
from jzi.encode.photo.photos import read_photo
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import JziError
from jzi.retrieve.vpr import VprExpert
from jzi.store.geometry.pyramid import TileKey

_Floats = NDArray[np.float32]


@dataclass
class Sources:
    """What can be shown of each photo; what is None or empty is left out, and `notes` say why.

    Attributes:
        imagery: the map; opened for the tiles that are shown.
        photos: files of photos by their ids; opened for those that are shown.
        zoom: the zoom whose steps are shown.
        vpr: the expert whose nearest training photos are shown.
        training: ids and (photo,) latitudes and longitudes of the training photos.
        load_encoder: loads the encoder of the photos and tiles, whose patch tokens are compared.
        notes: sentences about what is not shown.
    """

    imagery: Imagery | None = None
    photos: Mapping[str, Path] = field(default_factory=dict)
    zoom: ZoomExpert | None = None
    vpr: VprExpert | None = None
    training: tuple[Sequence[str], NDArray[np.float64], NDArray[np.float64]] | None = None
    load_encoder: Callable[[], PhotoEncoder] | None = None
    notes: list[str] = field(default_factory=list)
    _encoder: Encoder | None = field(default=None, init=False)

    def encoder(self) -> Encoder | None:
        """The encoder, loaded on first use; None if there is none that has patch tokens, with a note."""
        if self._encoder is None and self.load_encoder is not None:
            load, self.load_encoder = self.load_encoder, None
            try:
                loaded = load()
            except JziError as error:
                self.notes.append(f"What photos and tiles were matched by is not shown: {error}")
                return None
            if isinstance(loaded, Encoder):
                self._encoder = loaded
            else:
                self.notes.append(f"What was matched is not shown: {loaded.info.name} has no patch tokens.")
        return self._encoder

    def photo_similarity(self, photo: Path, embedding: torch.Tensor) -> _Floats | None:
        """Cosine similarity of the patch tokens of a photo to embeddings.

        Args:
            photo: file of the photo.
            embedding: (n, feature).

        Returns:
            (n, row, col); None if there is no encoder.

        Raises:
            PhotoError: the photo cannot be read.
        """
        encoder = self.encoder()
        if encoder is None:
            return None
        height, width = encoder.photo_shape
        pixels, _ = read_photo(photo, width, height, encoder.resampling)
        tokens = encode_photos_and_tokens(encoder, np.stack([pixels]))[1][0]  # (row, col, feature)
        return _cosine(tokens.flatten(0, 1), embedding).unflatten(1, tokens.shape[:2]).cpu().numpy()

    def tile_similarity(self, keys: Sequence[TileKey], embedding: torch.Tensor) -> _Floats | None:
        """Cosine similarity of the patch tokens of tiles to the embedding of a photo.

        Tokens are those of the cache if it has them, else computed from the imagery.

        Args:
            keys: the tiles.
            embedding: (feature,) of the photo.

        Returns:
            (tile, row, col); None if there is neither.

        Raises:
            CacheError: patch tokens of the cache are missing or damaged.
            ImageryError: the imagery cannot be read.
        """
        if self.zoom is not None and (patches := self.zoom.table.patches) is not None:
            tokens = torch.from_numpy(np.stack(patches.features.read_many(keys))).float()
        else:
            encoder = self.encoder()
            if encoder is None or self.imagery is None:
                return None
            pyramid = self.imagery.pyramid
            tiles = [self.imagery.render(pyramid.tile_bounds(key), encoder.image_size)[0] for key in keys]
            tokens = encoder.encode_tiles_and_patches(np.stack(tiles))[1]
        side = round(tokens.shape[1] ** 0.5)
        values = torch.cat([_cosine(each, embedding[None]) for each in tokens])
        return values.unflatten(1, (side, side)).cpu().numpy()

    def training_photo(self, index: int) -> tuple[str, float] | None:
        """The id of a training photo of `vpr` by its number, and the distance, metres, by which its position differs.

        Args:
            index: number of the photo in the expert.

        Returns:
            None if there is no training photo.
        """
        if self.vpr is None or self.training is None or not len(self.training[0]):
            return None
        ids, latitude, longitude = self.training
        x, y = self.vpr.area.project(latitude, longitude)
        distance = np.hypot(x - self.vpr.x[index], y - self.vpr.y[index])
        nearest = int(distance.argmin())
        return ids[nearest], float(distance[nearest])


def _cosine(tokens: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """(n, token) cosine similarity of (token, feature) to (n, feature)."""
    return F.normalize(embedding.float().to(tokens.device), dim=-1) @ F.normalize(tokens.float(), dim=-1).T
