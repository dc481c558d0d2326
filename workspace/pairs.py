"""jzi.toml of a data set of pairs of photos and aerial images: its settings, its photos, training and evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tomlkit
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from jzi.datasets import cvact, cvusa, kitti, orientations, vigor
from jzi.errors import ConfigError, PairsError
from jzi.refine.config import UnifyGeoConfig
from jzi.rerank.config import RerankConfig
from jzi.store.photos.pairs import PairDataset
from jzi.store.plain import share_text
from jzi.train.config.pairs import PairTrainingConfig
from jzi.workspace.setup.settings import PathSettings, _strict, resolve_path
from jzi.workspace.setup.settings_file import (
    changed_values,
    read_values,
    settings_error,
    unknown_setting,
    without_none,
    write_toml,
)

Dataset = Literal["vigor", "cvusa", "cvact", "kitti"]
DATASETS: tuple[Dataset, ...] = ("vigor", "cvusa", "cvact", "kitti")

#: Splits that can be evaluated. "val" is held out of training, but in CVACT, which has a split of that name.
SPLITS: dict[Dataset, tuple[str, ...]] = {
    "vigor": ("test", "val"),
    "cvusa": ("test", "val"),
    "cvact": ("val", "test"),
    "kitti": ("test1", "test2", "val"),
}


@dataclass(config=_strict)
class PairSection:
    """The data set and how it is used.

    Attributes:
        dataset: name of the data set.
        folder: its folder.
        area: VIGOR's protocol, "same" or "cross".
        val_share: share of the training photos that are held out to select the epoch; photos of one aerial image stay
            together.
        orientation: whether panoramas are "aligned", north in their middle, or of "unknown" orientation.
        orientations: for unknown orientation, a published list of the headings of the test split; by default they are
            drawn from `refiner.seed`.
        crop: side of the views of aerial images as a share of theirs; below 1, training shifts them at random.
        rerank: whether the first candidates are re-ranked.
        top: number of candidates that are re-ranked.
        backbone: Hugging Face id or folder of the ConvNeXt to start from; empty to start from random weights.
        batch_size: images per forward pass in evaluation.
    """

    dataset: Dataset
    folder: str
    area: Literal["same", "cross"] = "same"
    val_share: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    orientation: Literal["aligned", "unknown"] = "aligned"
    orientations: str = ""
    crop: Annotated[float, Field(ge=0.1, le=1)] = 1.0
    rerank: bool = True
    top: Annotated[int, Field(ge=1, le=1000)] = 5
    backbone: str = "facebook/convnext-tiny-224"
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32


@dataclass(config=_strict)
class PairSettings:
    """The settings of a data set of pairs."""

    pairs: PairSection
    refine: UnifyGeoConfig = field(default_factory=UnifyGeoConfig)
    refiner: PairTrainingConfig = field(default_factory=PairTrainingConfig)
    model: PathSettings = field(default_factory=lambda: PathSettings("refiner"))
    rerank: RerankConfig = field(default_factory=RerankConfig)

    def __post_init__(self) -> None:
        self.folder = Path()
        pairs = self.pairs
        if pairs.orientation == "unknown" and self.refine.aligned and pairs.dataset != "kitti":
            raise ConfigError(
                'pairs.orientation is "unknown" and refine.aligned is true: set refine.aligned = false, so that '
                "headings are compared"
            )
        if pairs.dataset == "kitti" and (self.refine.aligned or pairs.orientation == "unknown"):
            raise ConfigError(
                "photos of KITTI have a heading within 10 degrees: set refine.aligned = false and pairs.orientation = "
                '"aligned"'
            )
        if pairs.orientations and (pairs.orientation != "unknown" or pairs.dataset != "vigor"):
            raise ConfigError('pairs.orientations is for VIGOR with pairs.orientation = "unknown": leave it out')
        if pairs.area != "same" and pairs.dataset != "vigor":
            raise ConfigError(f"pairs.area is {pairs.area!r}, a protocol of VIGOR: leave it out for {pairs.dataset}")
        if pairs.crop < 1 and pairs.dataset in ("vigor", "kitti"):
            raise ConfigError("pairs.crop is for CVUSA and CVACT, whose photos are all at the centre: leave it out")

    def path(self, value: str) -> Path:
        """Resolve a path of the settings."""
        return resolve_path(value, self.folder)

    @property
    def aligned(self) -> bool:
        """Whether panoramas are aligned."""
        return self.pairs.orientation == "aligned"

    def to_toml(self) -> str:
        """Format all settings as a jzi.toml."""
        return tomlkit.dumps(_values(self))


def load_pairs(file: Path, overrides: Iterable[str] = ()) -> PairSettings:
    """Read the jzi.toml of a data set of pairs.

    Args:
        file: path of the jzi.toml.
        overrides: as of `jzi.workspace.setup.settings_file.load_settings`.

    Raises:
        ConfigError: the file does not exist, is that of an area, or a setting is unknown or invalid.
    """
    values, _ = read_values(file, overrides)
    if "pairs" not in values:
        raise ConfigError(
            f"{file} describes an area, not a data set of pairs: set one up with `jzi init --dataset vigor --data DIR`"
        )
    settings = _validated(file, values)
    settings.folder = file.parent
    return settings


def _validated(file: Path, values: dict[str, Any]) -> PairSettings:
    refine = values.get("refine", {})
    known = UnifyGeoConfig.__dataclass_fields__
    if unknown := sorted(set(refine) - set(known)) if isinstance(refine, dict) else []:
        raise unknown_setting(file, f"refine.{unknown[0]}", PairSettings)
    try:
        settings: PairSettings = TypeAdapter(PairSettings).validate_python(values)
    except ValidationError as error:
        raise settings_error(file, error, PairSettings) from error
    return settings


def new_pair_settings(
    name: Dataset, folder: Path, data: Path | None, area: Literal["same", "cross"] | None
) -> PairSettings:
    """The settings of a working directory for a data set of pairs; nothing is read or written.

    Args:
        name: the data set.
        folder: the working directory.
        data: folder of the data set; by default `folder`.
        area: VIGOR's protocol.

    Raises:
        ConfigError: an area is given for another data set than VIGOR.
    """
    from jzi.workspace.setup.init import relative_path

    if area and name != "vigor":
        raise ConfigError(f"--area is VIGOR's protocol: leave it out for {name}")
    section = PairSection(name, relative_path(str(data or folder), folder), area=area or "same")
    architecture, training = UnifyGeoConfig(), PairTrainingConfig()
    if name in ("cvusa", "cvact"):  # photos are all at the centre: there is no place to train
        architecture = UnifyGeoConfig(ground_height=140)
        training = PairTrainingConfig(decoder=0.0, matching=0.0, rerank=0.0)
    if name == "kitti":  # each photo has an aerial image of its own around it, so nothing is retrieved
        architecture = UnifyGeoConfig(aligned=False)
        training = PairTrainingConfig(retrieval=0.0)
    settings = PairSettings(section, architecture, training)
    settings.folder = folder
    return settings


def write_pair_settings(settings: PairSettings) -> None:
    """Write a new jzi.toml, with comments, into the folder of the settings."""
    comments = {
        "pairs": "The data set of pairs of photos and aerial images, and its protocol.",
        "refine": "UnifyGeo's architecture; the defaults are the paper's.",
        "refiner": "Its training; losses with weight 0 are left out: decoder, retrieval, matching, rerank.",
    }
    header = "Settings of a data set of pairs: what differs from the defaults."
    write_toml(settings.folder, changed_values(settings), header, comments)


def _values(settings: PairSettings) -> dict[str, Any]:
    return without_none(asdict(settings))


def read_split(settings: PairSettings, split: str) -> PairDataset:
    """Read a published split of the data set: "train", or one to evaluate on.

    Raises:
        PairsError: the data set is incomplete or of another layout.
    """
    pairs, folder = settings.pairs, settings.path(settings.pairs.folder)
    dataset: PairDataset
    chosen: Any = split
    if pairs.dataset == "vigor":
        dataset = vigor.read(folder, pairs.area, chosen)
    elif pairs.dataset == "cvusa":
        dataset = cvusa.read(folder, chosen)
    elif pairs.dataset == "cvact":
        dataset = cvact.read(folder, chosen)
    else:
        dataset = kitti.read(folder, chosen)
    if pairs.crop < 1:
        side = float(dataset.side_m.mean())
        name = f"{dataset.name}, crops of {share_text(pairs.crop, 0)}"  # another protocol than the published one
        dataset = replace(dataset, name=name, view_side_m=pairs.crop * side, shift_m=(1 - pairs.crop) / 2 * side)
    return dataset


def chosen_split(settings: PairSettings, split: str | None) -> str:
    """The split that a choice means: the data set's first for None, and "test1" for "test" of KITTI.

    Raises:
        ConfigError: the data set has no such split.
    """
    splits = SPLITS[settings.pairs.dataset]
    if split is None or (split == "test" and settings.pairs.dataset == "kitti"):
        return splits[0]
    if split not in ("train", *splits):
        raise ConfigError(f"{settings.pairs.dataset} has no split {split!r}: choose one of train, {', '.join(splits)}")
    return split


def training_pairs(settings: PairSettings) -> tuple[PairDataset, PairDataset]:
    """Training photos, and those that are held out of them to select the epoch.

    They are held out as the data set says, if it does. Else the choice depends on the names of the aerial images alone:
    it is the same in every run and on every machine.

    Raises:
        PairsError: as `read_split`.
    """
    whole = read_split(settings, "train")
    if settings.pairs.dataset == "vigor" and vigor.has_val(settings.path(settings.pairs.folder)):
        return whole, read_split(settings, "val")
    share = settings.pairs.val_share
    names = [Path(str(path)).name for path in whole.references]
    draws = np.array([int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 for name in names])
    held = (draws < share)[whole.positive]
    if held.all():  # of a tiny data set
        held[:] = False
    return whole.take(np.flatnonzero(~held)), whole.take(np.flatnonzero(held), "val")


def evaluation_pairs(settings: PairSettings, split: str | None) -> PairDataset:
    """Photos of a split to evaluate on.

    Args:
        settings: the settings.
        split: one of `SPLITS`, or "train"; None for the data set's first.

    Raises:
        ConfigError: the data set has no such split.
        PairsError: as `read_split`; or nothing is held out.
    """
    split = chosen_split(settings, split)
    if split == "val" and settings.pairs.dataset != "cvact":
        held = training_pairs(settings)[1]
        if not len(held):
            raise PairsError(
                f"no photo is held out of training: set pairs.val_share above {settings.pairs.val_share:g}"
            )
        return held
    return read_split(settings, split)


def rolled_headings(settings: PairSettings, dataset: PairDataset) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """(photo,) headings that panoramas of unknown orientation are rolled to, degrees; None if they are aligned.

    Raises:
        PairsError: the list of orientations cannot be read or is of another split.
    """
    pairs = settings.pairs
    if settings.aligned:
        return None
    if not pairs.orientations or dataset.split != "test":
        return np.random.default_rng([settings.refiner.seed, 1]).uniform(0, 360, len(dataset))
    order = vigor.label_order(settings.path(pairs.folder), pairs.area, "test")
    names = [Path(str(path)).name for path in dataset.photos]
    return orientations.read_orientations(settings.path(pairs.orientations), names, order)
