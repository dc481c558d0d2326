"""Ablations: variants of the settings, trained and evaluated from one cache with several seeds."""
