"""Flat retrieval over cells: the baseline of the zoom, with the same encoder, photos and map."""
