"""Ablations: variants of the settings, trained and evaluated over seeds off one cache."""
