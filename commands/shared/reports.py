"""Reports of encoding, training and cache maintenance as text for a terminal.

Imports the classes for type checkers only: `jzi cache` would load torch otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from jzi.store.geometry.scale import units_per_metre
from jzi.store.plain import plain, share_text
from jzi.store.printable import listed

if TYPE_CHECKING:
    from jzi.encode.detail import DetailReport
    from jzi.encode.encode_cells import IndexReport
    from jzi.encode.encode_map import MapReport
    from jzi.encode.encode_queries import PhotoReport
    from jzi.retrieve.transfer import TransferReport
    from jzi.store.cache.maintenance import MergeReport
    from jzi.store.cache.verify import VerifyReport
    from jzi.store.photos.splits import SplitInfo
    from jzi.train.experts import ExpertsReport
    from jzi.train.run import TrainReport
    from jzi.workspace.caches import CacheInfo, ModelInfo
    from jzi.workspace.describe import Info


def map_text(report: MapReport) -> str:
    """Tiles and, where they were requested, patch tokens."""
    text = f"{report.encoded} tiles encoded, {report.reused} reused, {report.nodata} without imagery"
    text += f" ({report.damaged} had been damaged)" if report.damaged else ""
    if report.tokens_bytes:
        text += f"; patch tokens of {report.tokens} tiles written"
        text += f" ({report.tokens_damaged} had been damaged)" if report.tokens_damaged else ""
        text += f", {report.tokens_bytes / 1e6:,.1f} MB in all"
    return text


def photos_text(report: PhotoReport) -> str:
    """Photos encoded and reused."""
    damaged = f" ({report.damaged} had been damaged)" if report.damaged else ""
    text = f"{report.encoded} photos encoded, {report.reused} reused{damaged}"
    if report.tokens_bytes:
        text += f"; tokens of {report.tokens} photos written"
        text += f" ({report.tokens_damaged} had been damaged)" if report.tokens_damaged else ""
        text += f", {size_text(report.tokens_bytes)} in all"
    return text


def detail_text(report: DetailReport) -> str:
    """Tiles whose tokens were encoded and reused, and their size."""
    damaged = f" ({report.damaged} had been damaged)" if report.damaged else ""
    return (
        f"{report.tokens} x {report.tokens} tokens of {report.width} features of {report.encoded} tiles encoded"
        f"{damaged}, {report.reused} reused, {size_text(report.bytes)} in all"
    )


def split_text(split: SplitInfo) -> str:
    """How photos were split, such as "split by drives (12 of them)"."""
    if split.kind == "table":
        return "split as in the table"
    if split.kind == "photo":
        what = "photo"
    elif split.kind == "block":
        what = f"map blocks of {split.block_m:g} m ({split.groups} of them)"
    else:
        gaps = "" if split.source == "column" else " that gaps in the capture times separate"
        what = f"drives{gaps} ({split.groups} of them)"
    return f"split by {what}" + (f", as {split.note}" if split.note else "")


def cells_text(report: IndexReport) -> str:
    """Cells encoded and reused, and the size of the index."""
    return (
        f"{report.encoded} cells encoded, {report.reused} reused, {report.nodata} without imagery; "
        f"{report.bytes / 1e6:.1f} MB of embeddings"
    )


def training_text(report: TrainReport) -> str:
    """What was trained, the epoch that was kept, its validation recall, and the folder."""
    done = (
        f"trained {report.epochs} of {report.total} epochs in {report.seconds:.1f} s"
        if report.epochs
        else "trained before"
    )
    recall = report.best.get("recall@40m")
    reached = "" if recall is None else f", validation recall within 40 m {share_text(recall)}"
    return f"{done}, {report.train} photos; kept epoch {report.best['epoch']:.0f}{reached}: {report.folder}"


def experts_text(report: ExpertsReport) -> str:
    """The weights of the experts, the gain of each, and which were dropped."""
    if report.fusion is None:
        return "no fusion of the experts: there is no photo with split 'val' to fit it on"
    parts = []
    for name in report.experts if len(report.experts) > 1 else ():
        weight, (gain, error) = report.fusion.weights[name], report.fusion.gains[name]
        state = f"weight {weight:.2f}" if weight else "left out"
        parts.append(f"  {name:<7} {state:<12} adds {gain:+.3f} ± {error:.3f} to the log-likelihood per photo")
    if report.fusion.spread:
        share = f"{100 * 2 * report.fusion.spread:.0f} %"
        parts.append(f"the true cell is taken to be one row off for {share} of the photos, and one column for as many")
    if report.inside:
        parts.append(
            f"photos from elsewhere: recognized with AUROC {report.inside.auroc:.2f}, of {report.inside.photos} "
            "validation photos against the same with their surroundings hidden"
        )
    else:
        parts.append("photos from elsewhere are not recognized: that needs 50 validation photos")
    fused = f"experts, fused on {report.fusion.photos} validation photos:"
    return "\n".join([fused if len(report.experts) > 1 else f"experts: {report.experts[0]}", *parts])


def transfer_text(report: TransferReport) -> str:
    """The experts, the cells, and the folder."""
    experts = ", ".join(f"{name} (weight {weight:.2f})" for name, weight in report.experts.items())
    ratio = report.cell_m / report.trained_cell_m
    other = f", trained on cells of {report.trained_cell_m:g} m" if abs(ratio - 1) > 0.1 else ""
    return f"{experts}; {report.cells} cells of {report.cell_m:g} m{other}: {report.folder}"


def experts_values(report: ExpertsReport) -> dict[str, Any]:
    """Names, weights and gains of the experts, for JSON."""
    fusion = report.fusion
    return {
        "experts": list(report.experts),
        "weights": fusion.weights if fusion else None,
        "spread": fusion.spread if fusion else None,
        "gains": {name: list(gain) for name, gain in fusion.gains.items()} if fusion else None,
        "inside": report.inside and plain(report.inside),
        "experts_seconds": report.seconds,
    }


def merge_text(report: MergeReport) -> str:
    """What was copied."""
    views = f", augmented views of {report.views} photos" if report.views else ""
    kept = f"; {report.different} photos differ, the target's were kept" if report.different else ""
    cells = f", {report.cells} cells" if report.cells else ""
    tokens = f", tokens of {report.detail} tiles" if report.detail else ""
    tokens += f", tokens of {report.tokens} photos" if report.tokens else ""
    return f"{report.tiles} tiles and {report.photos} photos copied{cells}{tokens}{views}{kept}"


def verify_text(report: VerifyReport) -> str:
    """One line for a sound cache; else a line for each problem, and what to do."""
    state = "sound" if report.sound else "not sound"
    problems = (
        ("repaired", report.repaired),
        ("metadata", report.metadata),
        ("damaged", report.damaged),
        ("lost", report.lost),
        ("missing", report.missing),
    )
    lines = [f"{report.path}: {state}, {report.chunks} chunks read"]
    lines += [f"  {kind:<8} {item}" for kind, items in problems for item in items]
    if report.metadata:
        lines.append(f"  `jzi cache verify --repair {report.path}` rewrites damaged metadata")
    if report.damaged or report.lost or report.missing:
        lines.append("  `jzi encode-map`, `jzi encode-queries`, `jzi index` encode damaged and missing entries again")
        if any("detail tokens" in item for item in (*report.lost, *report.missing)):
            lines.append("  tokens of tiles: `jzi encode-map --detail`")
        if any("tokens of" in item and "photos" in item for item in (*report.lost, *report.missing)):
            lines.append("  tokens of photos: `jzi encode-queries --tokens`")
    return "\n".join(lines)


def cache_text(cache: CacheInfo, models: Iterable[ModelInfo]) -> str:
    """Size, state and contents of a cache, and those of `models` that belong to it."""
    missing = ((cache.missing_tiles, "tiles"), (cache.missing_photos, "photos"), (cache.missing_cells, "cells"),
               (cache.missing_detail, "tiles' tokens"), (cache.missing_photo_tokens, "photos' tokens"))  # fmt: skip
    lacks = [f"{count} {kind}" for count, kind in missing if count]
    state = f"lacks {' and '.join(lacks)}" if lacks else "complete" if cache.complete else "holds no photo"
    holds = [] if cache.is_index else [f"{sum(cache.tiles.values())} tiles"]
    holds += [f"{cache.encoded_cells} cells"] if cache.encoded_cells else []
    holds += [f"tokens of {cache.detail['encoded']} tiles"] if cache.detail else []
    users = [
        f"{model.folder}{'' if model.has_map else ' (has no map of its own)'}"
        for model in models
        if cache.belongs_to(model)
    ]
    return "\n".join(
        [
            f"{cache.path}: {cache.size / 1e6:.1f} MB, {state}",
            f"  encoder  {cache.encoder.label}",
            f"  map      {cache.imagery.label if cache.imagery else 'none yet'}",
            f"  {_area_text(cache)}; {', '.join([*holds, f'{cache.photos} photos'])}",
            f"  used by  {listed(users) or 'no model here'}",
        ]
    )


def time_text(seconds: float) -> str:
    """A duration in hours, or in minutes below two hours."""
    hours = seconds / 3600
    minutes = max(1, round(seconds / 60))
    return f"{hours:.1f} hours" if hours >= 2 else f"{minutes} minute{'s' if minutes > 1 else ''}"


def size_text(size: int) -> str:
    """A number of bytes in MB, or in GB from 1 GB on."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _area_text(cache: CacheInfo) -> str:
    if cache.region is not None:
        return f"region   {cache.region.label} ({cache.region.rule} {cache.region.name})"
    pyramid = cache.pyramid
    assert pyramid is not None
    units = units_per_metre(pyramid)
    return (
        f"pyramid  {pyramid.size / units:g} m, {pyramid.levels} steps of {pyramid.grid} x {pyramid.grid}, cells of "
        f"{pyramid.cell_size / units:.2f} m"
    )


def info_text(info: Info) -> str:
    """The facts about a cache, a model or a raster, one to a line."""
    width = max(len(name) for name in info.facts)
    lines = [f"  {name.replace('_', ' '):<{width}}  {_fact_text(value)}" for name, value in info.facts.items()]
    return "\n".join([f"{info.path}: {info.kind}", *lines])


def _fact_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(f"{item:.6g}" if isinstance(item, float) else str(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
