"""Synthetic towns and the renderer of their maps and street photos, shared by the demo and the benchmarks."""
