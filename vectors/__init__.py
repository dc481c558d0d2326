"""Nearest-neighbour search over the vectors of cells, which may be more than memory holds."""
