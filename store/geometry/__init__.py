"""Geometries of cells: square pyramids, bands along parallels, Web Mercator, and the regions of them."""
