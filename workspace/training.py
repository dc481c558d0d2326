"""Train the model of an area from its cache: the decoder, the other experts, and their fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jzi.errors import ConfigError
from jzi.workspace.inputs import load_encoder
from jzi.workspace.setup.data_checks import photo_warnings
from jzi.workspace.setup.settings import Settings

if TYPE_CHECKING:
    from jzi.decode.model import ZoomModel
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.train.data import TrainingData
    from jzi.train.experts import ExpertsReport
    from jzi.train.run import TrainReport


@dataclass(frozen=True)
class ModelTraining:
    """What a model is trained on, checked and loaded.

    Attributes:
        settings: the settings.
        experts: names of the experts.
        cache: the cache.
        data: the map and the photos.
        others: maps and photos of other areas for the experts cells and levels.
        start: model whose decoder to start from.
        warnings: sentences about too few photos.
        notes: sentences about experts that are left out.
    """

    settings: Settings
    experts: tuple[str, ...]
    cache: FeatureCache
    data: TrainingData
    others: list[TrainingData]
    start: ZoomModel | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def open(cls, settings: Settings, experts: Sequence[str] = (), others: Sequence[str] = ()) -> ModelTraining:
        """Check the settings against the cache, and load what training reads.

        Args:
            settings: the settings.
            experts: names of the experts; by default all that the cache has the data for.
            others: caches of other areas to train the experts cells and levels on.

        Raises:
            ConfigError: settings or names contradict one another, or have no effect.
            CacheError: the cache is incomplete, or belongs to another encoder or pyramid.
            ModelError: the model to start from cannot be used.
        """
        from jzi.decode.model import ZoomModel
        from jzi.encode.device import best_device
        from jzi.store.cache.feature_cache import FeatureCache
        from jzi.store.disk.memory import memory_bytes
        from jzi.train.data import TrainingData
        from jzi.train.experts import NEED_CELLS, check_experts, default_experts, fitting_experts, load_others
        from jzi.train.zoom import check_overrides

        cache = FeatureCache.open(settings.cache_path)
        _check_encoder(settings, cache)
        init = settings.train.init
        start = ZoomModel.load(settings.path(init)) if init else None
        check_overrides(settings.decoder, settings.overridden, start, "train.init")
        names = check_experts(experts or default_experts(cache.has_cells), cache.has_cells, cache.path)
        heads = any(name in NEED_CELLS for name in names)
        if not heads and (ineffective := sorted(name for name in settings.overridden if name.startswith("heads."))):
            raise ConfigError(
                f"--set {ineffective[0]} has no effect without the experts cells and levels: leave it out"
            )
        if not heads and others:
            raise ConfigError(
                "--also trains the experts cells and levels, which this model does not have: leave it out"
            )
        notes = []
        if not experts and not cache.has_cells:
            notes.append(
                f"the experts cells and levels were left out: {cache.path} has no cells (`jzi encode-map --cells`)"
            )
        data = TrainingData.load(
            cache,
            best_device(),
            settings.train.views,
            cells=heads,
            map_memory=memory_bytes(settings.map.memory),
            photo_memory=memory_bytes(settings.train.memory),
        )
        names, left_out = fitting_experts(data, names, bool(experts))
        if left_out:
            notes.append(left_out)
        more = load_others(cache, others, settings.heads, best_device(), settings.train.views)
        warnings = photo_warnings(cache.queries.encoded_count())
        return cls(settings, names, cache, data, more, start, warnings, tuple(notes))

    def run(self, *, progress: bool = True) -> tuple[TrainReport, ExpertsReport]:
        """Train the decoder, then the other experts, and fit their fusion; an interrupted run is resumed.

        Raises:
            ModelError: the folder holds a model that was trained in another way, or cannot be written.
            KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
        """
        from jzi.train.decoder import train_decoder
        from jzi.train.experts import train_experts
        from jzi.train.run import lock_folder

        settings = self.settings
        folder, heads_init = settings.path(settings.model.path), settings.heads.init
        with lock_folder(folder):
            report = train_decoder(
                self.cache,
                folder,
                settings.decoder,
                settings.train,
                encoder_folder=settings.encoder_folder,
                start=self.start,
                settings=settings.to_toml(),
                data=self.data,
                experts_follow=True,
                progress=progress,
            )
            fused = train_experts(
                self.data,
                report.folder,
                self.experts,
                settings.heads,
                views=settings.train.views,
                others=self.others,
                start=settings.path(heads_init) if heads_init else None,
                settings=settings.to_toml(),
                progress=progress,
            )
        return report, fused


def _refuse_heads(settings: Settings, others: Sequence[str]) -> None:
    """Refuse what is for the heads of cells and levels, where neither is trained."""
    if ineffective := sorted(name for name in settings.overridden if name.startswith("heads.")):
        raise ConfigError(f"--set {ineffective[0]} has no effect without the experts cells and levels: leave it out")
    if others:
        raise ConfigError("--also trains the experts cells and levels, which this model does not have: leave it out")


def _check_encoder(settings: Settings, cache: FeatureCache) -> None:
    """Check that the cache is of the settings' encoder, and that there is one for the model folder."""
    from jzi.encode.encoders.fingerprint import is_stored_encoder

    options = settings.encoder
    if settings.encoder_folder is None and not cache.encoder.from_hub:
        raise ConfigError(
            f"there is no encoder in {options.name}, and the model folder needs a copy: set encoder.name to the folder "
            f"of {cache.encoder.label}"
        )
    name = settings.encoder_folder or options.name
    same = is_stored_encoder(cache.encoder, name, options.image_size, options.layout, options.resampling)
    cache.check(area=settings.pyramid, encoder=None if same else load_encoder(settings).info)
