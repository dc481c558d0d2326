"""What the feature cache and model folders hold: embeddings and tokens of tiles, cells and photos."""
