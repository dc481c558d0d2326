"""The weights of the fusion of a square's zoom and a region's retriever, as their file beside the region's index."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from jzi.errors import ModelError
from jzi.store.disk.digest_memory import remembered_sha256
from jzi.store.disk.json_file import read_json
from jzi.store.model_config import CONFIG, Gain
from jzi.store.setting_checks import first_invalid

#: Largest file, bytes.
_MAX_BYTES = 2**16

_WEIGHT = Annotated[float, Field(ge=0, le=1e6)]
_DIGEST = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class ZoomFusion:
    """What the file records.

    Attributes:
        cells: exponent of the retriever's posterior; 0 if it was dropped.
        zoom: exponent of the zoom's posterior; 0 if it was dropped.
        gains: log-likelihood per photo that each adds to the other, and its standard error.
        photos: number of validation photos.
        retriever: SHA-256 of config.json of the retriever.
        model: SHA-256 of config.json of the zoom model.
        experts: names of the experts of the zoom model that were fused.
        format: version of the file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    cells: _WEIGHT
    zoom: _WEIGHT
    gains: dict[str, tuple[Gain, Gain]]
    photos: Annotated[int, Field(ge=1, le=10**9)]
    retriever: _DIGEST
    model: _DIGEST
    experts: tuple[Annotated[str, Field(max_length=64)], ...] = ()
    format: Literal[1] = 1

    @classmethod
    def read(cls, file: Path) -> ZoomFusion:
        """Read the weights of a fusion.

        Raises:
            ModelError: there are none, or the file is damaged.
        """
        hint = "fit the weights with `jzi train-fusion`"
        try:
            entries = read_json(file, ModelError, hint, most=_MAX_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            raise ModelError(f"there is no {file}, with the weights of a zoom and a retriever: {hint}") from None
        try:
            return TypeAdapter(cls).validate_json(json.dumps(entries))
        except ValidationError as error:
            raise ModelError(f"{file} has an {first_invalid(error)}: {hint} again") from error

    @property
    def weights(self) -> tuple[float, float]:
        """Exponents of the posteriors over the cells and over the tiles."""
        return self.cells, self.zoom

    def check(self, file: Path, retriever: Path, model: Path) -> None:
        """Raise a ModelError if the weights are of other models."""
        for folder, digest in ((retriever, self.retriever), (model, self.model)):
            if remembered_sha256(folder / CONFIG) != digest:
                raise ModelError(
                    f"the weights in {file} were fitted for another model than {folder}: run `jzi train-fusion` again"
                )
