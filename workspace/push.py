"""What is published on the Hugging Face hub: a model with its card, a cache or a data set."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jzi.errors import ConfigError, HubError, JziError, first_line
from jzi.store.model_config import (
    CONFIG,
    AnyModelConfig,
    AreaModelConfig,
    RetrieverModelConfig,
    StatewideModelConfig,
    read_config,
)
from jzi.store.model_folder import EXPERT_FILES, MAP

if TYPE_CHECKING:
    from jzi.locate.expert import Expert
    from jzi.locate.joint.fusion import Fusion
    from jzi.publish.hub.hub_upload import HubFile, HubTarget
    from jzi.store.cache.feature_cache import FeatureCache

#: Largest file with an evaluation, bytes.
_MAX_EVALUATION = 2**22


@dataclass(frozen=True)
class PushRequest:
    """What to publish.

    Attributes:
        path: folder of a model, a cache, or folder of a published data set.
        target: where.
        licence: the licence, as the user gave it.
        title: heading of the card.
        evaluation: file of what `jzi evaluate --json` printed; by default the model is evaluated if its cache is there.
        config_file: the jzi.toml of the model and its cache, which need not exist.
    """

    path: Path
    target: HubTarget
    licence: str
    title: str = ""
    evaluation: Path | None = None
    config_file: Path = Path("jzi.toml")


@dataclass(frozen=True)
class Prepared:
    """What is ready to be published.

    Attributes:
        kind: what it is.
        files: the files.
        own: names that files of this kind have.
        notes: warnings for people.
        retriever: whether it is a model that is a retriever.
    """

    kind: Literal["model", "cache", "data set"]
    files: tuple[HubFile, ...]
    own: re.Pattern[str]
    notes: tuple[str, ...] = ()
    retriever: bool = False

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(each.size for each in self.files)

    @property
    def card(self) -> bytes:
        """The text of the card, UTF-8."""
        source = next(each.source for each in self.files if each.name == "README.md")
        return source if isinstance(source, bytes) else source.read_bytes()

    @property
    def disclosed(self) -> tuple[str, ...]:
        """What the files disclose beside weights and settings, each once."""
        plain = ("weights", "settings", "the card")
        return tuple(dict.fromkeys(each.discloses for each in self.files if not each.discloses.startswith(plain)))


def prepare(request: PushRequest) -> Prepared:
    """Find what is published, verify it and write its card; sends nothing.

    Raises:
        HubError: there is neither a model, nor a cache, nor a published data set, or no licence was given.
        JziError: it is damaged, or cannot be evaluated.
    """
    from jzi.publish.hub.model_card import check_licence
    from jzi.publish.publication import MANIFEST

    check_licence(request.licence)
    path = request.path
    if (path / CONFIG).is_file():
        return _model(request)
    if request.evaluation:
        raise ConfigError(f"{request.evaluation} is of a model, and {path} is none: leave --evaluation out")
    if (path / "zarr.json").is_file():
        return _cache(request)
    if (path / MANIFEST).is_file():
        return _dataset(request)
    raise HubError(
        f"there is nothing to publish in {path}: give the folder of a model, a cache, or a data set that `jzi dataset "
        "publish` wrote"
    )


def _model(request: PushRequest) -> Prepared:
    from jzi.publish.hub.hub import MODEL_FILES
    from jzi.publish.hub.hub_upload import HubFile
    from jzi.publish.hub.model_card import ModelCard, card_text
    from jzi.publish.hub.model_files import files_of_model

    folder, config = request.path, read_config(request.path)
    files = files_of_model(folder, config)
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        pictures = Path(temporary)
        drawn: dict[str, str] = {}
        if isinstance(config, AreaModelConfig):
            _draw_area(folder, config, pictures / "area.png")
            drawn["area"] = "card/area.png"
        evaluation, photos = _evaluated(request, config, pictures / "calibration.png", notes)
        if (pictures / "calibration.png").exists():
            drawn["calibration"] = "card/calibration.png"
        card = ModelCard(
            request.target.repo, config, request.licence, request.title, evaluation, photos, _positions(files), drawn
        )
        files.append(HubFile("README.md", card_text(card).encode(), "the card"))
        files += [HubFile(name, (pictures / Path(name).name).read_bytes(), "the card") for name in drawn.values()]
    retriever = isinstance(config, RetrieverModelConfig | StatewideModelConfig)
    return Prepared("model", tuple(files), MODEL_FILES, tuple(notes), retriever)


def _draw_area(folder: Path, config: AreaModelConfig, output: Path) -> None:
    import numpy as np

    from jzi.decode.model import open_map_file
    from jzi.decode.tile_table import TileTable
    from jzi.publish.hub.model_picture import draw_area

    mask = None
    if MAP in config.files:
        table = TileTable(open_map_file(folder / MAP, config.pyramid, config.encoder.width))
        mask = np.asarray(table.cell_mask())
    draw_area(config.pyramid, mask, output)


def _positions(files: Sequence[HubFile]) -> int:
    """Number of training photos whose positions are among the files."""
    found = [re.search(r"of each of (\d+)", each.discloses) for each in files if each.name == EXPERT_FILES["vpr"]]
    return int(found[0][1]) if found and found[0] else 0


def _evaluated(
    request: PushRequest, config: AnyModelConfig, plot: Path, notes: list[str]
) -> tuple[Mapping[str, Any] | None, dict[str, int]]:
    """Figures for the card, and number of photos by split: of a file, or measured on the cache, with a plot."""
    from jzi.workspace.setup.settings_file import is_pairs, is_region, load_settings

    stored = _read_evaluation(request.evaluation) if request.evaluation else None
    file = request.config_file
    if isinstance(config, RetrieverModelConfig):
        try:
            measured, photos = _measure_retriever(request.path, None if stored else plot)
            return stored or measured, photos
        except JziError as error:
            notes.append(f"the retriever was not evaluated: {error}")
    elif isinstance(config, StatewideModelConfig) and stored is None and file.exists() and is_region(file):
        try:
            return _measure_region(file, request.path), {}
        except JziError as error:
            notes.append(f"the retriever was not evaluated: {error}")
    elif isinstance(config, AreaModelConfig) and file.exists() and not is_region(file) and not is_pairs(file):
        settings = load_settings(file)
        if settings.path(settings.model.path).resolve() == request.path.resolve():
            try:
                measured, photos = _measure(settings, None if stored else plot)
                return stored or measured, photos
            except JziError as error:
                notes.append(f"the model was not evaluated: {error}")
    if stored is None and not notes:
        notes.append(
            "the card has no evaluation: run this in the folder of its jzi.toml and cache, or give --evaluation FILE, "
            "which `jzi evaluate --json` prints"
        )
    return stored, {}


def _measure(settings: Any, plot: Path | None) -> tuple[dict[str, Any], dict[str, int]]:
    """What `jzi evaluate --json` reports of each expert and of their fusion; with a plot of the calibration."""
    from jzi.workspace.models.evaluated import open_experts

    model, cache = open_experts(settings)
    return _figures(settings.path(settings.model.path), model.select(), model.fusions(), model.fused(), cache, plot)


def _measure_retriever(folder: Path, plot: Path | None) -> tuple[dict[str, Any], dict[str, int]]:
    """The same of a flat retriever, on the photos of its index."""
    from jzi.workspace.models.evaluated import open_retriever

    expert, cache = open_retriever(folder, approximate=False)
    return _figures(folder, {"fused": expert}, {}, expert, cache, plot)


def _measure_region(file: Path, folder: Path) -> dict[str, Any]:
    """What `jzi evaluate --json` reports of a state-wide retriever, on the photos of a region's index."""
    from jzi.workspace.regions.evaluation import evaluate_region
    from jzi.workspace.setup.settings_file import load_region

    evaluation, split = evaluate_region(load_region(file, training=()), folder)
    return {"split": split, **evaluation.to_dict()}


def _figures(
    folder: Path,
    experts: Mapping[str, Expert],
    fusions: Mapping[str, Fusion],
    expert: Expert,
    cache: FeatureCache,
    plot: Path | None,
) -> tuple[dict[str, Any], dict[str, int]]:
    """Figures of a model's experts, nothing without a plot, and number of photos by split."""
    import numpy as np

    from jzi.evaluate.calibration import calibrate
    from jzi.evaluate.experts import evaluate_experts
    from jzi.evaluate.photos import LabelledPhotos
    from jzi.export.picture import draw_calibration

    counts = cache.queries.encoded()["split"].value_counts()
    photos = {name: int(counts[name]) for name in ("train", "val", "test") if name in counts}
    if plot is None:
        return {}, photos
    labelled = LabelledPhotos.load(cache, expert)
    labelled.check_held_out(folder)
    figures = evaluate_experts(experts, fusions, labelled)
    draw_calibration(calibrate(expert, labelled), plot)
    distance = labelled.training_distance
    values: dict[str, Any] = {"split": labelled.split, "photos": len(labelled)}
    values["experts"] = {
        name: {f"recall@{radius:g}m": asdict(interval) for radius, interval in each.recall.items()}
        | {"median_error_m": asdict(each.median_error), "calibration_error": each.calibration_error}
        for name, each in figures.items()
    }
    if distance is not None:
        values["by_training_distance"] = {"median_m": float(np.median(distance))}
    return values, photos


def _read_evaluation(file: Path) -> dict[str, Any]:
    from jzi.store.photos.photo_file import open_regular_file

    try:
        with open_regular_file(file) as opened:
            values = json.loads(opened.read(_MAX_EVALUATION))
    except (OSError, ValueError, RecursionError) as error:
        raise HubError(f"{file} cannot be read: {getattr(error, 'strerror', None) or first_line(error)}") from error
    if not isinstance(values, dict) or "photos" not in values or not any(key.startswith("recall@") for key in values):
        raise HubError(f"{file} is no evaluation: give what `jzi evaluate --json` prints")
    return values


def _cache(request: PushRequest) -> Prepared:
    from jzi.publish.hub.hub_upload import HubFile
    from jzi.publish.hub.model_files import CACHE_FILES, files_of_cache
    from jzi.publish.hub.other_cards import cache_card
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.store.cache.verify import verify_cache

    cache = FeatureCache.open(str(request.path))
    if not verify_cache(cache).sound:
        raise HubError(f"{request.path} is not sound: `jzi cache verify {request.path}` says what is wrong")
    files = files_of_cache(str(request.path))
    name = files[0].name.partition("/")[0]
    text = cache_card(cache, name, request.target.repo, request.licence, request.title)
    return Prepared("cache", (*files, HubFile("README.md", text.encode(), "the card")), CACHE_FILES)


def _dataset(request: PushRequest) -> Prepared:
    from jzi.publish.hub.hub_upload import HubFile
    from jzi.publish.hub.model_files import DATASET_FILES, files_of_dataset
    from jzi.publish.hub.other_cards import licensed_card

    files = files_of_dataset(request.path)
    text = licensed_card(request.path, request.licence)
    return Prepared("data set", (*files, HubFile("README.md", text.encode(), "the card")), DATASET_FILES)


def push(request: PushRequest, prepared: Prepared) -> str:
    """Publish what was prepared; returns the address of the commit.

    Raises:
        HubError: there is no right to, or the hub cannot be reached; nothing is visible then.
    """
    from jzi.publish.hub.hub_upload import publish_files

    kind: Literal["model", "dataset"] = "model" if prepared.kind == "model" else "dataset"
    return publish_files(replace(request.target, kind=kind), prepared.files, prepared.own)
