"""Refiners and re-rankers of a working directory: opened, trained and evaluated."""
