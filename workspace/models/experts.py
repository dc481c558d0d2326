"""Compose the experts of a model folder, and a prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jzi.errors import ConfigError, ModelError
from jzi.store.model_config import (
    FusionConfig,
    InsideConfig,
    TransferModelConfig,
    ZoomModelConfig,
    read_config,
)
from jzi.store.model_folder import EXPERT_FILES, MAP, NOVELTY, verify_file
from jzi.workspace.models.expert_plugins import ExpertContext, load_expert, offered, weight_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from jzi.decode.expert import ZoomExpert
    from jzi.locate.expert import Expert
    from jzi.locate.inside import InsideDetector
    from jzi.locate.joint.fusion import Fusion
    from jzi.locate.novelty import Novelty

#: Experts that compare photos with photos rather than with the map.
NOT_CROSS_VIEW = ("vpr",)


@dataclass(frozen=True)
class ModelExperts:
    """The experts of a model, and their fusion.

    Attributes:
        experts: experts by name, the zoom first if there is one.
        fusion: the fusion of each subset of the experts; None if none was fitted.
        added: names of those of other packages, for which no weights were fitted.
        inside: how photos from elsewhere are recognized, for each subset of the experts that can.
        novelty: how pictures unlike the training photos are recognized; None if that was not measured.
    """

    experts: dict[str, Expert]
    fusion: FusionConfig | None = None
    added: tuple[str, ...] = ()
    inside: dict[str, InsideConfig] = field(default_factory=dict)
    novelty: Novelty | None = None

    def fused(self, names: Sequence[str] = ()) -> Expert:
        """One expert that fuses several, without those whose weight is 0.

        Args:
            names: names of the experts to fuse; all by default, the zoom alone if the model has no weights.

        Raises:
            ConfigError: the model has no such expert, or no weights for them.
        """
        from jzi.locate.joint.fusion import FusedExpert

        fusion = self.fusion_of(names)
        if list(fusion.used) == ["zoom"]:
            return self.experts["zoom"]  # calibrated by the temperatures of its steps
        used, weights = [self.experts[name] for name in fusion.used], list(fusion.used.values())
        return FusedExpert(used, weights, fusion.spread, sharpness=fusion.sharpness)

    def select(self, names: Sequence[str] = ()) -> dict[str, Expert]:
        """Experts by name, in the order of the model.

        Args:
            names: names of experts; all by default.

        Raises:
            ConfigError: the model has no such expert.
        """
        if unknown := [name for name in names if name not in self.experts]:
            raise ConfigError(f"the model has no expert {unknown[0]!r}: it has {', '.join(self.experts)}")
        return {name: expert for name, expert in self.experts.items() if not names or name in names}

    def inside_detector(self, names: Sequence[str] = ()) -> InsideDetector | None:
        """What recognizes photos from elsewhere by the evidence of several experts; None if none of them can.

        Args:
            names: names of the experts; all by default.

        Raises:
            ConfigError: the model has no such expert.
        """
        from jzi.locate.inside import Evidence, InsideDetector

        own = {name: each for name, each in self.select(names).items() if name not in self.added}
        able = {name: each for name, each in own.items() if isinstance(each, Evidence)}
        fitted = self.inside.get("+".join(sorted(able)))
        return InsideDetector(able, fitted, self.novelty) if fitted else None

    def fusion_of(self, names: Sequence[str] = ()) -> Fusion:
        """The fusion of several experts.

        Args:
            names: names of the experts to fuse; all by default, the zoom alone if the model has no fusion.

        Raises:
            ConfigError: the model has no such expert, or no weights for them.
        """
        from jzi.locate.joint.fusion import Fusion
        from jzi.locate.joint.sharpness import Sharpness

        names = self._fused_names(names)
        if added := {name: weight_of(self.experts[name]) for name in names if name in self.added}:
            own = [name for name in names if name not in added]
            fitted = self.fusion_of(own) if own else Fusion({})
            return replace(fitted, weights={**fitted.weights, **added})
        if names == ("zoom",) or (len(names) == 1 and self.fusion is None):
            return Fusion({names[0]: 1.0})
        key = "+".join(sorted(names))
        weights = self.fusion.weights.get(key, {}) if self.fusion else {}
        if self.fusion is None or not any(weights.get(name, 0.0) > 0 for name in names):
            raise ConfigError(
                f"the model has no weights to fuse {', '.join(names)}, which are fitted on validation photos: give "
                "--experts zoom, or train it with photos of split val"
            )
        sharpness = Sharpness(*self.fusion.sharpness.get(key, ()))
        return Fusion({name: weights.get(name, 0.0) for name in names}, self.fusion.spread.get(key, 0.0), sharpness)

    def fusions(self, names: Sequence[str] = ()) -> dict[str, Fusion]:
        """The fusions that evaluation reports: each expert alone, all of them, and all but vpr, which is no cross-view.

        Args:
            names: names of the experts to fuse; all by default, the zoom alone if the model has no fusion.

        Returns:
            Fusions by the expert's name, "fused_cross_view" (if an expert is cross-view) and "fused".

        Raises:
            ConfigError: the model has no such expert, or no weights for them.
        """
        fusions = {name: self.fusion_of([name]) for name in self.select(names)}
        names = self._fused_names(names)
        if cross_view := [name for name in names if name not in NOT_CROSS_VIEW]:
            fusions["fused_cross_view"] = self.fusion_of(cross_view)
        return {**fusions, "fused": self.fusion_of(names)}

    def _fused_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names of the experts to fuse: those given, else all; the zoom alone if the model has no fusion."""
        return tuple(self.select(names or (("zoom",) if self.fusion is None else ())))


def load_experts(folder: Path, zoom: ZoomExpert, names: Sequence[str] = (), memory: int | None = None) -> ModelExperts:
    """Load the experts of a model folder beside its zoom.

    Args:
        folder: the model folder.
        zoom: its zoom.
        names: experts that the user names; those that the model lacks and an installed package offers are added.
        memory: bytes that the codes of an expert may take; by default a share of what is free.

    Raises:
        ModelError: a file is missing or damaged, or such a package is broken.
    """
    config = read_config(folder)
    assert isinstance(config, ZoomModelConfig)
    experts = {"zoom": zoom, **_load_files(folder, config, zoom.cell_mask, zoom.table.device, memory)}
    context = ExpertContext(folder, config.pyramid, zoom.encoder, zoom.cell_mask, zoom.table)
    members = _with_added(experts, config.fusion, names, context)
    return replace(members, inside=config.inside, novelty=_load_novelty(folder, config))


def _load_novelty(folder: Path, config: ZoomModelConfig) -> Novelty | None:
    from jzi.locate.novelty import Novelty

    if config.novelty is None:
        return None
    return Novelty.load(verify_file(folder, config, NOVELTY), config.novelty, config.encoder)


def load_transferred(
    folder: Path, config: TransferModelConfig, device: str, names: Sequence[str] = (), memory: int | None = None
) -> ModelExperts:
    """Load the experts of a model without a zoom.

    Args:
        folder: the model folder.
        config: its config.json.
        device: device to compute on.
        names: see `load_experts`.
        memory: bytes that the map may take; by default a share of what is free.

    Raises:
        ModelError: a file is missing or damaged, or the package of an expert is broken.
    """
    from jzi.decode.model import open_map_file
    from jzi.decode.tile_table import TileTable

    path = verify_file(folder, config, MAP)
    table = TileTable(open_map_file(path, config.pyramid, config.encoder.width, memory, device), device)
    mask = table.cell_mask()
    context = ExpertContext(folder, config.pyramid, config.encoder, mask, table)
    return _with_added(_load_files(folder, config, mask, device, memory), config.fusion, names, context)


def _with_added(
    experts: dict[str, Expert], fusion: FusionConfig | None, names: Sequence[str], context: ExpertContext
) -> ModelExperts:
    """The experts of a model, and those of other packages that the user names; a model folder names none."""
    added = tuple(name for name in dict.fromkeys(names) if name not in experts and offered(name))
    return ModelExperts({**experts, **{name: load_expert(name, context) for name in added}}, fusion, added)


def _load_files(
    folder: Path,
    config: ZoomModelConfig | TransferModelConfig,
    cell_mask: NDArray[np.bool_],
    device: str | torch.device,
    memory: int | None,
) -> dict[str, Expert]:
    """Load the experts that have a file of their own, by name."""
    import numpy as np
    import torch

    from jzi.encode.device import buffer_bytes
    from jzi.retrieve.cells import CellsExpert
    from jzi.retrieve.levels import LevelsExpert
    from jzi.retrieve.paged import PagedCellsExpert, PagedLevelsExpert
    from jzi.retrieve.vpr import VprExpert

    classes: dict[str, Callable[..., Expert]] = {
        "cells": CellsExpert.load,
        "levels": LevelsExpert.load,
        "vpr": VprExpert.load,
    }
    paged: dict[str, Callable[..., Expert]] = {"cells": PagedCellsExpert.load, "levels": PagedLevelsExpert.load}
    experts: dict[str, Expert] = {}
    for name in (name for name in EXPERT_FILES if name in config.experts):
        path = verify_file(folder, config, EXPERT_FILES[name])
        entries: dict[str, Any] = config.experts[name]
        whole = 2 * path.stat().st_size  # codes are float16 in the file, and float32 in memory
        if name in paged and buffer_bytes(memory, whole, torch.device(device)) is not None:
            experts[name] = paged[name](path, entries, config.pyramid, config.encoder, cell_mask, device)
        else:
            mask = np.asarray(cell_mask)
            experts[name] = classes[name](path, entries, config.pyramid, config.encoder, mask, device)
    if unknown := sorted(config.experts.keys() - EXPERT_FILES.keys()):
        raise ModelError(f"{folder} has an expert {unknown[0]!r:.40}, which this version of jzi does not know")
    return experts
