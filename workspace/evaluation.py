"""Evaluate a model of an area, or a retriever, on the held-out photos of its cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.workspace.models.evaluated import open_experts, open_retriever
from jzi.workspace.setup.settings import Settings

if TYPE_CHECKING:
    from jzi.evaluate.calibration import Calibration
    from jzi.evaluate.experts import ExpertFigures
    from jzi.evaluate.metrics import Evaluation
    from jzi.evaluate.photos import LabelledPhotos
    from jzi.locate.expert import Expert
    from jzi.locate.joint.fusion import Fusion
    from jzi.store.cache.feature_cache import FeatureCache


@dataclass(frozen=True)
class EvaluatedModel:
    """A model, or a retriever, and the photos that it is evaluated on.

    Attributes:
        settings: the settings.
        expert: what locates: the fusion of the model's experts, or the retriever; among the cells of the gallery.
        experts: the model's experts by name; empty for a retriever.
        fusions: fusion of each row of the report, by its name.
        photos: the photos.
        cache: the cache that they are from.
        method: how the first row of the report is found, for people.
        occupied: whether only cells that hold a photo of the split are in the gallery.
    """

    settings: Settings
    expert: Expert
    experts: dict[str, Expert]
    fusions: dict[str, Fusion]
    photos: LabelledPhotos
    cache: FeatureCache
    method: str
    occupied: bool = False

    @classmethod
    def open(
        cls,
        settings: Settings,
        split: str | None = None,
        *,
        names: Sequence[str] = (),
        retriever: Path | None = None,
        approximate: bool = False,
        occupied: bool = False,
    ) -> EvaluatedModel:
        """Load a model and the photos of a split.

        Args:
            settings: the settings.
            split: "train", "val" or "test"; by default test, or val if there is no test photo.
            names: experts of the model; all by default.
            retriever: folder of a retriever to evaluate instead of the model.
            approximate: search the retriever's HNSW graph.
            occupied: choose only among the cells that hold a photo of the split.

        Raises:
            JziError: there is no model or cache, they do not fit one another, or there is no photo.
        """
        from jzi.evaluate.gallery import restrict_to_occupied
        from jzi.evaluate.photos import LabelledPhotos

        expert: Expert
        experts: dict[str, Expert] = {}
        fusions: dict[str, Fusion] = {}
        if retriever:
            expert, cache = open_retriever(retriever, approximate=approximate)
            method = f"flat retrieval ({'HNSW' if approximate else 'exact search'})"
        else:
            model, cache = open_experts(settings, names)
            expert, experts, fusions = model.fused(names), model.select(names), model.fusions(names)
            greedy = "most probable cell" if occupied else "greedy search"
            method = "most probable cell of the fused experts" if expert.name == "fused" else greedy
        photos = LabelledPhotos.load(cache, expert, split)
        photos.check_held_out(retriever or settings.path(settings.model.path))
        if occupied:
            expert = restrict_to_occupied(expert, photos)
        return cls(settings, expert, experts, fusions, photos, cache, method, occupied)

    def evaluate(self, radii: Sequence[float]) -> Evaluation:
        """Recall of the most probable cell within some radii, metres, as in the paper."""
        from jzi.evaluate.protocol import evaluate

        return evaluate(self.expert, self.photos, radii=radii)

    def evaluate_experts(
        self, radii: Sequence[float], *, radius: float = 50.0, beams: int | None = None
    ) -> dict[str, ExpertFigures]:
        """The default answer of each expert and of their fusions, by name; arguments as of `LocateOptions`."""
        from jzi.evaluate.experts import evaluate_experts
        from jzi.evaluate.gallery import restrict_to_occupied

        experts = self.experts
        if self.occupied:
            experts = {name: restrict_to_occupied(each, self.photos) for name, each in experts.items()}
        return evaluate_experts(experts, self.fusions, self.photos, radius=radius, radii=radii, beams=beams)

    def calibrate(self, *, radius: float = 50.0, beams: int | None = None) -> Calibration:
        """Compare the estimates, and confidences with what they promise; arguments as of `LocateOptions`."""
        from jzi.evaluate.calibration import calibrate

        return calibrate(self.expert, self.photos, radius=radius, beams=beams)

    def write_cases(
        self, path: Path, count: int, *, name: str = "", radius: float = 50.0, beams: int | None = None
    ) -> int:
        """Write a report of the worst and best photos; returns its size, bytes.

        Args:
            path: file to write.
            count: number of photos.
            name: of the model, for the title; that of its folder by default.
            radius: as of `LocateOptions`.
            beams: as of `LocateOptions`.

        Raises:
            ConfigError: a number is out of range.
            ExportError: the file cannot be written.
        """
        from jzi.evaluate.cases import find_cases
        from jzi.workspace.gallery import write_cases

        photos = self.photos
        name = name or Path(self.settings.model.path).name
        title = f"{name}: {len(photos)} photos of the {photos.split} split"
        cases = find_cases(self.expert, photos, count, radius=radius, beams=beams)
        return write_cases(path, self.settings, cases, self.expert, self.cache, self.experts, title=title)
