"""refiner.json: what a refiner's folder records, with digests of itself and of the weights. Loads no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from jzi.errors import ConfigError, JziError, ModelError, first_line
from jzi.refine.config import CachedRefinerConfig, Kind, UnifyGeoConfig
from jzi.refine.ray_config import RayConfig
from jzi.store.disk.digest_memory import remembered_sha256
from jzi.store.disk.json_file import read_json
from jzi.store.model_config import HINT
from jzi.store.model_folder import replace_file
from jzi.store.plain import plain
from jzi.store.setting_checks import check_settings, first_invalid
from jzi.version import __version__

#: Format 1 had weights of another fusion, and format 2 only those for photos with a heading: they are dropped, and `jzi
#: train-refiner` fits them again.
FORMAT, OLDER = 3, (1, 2)

INFO, WEIGHTS = "refiner.json", "refiner.safetensors"

Fingerprint = Annotated[str, Field(max_length=200)]
Digests = dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
Divisor = Annotated[float, Field(ge=1e-4, le=1e4)]
FusionWeight = Annotated[float, Field(ge=0, le=1e6)]


@dataclass(frozen=True, kw_only=True)
class RefinerInfo:
    """What refiner.json records.

    Attributes:
        kind: "cached", "unifygeo" or "rays".
        config: architecture of the network.
        window_m: side of the windows that it was trained on, true metres.
        temperature: divisor T_D of the logits of the density, fitted on validation photos.
        heading_temperature: divisor T_h of the cosines of headings, likewise.
        fusion: weights of the front end, of the density and of the greatest match (`jzi.refine.windows.fuse`) for
            photos whose heading is known, fitted on validation photos; None if they have not been fitted.
        fusion_unknown: the same for photos whose heading is unknown.
        encoder: fingerprint of the encoder of the cache; empty of a refiner that sees pixels.
        detail: fingerprint of the tokens' projection and rendering; empty if there is none.
        version: version of jzi that wrote the folder.
        files: SHA-256 of the weights by their file's name, as of reading.
        replacing: SHA-256 of weights that are being replaced: if the process is killed, either are accepted.

    Raises:
        ConfigError: the type or the range of a value is wrong, or the config is of another kind.
    """

    kind: Kind
    config: UnifyGeoConfig | CachedRefinerConfig | RayConfig
    window_m: Annotated[float, Field(ge=1, le=10_000)]
    temperature: Divisor = 1.0
    heading_temperature: Divisor = 0.1
    fusion: tuple[FusionWeight, FusionWeight, FusionWeight] | None = None
    fusion_unknown: tuple[FusionWeight, FusionWeight, FusionWeight] | None = None
    encoder: Fingerprint = ""
    detail: Fingerprint = ""
    version: Fingerprint = __version__
    files: Digests = field(default_factory=dict)
    replacing: Digests = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_settings("refiner", self)
        if not isinstance(self.config, _CONFIGS[self.kind]):
            raise ConfigError(f"a refiner of kind {self.kind!r} has a {_CONFIGS[self.kind].__name__}: give that")


_CONFIGS: dict[str, type[Any]] = {"cached": CachedRefinerConfig, "unifygeo": UnifyGeoConfig, "rays": RayConfig}


def read_refiner_info(folder: str | Path) -> RefinerInfo:
    """Read and check refiner.json; at most 1 MB of it is read.

    Raises:
        ModelError: there is no refiner in the folder, or refiner.json was edited or damaged, or has another format.
    """
    path = Path(folder) / INFO
    try:
        entries = read_json(path, ModelError, HINT)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"there is no refiner in {folder}: `jzi train-refiner` creates it") from None
    if not isinstance(entries, dict) or "jzi_refiner" not in entries:
        raise ModelError(f"{folder} is not a refiner of jzi: its {INFO} has no entry jzi_refiner")
    if entries["jzi_refiner"] not in (*OLDER, FORMAT):
        raise ModelError(
            f"{folder} is a refiner of format {entries['jzi_refiner']!r:.20}, but jzi {__version__} reads format "
            f"{FORMAT}: train the refiner again"
        )
    if entries.pop("digest", None) != _digest(entries):
        raise ModelError(f"{path} does not match its own digest, it was edited or damaged: {HINT}")
    if entries.pop("jzi_refiner") in OLDER:
        entries["fusion"] = None
    config_class: Any = _CONFIGS.get(str(entries.get("kind")))
    if config_class is None:
        raise ModelError(
            f"{folder} contains a refiner of kind {entries.get('kind')!r:.40}, which jzi {__version__} does not "
            "support: use the version that wrote it"
        )
    try:
        config = TypeAdapter(config_class).validate_json(json.dumps(entries.pop("config", {})), strict=True)
        return RefinerInfo(config=config, **_tuples(entries))
    except ValidationError as error:
        raise ModelError(f"{path} has an {first_invalid(error)}: {HINT}") from error
    except (JziError, TypeError) as error:  # TypeError: an entry is missing or unknown
        raise ModelError(f"{path} cannot be used ({first_line(error)}): {HINT}") from error


def write_refiner_info(folder: Path, info: RefinerInfo) -> None:
    """Write refiner.json atomically.

    Raises:
        ModelError: it cannot be written.
    """
    entries = {"jzi_refiner": FORMAT, **plain(info)}
    if not info.replacing:
        del entries["replacing"]
    text = json.dumps({**entries, "digest": _digest(entries)}, indent=2)
    replace_file(folder / INFO, lambda path: path.write_text(text + "\n"))


def verify_weights(folder: Path, info: RefinerInfo) -> Path:
    """Verify the digest of the weights and return their path.

    Raises:
        ModelError: the file is missing, damaged, or not recorded.
    """
    path = folder / WEIGHTS
    try:
        digest = remembered_sha256(path)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: {HINT}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): {HINT}") from error
    if digest not in {info.files.get(WEIGHTS), info.replacing.get(WEIGHTS)}:
        raise ModelError(f"{path} does not match its SHA-256 in {INFO}, it was changed or damaged: {HINT}")
    return path


def _tuples(entries: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in entries.items()}


def _digest(entries: Mapping[str, Any]) -> str:
    """SHA-256 of entries, independent of their order and layout."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
