"""Evaluation of experts: metrics, calibration and published results."""
