"""Flat retrieval over cells: what the zoom is compared with, on the same encoder, photos and map."""
