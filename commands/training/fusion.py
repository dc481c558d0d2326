"""`train-fusion`."""

from __future__ import annotations

from pathlib import Path

import click

from jzi.commands.shared.common import experts_option, json_option, print_result, settings_options


@click.command("train-fusion", short_help="Fit how a retriever and a zoom are fused.")
@settings_options
@click.option("--retriever", type=click.Path(path_type=Path), default="retriever", show_default=True,
              help="The retriever that has filled the region's index.")  # fmt: skip
@click.option("--zoom", "square", required=True, type=click.Path(path_type=Path), metavar="AREA",
              help="Folder of the jzi.toml of a square, with its model and a cache of its photos.")  # fmt: skip
@experts_option("Experts of the square's model to fuse.  [default: all]")
@json_option
def train_fusion(
    config_file: Path,
    overrides: tuple[str, ...],
    retriever: Path,
    square: Path,
    experts: tuple[str, ...],
    as_json: bool,
) -> None:
    """Fit the weights of a region's retriever and a square's zoom.

    Both must have encoded the photos of split val (`jzi encode-queries`), which neither was trained on. The weights are
    written beside the index; `jzi evaluate` and `jzi locate` use them with --retriever, --zoom and --fuse.
    """
    from jzi.workspace.setup.settings_file import load_region

    settings = load_region(config_file, overrides, training=())
    from jzi.store.plain import plain
    from jzi.workspace.models.hub import local_folder
    from jzi.workspace.regions.region_index import fusion_file
    from jzi.workspace.regions.zoom_fusion import ZoomedRegion

    file = fusion_file(settings)
    fitted = ZoomedRegion.open(settings, local_folder(retriever), square, experts).fit()
    lines = [f"weights fitted on {fitted.photos} photos: {file}"]
    for name, weight in fitted.weights.items():
        gain, error = fitted.gains[name]
        dropped = ", dropped: its gain is not clear of zero" if weight == 0 else ""
        lines.append(f"  {name:<6} {weight:.2f}  adds {gain:.3f} ± {error:.3f} nats per photo to the other{dropped}")
    print_result(as_json, {**plain(fitted), "file": str(file)}, "\n".join(lines))
