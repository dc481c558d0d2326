"""Overhead imagery of an area as one raster: map services, STAC catalogues, files."""
