"""Metrics, calibration and published figures: one protocol for everything that locates."""
