"""Train the refiner of an area, fit its fusion with the model there, and evaluate both."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.errors import CacheError, ConfigError, ModelError, TrainingError
from jzi.refine.config import CachedRefinerConfig
from jzi.refine.info import RefinerInfo, read_refiner_info
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.model_config import CONFIG
from jzi.store.plain import plain
from jzi.store.trained_photos import check_held_out, photo_keys
from jzi.workspace.inputs import load_encoder, open_imagery, open_photo_files, open_photo_table
from jzi.workspace.models.evaluated import open_experts
from jzi.workspace.setup.data_checks import map_warnings
from jzi.workspace.setup.settings import Settings
from jzi.workspace.stages.refiner import open_stage, refiner_folder

if TYPE_CHECKING:
    from jzi.evaluate.stages.metres import MetreFigures
    from jzi.evaluate.stages.refined_photos import RefinedPhotos
    from jzi.evaluate.stages.refinement import Control
    from jzi.locate.expert import Expert
    from jzi.refine.networks.cached import CachedRefiner
    from jzi.refine.photos import PhotoData
    from jzi.refine.ray_config import RayConfig
    from jzi.refine.stage import RefineStage
    from jzi.refine.windows.fuse import FittedWeights
    from jzi.train.refine.refiner import RefinerReport
    from jzi.workspace.models.experts import ModelExperts


@dataclass(frozen=True)
class TrainedRefiner:
    """Outcome of `train_area_refiner`.

    Attributes:
        report: of the training.
        info: what the refiner's folder records.
        weights: of the fusion with the model for photos whose heading is known, if they were fitted by this call.
        weights_unknown: the same for photos whose heading is unknown.
        note: why they were not; empty if they were.
    """

    report: RefinerReport
    info: RefinerInfo
    weights: FittedWeights | None
    weights_unknown: FittedWeights | None
    note: str


def train_area_refiner(
    settings: Settings, folder: Path, others: Sequence[Settings] = (), *, progress: bool = True
) -> TrainedRefiner:
    """Train a refiner on the cache or on the images of an area, and fit its fusion with the area's model, if any.

    An interrupted run is resumed, a finished one not repeated.

    Args:
        settings: the settings; the section [refine] has the architecture, [refiner] the training.
        folder: the refiner's folder to write.
        others: further areas to train on, of a refiner of kind "rays".
        progress: whether to show progress bars.

    Raises:
        ConfigError: the settings are of a refiner that is trained on pairs, or of one that is trained on one area.
        CacheError: the cache lacks tokens, or is damaged.
        JziError: as `jzi.train.refine.refiner.train_refiner`.
    """
    from jzi.encode.device import processes

    if settings.refine.kind == "rays":
        from jzi.workspace.stages.rays import train_ray_refiner

        report = train_ray_refiner(settings, others, folder, progress=progress)
    else:
        report = _train_one(settings, folder, others, progress)
    info, known, unknown, note = read_refiner_info(folder), None, None, ""
    if processes().is_main_process and (report.epochs or info.fusion is None):
        known, unknown, note = _fit_fusion(settings, folder, progress)
        info = read_refiner_info(folder)
    return TrainedRefiner(report, info, known, unknown, note)


def coarse_map_warnings(settings: Settings) -> tuple[str, ...]:
    """Warnings about the map of an area that a refiner is to be trained on the images of; none if it reads tokens.

    Raises:
        ConfigError: the section [refine] does not fit.
        ImageryError: the imagery cannot be read.
    """
    from jzi.refine.networks.producer import trunk_pixels
    from jzi.train.refine.refine_images import ROWS

    refine = settings.refine
    config: RayConfig | CachedRefinerConfig
    if refine.kind == "rays":
        config, patch = refine.ray_config(), refine.rays.trunk.stride
    elif refine.kind == "cached" and refine.source == "trained":
        config, patch = refine.cached(1, 1, ROWS), refine.trunk.stride
    else:
        return ()
    info = RefinerInfo(kind=refine.kind, config=config, window_m=refine.window_m)
    with open_imagery(settings) as imagery:
        return map_warnings(imagery, settings.pyramid, trunk_pixels(info, patch, settings.pyramid))


def _train_one(settings: Settings, folder: Path, others: Sequence[Settings], progress: bool) -> RefinerReport:
    from jzi.train.encoders.area import new_folder
    from jzi.train.refine.refine_images import ImageSource
    from jzi.train.refine.refine_tokens import TokenSource
    from jzi.train.refine.refiner import check_photos, train_refiner

    refine, config = settings.refine, settings.refiner
    if refine.kind != "cached":
        raise ConfigError(
            'refine.kind is "unifygeo", which is trained on pairs of images (`jzi init --dataset`): set it to "cached"'
        )
    if others:
        raise ConfigError(
            'refine.kind is "cached", which is trained on one area: leave --also out, or set it to "rays"'
        )
    cache = FeatureCache.open(settings.cache_path)
    cache.check(area=settings.pyramid)
    with contextlib.ExitStack() as stack:
        source: TokenSource | ImageSource
        with new_folder(folder):  # not around the training: what is trained stays when it is interrupted
            if refine.source == "trained":
                imagery = stack.enter_context(open_imagery(settings))
                table = open_photo_table(settings).inside(settings.pyramid)
                source = ImageSource.load(imagery, table, refine, config)
            else:
                source = TokenSource.load(cache, refine, config, folder)
            check_photos(source)
        network, init = source.network(refine), settings.path(config.init) if config.init else None
        info = RefinerInfo(
            kind="cached",
            config=network,
            window_m=refine.window_m,
            encoder=cache.encoder.fingerprint,
            detail=source.detail,
        )
        return train_refiner(
            source,
            partial(_make, network, init),
            folder,
            refine,
            config,
            info,
            fingerprint={**{f"refine.{name}": value for name, value in plain(network).items()}, **source.fingerprint},
            start=init,
            settings=settings.to_toml(),
            duplicates=source.splits.duplicates,
            progress=progress,
        )


def _make(network: CachedRefinerConfig, init: Path | None) -> CachedRefiner:
    """A new refiner, or one with the weights of another of the same architecture."""
    from jzi.refine.networks.cached import CachedRefiner
    from jzi.refine.networks.files import load_refiner

    if init is None:
        return CachedRefiner(network)
    refiner, info = load_refiner(init)
    if not isinstance(refiner, CachedRefiner) or info.config != network:
        raise ModelError(f"refiner.init {init} has another architecture than the section [refine]: leave it out")
    return refiner


def _fit_fusion(
    settings: Settings, folder: Path, progress: bool
) -> tuple[FittedWeights | None, FittedWeights | None, str]:
    """Weights for photos whose heading is known and for others, and why there are none."""
    from jzi.evaluate.stages.refinement import fit_fusion
    from jzi.refine.networks.files import update_refiner
    from jzi.refine.windows.fuse import MIN_PHOTOS

    if not (settings.path(settings.model.path) / CONFIG).exists():
        note = "there is no model to refine yet: run this again after `jzi train-decoder` to fit their fusion"
        return None, None, note
    try:
        _, expert, stage, cache = _open(settings, folder)
        photos = _photos(settings, cache, stage, folder, "val")
    except (CacheError, TrainingError, ModelError) as error:  # the refiner itself is trained, whatever is wrong here
        return None, None, f"the fusion with the model was not fitted: {error}"
    known, unknown = fit_fusion(expert, stage, photos, progress=progress)
    if unknown.photos < MIN_PHOTOS:
        note = (
            f"only {unknown.photos} of the validation photos lie in windows of the search's candidates, too few to fit "
            "the weights of the fusion: probabilities are multiplied as they are"
        )
        return None, None, note
    if known.photos < MIN_PHOTOS:  # few photos record their headings
        known = unknown
    update_refiner(folder, fusion=tuple(known.weights), fusion_unknown=tuple(unknown.weights))
    return known, unknown, ""


@dataclass(frozen=True)
class OpenedRefiner:
    """A model and the refiner of its candidates, with held-out photos.

    Attributes:
        settings: the settings.
        model: the experts of the model.
        expert: their fusion.
        stage: the refiner.
        cache: the cache of the photos.
        photos: the photos.
    """

    settings: Settings
    model: ModelExperts
    expert: Expert
    stage: RefineStage
    cache: FeatureCache
    photos: RefinedPhotos

    @classmethod
    def open(
        cls,
        settings: Settings,
        folder: Path,
        split: str | None = None,
        *,
        top: int | None = None,
        experts: tuple[str, ...] = (),
    ) -> OpenedRefiner:
        """Arguments and errors as of `evaluate_area_refiner`."""
        model, expert, stage, cache = _open(settings, folder, experts, top)
        photos = _photos(settings, cache, stage, folder, split)
        return cls(settings, model, expert, stage, cache, photos)

    @property
    def split(self) -> str:
        """Split of the photos."""
        return self.photos.split

    def evaluate(self, *, control: Control = "", headings: bool = True, progress: bool = False) -> MetreFigures:
        """Metres before and after; arguments as of `evaluate_area_refiner`."""
        from jzi.evaluate.stages.refinement import evaluate_refinement

        return evaluate_refinement(
            self.expert, self.stage, self.photos, control=control, headings=headings, progress=progress
        )

    def write_failures(self, path: Path, figures: MetreFigures, count: int, *, headings: bool, title: str) -> int:
        """Write the report of the worst and best photos; returns its size, bytes.

        Args:
            path: file to write.
            figures: of `evaluate`, without a control.
            count: number of photos, at most.
            headings: as of `evaluate`.
            title: title of the report.

        Raises:
            ConfigError: a number is out of range.
            ExportError: the file cannot be written.
        """
        from jzi.evaluate.stages.refinement import refined_cases
        from jzi.workspace.gallery import write_cases

        cases = refined_cases(self.expert, self.stage, self.photos, figures.error, count, headings=headings)
        return write_cases(path, self.settings, cases, self.expert, self.cache, self.model.select(), title=title)


def evaluate_area_refiner(
    settings: Settings,
    folder: Path,
    split: str | None = None,
    *,
    top: int | None = None,
    control: Control = "",
    headings: bool = True,
    experts: tuple[str, ...] = (),
    progress: bool = False,
) -> MetreFigures:
    """Metres of the area's model before and after its candidates are refined, on held-out photos of the cache.

    Args:
        settings: the settings.
        folder: of the refiner, or of a model that has one.
        split: "train", "val" or "test"; by default test, or val if there is no test photo.
        top: candidates to refine; that of the section [refine] by default.
        control: as of `jzi.evaluate.stages.refinement.evaluate_refinement`.
        headings: whether the refiner is given the headings of photos that record theirs.
        experts: of the model; all by default.
        progress: whether to show a progress bar.

    Raises:
        JziError: there is no model, refiner or cache, they do not fit one another, or there is no photo.
    """
    opened = OpenedRefiner.open(settings, folder, split, top=top, experts=experts)
    return opened.evaluate(control=control, headings=headings, progress=progress)


def _open(
    settings: Settings, folder: Path, experts: tuple[str, ...] = (), top: int | None = None
) -> tuple[ModelExperts, Expert, RefineStage, FeatureCache]:
    model, cache = open_experts(settings)
    expert = model.fused(experts)
    stage = open_stage(
        folder,
        expert.area,
        partial(load_encoder, settings),
        encoder=expert.encoder.fingerprint,
        cache=settings.cache_path,
        imagery=lambda: open_imagery(settings) if settings.map.rasters else None,
        config=settings.refine,
        top=top,
    )
    return model, expert, stage, cache


def _photos(
    settings: Settings, cache: FeatureCache, stage: RefineStage, folder: Path, split: str | None
) -> RefinedPhotos:
    """Photos of the cache that neither model nor refiner was trained on; the files of those whose pixels it reads."""
    from jzi.evaluate.stages.refined_photos import RefinedPhotos

    photos = RefinedPhotos.load(cache, split, pixels=None if stage.reads_tokens else _pixels(settings, stage))
    for trained in (settings.path(settings.model.path), refiner_folder(folder)):
        check_held_out(trained, photos.split, photo_keys(photos.frame))
    return photos


def _pixels(settings: Settings, stage: RefineStage) -> Callable[[str, bool], PhotoData | None]:
    import torch

    from jzi.encode.photo.photo_view import PhotoView
    from jzi.errors import PhotoError
    from jzi.locate.expert import Query

    paths = open_photo_files(settings)

    def read(name: str, panorama: bool) -> PhotoData | None:
        if name not in paths:
            return None
        query = Query(name, torch.empty(0), paths[name])
        try:
            return stage.photos(query, PhotoView(panorama=panorama))
        except PhotoError:
            return None

    return read
