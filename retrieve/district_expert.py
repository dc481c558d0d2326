"""State-wide retrieval in the probable tiles of another expert, such as a zoom's; no other cells are read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import ConfigError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert
from jzi.locate.joint.zoomed import ZoomedExpert, tiles_of
from jzi.locate.posterior import Posterior
from jzi.locate.priors.prior import PriorExpert
from jzi.retrieve.bands_expert import BandsExpert


class DistrictExpert(ZoomedExpert):
    """Retrieval where another expert finds a photo probable; see `BandsExpert.posterior_within`.

    The other expert is restricted to its tiles in the region: a photo is known to be of the region, of which its square
    may contain only a part.

    Args:
        cells: retrieval among the cells of the region.
        tiles: an expert on a map that overlaps the region, such as a zoom.

    Raises:
        ConfigError: no tile with imagery lies in the region.
    """

    name = "retrieval"
    cells: BandsExpert

    def __init__(self, cells: BandsExpert, tiles: Expert) -> None:
        super().__init__(cells, tiles)
        self._coarse = PriorExpert(tiles, self.inside.astype(np.float32))

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The posterior over the cells of each photo's district; the probability of other tiles is the residual.

        Args:
            query: (photo, feature) embeddings by the encoder of the tiles, followed by those by that of retrieval.
            options: `beams` is for the expert on the tiles; for the estimate "greedy", the most probable cell.
        """
        of_tiles, of_cells = self.split(query)
        coarse = self._coarse.posterior(of_tiles, LocateOptions(beams=options.beams))
        posterior = self.cells.posterior_within(of_cells, coarse)
        return posterior.top(1) if options.estimate == "greedy" else posterior

    def restricted(self, cell_mask: NDArray[np.bool_]) -> DistrictExpert:
        """The same for some of the cells, and the tiles that contain them; see `BandsExpert.restricted`.

        Args:
            cell_mask: (row, col) the cells.

        Raises:
            ConfigError: no tile with imagery contains any.
        """
        if not (tiles_of(self.tiles.area, self.area, self.cell_mask & cell_mask) & self.tiles.cell_mask).any():
            raise ConfigError(
                "the prior lies outside of the zoom's map, which bounds the search: give a prior on that map, or leave "
                "out --zoom"
            )
        return DistrictExpert(self.cells.restricted(cell_mask), self.tiles)

    def uncalibrated(self) -> DistrictExpert | None:
        """The same with uncalibrated retrieval."""
        cells = self.cells.uncalibrated()
        return None if cells is None else DistrictExpert(cells, self.tiles)
