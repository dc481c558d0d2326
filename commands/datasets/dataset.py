"""`jzi dataset`: photos and imagery of an area of one's own, as a data set."""

from __future__ import annotations

import click

from jzi.commands.datasets.dataset_filter import filter_command
from jzi.commands.datasets.dataset_imagery import imagery_command
from jzi.commands.datasets.dataset_import import import_command
from jzi.commands.datasets.dataset_mapillary import mapillary_command
from jzi.commands.datasets.dataset_publish import card_command, publish_command, split_command
from jzi.commands.shared.common import Suggesting


@click.group("dataset", cls=Suggesting, short_help="Build a data set of an area.")
def dataset_group() -> None:
    """Build a data set of an area: photos, filters, imagery, splits, data card.

    \b
    jzi dataset mapillary --bbox ... -o photos/    or: filter MY-PHOTOS -o photos/, import opensfm DIR -o photos/
    jzi dataset imagery ... -o map.vrt
    jzi dataset split photos/
    jzi dataset card photos/
    jzi init --map map.vrt --queries photos/photos.csv
    """


for command in (
    mapillary_command,
    filter_command,
    import_command,
    imagery_command,
    split_command,
    card_command,
    publish_command,
):
    dataset_group.add_command(command)
