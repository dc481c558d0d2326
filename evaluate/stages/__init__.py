"""Evaluation of stages: what refining and re-ranking change."""
