"""Settings of re-ranking, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from jzi.errors import ConfigError
from jzi.rerank.methods import MAX_TOP, Method
from jzi.store.setting_checks import check_settings

Orders = Literal["both", "one"]


@dataclass(frozen=True)
class RerankConfig:
    """How a vision-language model compares candidates: `jzi locate --rerank` (the section [rerank]).

    Attributes:
        judge: the vision-language model: a Hugging Face id, a folder, or the URL of an OpenAI-compatible endpoint.
        model: name of the model at an endpoint.
        top: number of candidates that are compared.
        method: how they are compared.
        orders: "both" asks about each pair twice, each crop once as A, which removes a preference for a position;
            "one" asks once and subtracts the preference that was measured.
        questions: most questions about a photo for the method "adaptive".
        gate: candidates are not compared where the first one's probability exceeds this.
        crop_m: side of a crop, true metres; 0 for two cells.
        crop_pixels: side of a crop, pixels.
        photo_pixels: longest side of a photo, pixels; a panorama's is a third longer.
        outline: whether the candidate's cell is outlined.
        composition: "images", "canvas", or "auto" for what the model was made for.
        reason: tokens that the model may think for before it answers; 0 to read its first token.
        batch_size: questions per forward pass, or at once to an endpoint.
        quantize: bits of the weights of a local model, 4 or 8, if bitsandbytes is there; 0 to leave them as they are.
        key_env: environment variable that holds an endpoint's key.
        timeout_s: seconds to wait for an endpoint's answer.
        retries: how often a failed request is repeated.
        price_per_million: price of a million tokens of questions and of answers.
        path: folder of the judgments and of the crops.

    Raises:
        ConfigError: the type or the range of a value is wrong.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    judge: str = ""
    model: str = ""
    top: Annotated[int, Field(ge=2, le=MAX_TOP)] = 5
    method: Method = "auto"
    orders: Orders = "both"
    questions: Annotated[int, Field(ge=1, le=100_000)] = 20
    gate: Annotated[float, Field(ge=0, le=1)] = 1.0
    crop_m: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    crop_pixels: Annotated[int, Field(ge=16, le=2048)] = 336
    photo_pixels: Annotated[int, Field(ge=16, le=4096)] = 768
    outline: bool = True
    composition: Literal["auto", "images", "canvas"] = "auto"
    reason: Annotated[int, Field(ge=0, le=16_384)] = 0
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 4
    quantize: Literal[0, 4, 8] = 0
    key_env: str = "JZI_RERANK_KEY"
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    retries: Annotated[int, Field(ge=0, le=100)] = 5
    price_per_million: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (0.0, 0.0)
    path: str = "rerank"

    def __post_init__(self) -> None:
        check_settings("rerank", self)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", self.key_env):  # not repeated: it may be the key itself
            raise ConfigError(
                "rerank.key_env is not the name of an environment variable: put the key into one, and name that"
            )

    @property
    def design(self) -> str:
        """The method that "auto" stands for."""
        if self.method != "auto":
            return self.method
        return "pairs" if self.top <= 5 else "sliding"
