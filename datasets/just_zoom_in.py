"""The data set of "Just Zoom In" (Hugging Face `pcvlab/justzoomin`): download it and find its files.

The folder holds `satellite/layout.yaml` with its tiles, `streetview/images/` and one photo table per split,
`metadata/large_area_{train,val}_map.csv`. A data set of another area that was published in this layout (`jzi dataset
publish`) has that area in `area.json`, and may have a table of the test split; without that file, the area is the
published one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jzi.datasets.tiled_layout import TiledLayout
from jzi.errors import ConfigError, first_line
from jzi.store.geometry.pyramid import Pyramid, preset
from jzi.store.photos.area_file import AREA, read_area

REPOSITORY = "pcvlab/justzoomin"
#: The preset of `jzi.store.geometry.pyramid` that is the data set's area.
PRESET = "just-zoom-in-dc"


@dataclass(frozen=True)
class JustZoomIn:
    """The files of a local copy of the data set.

    Attributes:
        layout: the layout of the overhead imagery.
        area: the area.
        tables: the photo table of each split, "train" and "val", and "test" if there is one.
        photos: the folder of the photos.
    """

    layout: TiledLayout
    area: Pyramid
    tables: dict[str, Path]
    photos: Path

    @classmethod
    def read(cls, folder: Path) -> JustZoomIn:
        """Find the files in the folder of the data set.

        Raises:
            ImageryError: the layout of the imagery cannot be read.
            PyramidError: the area is damaged.
        """
        tables = {split: folder / "metadata" / f"large_area_{split}_map.csv" for split in ("train", "val", "test")}
        if not tables["test"].exists():
            del tables["test"]
        return cls(
            layout=TiledLayout.read(folder / "satellite" / "layout.yaml"),
            area=read_area(folder / AREA) if (folder / AREA).exists() else preset(PRESET),
            tables=tables,
            photos=folder / "streetview" / "images",
        )


def download(folder: Path) -> None:
    """Download the data set from the Hugging Face hub into a folder; files that exist are kept.

    Raises:
        ConfigError: it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        snapshot_download(REPOSITORY, repo_type="dataset", local_dir=folder)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ConfigError(
            f"the data set {REPOSITORY} cannot be downloaded ({first_line(error)}): run again to resume the download"
        ) from error
