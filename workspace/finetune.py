"""Fine-tune an encoder on the areas of one or several jzi.toml."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.errors import ConfigError
from jzi.workspace.inputs import load_encoder, open_imagery, open_photo_table
from jzi.workspace.setup.settings import Settings

if TYPE_CHECKING:
    from jzi.store.photos.photo_table import Rejected
    from jzi.train.encoders.encoder import EncoderTrainingReport


def finetune_areas(areas: Sequence[Settings], output: Path) -> tuple[EncoderTrainingReport, tuple[Rejected, ...]]:
    """Fine-tune an encoder on one or several areas.

    Args:
        areas: settings of each area; encoder, decoder and training follow those of the first.
        output: the model folder to write.

    Returns:
        The report, and the photos that cannot be used.

    Raises:
        ConfigError: the areas differ in grid or levels, or an override of decoder.* contradicts finetune.init.
        JziError: as `jzi.train.encoders.finetune.finetune`.
    """
    settings = areas[0]
    grids = {(each.pyramid.grid, each.pyramid.levels) for each in areas}
    if len(grids) > 1:
        raise ConfigError(
            "areas that are trained on together must have the same pyramid.grid and pyramid.levels, not "
            + " and ".join(f"{grid} and {levels}" for grid, levels in sorted(grids))
        )
    tables = [open_photo_table(each).inside(each.pyramid) for each in areas]
    from jzi.decode.model import ZoomModel
    from jzi.train.encoders.finetune import finetune
    from jzi.train.zoom import check_overrides

    init = settings.finetune.init
    start = ZoomModel.load(settings.path(init)) if init else None
    check_overrides(settings.decoder, settings.overridden, start, "finetune.init")
    with contextlib.ExitStack() as stack:
        maps = [stack.enter_context(open_imagery(each)) for each in areas]
        report = finetune(
            list(zip(maps, tables, strict=True)),
            load_encoder(settings),
            output,
            settings.decoder,
            settings.finetune,
            start=start,
            settings=settings.to_toml(),
        )
    return report, tuple(row for table in tables for row in table.rejected)
