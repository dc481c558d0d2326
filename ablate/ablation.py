"""Preparation of `jzi ablate`: the trials of all variants, each with the encoder and the cache that it needs.

ablations/<name>/<variant>-seed<k>/    model folder of a trial, with result.json
ablations/<name>/table.*               results as a table
ablations/<name>/.shared/              map and encoder, to which the model folders have hard links
ablations/encoders/<settings>/         encoder that was fine-tuned for a variant
ablations/caches/<fingerprint>.zarr    embeddings of another encoder
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

from jzi.ablate.trials import Trial, write_shared
from jzi.ablate.variants import REFERENCE, Variant, folder_name
from jzi.decode.model import ZoomModel
from jzi.encode.device import processes
from jzi.encode.encode_map import MapReport, encode_map
from jzi.encode.encode_queries import PhotoReport, encode_queries
from jzi.encode.encoders.families import blocks_of
from jzi.errors import ConfigError, JziError, TrainingError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.cache.maintenance import most_views, same_photos
from jzi.store.disk.storage import exists
from jzi.store.info import EncoderInfo
from jzi.store.plain import plain
from jzi.store.trained_photos import Keys, check_held_out, check_held_out_from_encoder, photo_keys
from jzi.train.data import DataInfo
from jzi.train.decoder import run_fingerprint
from jzi.train.encoders.encoder import EncoderTrainingReport
from jzi.train.zoom import check_overrides, make_decoder, start_config
from jzi.workspace.caches import scan_folder
from jzi.workspace.finetune import finetune_areas
from jzi.workspace.inputs import load_encoder, open_cache, open_imagery, open_photo_table
from jzi.workspace.setup.settings import EncoderSettings, PathSettings, Settings
from jzi.workspace.setup.settings_file import load_settings

#: The sections about training that a variant may override.
_SECTIONS = ("finetune", "decoder", "train")

#: Receives what is being done: a message, or the report of a step that has been completed.
Log = Callable[[str | MapReport | PhotoReport | EncoderTrainingReport], None]


@dataclass(frozen=True)
class _Group:
    """Variants with the same effective settings: one row of the table.

    Attributes:
        names: names of the variants; the first one is used for folders.
        settings: the effective settings.
        tuned: whether an encoder is fine-tuned first.
    """

    names: tuple[str, ...]
    settings: Settings
    tuned: bool

    @property
    def encoder_key(self) -> str:
        """Identifies the encoder, before it is fine-tuned."""
        settings = self.settings
        options = settings.encoder
        encoder = [options.name, options.image_size, options.layout, options.resampling]
        return json.dumps([*encoder, asdict(settings.finetune) if self.tuned else None])

    @property
    def key(self) -> str:
        """Identifies the effective settings."""
        return json.dumps([self.encoder_key, asdict(self.settings.decoder), asdict(self.settings.train)])


@dataclass(frozen=True)
class _EncodedData:
    """An encoder, its cache, and the photos of the cache on which trials are evaluated.

    Attributes:
        encoder: the settings of the encoder.
        path: path of the cache.
        info: provenance of the cache.
        shared: folder of files that model folders share.
        split: the split that is evaluated.
        photos: hashes of the photos of that split.
    """

    encoder: EncoderSettings
    path: str
    info: DataInfo
    shared: Path
    split: str
    photos: Keys


class Ablation:
    """Variants of the settings in a jzi.toml.

    Args:
        config_file: path of the jzi.toml.
        overrides: overrides for all variants, "section.name=value" as for --set.
        variants: the variants to compare; variants with the same effective settings become one row.
        name: name of the folder in `ablations`.
        reference: whether to include the plain settings.

    Raises:
        ConfigError: a setting is unknown or invalid, or two variants have the same folder name.
    """

    def __init__(
        self, config_file: Path, overrides: Sequence[str], variants: Sequence[Variant], name: str, reference: bool
    ) -> None:
        self.plain = load_settings(config_file, overrides, training=_SECTIONS)
        self.root = self.plain.folder / "ablations"
        self.folder = self.root / folder_name(name)
        groups: dict[str, _Group] = {}
        for variant in [*([Variant(REFERENCE)] if reference else []), *variants]:
            try:
                settings = load_settings(config_file, (*overrides, *variant.overrides), training=_SECTIONS)
            except ConfigError as error:
                raise ConfigError(f"variant {variant.name}: {error}") from error
            overrides_finetune = any(override.startswith("finetune.") for override in variant.overrides)
            group = _Group((variant.name,), settings, overrides_finetune and settings.finetune.blocks != 0)
            same = groups.get(group.key)
            groups[group.key] = replace(group, names=(*same.names, variant.name)) if same else group
        self.groups = list(groups.values())
        folders = [folder_name(group.names[0]) for group in self.groups]
        if duplicates := {folder for folder in folders if folders.count(folder) > 1}:
            raise ConfigError(f"two variants would share the folder {duplicates.pop()}: name them in a TOML file")

    def trials(self, seeds: int, split: str | None, log: Log) -> dict[str, list[Trial]]:
        """Fine-tune encoders and fill caches as needed, and return the trials.

        Args:
            seeds: number of trials of each variant, with train.seed, train.seed + 1, ...
            split: split of the photos to evaluate on; None for test, or val if there is no test photo.
            log: receives messages, and the reports of encoding and fine-tuning.

        Returns:
            Title of the table's row to the trials of its seeds.

        Raises:
            JziError: a decoder cannot be created, a folder holds a run with other settings, an encoder or a cache is
                not available, or an encoder or a decoder to start from was trained on photos that are evaluated. It is
                raised before any decoder is trained.
        """
        infos = self._check_variants()
        encoded: dict[str, _EncodedData] = {}
        for group in self.groups:
            if group.encoder_key not in encoded:
                settings, cache = self._prepare_cache(group, infos[group.encoder_key], log)
                encoded[group.encoder_key] = self._encoded_data(settings, cache, split)
        rows = {
            " = ".join(group.names): [
                self._trial(group, encoded[group.encoder_key], group.settings.train.seed + number, split)
                for number in range(seeds)
            ]
            for group in self.groups
        }
        for trials in rows.values():
            for trial in trials:
                trial.run.load()  # raises if the folder holds another run
        return rows

    def _trial(self, group: _Group, encoded: _EncodedData, seed: int, split: str | None) -> Trial:
        settings = group.settings
        folder = self.folder / f"{folder_name(group.names[0])}-seed{seed}"
        config = replace(settings.train, seed=seed)
        start = settings.path(config.init) if config.init else None
        model = ZoomModel.load(start) if start else None
        if start:
            check_held_out(start, encoded.split, encoded.photos)
        actual = replace(settings.decoder, width=encoded.info.encoder.width, actions=encoded.info.pyramid.actions)
        decoder = start_config(actual, model)
        cache = PathSettings(self._relative(encoded.path))
        written = replace(settings.model, path=self._relative(folder))
        effective = replace(settings, encoder=encoded.encoder, cache=cache, train=config, model=written)
        return Trial(
            variant=group.names[0],
            folder=folder,
            cache=encoded.path,
            decoder=decoder,
            train=config,
            start=start,
            fingerprint=run_fingerprint(encoded.info, decoder, config, model),
            split=split,
            shared=encoded.shared,
            settings=effective.to_toml(),
        )

    # Checks before any training

    def _check_variants(self) -> dict[str, EncoderInfo]:
        """Info of each group's initial encoder; raises if a decoder cannot be created."""
        infos: dict[str, EncoderInfo] = {}
        blocks: dict[str, int] = {}
        for group in self.groups:
            settings, key = group.settings, group.encoder_key
            try:
                if key not in infos:
                    encoder = load_encoder(settings)
                    infos[key], blocks[key] = encoder.info, len(blocks_of(encoder.model))
                trained = settings.finetune.blocks if group.tuned else 0
                if isinstance(trained, int) and trained > blocks[key]:
                    raise ConfigError(
                        f"finetune.blocks is {trained}: the encoder has {blocks[key]} blocks; give at most that many"
                    )
                init = settings.train.init
                start = ZoomModel.load(settings.path(init)) if init else None
                check_overrides(settings.decoder, settings.overridden, start, "train.init")
                with torch.device("cpu" if start else "meta"):  # weights are not needed
                    decoder_config = replace(settings.decoder, width=infos[key].width, actions=settings.pyramid.actions)
                    make_decoder(decoder_config, start)
            except JziError as error:
                prefix = "" if group.names[0] == REFERENCE else f"variant {group.names[0]}: "
                raise type(error)(f"{prefix}{error}") from error
        return infos

    # Encoders and caches

    def _prepare_cache(self, group: _Group, info: EncoderInfo, log: Log) -> tuple[Settings, FeatureCache]:
        """A complete cache for a group, and the group's settings with the encoder of that cache."""
        settings = group.settings
        if not group.tuned and settings.encoder == self.plain.encoder:
            cache = FeatureCache.open(settings.cache_path)
            cache.check(area=settings.pyramid, encoder=info)
            return settings, cache
        if group.tuned:
            settings = self._finetune(group, info, log)
            info = load_encoder(settings).info
        plain = FeatureCache.open(self.plain.cache_path) if exists(self.plain.cache_path) else None
        for existing in scan_folder(self.plain.folder)[0]:
            same = existing.encoder.fingerprint == info.fingerprint and existing.pyramid == settings.pyramid
            if not (same and existing.complete) or existing.is_index:
                continue
            cache = FeatureCache.open(existing.path)
            if plain is None or (cache.imagery == plain.imagery and same_photos(cache, plain)):
                return settings, cache
        path = self.root / "caches" / f"{info.fingerprint[:16]}.zarr"
        log(f"variant {group.names[0]}: encoding the map and the photos with {info.label} into {path}")
        return settings, self._fill(self._with(settings, cache=PathSettings(self._relative(path))), plain, log)

    def _finetune(self, group: _Group, info: EncoderInfo, log: Log) -> Settings:
        """Fine-tune a group's encoder with a decoder of the plain settings; the group's settings with that encoder."""
        settings = group.settings
        key = json.dumps([info.fingerprint, asdict(settings.finetune), asdict(self.plain.decoder)])
        name = f"blocks={settings.finetune.blocks}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        output = self.root / "encoders" / name
        log(f"variant {group.names[0]}: fine-tuning {info.label} into {output}")
        tuning = self._with(settings, decoder=self.plain.decoder)
        tuning.overridden = self.plain.overridden
        report, _ = finetune_areas([tuning], output)
        log(report)
        encoder = replace(settings.encoder, name=self._relative(output / "encoder"))
        return self._with(settings, encoder=encoder)

    def _fill(self, settings: Settings, plain: FeatureCache | None, log: Log) -> FeatureCache:
        """Encode the map and the photos that a cache lacks, with the same augmented views as the plain cache."""
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

    def _encoded_data(self, settings: Settings, cache: FeatureCache, split: str | None) -> _EncodedData:
        frame = cache.queries.encoded()
        splits = set(frame["split"])
        if "train" not in splits:
            raise TrainingError(f"{cache.path} has no photo to train on: none has split 'train'")
        evaluated = next((name for name in ([split] if split else ["test", "val"]) if name in splits), None)
        if evaluated is None:
            raise TrainingError(f"{cache.path} has no photo to evaluate on: encode some, or give another --split")
        photos = photo_keys(frame[frame["split"] == evaluated])
        check_held_out_from_encoder(settings.encoder_folder, evaluated, photos)
        imagery = cache.imagery.fingerprint if cache.imagery else ""
        key = json.dumps([cache.encoder.fingerprint, imagery, plain(cache.pyramid)])
        shared = self.folder / ".shared" / hashlib.sha256(key.encode()).hexdigest()[:12]
        with processes().main_process_first():
            if not (shared / "map.safetensors").exists():  # written last
                write_shared(shared, cache.read_map(), settings.encoder_folder)
        info = DataInfo.from_cache(cache, frame)
        return _EncodedData(settings.encoder, cache.path, info, shared, evaluated, photos)

    def _relative(self, path: Path | str) -> str:
        """A path relative to the folder of jzi.toml; URLs are unchanged."""
        return path if isinstance(path, str) and "://" in path else os.path.relpath(path, self.plain.folder)

    def _with(self, settings: Settings, **changes: Any) -> Settings:
        changed = replace(settings, **changes)
        changed.folder, changed.overridden = settings.folder, settings.overridden
        return changed
