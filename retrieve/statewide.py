"""A state-wide retriever's folder: two towers whose embeddings of photos and cells are compared, in any area.

It holds the config.json of `jzi.store.model_config` and the towers in encoder/; the index of an area's cells is a cache
of that area. As Fervers et al. 2024 show, it can be used in areas that it was not trained in.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.errors import EncoderError, ModelError
from jzi.locate.ranges import DISTANCE, TEMPERATURE
from jzi.store.info import EncoderInfo
from jzi.store.model_config import CONFIG, StatewideModelConfig, read_config
from jzi.store.model_folder import ENCODER, create_model, verify_encoder

if TYPE_CHECKING:
    from jzi.encode.encoders.towers import Towers

#: The towers while they are written, beside those of before.
_PARTIAL = f"{ENCODER}.partial"


@dataclass(frozen=True)
class StatewideRetriever:
    """A trained or imported state-wide retriever.

    Attributes:
        folder: the retriever's folder.
        config: contents of its config.json.
    """

    folder: Path
    config: StatewideModelConfig

    @classmethod
    def load(cls, folder: str | Path) -> StatewideRetriever:
        """Read a retriever's folder; the towers are read by `load_encoder`.

        Raises:
            ModelError: the folder holds no state-wide retriever, or is damaged.
        """
        folder = Path(folder)
        if not (folder / CONFIG).exists():
            raise ModelError(f"{folder} holds no retriever: `jzi train-retriever` creates one")
        config = read_config(folder)
        if not isinstance(config, StatewideModelConfig):
            raise ModelError(
                f"{folder} holds a model of kind {config.kind}, not a state-wide retriever: `jzi train-retriever` in a "
                "region's folder creates one"
            )
        return cls(folder, config)

    @classmethod
    def save(
        cls,
        folder: str | Path,
        towers: Towers,
        *,
        method: str,
        cell_m: float = 30.0,
        temperature: float | None = None,
        area: str = "",
    ) -> StatewideRetriever:
        """Write a retriever, over one that the folder may hold.

        The folder has no config.json, and so no retriever, while the towers are replaced.

        Args:
            folder: the retriever's folder.
            towers: the towers.
            method: method of training.
            cell_m: side of the cells that it was trained with, metres.
            temperature: divisor of cosine similarities; the reciprocal of the towers' scale by default.
            area: where it was trained, for people.

        Raises:
            ModelError: the folder cannot be written.
            ConfigError: a number is out of range.
        """
        folder, temperature = Path(folder), 1 / towers.config.scale if temperature is None else temperature
        TEMPERATURE.check("temperature", temperature)
        DISTANCE.check("cell_m", cell_m)
        config = StatewideModelConfig(
            encoder=replace(towers.info, name=str(folder / ENCODER), from_hub=False),
            cell_m=cell_m,
            temperature=temperature,
            method=method,
            area=area,
        )
        try:
            towers.save(folder / _PARTIAL)
            (folder / CONFIG).unlink(missing_ok=True)
            if (folder / ENCODER).exists():
                shutil.rmtree(folder / ENCODER)
            (folder / _PARTIAL).rename(folder / ENCODER)
        except EncoderError as error:
            raise ModelError(str(error)) from error
        except OSError as error:
            raise ModelError(f"{folder} cannot be written: {error.strerror}") from error
        create_model(folder, config)
        return cls.load(folder)

    @property
    def encoder(self) -> EncoderInfo:
        """Info of the towers."""
        return self.config.encoder

    @property
    def temperature(self) -> float:
        """Temperature of the softmax of cosine similarities."""
        return self.config.temperature

    @property
    def method(self) -> str:
        """Method of training: "statewide", "sample4geo", ..."""
        return self.config.method

    @property
    def cell_m(self) -> float:
        """Side of the cells that it was trained with, metres."""
        return self.config.cell_m

    def load_encoder(self, device: str | None = None) -> Towers:
        """Load the towers.

        Args:
            device: "cpu", "cuda", "cuda:1", ...; the best one by default.

        Raises:
            EncoderError: they cannot be loaded.
            ModelError: their files are damaged, or they do not have the width that config.json records.
        """
        from jzi.encode.encoders.towers import Towers

        folder = verify_encoder(self.folder, self.config)
        if folder is None:  # recorded as on the hub, which towers are not
            raise ModelError(f"{self.folder} lacks its towers, {self.folder / ENCODER}: copy the model again")
        towers = Towers.load(folder, device, fingerprint=self.encoder.fingerprint)
        if (towers.width, towers.config.image_size) != (self.encoder.width, self.encoder.image_size):
            raise ModelError(f"{self.folder / CONFIG} records other towers than {folder}: copy the model again")
        return towers
