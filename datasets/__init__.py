"""Readers of published data sets and their file layouts."""
