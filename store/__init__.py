"""Geometry, the feature cache, the photo table and model folders; imports neither torch nor transformers."""
