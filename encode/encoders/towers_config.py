"""Settings of the two towers of state-wide retrieval, without torch, so that commands that read settings start fast."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from jzi.errors import EncoderError, JziError
from jzi.store.disk.json_file import read_json
from jzi.store.info import MAX_IMAGE_SIZE, MAX_WIDTH
from jzi.store.setting_checks import check_settings, first_invalid

#: Format of a folder of towers, and the file that describes them.
FORMAT, CONFIG = 1, "config.json"

#: Published weights of the paper's encoder: ImageNet-22k, then ImageNet-1k at 384 pixels.
CONVNEXT = "facebook/convnext-base-384-22k-1k"

#: A ViT-B with a class and a distillation token, 87 million parameters, as the paper's TransGeo has.
DEIT = "facebook/deit-base-distilled-patch16-384"

Pixels = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
Level = Annotated[float, Field(ge=1e-3, le=1e4)]
Gray = Annotated[int, Field(ge=0, le=255)]


@dataclass(frozen=True)
class TowersConfig:
    """Architecture and input of the two towers. Defaults are those of Fervers et al. 2024.

    The methods that the paper compares with (section S1 and table 4) are other entries, with one image of twice the
    cell, `lods_m = (2 * cell_m / image_size,)`:

    - Sample4Geo (Deuser et al. 2023): `pooling = "sample4geo"` and `shared = True`, the mean of the tokens of one
      ConvNeXt-B; the width is that of a token, 1024.
    - SAFA (Shi et al. 2019): `pooling = "safa"`. The paper does not give the heads of this baseline; the authors' code
      has one setting for all poolings, 64.
    - TransGeo (Zhu et al. 2022): `pooling = "class"` and `DEIT`, two ViT-B whose class and distillation tokens go
      through a linear map each and are averaged. Neither the paper nor its code names the weights; DeiT-B is the ViT-B
      that has both tokens. Its second stage, which crops images, is left out, as in the paper.
    - SAIG-D (Zhu et al. 2023): `pooling = "smd"` is its descriptor on the paper's encoder, as in table 4. SAIG's own
      backbone is not described there, and is not here.

    Attributes:
        photo_model: Hugging Face id or folder that the photo tower's encoder was created from, for people.
        map_model: the same of the map tower.
        width: number of features of an embedding.
        pooling: one of `jzi.encode.encoders.pooling.POOLINGS`.
        heads: heads of the poolings "attention" and "safa".
        shared: whether both towers share one encoder; their poolings are always their own.
        photo_size: width and height of a photo, pixels, into which it is fitted on black.
        image_size: side of an image of a cell, pixels.
        lods_m: pixel size of each image of a cell, metres: its levels of detail.
        scale: factor of cosine similarities in the training loss, 6 * 6 in the authors' code.
        background: red, green and blue where a cell's image has no imagery; the mean of ImageNet, which is 0 after
            normalisation. The published weights need white.

    Raises:
        ConfigError: the type or the range of a value is wrong.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    photo_model: Annotated[str, Field(max_length=4096)] = CONVNEXT
    map_model: Annotated[str, Field(max_length=4096)] = CONVNEXT
    width: Annotated[int, Field(ge=1, le=MAX_WIDTH)] = 1024
    pooling: Literal["attention", "mean", "sample4geo", "safa", "smd", "class"] = "attention"
    heads: Annotated[int, Field(ge=1, le=1024)] = 64
    shared: bool = False
    photo_size: tuple[Pixels, Pixels] = (640, 480)
    image_size: Pixels = 384
    lods_m: Annotated[tuple[Level, ...], Field(min_length=1, max_length=16)] = (0.2, 0.4, 0.8, 1.6)
    scale: Annotated[float, Field(ge=1e-2, le=1e4)] = 36.0
    background: tuple[Gray, Gray, Gray] = (124, 116, 104)

    def __post_init__(self) -> None:
        check_settings("statewide", self)

    @property
    def sides_m(self) -> tuple[float, ...]:
        """Side of each image of a cell, metres."""
        return tuple(self.image_size * level for level in self.lods_m)


def read_towers_config(folder: Path) -> TowersConfig:
    """Read and validate the config.json of a folder of towers.

    Raises:
        EncoderError: there are no towers, or config.json was edited or damaged.
    """
    path = folder / CONFIG
    try:
        entries = read_json(path, EncoderError, "copy the towers again")
    except (FileNotFoundError, NotADirectoryError):
        raise EncoderError(f"{folder} has no towers: there is no {path}") from None
    if not isinstance(entries, dict) or entries.pop("jzi_towers", None) != FORMAT:
        raise EncoderError(f"{folder} has no towers of format {FORMAT}: its {CONFIG} describes something else")
    try:
        return TypeAdapter(TowersConfig).validate_json(json.dumps(entries))
    except ValidationError as error:
        invalid = first_invalid(error)
        raise EncoderError(
            f"{path} has an invalid entry {invalid.name:.60} ({invalid.reason}): copy the towers again"
        ) from error
    except JziError as error:
        raise EncoderError(f"{path} cannot be used ({error}): copy the towers again") from error
