"""What `jzi ablate` runs: the variants of a working directory's settings, each with the cache that it needs.

ablations/<name>/<variant>-seed<k>/    a model folder, with result.json
ablations/<name>/table.*               the outcome
ablations/<name>/.shared/              the map and the encoder, of which the model folders have hard links
ablations/encoders/<what>/             an encoder that was fine-tuned for a variant
ablations/caches/<fingerprint>.zarr    the embeddings of another encoder
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from jzi.ablate.trials import Trial, share
from jzi.ablate.variants import REFERENCE, Variant, folder_name
from jzi.decode.model import ZoomModel
from jzi.encode.device import processes
from jzi.encode.encode_map import MapReport, encode_map
from jzi.encode.encode_queries import PhotoReport, encode_queries
from jzi.encode.families import blocks_of
from jzi.errors import ConfigError, JziError, TrainingError
from jzi.store.cache import FeatureCache
from jzi.store.info import EncoderInfo
from jzi.store.maintenance import most_views, same_photos
from jzi.store.plain import plain
from jzi.store.storage import exists
from jzi.train.data import DataInfo
from jzi.train.decoder import run_fingerprint
from jzi.train.encoder import EncoderTrainingReport
from jzi.train.zoom import check_overrides, make_decoder, start_config
from jzi.workspace.caches import scan_folder
from jzi.workspace.open import finetune_areas, load_encoder, open_cache, open_imagery, open_photo_table
from jzi.workspace.settings import EncoderSettings, PathSettings, Settings, load_settings

#: Receives what is being done: a message, or the report of a step that has been completed.
Log = Callable[[str | MapReport | PhotoReport | EncoderTrainingReport], None]


@dataclass(frozen=True)
class _Line:
    """A row of the table to be.

    Attributes:
        names: of the variants that come to the same settings; the first names the folders.
        settings: those in force.
        tuned: whether an encoder is to be fine-tuned first.
    """

    names: tuple[str, ...]
    settings: Settings
    tuned: bool

    @property
    def encoder_key(self) -> str:
        """What tells its encoder apart before it is made."""
        settings = self.settings
        seen = [settings.encoder.name, settings.encoder.image_size, settings.encoder.layout]
        return json.dumps([*seen, asdict(settings.finetune) if self.tuned else None])

    @property
    def key(self) -> str:
        """What tells its runs apart."""
        return json.dumps([self.encoder_key, asdict(self.settings.decoder), asdict(self.settings.train)])


@dataclass(frozen=True)
class _Made:
    """An encoder, its cache, which data that is, and where model folders find what they share."""

    encoder: EncoderSettings
    path: str
    info: DataInfo
    shared: Path


class Ablation:
    """The variants of the settings in a jzi.toml.

    Args:
        config_file: the jzi.toml.
        overrides: of all variants, as --set has them.
        variants: what is compared; those that come to the same settings become one.
        name: of the folder below `ablations`.
        reference: whether the plain settings are compared too.

    Raises:
        ConfigError: a setting is unknown or has no sensible value.
    """

    def __init__(
        self, config_file: Path, overrides: Sequence[str], variants: Sequence[Variant], name: str, reference: bool
    ) -> None:
        self.plain = load_settings(config_file, overrides)
        self.root = self.plain.folder / "ablations"
        self.folder = self.root / folder_name(name)
        lines: dict[str, _Line] = {}
        for variant in [*([Variant(REFERENCE)] if reference else []), *variants]:
            try:
                settings = load_settings(config_file, (*overrides, *variant.overrides))
            except ConfigError as error:
                raise ConfigError(f"variant {variant.name}: {error}") from error
            told = any(override.startswith("finetune.") for override in variant.overrides)
            line = _Line((variant.name,), settings, told and settings.finetune.blocks != 0)
            same = lines.get(line.key)
            lines[line.key] = replace(line, names=(*same.names, variant.name)) if same else line
        self.lines = list(lines.values())
        folders = [folder_name(line.names[0]) for line in self.lines]
        if twice := {folder for folder in folders if folders.count(folder) > 1}:
            raise ConfigError(f"two variants would share the folder {twice.pop()}: name them in a TOML file")

    def trials(self, seeds: int, split: str | None, log: Log) -> dict[str, list[Trial]]:
        """Every run, by its row's title, once there is a cache for each: encoders are fine-tuned, caches filled.

        Args:
            seeds: how many runs of each variant, with train.seed, train.seed + 1, ...
            split: of the photos to evaluate on; None for test, or val where there is no test photo.
            log: receives messages, and the reports of encoding and fine-tuning.

        Raises:
            JziError: a decoder cannot be made, a folder holds a run of other settings, or an encoder or a cache cannot
                be had; no decoder has been trained then.
        """
        infos = self._check()
        made: dict[str, _Made] = {}
        for line in self.lines:
            if line.encoder_key not in made:
                settings, cache = self._cache(line, infos[line.encoder_key], log)
                made[line.encoder_key] = self._made(settings, cache, split)
        rows = {
            " = ".join(line.names): [
                self._trial(line, made[line.encoder_key], line.settings.train.seed + number, split)
                for number in range(seeds)
            ]
            for line in self.lines
        }
        for trials in rows.values():
            for trial in trials:
                trial.run.load()  # or raises where it is another
        return rows

    def _trial(self, line: _Line, made: _Made, seed: int, split: str | None) -> Trial:
        settings = line.settings
        folder = self.folder / f"{folder_name(line.names[0])}-seed{seed}"
        config = replace(settings.train, seed=seed)
        start = settings.path(config.init) if config.init else None
        model = ZoomModel.load(start) if start else None
        actual = replace(settings.decoder, width=made.info.encoder.width, actions=made.info.pyramid.actions)
        decoder = start_config(actual, model)
        cache, model_path = (PathSettings(self._relative(path)) for path in (made.path, folder))
        in_force = replace(settings, encoder=made.encoder, cache=cache, train=config, model=model_path)
        return Trial(
            variant=line.names[0],
            folder=folder,
            cache=made.path,
            decoder=decoder,
            train=config,
            start=start,
            fingerprint=run_fingerprint(made.info, decoder, config, model),
            split=split,
            shared=made.shared,
            settings=in_force.to_toml(),
        )

    # Before anything is run

    def _check(self) -> dict[str, EncoderInfo]:
        """The encoder that each variant begins with, once it is clear that its decoder can be made."""
        infos: dict[str, EncoderInfo] = {}
        blocks: dict[str, int] = {}
        for line in self.lines:
            settings, key = line.settings, line.encoder_key
            try:
                if key not in infos:
                    encoder = load_encoder(settings)
                    infos[key], blocks[key] = encoder.info, len(blocks_of(encoder.model))
                trained = settings.finetune.blocks if line.tuned else 0
                if isinstance(trained, int) and trained > blocks[key]:
                    raise ConfigError(f"finetune.blocks is {trained}: the encoder has {blocks[key]} blocks")
                init = settings.train.init
                start = ZoomModel.load(settings.path(init)) if init else None
                check_overrides(settings.decoder, settings.overridden, start, "train.init")
                with torch.device("cpu" if start else "meta"):  # nothing is computed with it
                    wanted = replace(settings.decoder, width=infos[key].width, actions=settings.pyramid.actions)
                    make_decoder(wanted, start)
            except JziError as error:
                named = "" if line.names[0] == REFERENCE else f"variant {line.names[0]}: "
                raise type(error)(f"{named}{error}") from error
        return infos

    # Encoders and caches

    def _cache(self, line: _Line, info: EncoderInfo, log: Log) -> tuple[Settings, FeatureCache]:
        """A complete cache for a variant, and its settings with the encoder that filled it."""
        settings = line.settings
        if not line.tuned and settings.encoder == self.plain.encoder:
            cache = FeatureCache.open(settings.cache_path)
            cache.check(pyramid=settings.pyramid, encoder=info)
            return settings, cache
        if line.tuned:
            settings = self._finetune(line, info, log)
            info = load_encoder(settings).info
        plain = FeatureCache.open(self.plain.cache_path) if exists(self.plain.cache_path) else None
        for found in scan_folder(self.plain.folder)[0]:
            same = found.encoder.fingerprint == info.fingerprint and found.pyramid == settings.pyramid
            if not (same and found.complete) or found.is_index:
                continue
            cache = FeatureCache.open(found.path)
            if plain is None or (cache.imagery == plain.imagery and same_photos(cache, plain)):
                return settings, cache
        path = self.root / "caches" / f"{info.fingerprint[:16]}.zarr"
        log(f"variant {line.names[0]}: encoding the map and the photos with {info.label} into {path}")
        return settings, self._fill(self._with(settings, cache=PathSettings(self._relative(path))), plain, log)

    def _finetune(self, line: _Line, info: EncoderInfo, log: Log) -> Settings:
        """The settings of a variant, with the encoder that is fine-tuned as they say, along with the plain decoder."""
        settings = line.settings
        how = json.dumps([info.fingerprint, asdict(settings.finetune), asdict(self.plain.decoder)])
        name = f"blocks={settings.finetune.blocks}-{hashlib.sha256(how.encode()).hexdigest()[:8]}"
        output = self.root / "encoders" / name
        log(f"variant {line.names[0]}: fine-tuning {info.label} into {output}")
        tuning = self._with(settings, decoder=self.plain.decoder)
        tuning.overridden = self.plain.overridden
        report, _ = finetune_areas([tuning], output)
        log(report)
        encoder = replace(settings.encoder, name=self._relative(output / "encoder"))
        return self._with(settings, encoder=encoder)

    def _fill(self, settings: Settings, plain: FeatureCache | None, log: Log) -> FeatureCache:
        """Encode the map and the photos that a cache lacks, with augmented views as the plain cache has them."""
        table = open_photo_table(settings).inside(settings.pyramid)
        views = most_views(plain) if plain else settings.queries.views
        seed = plain.queries.augmentation.get("seed", settings.queries.seed) if plain else settings.queries.seed
        encoder = load_encoder(settings)
        with open_imagery(settings) as imagery:
            if plain:
                plain.check(imagery=imagery.info(plain.imagery))
            cache = open_cache(settings, encoder, imagery)
            log(encode_map(cache, encoder, imagery, batch_size=settings.encoder.batch_size, tokens=settings.map.tokens))
        report = encode_queries(cache, encoder, table, batch_size=settings.encoder.batch_size, views=views, seed=seed)
        left_out = len(table.rejected) + len(report.unreadable)
        log(report)
        if left_out:
            log(f"{left_out} photos left out: `jzi encode-queries` lists the reasons")
        return FeatureCache.open(settings.cache_path)

    def _made(self, settings: Settings, cache: FeatureCache, split: str | None) -> _Made:
        """What a variant's runs have in common."""
        frame = cache.queries.encoded()
        splits = set(frame["split"])
        if "train" not in splits:
            raise TrainingError(f"{cache.path} has no photo to train on: none has split 'train'")
        if not splits & ({split} if split else {"test", "val"}):
            raise TrainingError(f"{cache.path} has no photo to evaluate on: encode some, or give another --split")
        imagery = cache.imagery.fingerprint if cache.imagery else ""
        cells = any(line.settings.decoder.look_ahead == "cells" for line in self.lines)
        key = json.dumps([cache.encoder.fingerprint, imagery, plain(cache.pyramid), *(["cells"] if cells else [])])
        shared = self.folder / ".shared" / hashlib.sha256(key.encode()).hexdigest()[:12]
        with processes().main_process_first():
            if not (shared / "map.safetensors").exists():  # it is written last
                share(shared, cache.read_map(cells), settings.encoder_folder)
        return _Made(settings.encoder, cache.path, DataInfo.from_cache(cache, frame), shared)

    def _relative(self, path: Path | str) -> str:
        """A path as the settings have it; URLs stay as they are."""
        return path if isinstance(path, str) and "://" in path else os.path.relpath(path, self.plain.folder)

    def _with(self, settings: Settings, **changes: Any) -> Settings:
        changed = replace(settings, **changes)
        changed.folder, changed.overridden = settings.folder, settings.overridden
        return changed
