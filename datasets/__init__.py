"""Readers of published data sets and of the layouts that they come in."""
