"""Posteriors of experts, their fusion, and the locations of photos."""
