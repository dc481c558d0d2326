"""Settings of training. Nothing here imports torch, so commands that only read settings start quickly."""
